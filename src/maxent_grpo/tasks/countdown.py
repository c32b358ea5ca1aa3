"""Countdown: reach a target from given numbers with + − × ÷, each number used exactly once.

The pool holds every set of k distinct integers from 2…12 and every integer target in 1…12·k that the set reaches and
does not contain. Fractions may appear on the way.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast

from maxent_grpo.errors import UsageError
from maxent_grpo.tasks.answers import extract_answer
from maxent_grpo.tasks.expressions import (
    Expression,
    ExpressionError,
    FlatForm,
    Number,
    Operation,
    Operator,
    apply,
    evaluate,
    flat_key,
    numbers_in,
    parse,
    tree_key,
)
from maxent_grpo.tasks.task import (
    CONTROL,
    FORMS,
    WARM_START,
    WRONG,
    Facts,
    Problem,
    Verdict,
    draw,
    example_turns,
    region,
)

if TYPE_CHECKING:
    from maxent_grpo.types import Prompt

SMALLEST, LARGEST = 2, 12
MODES = range(2, 9)  # how many modes a problem of the train and eval splits has

ModeKind = Literal["flat", "tree"]
Numbers = tuple[int, ...]

_KEYS: dict[str, Callable[[Expression], str]] = {"flat": flat_key, "tree": tree_key}


class Countdown:
    name = "countdown"
    default_sizes: Mapping[str, int] = {"train": 192, "eval": 96, "control": 96}
    choices: Mapping[str, tuple[Any, ...]] = {
        "numbers": (3, 4),
        "modes": ("flat", "tree"),
        "form": FORMS,
    }

    def problems(
        self,
        split: str,
        size: int,
        seed: int,
        numbers: int = 3,
        modes: ModeKind = "flat",
        form: str = "bare",
    ) -> list[Problem]:
        """``form``: the short question of the bundled policy, or a chat with two examples, for a language model."""
        candidates = [
            problem
            for problem in _pool(numbers, modes)
            if _fits(split, len(problem.modes)) and region(self.name, problem.question) == split
        ]
        drawn = draw(self.name, candidates, split, size, seed)
        return drawn if form == "bare" else [_in_words(problem) for problem in drawn]

    def grade(self, response: str, facts: Facts) -> Verdict:
        """Right if the answer uses exactly the numbers and equals the target.

        Of an answer "a = b" either side may be the solution, but not beside a second, different attempt.
        """
        answer = extract_answer(response)
        sides = [] if answer is None else [_attempt(side) for side in answer.split("=")]
        if len(sides) > 2:
            return WRONG
        attempts = [side for side in sides if side is not None]
        solved = [attempt for attempt in attempts if _solves(attempt, facts)]
        if not solved or len({evaluate(attempt) for attempt in attempts}) > 1:
            return WRONG
        return Verdict(correct=True, mode=_KEYS[facts["modes"]](solved[0]))

    def spell(self, mode: str, facts: Facts) -> str:
        """A flat key is itself the answer; a tree key loses its outermost brackets."""
        return mode if facts["modes"] == "flat" else mode[1:-1]


def solutions(numbers: Numbers, limit: int, modes: ModeKind = "flat") -> dict[int, tuple[str, ...]]:
    """Every integer in 1…``limit`` that ``numbers`` reach → the sorted keys of all its solutions."""
    keys: defaultdict[int, set[str]] = defaultdict(set)
    for left_numbers, right_numbers in _partitions(numbers):
        if modes == "tree":
            pairs = itertools.product(_trees(left_numbers), _trees(right_numbers))
            for (left, left_value), (right, right_value) in pairs:
                for operator, swapped, target in _integer_results(left_value, right_value, limit):
                    operands = (right, left) if swapped else (left, right)
                    keys[target].add(tree_key(Operation(operator, *operands)))
        else:
            for left_form, right_form in itertools.product(_forms(left_numbers), _forms(right_numbers)):
                for operator, swapped, target in _integer_results(left_form.value, right_form.value, limit):
                    forms = (right_form, left_form) if swapped else (left_form, right_form)
                    keys[target].add(apply(operator, *forms).key)
    return {target: tuple(sorted(found)) for target, found in keys.items()}


@cache
def _pool(numbers: int, modes: ModeKind) -> tuple[Problem, ...]:
    """Every problem with at least one solution, in a fixed order."""
    found = []
    for chosen in itertools.combinations(range(SMALLEST, LARGEST + 1), numbers):
        for target, keys in sorted(solutions(chosen, LARGEST * numbers, modes).items()):
            if target not in chosen:
                question = f"Make {target} from {' '.join(map(str, chosen))} with +-*/"
                facts = {"numbers": list(chosen), "target": target, "modes": modes}
                answer = keys[0] if modes == "flat" else flat_key(parse(keys[0]))
                found.append(Problem(question, answer, keys, facts))
    return tuple(found)


def _in_words(problem: Problem) -> Problem:
    question = _sentence(problem.facts["target"], problem.facts["numbers"])
    examples = example_turns((_sentence(14, (2, 5, 7)), "2+5+7"), (_sentence(10, (3, 4, 2)), "3*4-2"))
    return replace(problem, question=question, turns=examples)


def _sentence(target: int, numbers: Sequence[int]) -> str:
    return f"Make {target} from {', '.join(map(str, numbers))}. Use each number once, with + - * /."


def _fits(split: str, modes: int) -> bool:
    if split == WARM_START:
        return True
    return modes == 1 if split == CONTROL else modes in MODES


def _attempt(text: str) -> Expression | None:
    """``text`` as an expression with a value; None for anything else and for a plain number, which states a result."""
    try:
        expression = parse(text)
        evaluate(expression)
    except ExpressionError:
        return None
    return None if isinstance(expression, Number) else expression


def _solves(expression: Expression, facts: Facts) -> bool:
    return evaluate(expression) == facts["target"] and sorted(numbers_in(expression)) == sorted(
        facts["numbers"]
    )


def _partitions(numbers: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Every way to split ``numbers`` into two non-empty parts, each once."""
    for mask in range(1, 2 ** (len(numbers) - 1)):
        inside = [bool(mask >> index & 1) for index in range(len(numbers))]
        left = tuple(itertools.compress(numbers, inside))
        yield left, tuple(n for n, chosen in zip(numbers, inside, strict=True) if not chosen)


