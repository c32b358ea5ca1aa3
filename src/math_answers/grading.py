"""Is a completion's final answer the gold answer?

`grade` takes the answer out of a completion and compares it; `equivalent` compares two answers. Both are pure
functions of their arguments: no state, no randomness, no evaluation of the model's text as code. From the
cheapest comparison to the dearest: spelling, numbers, words, own parser with exact and 40-digit values, and
math-verify for what that parser cannot read.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from math_answers import symbolic
from math_answers.comparison import same
from math_answers.expressions import Expression, RefusedError, UnreadableError
from math_answers.extraction import boxes, extract
from math_answers.parser import parse
from math_answers.policy import GRADER_VERSION, GraderPolicy
from math_answers.spelling import is_verbal, respell, words
from math_answers.tokens import has_thousands

__all__ = ["GRADER_VERSION", "GraderPolicy", "Verdict", "equivalent", "grade", "preload"]

MAX_ANSWER_CHARS = 4000
"""A longer answer is only compared as text: no gold is that long."""

Gold = str | int | float | Sequence[str | int | float]

_NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d*))?", re.ASCII)
_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
_MAX_DIGITS = 1000
_OPEN_BOX = re.compile(r"\\+(?:boxed|fbox)\s*\{")  # never closed: the rest is the answer
_TIME = re.compile(
    r"(?P<hour>\d{1,2})\s*:\s*(?P<minute>(?P<padded>0\d)|[1-5]\d)"
    r"\s*(?:\\text\s*\{\s*)?(?:(?P<half>[ap])\.?\s*m)?\.?\s*\}?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Verdict:
    """What the grader says about one completion or answer."""

    right: bool
    extracted: str | None  # the answer as found in the text; None if there is none
    extractor: str | None  # which extractor of the policy found it
    reason: str
    """How it was decided: ``no_answer``, ``identical``, ``number``, ``time``, ``words``, ``expression``, ``symbolic``,
    ``unreadable`` (and so not accepted), ``too_long``."""


def grade(text: str, gold: Gold, policy: GraderPolicy | None = None) -> Verdict:
    """Take the final answer out of ``text`` and compare it with ``gold``.

    Args:
        text: a completion.
        gold: the right answer, in TeX or plain text, a number, or a list (`GraderPolicy.gold_list`). A gold
            with a ``\\boxed{…}`` in it means what is in the box; after a GSM8K solution's ``####`` only the
            final answer counts.
        policy: the conventions; defaults if none is given.
    """
    policy = policy or GraderPolicy()
    found = extract(text, policy)
    if found is None:
        return Verdict(False, None, None, "no_answer")
    verdict = equivalent(found.answer, gold, policy)
    return Verdict(verdict.right, found.answer, found.extractor, verdict.reason)


def equivalent(pred: str, gold: Gold, policy: GraderPolicy | None = None) -> Verdict:
    """Whether the final answer ``pred`` is ``gold``. A ``\\boxed{…}`` in ``pred`` is taken out of its box."""
    policy = policy or GraderPolicy()
    alternatives = _golds(gold, policy)
    answer = _unboxed(pred, policy)
    right, reason = False, "no_gold"
    for alternative in alternatives:
        right, reason = _compare(answer, alternative, policy)
        if right:
            break
    return Verdict(right, pred, None, reason)


def preload() -> None:
    """Import math-verify and mpmath now (seconds on a busy machine), so that no single verdict pays for it."""
    equivalent(r"\sqrt{2}", r"\sqrt{3}", GraderPolicy())
    symbolic.preload()


def _golds(gold: Gold, policy: GraderPolicy) -> list[str]:
    if isinstance(gold, str):
        text = gold.rpartition("####")[2]
        return [_unboxed(text, policy)] if text.strip() else []
    if isinstance(gold, Sequence):
        texts = [text for entry in gold for text in _golds(entry, policy)]
        return [" , ".join(texts)] if policy.gold_list == "all" and texts else texts
    return [repr(gold) if isinstance(gold, float) else str(gold)]


def _unboxed(answer: str, policy: GraderPolicy) -> str:
    if "boxed" not in answer and "fbox" not in answer:
        return answer
    found = boxes(answer)
    if not found:
        return _OPEN_BOX.sub("", answer)
    outside = answer[: found[0][0]] + answer[found[-1][1] :]
    if len(found) == 1 and not outside.strip(" \n$.\\()[]"):
        return found[0][2]
    boxed = extract(answer, GraderPolicy(extraction=("boxed",), multiple_boxed=policy.multiple_boxed))
    return boxed.answer if boxed else answer


def _compare(pred: str, gold: str, policy: GraderPolicy) -> tuple[bool, str]:
    if pred.strip() == gold.strip():
        return True, "identical"
    if max(len(pred), len(gold)) > MAX_ANSWER_CHARS:
        return False, "too_long"
    ours, theirs = respell(pred), respell(gold)
    if not ours or not theirs:
        return False, "no_answer"
    if _squeezed(ours) == _squeezed(theirs):
        return True, "identical"
    numbers = _number(ours), _number(theirs)
    if numbers[0] is not None and numbers[1] is not None and policy.relative_tolerance == 0:
        if numbers[0] == numbers[1]:
            return True, "number"
        if max(len(ours), len(theirs)) < 12 and "," not in ours + theirs:  # no float noise, one reading
            return False, "number"
    times = _TIME.fullmatch(ours), _TIME.fullmatch(theirs)
    if times[0] and times[1] and any(time["padded"] or time["half"] for time in times if time):
        return _same_time(times[0], times[1]), "time"
    if words(ours) == words(theirs) and (is_verbal(theirs) or is_verbal(ours)):
        return True, "words"
    if is_verbal(theirs) or (is_verbal(ours) and numbers[1] is not None):
        return False, "words"
    verdict = _compare_expressions(ours, theirs, policy)
    if verdict is not None:
        return verdict, "expression"
    if policy.symbolic and not _one_is_equation(ours, theirs):
        verdict = symbolic.equivalent(ours, theirs)
        if verdict is not None:
            return verdict, "symbolic"
    return False, "unreadable"


def _compare_expressions(pred: str, gold: str, policy: GraderPolicy) -> bool | None:
    """Compare all readings: "1,234" is a number or two answers. Two numbers are never both read as lists."""
    try:
        ours = _readings(pred)
    except RefusedError:
        return False
    try:
        theirs = _readings(gold)
    except RefusedError:
        theirs = []
    undecided = not ours or not theirs
    for i, p in enumerate(ours):
        for j, g in enumerate(theirs):
            if i == j == 1:
                continue
            verdict = same(p, g, policy)
            if verdict:
                return True
            undecided |= verdict is None
    return None if undecided else False


def _readings(spelled: str) -> list[Expression]:
    readings = []
    for thousands in (True, False) if has_thousands(spelled) else (True,):
        try:
            readings.append(parse(spelled, thousands))
        except RefusedError:
            raise
        except UnreadableError:
            continue
    return readings


def _one_is_equation(pred: str, gold: str) -> bool:
    """A number never stands for an equation, whatever a computer algebra system solves."""
    return ("=" in gold) != ("=" in pred)


def _same_time(pred: re.Match[str], gold: re.Match[str]) -> bool:
    """12:00 is no ratio. Which half of the day may be left out, but not be wrong."""
    halves = {time["half"].lower() for time in (pred, gold) if time["half"]}
    return int(pred["hour"]) == int(gold["hour"]) and pred["minute"] == gold["minute"] and len(halves) < 2


def _squeezed(spelled: str) -> str:
    """Without spaces, but for those between digits: "1 2" is not 12."""
    return _SPACE.sub("", spelled)


def _number(spelled: str) -> Fraction | None:
    match = _NUMBER.fullmatch(spelled)
    if match is None or not (match[2] or match[3]) or len(spelled) > _MAX_DIGITS:
        return None
    fraction = match[3] or ""
    value = Fraction(int((match[2].replace(",", "") or "0") + fraction), 10 ** len(fraction))
    return -value if match[1] == "-" else value
