"""Where the final answer stands in a completion. Every search here is linear in the length of the text.

What follows the thought decides: `reply` is the only part of a completion in which an answer is looked for.
"""

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from math_answers.policy import GraderPolicy

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BARE_BOX = re.compile(r"[^\s{}$,;.]+")
_TAG_OPEN = re.compile(r"<answer>", re.IGNORECASE)
_TAG_CLOSE = re.compile(r"</answer>", re.IGNORECASE)
_PHRASE = re.compile(r"(?:final\s+answer\s*(?:is|:)|answer\s*(?:is|are|:|=)|####)\s*:?\s*", re.IGNORECASE)
_END_OF_PHRASE = re.compile(r"\n|<\||\.(?:\s|\Z)(?=\s*(?:[A-Z]|I\b|\Z))")
_DELIMITER = re.compile(r"\\[$()\[\]]|\$\$?")
_CLOSED_BY = {"$": "$", "$$": "$$", r"\(": r"\)", r"\[": r"\]"}
_NUMBER = re.compile(
    r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d+)?(?:/\d+)?%?"
)
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.&]|\\[()\[\],;!]|\\q?quad|\\text\s*\{[^{}]{0,8}\}|\\\\|and|or"
    r"|[A-Za-z](?:_\{?\w{1,3}\}?|\([A-Za-z]\))?\s*=)*"
)
_JOINS_BOXES = re.compile(r",|;|&|=|and|or")  # white space alone does not: the later box is another try
_THOUGHT = re.compile(
    r"<(/?)(?:\w{1,12}:)?(?:think|thinking|thought|reasoning)>|\[(/?)THINK\]|◁(/?)think▷|<\|(/?)(?:think|thinking)\|>",
    re.IGNORECASE,
)
_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]{0,40}<\|message\|>")
_MAX_BETWEEN = 80
_MAX_BOXES = 64  # of one answer


@dataclass(frozen=True)
class Extracted:
    """An answer and the extractor that found it."""

    answer: str
    extractor: str


def reply(text: str) -> str | None:
    """What follows the thought: all of the text where there is none, and ``None`` where the last one is not finished.

    A thought stands between ``<think>`` and ``</think>`` (also ``thinking``, ``[THINK]``, ``◁think▷``), or before a
    ``</think>`` that closes what the prompt's template opened. In gpt-oss's channels the reply is the final one.
    """
    channel = _last(_FINAL_CHANNEL, text)
    if channel is not None:
        return text[channel.end() :] if channel[1] == "final" else None
    tag = _last(_THOUGHT, text)
    if tag is None:
        return text
    return text[tag.end() :] if any(tag.groups()) else None


def extract(text: str, policy: GraderPolicy) -> Extracted | None:
    """The final answer in the text's `reply`, by the first extractor of the policy that finds one."""
    behind = reply(text)
    if behind is None:
        return None
    text = behind
    for name in policy.extraction:
        answer = _EXTRACTORS[name](text, policy)
        if answer is not None and answer.strip():
            return Extracted(answer.strip(), name)
    return None


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Start, end and content of all outermost ``\boxed{…}``, in order.

    A box without braces holds the next word, ``\boxed 5``. A box that is never closed is none.
    """
    found: list[tuple[int, int, str]] = []
    closing: dict[int, int] | None = None
    at = 0
    while box := _BOX.search(text, at):
        start, at = box.start(), box.end()
        if at < len(text) and text[at] == "{":
            closing = _closing_braces(text) if closing is None else closing
            end = closing.get(at)
            if end is None:
                continue
            found.append((start, end + 1, text[at + 1 : end]))
            at = end + 1
        elif bare := _BARE_BOX.match(text, at):
            found.append((start, bare.end(), bare[0]))
            at = bare.end()
    return found


_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


def _closing_braces(text: str) -> dict[int, int]:
    r"""Each opening brace's partner; ``\{`` and ``\}`` are no braces."""
    partner: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACES.finditer(text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            partner[opened.pop()] = brace.start()
    return partner


def _boxed(text: str, policy: GraderPolicy) -> str | None:
    found = [box for box in boxes(text) if box[2].strip()]
    if not found:
        return None
    chosen = [found[-1]]
    if policy.multiple_boxed == "join":
        for box in found[-2:-_MAX_BOXES:-1]:
            between = text[box[1] : chosen[0][0]]
            if len(between) > _MAX_BETWEEN or not _BETWEEN_BOXES.fullmatch(between):
                break
            if not _JOINS_BOXES.search(between):
                break
            chosen.insert(0, box)
    contents = list(dict.fromkeys(content for _, _, content in chosen))
    return contents[0] if len(contents) == 1 else " , ".join(contents)


def tagged(text: str) -> str | None:
    """What stands between the last ``<answer>`` and its ``</answer>``; ``None`` if that is missing."""
    opening = _last(_TAG_OPEN, text)
    closing = _TAG_CLOSE.search(text, opening.end()) if opening else None
    return text[opening.end() : closing.start()] if opening and closing else None


def _answer_tag(text: str, policy: GraderPolicy) -> str | None:
    body = tagged(text)
    return None if body is None else _boxed(body, policy) or body


def _last_line(text: str, policy: GraderPolicy) -> str | None:
    lines = text.strip().rsplit("\n", 1)
    return lines[-1] or None


def _phrase(text: str, policy: GraderPolicy) -> str | None:
    phrase = _last(_PHRASE, text)
    if phrase is None:
        return None
    rest = text[phrase.end() : phrase.end() + 2000]
    end = _END_OF_PHRASE.search(rest)
    rest = rest[: end.start()] if end else rest
    return _boxed(rest, policy) or _math(rest, policy) or rest


def _math(text: str, policy: GraderPolicy) -> str | None:
    """The last formula that is closed and not blank."""
    last: str | None = None
    opening: re.Match[str] | None = None
    for delimiter in _DELIMITER.finditer(text):
        if opening is None or (delimiter[0] in _CLOSED_BY and "$" not in delimiter[0]):
            opening = delimiter if delimiter[0] in _CLOSED_BY else None
        elif delimiter[0] == _CLOSED_BY[opening[0]]:
            formula = text[opening.end() : delimiter.start()]
            last = formula if formula.strip() else last
            opening = None
    return last


def _last_number(text: str, policy: GraderPolicy) -> str | None:
    number = _last(_NUMBER, text)
    return None if number is None else number[0]


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    matches = deque(pattern.finditer(text), maxlen=1)
    return matches[0] if matches else None


_EXTRACTORS: dict[str, Callable[[str, GraderPolicy], str | None]] = {
    "boxed": _boxed,
    "answer_tag": _answer_tag,
    "phrase": _phrase,
    "math": _math,
    "last_number": _last_number,
    "last_line": _last_line,
    "whole": lambda text, policy: text,
}
