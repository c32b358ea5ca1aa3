"""Equations: isolate x in a linear equation by steps from a menu, each done to both sides.

An answer names one to four steps by their letters. It is right if x stands alone on one side, and no x on the other,
after the last step and not before, and if no equation comes twice. What an answer *is* is the sequence of its
equations, each in exact fractions: two steps that do the same are one. After the MathIR domain of ModeBench
(https://github.com/liv-daliberti/modeBench).
"""

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import Any

import numpy as np

from maxent_grpo.randomness import generator
from maxent_grpo.tasks.answers import extract_answer
from maxent_grpo.tasks.task import CONTROL, WARM_START, WRONG, Facts, Problem, Verdict, region

MOST_STEPS = 4
MODES = range(2, 13)  # how many modes a problem of the train and eval splits has
MOST_PROBLEMS = 20_000  # per split and seed: what can be drawn in minutes, far fewer than there are
LETTERS = string.ascii_lowercase

Equation = tuple[int, int, int, int, int]
"""(a, b, c, d, q) of (ax + b)/q = (cx + d)/q without a common factor, q > 0."""


@dataclass(frozen=True)
class Level:
    menu: int  # steps to choose from
    both_sides: bool  # x stands on both
    largest: int  # coefficient and constant on the left


LEVELS = {1: Level(4, False, 9), 2: Level(5, True, 9), 3: Level(6, True, 20)}


class Equations:
    name = "equations"
    default_sizes: Mapping[str, int] = {"train": 192, "eval": 96, "control": 96}
    choices: Mapping[str, tuple[Any, ...]] = {"level": tuple(LEVELS)}

    def problems(self, split: str, size: int, seed: int, level: int = 1) -> list[Problem]:
        """From ``level`` 2 x stands on both sides; a higher one has a longer menu, and 3 larger numbers."""
        rng = generator(seed, "task", self.name, split, level)
        found: dict[str, Problem] = {}
        while len(found) < min(size, MOST_PROBLEMS):
            equation, menu = _draw(rng, LEVELS[level], split)
            question = _question(equation, menu)
            if question not in found and region(self.name, question) == split:
                right = solutions(equation, menu)
                if _fits(split, len(right)):
                    facts = {"equation": equation_text(equation), "menu": menu}
                    answer = min(right.values(), key=lambda letters: (len(letters), letters))
                    found[question] = Problem(question, answer, tuple(sorted(right)), facts)
        return list(found.values())

    def grade(self, response: str, facts: Facts) -> Verdict:
        """Right if the letters, with or without spaces and commas between them, isolate x."""
        answer = "".join((extract_answer(response) or "").replace(",", " ").split()).lower()
        equation, menu = _read_equation(facts["equation"]), facts["menu"]
        if not 1 <= len(answer) <= MOST_STEPS or any(letter not in LETTERS[: len(menu)] for letter in answer):
            return WRONG
        seen = [equation]
        for letter in answer:
            if isolated(seen[-1]):
                return WRONG
            seen.append(apply_step(menu[LETTERS.index(letter)], seen[-1]))
        if not isolated(seen[-1]) or len(set(seen)) < len(seen):
            return WRONG
        return Verdict(correct=True, mode=_key(seen[1:]))

    def spell(self, mode: str, facts: Facts) -> str:
        """The letters that lead through the mode's equations; of steps that do the same, the first of the menu."""
        equation, letters = _read_equation(facts["equation"]), ""
        for text in mode.split(", "):
            after = [apply_step(step, equation) for step in facts["menu"]]
            chosen = [equation_text(each) for each in after].index(text)
            equation, letters = after[chosen], letters + LETTERS[chosen]
        return letters


def solutions(equation: Equation, menu: list[str]) -> dict[str, str]:
    """The key of every right answer → the letters that give it, those that are first in the menu."""
    found: dict[str, str] = {}
    for states, letters in _ways([equation], "", menu):
        found.setdefault(_key(states[1:]), letters)
    return found


def _ways(states: list[Equation], letters: str, menu: list[str]) -> Iterator[tuple[list[Equation], str]]:
    if isolated(states[-1]):
        yield states, letters
    elif len(letters) < MOST_STEPS:
        for letter, step in zip(LETTERS, menu, strict=False):
            after = apply_step(step, states[-1])
            if after not in states:
                yield from _ways([*states, after], letters + letter, menu)


