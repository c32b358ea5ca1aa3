"""Keys: the laws under which expressions are one answer, and the published counts that follow from them."""

import random
from collections import Counter
from itertools import combinations

import pytest

from maxent_grpo.tasks.countdown import solutions
from maxent_grpo.tasks.expressions import (
    Expression,
    ExpressionError,
    Negation,
    Number,
    Operation,
    evaluate,
    flat_key,
    parse,
    tree_key,
)

SAME = [
    ("2+3", "3+2"),
    ("(2+3)+4", "2+(3+4)"),
    ("2+3-4", "2-(4-3)"),
    ("2+3-4", "3-(4-2)"),
    ("12/3/2", "12/(3*2)"),
    ("12/(3/2)", "12*2/3"),
    ("(5-3)*(9-7)", "(3-5)*(7-9)"),
    ("8-(3-5)*7", "8+7*(5-3)"),
    ("8+(2+3-5)*7", "8-(2+3-5)*7"),
    ("-(2-7)", "7-2"),
    ("-3*(2-7)", "3*(7-2)"),
    ("9/(-(2-5))", "9/(5-2)"),
]
DIFFERENT = [
    ("2*(3+4)", "2*3+2*4"),
    ("6*(3-2)", "6/(3-2)"),
    ("2+3-4", "2*3-4"),
    ("3-2", "2-3"),
    ("12/3", "3/12"),
    ("8+(2+3-5)*7", "8+(2+4-6)*7"),
    ("2+11", "21+1"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_flat_key_identifies_rebracketing_swapping_and_moved_signs(one, other):
    assert flat_key(parse(one)) == flat_key(parse(other))


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_flat_key_keeps_different_answers_apart(one, other):
    assert flat_key(parse(one)) != flat_key(parse(other))


def test_tree_key_identifies_swapped_operands_only():
    assert tree_key(parse("4*(3+2)")) == tree_key(parse("(2+3)*4"))
    assert tree_key(parse("(2+3)+4")) != tree_key(parse("2+(3+4)"))
    assert tree_key(parse("3-2")) != tree_key(parse("-2+3"))
    brackets = ["2+3-4", "2+(3-4)", "(2-4)+3", "2-(4-3)", "3-(4-2)"]
    assert len({tree_key(parse(text)) for text in brackets}) == 5


def _random_expression(rng: random.Random, depth: int) -> Expression:
    if depth == 0 or rng.random() < 0.2:
        return Number(rng.randint(1, 12))
    if rng.random() < 0.15:
        return Negation(_random_expression(rng, depth - 1))
    return Operation(
        rng.choice("+-*/"), _random_expression(rng, depth - 1), _random_expression(rng, depth - 1)
    )


def _rewrite(expression: Expression, rng: random.Random) -> Expression:
    """Another expression that the laws of the flat form make the same."""
    match expression:
        case Number():
            return expression
        case Negation(Operation("-", left, right)):
            return Operation("-", _rewrite(right, rng), _rewrite(left, rng))
        case Negation(operand):
            return Negation(_rewrite(operand, rng))
        case Operation("-", left, Operation("-", middle, right)) if rng.random() < 0.5:
            return Operation(
                "+", Operation("-", _rewrite(left, rng), _rewrite(middle, rng)), _rewrite(right, rng)
            )
        case Operation("/", left, Operation("*", middle, right)) if rng.random() < 0.5:
            return Operation(
                "/", Operation("/", _rewrite(left, rng), _rewrite(middle, rng)), _rewrite(right, rng)
            )
        case Operation("*", Operation("-", a, b), right) if rng.random() < 0.5:
            return Negation(
                Operation("*", Operation("-", _rewrite(b, rng), _rewrite(a, rng)), _rewrite(right, rng))
            )
        case Operation("-", left, right) if rng.random() < 0.5:
            return Operation("+", Negation(_rewrite(right, rng)), _rewrite(left, rng))
        case Operation(operator, left, right):
            left, right = _rewrite(left, rng), _rewrite(right, rng)
            return Operation(operator, right, left) if operator in "+*" else Operation(operator, left, right)


def test_flat_key_survives_random_rewriting_and_parses_back_to_its_own_value():
    rng = random.Random(0)
    checked = 0
    while checked < 2000:
        expression = _random_expression(rng, 4)
        try:
            key = flat_key(expression)
            assert flat_key(_rewrite(_rewrite(expression, rng), rng)) == key
        except ExpressionError:  # a division by zero somewhere
            continue
        if len(key) <= 200:
            assert evaluate(parse(key)) == evaluate(expression)
            assert flat_key(parse(key)) == key
        checked += 1


def test_there_are_as_many_flat_forms_as_inequivalent_expressions():
    """OEIS A140606: 1, 6, 68, 1170 inequivalent expressions of n operands."""
    from maxent_grpo.tasks.countdown import _forms

    general = (10_007, 10_103, 100_003, 1_000_003)
    assert [len(_forms(general[:n])) for n in (1, 2, 3, 4)] == [1, 6, 68, 1170]


def _pool(numbers: int, kind: str) -> dict[tuple[tuple[int, ...], int], tuple[str, ...]]:
    return {
        (chosen, target): keys
        for chosen in combinations(range(2, 13), numbers)
        for target, keys in solutions(chosen, 12 * numbers, kind).items()
        if target not in chosen
    }


def _unoriented_key(expression: Expression) -> str:
    """Signed sums and products of numerators and denominators, with the signs inside a product left where they are."""

    def parts(node: Expression, plus: str, minus: str, sign: int) -> list[tuple[int, str]]:
        if isinstance(node, Operation) and node.operator in (plus, minus):
            right = sign if node.operator == plus else -sign
            return parts(node.left, plus, minus, sign) + parts(node.right, plus, minus, right)
        return [(sign, _unoriented_key(node))]

    if isinstance(expression, Number):
        return str(expression.value)
    assert isinstance(expression, Operation)
    symbols = ("+", "-") if expression.operator in "+-" else ("*", "/")
    return symbols[0] + str(sorted(parts(expression, *symbols, 1)))


def test_three_number_pool_has_the_published_counts():
    trees, flats = _pool(3, "tree"), _pool(3, "flat")
    counts = Counter(len(keys) for keys in trees.values())
    assert {modes: counts[modes] for modes in range(1, 9)} == {
        1: 793, 2: 61, 3: 184, 4: 13, 5: 428, 6: 77, 7: 16, 8: 8,
    }  # fmt: skip
    multiple = [item for item, keys in trees.items() if 2 <= len(keys) <= 8]
    assert len(multiple) == 787
    assert sum(len(flats[item]) == 1 for item in multiple) == 611
    assert sum(len({_unoriented_key(parse(key)) for key in trees[item]}) == 1 for item in multiple) == 611


def test_four_number_pool_has_the_published_counts():
    """Of 5 426 problems 1 423 have one answer if (a−b)·(c−d) and (b−a)·(d−c) are two, 1 888 if they are one."""
    trees, flats = _pool(4, "tree"), _pool(4, "flat")
    multiple = [item for item, keys in trees.items() if 2 <= len(keys) <= 8]
    assert len(multiple) == 5426
    unoriented = [{_unoriented_key(parse(key)) for key in trees[item]} for item in multiple]
    assert sum(len(keys) == 1 for keys in unoriented) == 1423
    assert sum(len(flats[item]) == 1 for item in multiple) == 1888
    assert all({flat_key(parse(key)) for key in trees[item]} == set(flats[item]) for item in multiple[::10])
