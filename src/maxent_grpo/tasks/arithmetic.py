"""Arithmetic: two small numbers and one operation. The trivial task: every problem has exactly one right answer."""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from maxent_grpo.tasks.answers import extract_answer
from maxent_grpo.tasks.task import WRONG, Facts, Problem, Verdict, draw, region

LARGEST_FACTOR = 12

_OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


class Arithmetic:
    name = "arithmetic"
    default_sizes: Mapping[str, int] = {"train": 192, "eval": 96, "control": 96}
    choices: Mapping[str, tuple[Any, ...]] = {"operations": ("+", "+-", "+-*"), "largest": (49, 9, 99)}

    def problems(
        self, split: str, size: int, seed: int, operations: str = "+", largest: int = 49
    ) -> list[Problem]:
        """Operands go from 0 to ``largest``; differences are not negative; factors go to `LARGEST_FACTOR`."""
        candidates = []
        for symbol in operations:
            top = min(largest, LARGEST_FACTOR) if symbol == "*" else largest
            for left in range(top + 1):
                for right in range(left + 1 if symbol == "-" else top + 1):
                    if region(self.name, f"{left}{symbol}{right}") == split:
                        candidates.append(_problem(left, symbol, right))
        return draw(self.name, candidates, split, size, seed)

    def grade(self, response: str, facts: Facts) -> Verdict:
        """Right if the answer, or what follows its last "=", is the result."""
        answer = extract_answer(response)
        if answer is None:
            return WRONG
        result = answer.rpartition("=")[2].strip().replace("−", "-")
        if not _INTEGER.fullmatch(result) or int(result) != facts["result"]:
            return WRONG
        return Verdict(correct=True, mode=str(facts["result"]))

    def spell(self, mode: str, facts: Facts) -> str:
        return mode


def _problem(left: int, symbol: str, right: int) -> Problem:
    result = _OPERATIONS[symbol](left, right)
    return Problem(f"{left}{symbol}{right}=?", str(result), (str(result),), {"result": result})