def apply_step(step: str, equation: Equation) -> Equation:
    """Both sides after ``step``: ``+3``, ``-3``, ``+2x``, ``-2x``, ``*3`` or ``/3``."""
    a, b, c, d, q = equation
    symbol, amount = step[0], step[1:]
    if symbol == "*":
        factor = int(amount)
        return _reduced(a * factor, b * factor, c * factor, d * factor, q)
    if symbol == "/":
        return _reduced(a, b, c, d, q * int(amount))
    sign = q if symbol == "+" else -q
    if amount.endswith("x"):
        term = sign * int(amount[:-1] or 1)
        return _reduced(a + term, b, c + term, d, q)
    term = sign * int(amount)
    return _reduced(a, b + term, c, d + term, q)


def _reduced(a: int, b: int, c: int, d: int, q: int) -> Equation:
    common = gcd(a, b, c, d, q)
    return a // common, b // common, c // common, d // common, q // common


def isolated(equation: Equation) -> bool:
    """x = d or b = x."""
    a, b, c, d, q = equation
    return (a, b, c) == (q, 0, 0) or (a, c, d) == (0, q, 0)


def equation_text(equation: Equation) -> str:
    """``2x+6=x-1/2``: each side's terms that are not 0, x first."""
    a, b, c, d, q = equation
    return f"{_side_text(Fraction(a, q), Fraction(b, q))}={_side_text(Fraction(c, q), Fraction(d, q))}"


def _side_text(coefficient: Fraction, constant: Fraction) -> str:
    of_x = "" if coefficient == 0 else {1: "x", -1: "-x"}.get(coefficient, f"{coefficient}x")  # type: ignore[call-overload]
    if constant == 0:
        return of_x or "0"
    return f"{of_x}+{constant}" if of_x and constant > 0 else f"{of_x}{constant}"


def _read_equation(text: str) -> Equation:
    """The inverse of `equation_text`, for the integers of a problem."""
    left, _, right = text.partition("=")
    return *_read_side(left), *_read_side(right), 1


def _read_side(text: str) -> tuple[int, int]:
    of_x, x, constant = text.rpartition("x")
    coefficient = int({"": "1", "-": "-1"}.get(of_x, of_x)) if x else 0
    return coefficient, int(constant or 0)


def _draw(rng: np.random.Generator, level: Level, split: str) -> tuple[Equation, list[str]]:
    """A random equation with an integer solution, and a menu of steps that may help.

    A control problem with x on both sides has no constant on the left: two terms to move have two orders.
    """

    def whole(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    x, a = whole(-9, 9), whole(2, level.largest)
    b = whole(1, level.largest) * (1 if whole(0, 1) else -1)
    if whole(0, 1):
        b = a * (whole(1, 3) if b > 0 else -whole(1, 3))  # then dividing first leaves integers
    c = whole(1, a - 1) if level.both_sides else 0
    if c and split == CONTROL:
        b = 0
    factor, part = a - c, whole(1, 4)
    steps = {step for step in (_add(-b), f"/{factor}") if step not in ("+0", "/1")}
    if c:
        steps.add(f"-{_times_x(c)}")
    others = [_add(-b - part), _add(part), _add(whole(1, 9)), _add(-whole(1, 9)), f"/{whole(2, 9)}"]
    others += [_add(-b // a)] * (b % a == 0) + [_add(-(b // factor))] * (b % factor == 0)
    for divisor in range(2, factor):
        if factor % divisor == 0:
            others += [f"/{divisor}", f"/{factor // divisor}"]
    if c:
        others += [f"-{_times_x(a)}", f"-{_times_x(whole(1, a))}", f"+{_times_x(whole(1, 3))}", "*2"]
    for index in rng.permutation(len(others)):
        if len(steps) < level.menu and others[index] != "+0":
            steps.add(others[index])
    menu = sorted(steps)
    menu = [menu[index] for index in rng.permutation(len(menu))]
    return (a, b, c, a * x + b - c * x, 1), menu


def _add(amount: int) -> str:
    return f"{amount:+d}"


def _times_x(coefficient: int) -> str:
    return "x" if coefficient == 1 else f"{coefficient}x"


def _question(equation: Equation, menu: list[str]) -> str:
    """``Solve 2x+6=10 by a:-6 b:/2 c:-3 d:+1: ?``"""
    steps = " ".join(f"{letter}:{step}" for letter, step in zip(LETTERS, menu, strict=False))
    return f"Solve {equation_text(equation)} by {steps}: ?"


def _key(states: list[Equation]) -> str:
    return ", ".join(map(equation_text, states))


def _fits(split: str, modes: int) -> bool:
    if split == WARM_START:
        return modes >= 1
    return modes == 1 if split == CONTROL else modes in MODES
