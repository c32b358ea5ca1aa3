"""Is a completion's final answer the gold answer?

`grade` takes the answer out of a completion and compares it; `equivalent` compares two answers. Both are pure
functions of their arguments: no state, no randomness, no evaluation of the model's text as code, and bounded work. From
the cheapest comparison to the dearest: spelling, numbers, dates, words, and a parser with exact and 60-digit values.
What that parser cannot read is right only if it is the gold sign by sign.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from math_answers.comparison import same
from math_answers.evaluation import ExhaustedError, start_budget
from math_answers.expressions import Expression, RefusedError, Symbol, UnreadableError, substituted, symbols
from math_answers.extraction import boxes, extract
from math_answers.parser import parse
from math_answers.policy import GRADER_VERSION, GraderPolicy
from math_answers.spelling import respell
from math_answers.tokens import has_thousands, tokenised
from math_answers.words import is_verbal, same_choice, same_moment, split_qualifiers, synonym, words

__all__ = ["GRADER_VERSION", "GraderPolicy", "Verdict", "equivalent", "grade", "preload"]

MAX_ANSWER_CHARS = 4000
"""A longer answer is only compared as text: no gold is that long."""

Gold = str | int | float | Sequence[str | int | float]

_NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d*))?", re.ASCII)
_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
_MAX_DIGITS = 1000
_MAY_BE_WORDS = re.compile(r"[A-Za-z]{2}")
_OPEN_BOX = re.compile(r"\\+(?:boxed|fbox)\s*\{")  # never closed: the rest is the answer


@dataclass(frozen=True)
class Verdict:
    """What the grader says about one completion or answer."""

    right: bool
    extracted: str | None  # the answer as found in the text; None if there is none
    extractor: str | None  # which extractor of the policy found it
    reason: str
    """How it was decided: ``no_answer``, ``identical``, ``number``, ``moment``, ``choice``, ``words``, ``expression``,
    ``unreadable`` (and so not accepted), ``too_long``, ``undecided`` (it would have taken too much work)."""


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
    """Import mpmath now (a second on a busy machine), so that no single verdict pays for it."""
    equivalent(r"\sqrt{2}", r"\sqrt{3}", GraderPolicy())


def _golds(gold: Gold, policy: GraderPolicy) -> list[str]:
    if isinstance(gold, str):
        text = gold.rpartition("####")[2]
        return [_gold_in_boxes(text) or _unboxed(text, policy)] if text.strip() else []
    if isinstance(gold, Sequence):
        texts = [text for entry in gold for text in _golds(entry, policy)]
        return [" , ".join(texts)] if policy.gold_list == "all" and texts else texts
    return [repr(gold) if isinstance(gold, float) else str(gold)]


def _gold_in_boxes(gold: str) -> str | None:
    """The boxes of a gold that is nothing but several of them, with a few words between."""
    found = boxes(gold) if gold.count("boxed") > 1 else []
    if len(found) < 2:
        return None
    ends = [0, *(end for _, end, _ in found)]
    between = [gold[end:start] for end, (start, _, _) in zip(ends, found, strict=False)] + [
        gold[found[-1][1] :]
    ]
    if any(len(words_between) > 60 or "." in words_between for words_between in between):
        return None
    return " , ".join(content for _, _, content in found)


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
    for reason, verdict in (("moment", same_moment(ours, theirs)), ("choice", same_choice(ours, theirs))):
        if verdict is not None:
            return verdict, reason
    if (verdict := _same_words(ours, theirs)) is not None:
        return verdict, "words"
    ours, theirs = synonym(ours) or ours, synonym(theirs) or theirs
    start_budget()
    try:
        verdict = _compare_qualified(ours, theirs, policy)
    except ExhaustedError:
        return False, "undecided"
    if verdict is not None:
        return verdict, "expression"
    if _same_signs(ours, theirs):
        return True, "identical"
    return False, "unreadable"


def _same_words(pred: str, gold: str) -> bool | None:
    verbal = is_verbal(pred), is_verbal(gold)
    if not any(verbal):
        return None
    if words(pred) == words(gold):
        return True
    if any(synonym(side) for side in (pred, gold)) and not all(verbal):
        return None
    return (
        False
        if all(verbal)
        or (verbal[1] and not _MAY_BE_WORDS.search(pred))
        or (verbal[0] and _number(gold) is not None)
        else None
    )


def _same_signs(pred: str, gold: str) -> bool:
    """Whether two answers that could not be compared are the same, sign by sign; spaces and alternative names of
    commands mean nothing."""
    try:
        ours, theirs = (tokenised(side, thousands=False) for side in (pred, gold))
    except UnreadableError:
        return False
    return [token.text.casefold() if token.kind == "text" else token.text for token in ours] == [
        token.text.casefold() if token.kind == "text" else token.text for token in theirs
    ]


def _compare_qualified(pred: str, gold: str, policy: GraderPolicy) -> bool | None:
    """Compare answers apart from what they are said to hold for, which one side may leave out."""
    (ours, our_qualifiers), (theirs, their_qualifiers) = split_qualifiers(pred), split_qualifiers(gold)
    if our_qualifiers and their_qualifiers:
        agreeing = len(our_qualifiers) == len(their_qualifiers) and all(
            p.agrees(g) for p, g in zip(our_qualifiers, their_qualifiers, strict=True)
        )
        return _compare_expressions(ours, theirs, policy) if agreeing else False
    parameter = next((q.name for q in our_qualifiers if q.some or q.domain == "Z"), "")
    return _compare_expressions(ours, theirs, policy, parameter)


def _compare_expressions(pred: str, gold: str, policy: GraderPolicy, parameter: str = "") -> bool | None:
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
            others = (
                [name for name in symbols(g) - symbols(p) if len(name) == 1]
                if parameter in symbols(p)
                else []
            )
            if verdict is False and len(others) == 1:
                verdict = same(substituted(p, parameter, Symbol(others[0])), g, policy)
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
