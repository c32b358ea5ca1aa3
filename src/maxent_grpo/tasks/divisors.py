"""Divisors: one expression in n whose value properly divides each of some given numbers.

The inputs are three to five composites below 99. An answer is one term or two joined by one operation; a term is n or
an integer of at most two digits; the operations are Python's ``+ - * // %``. What an answer *is* are its values on the
inputs, so that ``n//2`` and ``n-n//2``, were it allowed, would be one. The grammar is finite, so all of them are known.
After the Python domain of ModeBench (https://github.com/liv-daliberti/modeBench), whose programs are not bounded so.
"""

import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from maxent_grpo.randomness import generator
from maxent_grpo.tasks.answers import extract_answer
from maxent_grpo.tasks.task import CONTROL, WARM_START, WRONG, Facts, Problem, Verdict, region

LARGEST = 99  # of the integers in an answer
INPUTS = {1: 3, 2: 4, 3: 5}  # level → how many
MODES = range(2, 13)  # how many modes a problem of the train and eval splits has
MOST_PROBLEMS = {CONTROL: 800}  # per split and seed
MOST_PROBLEMS_ELSEWHERE = 5_000  # at level 1 there are about 9,000 train and 6,000 eval problems
COMPOSITES = tuple(n for n in range(4, LARGEST) if any(n % d == 0 for d in range(2, n)))

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}
_EXPRESSION = re.compile(
    r"(?:lambda\s+n\s*:|f\s*\(\s*n\s*\)\s*=|f\s*=)?\s*(n|[0-9]{1,2})(?:\s*(\+|-|\*|//|%)\s*(n|[0-9]{1,2}))?"
)


class Divisors:
    name = "divisors"
    default_sizes: Mapping[str, int] = {"train": 192, "eval": 96, "control": 96}
    choices: Mapping[str, tuple[Any, ...]] = {"level": tuple(INPUTS)}

    def problems(self, split: str, size: int, seed: int, level: int = 1) -> list[Problem]:
        """A higher ``level`` has more inputs, so that fewer expressions are right."""
        rng = generator(seed, "task", self.name, split, level)
        found: dict[str, Problem] = {}
        while len(found) < min(size, MOST_PROBLEMS.get(split, MOST_PROBLEMS_ELSEWHERE)):
            chosen = sorted(rng.permutation(len(COMPOSITES))[: INPUTS[level]])
            inputs = tuple(COMPOSITES[index] for index in chosen)
            question = f"f(n) divides {' '.join(map(str, inputs))}: f?"
            if question not in found and region(self.name, question) == split:
                right = solutions(inputs)
                if _fits(split, len(right)):
                    answer = min(right.values(), key=_length_first)
                    found[question] = Problem(
                        question, answer, tuple(sorted(right)), {"inputs": list(inputs)}
                    )
        return list(found.values())

    def grade(self, response: str, facts: Facts) -> Verdict:
        """Right if the value at each input is a divisor of it other than 1 and itself."""
        parsed = _EXPRESSION.fullmatch((extract_answer(response) or "").strip())
        if parsed is None:
            return WRONG
        values = [_value(parsed.groups(), n) for n in facts["inputs"]]
        if not all(_divides(value, n) for value, n in zip(values, facts["inputs"], strict=True)):
            return WRONG
        return Verdict(correct=True, mode=_key(values))

    def spell(self, mode: str, facts: Facts) -> str:
        """The shortest expression with these values; of equally short ones the first in ASCII order."""
        return solutions(tuple(facts["inputs"]))[mode]


@lru_cache(maxsize=8_192)
def solutions(inputs: tuple[int, ...]) -> Mapping[str, str]:
    """The key of every right answer → its shortest expression.

    Searched are integers, and n beside an integer. Two integers make an integer, and n beside n makes 2n, 0, n², 1 or
    0: neither adds a right answer.
    """
    columns = [COMPOSITES.index(n) for n in inputs]
    expressions, values = _functions()
    at = values[:, columns]
    n = np.array(inputs)
    right = np.flatnonzero(((at > 1) & (at < n) & (n % np.maximum(at, 1) == 0)).all(axis=1))
    found: dict[str, str] = {}
    for row in right:
        found.setdefault(_key(at[row].tolist()), expressions[row])
    return found


@lru_cache(maxsize=1)
def _functions() -> tuple[list[str], np.ndarray]:
    """Every expression that is searched, shortest first, and its values at `COMPOSITES`; 0 where there is none."""
    found: dict[str, list[int]] = {}
    for constant in map(str, range(LARGEST + 1)):
        found[constant] = [int(constant)] * len(COMPOSITES)
        for symbol in _OPERATIONS:
            for terms in (("n", symbol, constant), (constant, symbol, "n")):
                found["".join(terms)] = [_value(terms, n) or 0 for n in COMPOSITES]
    expressions = sorted(found, key=_length_first)
    return expressions, np.array([found[expression] for expression in expressions])


def _value(terms: tuple[str | None, ...], n: int) -> int | None:
    """The value of (left, operation, right) at n, of left alone without an operation; None for a division by zero."""
    left, symbol, right = (n if term == "n" else term for term in terms)
    if symbol is None:
        return int(left)  # type: ignore[arg-type]  # a term stands before every operation
    try:
        return _OPERATIONS[str(symbol)](int(left), int(right))  # type: ignore[arg-type]
    except ZeroDivisionError:
        return None


def _divides(value: int | None, n: int) -> bool:
    return value is not None and 1 < value < n and n % value == 0


def _key(values: list[int | None]) -> str:
    return ",".join(map(str, values))


def _length_first(expression: str) -> tuple[int, str]:
    return len(expression), expression


def _fits(split: str, modes: int) -> bool:
    if split == WARM_START:
        return modes >= 1
    return modes == 1 if split == CONTROL else modes in MODES
