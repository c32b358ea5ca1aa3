"""Rewards that are simple rules over the text. All are linear in its length, so that they may run in the trainer;
those that count words or marks read its first `READ_CHARACTERS`.

Every function has the signature ``(completions, **columns) -> list[float]``: N texts, or N chats of which the first
message counts, and the dataset columns that it names, N entries each.
"""

import re
from collections.abc import Sequence
from typing import Any

from maxent_grpo.rewards.completions import Completion, between, text_of
from maxent_grpo.rewards.math import gold_answers
from maxent_grpo.tasks.answers import READ_CHARACTERS
from maxent_grpo.tasks.countdown import Countdown

_STEP = re.compile(r"(Step \d+:|^\d+\.|\n-|\n\*|First,|Second,|Next,|Finally,)")
_STEPS_FOR_ALL = 3
_BOXED = re.compile(r"\\boxed\s*\{|\\fbox\s*\{")


def format_reward(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """1.0 where a completion has the form below, else 0.0 (``format`` in Open-R1, `rewards.py`).

    ``<think>``, newline, anything, newline, ``</think>``, newline, ``<answer>``, newline, anything, newline,
    ``</answer>`` and the end of the line, from the first character on.
    """
    return [float(_formatted(text_of(completion)) is not None) for completion in completions]


def tag_count(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """A quarter for each of four tags that stands there exactly once with its newlines (Open-R1's ``tag_count``).

    The tags: ``<think>\\n``, ``\\n</think>\\n``, ``\\n<answer>\\n``, ``\\n</answer>``. Values 0, 0.25, 0.5, 0.75, 1.
    """
    tags = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
    return [sum(0.25 for tag in tags if text_of(c).count(tag) == 1) for c in completions]


def reasoning_steps(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """A third for each mark of a step, at most 1.0 (Open-R1's ``reasoning_steps``).

    Marks: ``Step 1:``, ``1.`` at the very start, ``-`` or ``*`` at the start of a line but the first, and the words
    ``First,`` ``Second,`` ``Next,`` ``Finally,``.
    """
    return [
        min(1.0, _count(_STEP, text_of(c)[:READ_CHARACTERS], _STEPS_FOR_ALL) / _STEPS_FOR_ALL)
        for c in completions
    ]


def repetition_penalty(
    completions: Sequence[Completion],
    repetition_n_grams: int = 3,
    repetition_max_penalty: float = -1.0,
    **columns: Any,
) -> list[float]:
    """``(1 − different n-grams / all n-grams) · repetition_max_penalty``; 0.0 where there are fewer than n words.

    Words are separated by white space and compared in lower case. From Yeo et al. 2025, arXiv:2502.03373, appendix B,
    as in Open-R1's ``repetition_penalty``. Values from ``repetition_max_penalty`` (≤ 0) to 0.
    """
    return [
        _repetition(text_of(c)[:READ_CHARACTERS], repetition_n_grams, repetition_max_penalty)
        for c in completions
    ]


def missing_boxed_answer_penalty_math(
    completions: Sequence[Completion], missing_boxed_answer_penalty: float = -0.05, **columns: Any
) -> list[float]:
    """``missing_boxed_answer_penalty`` (−0.05) where the text opens no ``\\boxed{`` or ``\\fbox{``, else 0.0."""
    return [0.0 if _BOXED.search(text_of(c)) else missing_boxed_answer_penalty for c in completions]


def gsm8k(completions: Sequence[Completion], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """1.0 for the right number, 0.1 for any other non-empty ``<answer>``, else 0.0; ``None`` without a gold.

    TorchRL's `GSM8KRewardParser` with its defaults ``correct_reward=1.0`` and ``format_reward=0.1``: the body of the
    first ``<answer>…</answer>`` is compared with what follows ``####`` in the gold, after ``,``, ``$``, ``%``, a full
    stop at the end and needless decimal zeros are dropped on both sides.
    """
    return [_gsm8k(text_of(c), gold) for c, gold in zip(completions, answer, strict=True)]


def countdown(
    completions: Sequence[Completion],
    target: Sequence[int],
    nums: Sequence[Sequence[int]] | None = None,
    numbers: Sequence[Sequence[int]] | None = None,
    **columns: Any,
) -> list[float]:
    """1.0 where the answer uses each number once and makes the target, else 0.0.

    For data with a column ``target`` and a column ``nums`` or ``numbers``, such as Jiayi-Pan/Countdown-Tasks-3to4;
    the rows of ``task:countdown`` are scored by ``task_reward``. The answer is the last ``\\boxed{}``, else the first
    ``<answer>``, else the completion itself where it is one short line; arithmetic is exact.
    """
    given = nums if nums is not None else numbers
    if given is None:
        raise TypeError("countdown needs a column nums or numbers")
    return [
        _countdown(text_of(c), list(row), goal)
        for c, row, goal in zip(completions, given, target, strict=True)
    ]


def code_format(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """1.0 where a completion has the form of `format_reward` with a fenced Python block in its answer, else 0.0.

    Open-R1's ``code_format`` for Python.
    """
    answers = [_formatted(text_of(completion)) for completion in completions]
    return [
        float(answer is not None and between(answer, "```python", "```") is not None) for answer in answers
    ]


def _formatted(text: str) -> str | None:
    """The answer of a text in the form of `format_reward`. Says what Open-R1's pattern says, in linear time."""
    opening, middle, closing = "<think>\n", "\n</think>\n<answer>\n", "\n</answer>"
    if not text.startswith(opening):
        return None
    begin = text.find(middle, len(opening))
    if begin < 0:
        return None
    begin += len(middle)
    end = text.find(closing, begin)
    while end >= 0 and not text.startswith("\n", end + len(closing)) and end + len(closing) < len(text):
        end = text.find(closing, end + 1)
    return text[begin:end] if end >= 0 else None


def _count(pattern: re.Pattern[str], text: str, enough: int) -> int:
    found = 0
    for _ in pattern.finditer(text):
        found += 1
        if found == enough:
            break
    return found


def _repetition(text: str, n: int, max_penalty: float) -> float:
    words = text.lower().split()
    if len(words) < n:
        return 0.0
    ngrams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return (1 - len(set(ngrams)) / len(ngrams)) * max_penalty


def _gsm8k(text: str, gold: Any) -> float | None:
    golds = gold_answers(gold)
    if not golds:
        return None
    given = (between(text, "<answer>", "</answer>") or "").strip()
    if not given:
        return 0.0
    return 1.0 if _plain_number(given) in {_plain_number(gold) for gold in golds} else 0.1


def _plain_number(answer: str) -> str:
    answer = answer.strip().replace(",", "").replace("$", "").replace("%", "").rstrip(".")
    return answer.rstrip("0").rstrip(".") if "." in answer else answer


def _countdown(text: str, numbers: list[int], target: int) -> float:
    tagged = between(text, "<answer>", "</answer>")
    response = tagged.strip() if tagged is not None and not _BOXED.search(text) else text
    return float(Countdown().grade(response, {"numbers": numbers, "target": target, "modes": "flat"}).correct)
