"""math-verify (Hugging Face, Apache-2.0) as the last resort, behind guards.

Its parser builds sympy objects, and sympy would try to compute 10^(10^10). What is handed over is therefore
short, shallow and free of towers; its own alarms are off, because the processes that grade have deadlines.
"""

import functools
import logging
import re
from typing import Any

MAX_CHARS = 300
_MAX_DEPTH = 12
_MAX_DIGITS = 30
_LONG_NUMBER = re.compile(rf"\d{{{_MAX_DIGITS + 1}}}")
_POWER = re.compile(r"\^|\*\*")
_LARGE_EXPONENT = re.compile(
    r"(?:\^|\*\*)\s*\{?\s*[-+]?\s*(?:\d{4,}|\d+\s*!|[^{}]*\^)|\d{4,}\s*!|!\s*!|\)\s*!"
)
_PROSE = re.compile(r"(?<![\\A-Za-z])(?!(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?\b|log\b|sqrt\b)[A-Za-z]{4,}")
_CUT_OFF = re.compile(
    r"(?:[-+*/^_=<>(,{\[]|\\(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|frac|cdot|times|pm|le|ge|in|cup))\Z"
)
_LOOPS = re.compile(r"\\(?:int|iint|sum|prod|lim|bigcup|bigcap|oint)(?![A-Za-z])")


def is_safe(answer: str) -> bool:
    """Whether an answer is a whole formula, small enough to be handed to a computer algebra system.

    Prose and formulas that were cut off are not: math-verify reads as much of them as it can, and would take
    the beginning of an answer for the answer.
    """
    if _PROSE.search(answer) or _CUT_OFF.search(answer):
        return False
    if len(answer) > MAX_CHARS or _LONG_NUMBER.search(answer) or _LARGE_EXPONENT.search(answer):
        return False
    if _LOOPS.search(answer) or len(_POWER.findall(answer)) > 12:
        return False
    depth = deepest = 0
    for character in answer:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    return depth == 0 and deepest <= _MAX_DEPTH


def equivalent(pred: str, gold: str) -> bool | None:
    """What math-verify says about two answers, both in a box; ``None`` if it may or can not say."""
    if not (is_safe(pred) and is_safe(gold)):
        return None
    math_verify = _math_verify()
    parsed = [math_verify.parse(r"\boxed{" + answer + "}", parsing_timeout=None) for answer in (gold, pred)]
    if not all(parsed):
        return None
    return bool(math_verify.verify(parsed[0], parsed[1], timeout_seconds=None))


def preload() -> None:
    """Import math-verify, and let it build the tables of its parser."""
    equivalent("2", "3")


@functools.cache
def _math_verify() -> Any:
    import math_verify

    # It warns at every call that its alarms are off, and reports what it could not parse.
    for name in ("math_verify.parser", "math_verify.grader", "math_verify.utils", "math_verify"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return math_verify