def _operations(left: Fraction, right: Fraction) -> Iterator[tuple[Operator, bool]]:
    """The operations on an unordered pair, each with whether the operands are swapped; none divides by zero."""
    yield from (("+", False), ("*", False), ("-", False), ("-", True))
    if right:
        yield "/", False
    if left:
        yield "/", True


def _integer_results(left: Fraction, right: Fraction, limit: int) -> Iterator[tuple[Operator, bool, int]]:
    """Those of `_operations` that give an integer in 1…``limit``, found in integers: this is the inner loop."""
    a, b = left.as_integer_ratio()
    c, d = right.as_integer_ratio()
    ad, bc, bd = a * d, b * c, b * d
    results = (
        ("+", False, ad + bc, bd),
        ("*", False, a * c, bd),
        ("-", False, ad - bc, bd),
        ("-", True, bc - ad, bd),
        ("/", False, ad, bc),
        ("/", True, bc, ad),
    )
    for operator, swapped, numerator, denominator in results:
        if denominator:
            target, remainder = divmod(numerator, denominator)
            if not remainder and 0 < target <= limit:
                yield cast(Operator, operator), swapped, target


@cache
def _forms(numbers: Numbers) -> tuple[FlatForm, ...]:
    """Every flat form over ``numbers`` once: 6, 68, 1170 of 2, 3, 4 numbers in general position (OEIS A140606)."""
    if len(numbers) == 1:
        return (FlatForm.number(numbers[0]),)
    forms: dict[str, FlatForm] = {}
    for left_numbers, right_numbers in _partitions(numbers):
        for left, right in itertools.product(_forms(left_numbers), _forms(right_numbers)):
            for operator, swapped in _operations(left.value, right.value):
                form = apply(operator, right, left) if swapped else apply(operator, left, right)
                forms[form.key] = form
    return tuple(forms.values())


@cache
def _trees(numbers: Numbers) -> tuple[tuple[Expression, Fraction], ...]:
    """Every expression over ``numbers`` up to swapped operands of + and ×, with its value: 6, 108, 3240 of them."""
    if len(numbers) == 1:
        return ((Number(numbers[0]), Fraction(numbers[0])),)
    trees: list[tuple[Expression, Fraction]] = []
    for left_numbers, right_numbers in _partitions(numbers):
        for left, right in itertools.product(_trees(left_numbers), _trees(right_numbers)):
            for operator, swapped in _operations(left[1], right[1]):
                (x, x_value), (y, y_value) = (right, left) if swapped else (left, right)
                trees.append((Operation(operator, x, y), apply(operator, x_value, y_value)))
    return tuple(trees)


class CountdownFeedback:
    """An environment (`rollout.environment`) over the rows of ``task:countdown``."""

    def reply(self, prompt: "Prompt", turns: Sequence[str]) -> Mapping[str, str] | None:
        """Nothing to add to a right answer; else a user's message that says what is wrong with the last one."""
        if prompt.columns.get("task") != Countdown.name:
            raise UsageError(
                f"environment: countdown_feedback answers rows of task:countdown, and row {prompt.index} is none"
            )
        facts = json.loads(prompt.columns["facts"])
        if Countdown().grade(turns[-1], facts).correct:
            return None
        return {"role": "user", "content": f"{what_is_wrong(turns[-1], facts)} Try again"}


def what_is_wrong(response: str, facts: Facts) -> str:
    """One sentence about a wrong answer: what it makes, which numbers it should use, or that it cannot be read."""
    answer = extract_answer(response)
    try:
        expression = parse((answer or "").partition("=")[0])
        value = evaluate(expression)
    except ExpressionError:
        return "That is no expression."
    if sorted(numbers_in(expression)) != sorted(facts["numbers"]):
        return f"Use each of {' '.join(map(str, facts['numbers']))} once."
    return f"That makes {value}, not {facts['target']}."
