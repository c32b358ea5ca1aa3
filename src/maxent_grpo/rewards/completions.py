"""The text of a completion."""

from collections.abc import Mapping, Sequence
from typing import Any

Completion = str | Sequence[Mapping[str, Any]]
"""A completion as text, or as the chat messages that rewards get for conversational prompts."""


def text_of(completion: Completion) -> str:
    """The completion's text; of a chat the first message's, as TRL's own rewards read it."""
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def between(text: str, opening: str, closing: str) -> str | None:
    """What stands between the first ``opening`` and the first ``closing`` after it, or ``None``. Linear in the text."""
    _, found, rest = text.partition(opening)
    body, closed, _ = rest.partition(closing)
    return body if found and closed else None


def blocks(text: str, opening: str, closing: str) -> list[str]:
    """All such parts from left to right, as a non-greedy pattern finds them. Linear in the text."""
    found: list[str] = []
    start = text.find(opening)
    while start >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            break
        found.append(text[start + len(opening) : end])
        start = text.find(opening, end + len(closing))
    return found
