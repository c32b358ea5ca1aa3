"""Which completions of a group give the same answer, and how many right answers a prompt has."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from maxent_grpo.tasks.answers import READ_CHARACTERS, extract_answer, last_boxed
from maxent_grpo.tasks.registry import TASKS

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def answer_string(text: str) -> str | None:
    """The content of the last balanced ``\\boxed{…}``, else of the last ``<answer>…</answer>``, blanks collapsed.

    None where there is neither, or nothing in it.
    """
    tail = text[-READ_CHARACTERS:]
    found = last_boxed(tail)
    if found is None:
        tagged = _TAGGED.findall(tail)
        found = tagged[-1] if tagged else ""
    return " ".join(found.split()) or None


def answer_clusters(texts: Sequence[str], columns: Mapping[str, Any]) -> list[int]:
    """A number per completion of a group, equal where the answers are the same string.

    A completion without an answer is a cluster of its own. Rows of a procedural task are read the way that the task
    reads them: a short plain line is an answer, too.
    """
    read = extract_answer if columns.get("task") in TASKS else answer_string
    numbers: dict[str, int] = {}
    clusters = []
    for text in texts:
        answer = read(text)
        clusters.append(len(numbers) if answer is None else numbers.setdefault(answer, len(numbers)))
        if answer is None:
            numbers[f"\0{len(numbers)}"] = len(numbers)  # no extracted answer starts with NUL
    return clusters


def mode_count(clusters: Sequence[int], right: Sequence[bool], columns: Mapping[str, Any]) -> int:
    """Distinct right answers of a prompt, at least 1: those of its ``modes`` column, else those found in the group."""
    if "modes" in columns:
        return max(1, len(columns["modes"]))
    return max(1, len({cluster for cluster, ok in zip(clusters, right, strict=True) if ok}))
