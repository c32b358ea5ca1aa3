"""Arithmetic: two small numbers and one operation. The trivial task: every problem has exactly one right answer."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from maxent_grpo.tasks.answers import extract_answer
from maxent_grpo.tasks.task import FORMS, WRONG, Facts, Problem, Verdict, draw, example_turns, region

LARGEST_FACTOR = 12

_OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
EXAMPLES = (("What is 2+3?", "5"), ("What is 1+7?", "8"), ("What is 6+6?", "12"), ("What is 4+0?", "4"))

_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


class Arithmetic:
    name = "arithmetic"
    default_sizes: Mapping[str, int] = {"train": 192, "eval": 96, "control": 96}
    choices: Mapping[str, tuple[Any, ...]] = {
        "operations": ("+", "+-", "+-*"),
        "largest": (49, 9, 99),
        "form": FORMS,
    }

    def problems(
        self, split: str, size: int, seed: int, operations: str = "+", largest: int = 49, form: str = "bare"
    ) -> list[Problem]:
        """Operands go from 0 to ``largest``; differences are not negative; factors go to `LARGEST_FACTOR`.

        ``form``: the bare ``3+4=?`` of the bundled policy, or a chat with four examples, for a language model.
        """
        candidates = []
        for symbol in operations:
            top = min(largest, LARGEST_FACTOR) if symbol == "*" else largest
            for left in range(top + 1):
                for right in range(left + 1 if symbol == "-" else top + 1):
                    if region(self.name, f"{left}{symbol}{right}") == split:
                        candidates.append(_problem(left, symbol, right))
        drawn = draw(self.name, candidates, split, size, seed)
        return drawn if form == "bare" else [_in_words(problem) for problem in drawn]

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


def _in_words(problem: Problem) -> Problem:
    question = f"What is {problem.question.removesuffix('=?')}?"
    return replace(problem, question=question, turns=example_turns(*EXAMPLES))


def _problem(left: int, symbol: str, right: int) -> Problem:
    result = _OPERATIONS[symbol](left, right)
    return Problem(f"{left}{symbol}{right}=?", str(result), (str(result),), {"result": result})
