"""Intervals: those that inequalities bound, and the pieces that a set of numbers is made of."""

import itertools
from fractions import Fraction

from maxent_grpo.rewards.grading.definitions import is_constant, is_single_name
from maxent_grpo.rewards.grading.evaluation import evaluate, is_exact
from maxent_grpo.rewards.grading.expressions import (
    CONSTANTS,
    Apply,
    Bracketed,
    Expression,
    Number,
    Related,
    Symbol,
    UnreadableError,
    symbols,
)

REVERSED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
"""Relations of order, read from the other side."""

REALS = Symbol("mathbb R")
_INFINITY = Symbol("infty")
LINE = Bracketed("(", ")", (Apply("neg", (_INFINITY,)), _INFINITY))


def interval_of(expression: Expression) -> Expression | None:
    """The interval of an inequality between a name and bounds, or one that is linear in its only unknown."""
    match expression:
        case Related(sides=(low, name, high), relations=(first, second)) if (
            is_single_name(name) and first[:1] == second[:1] and {first, second} <= REVERSED.keys()
        ):
            if first.startswith(">"):
                low, high, first, second = high, low, second, first
            return Bracketed("[" if "=" in first else "(", "]" if "=" in second else ")", (low, high))
        case Related(sides=(left, right), relations=(relation,)) if relation in REVERSED:
            if not is_single_name(left):
                left, right, relation = right, left, REVERSED[relation]
            if not is_single_name(left) or symbols(right) & symbols(left):
                return _linear_interval(left, right, relation)
            return _half_line(right, relation)
        case Related(sides=(left, right), relations=("!=",)) if is_single_name(left) and is_constant(right):
            return Apply("union", (_half_line(right, "<"), _half_line(right, ">")))
    return None


def _half_line(bound: Expression, relation: str) -> Expression:
    if relation.startswith("<"):
        return Bracketed("(", "]" if "=" in relation else ")", (Apply("neg", (_INFINITY,)), bound))
    return Bracketed("[" if "=" in relation else "(", ")", (bound, _INFINITY))


def _linear_interval(left: Expression, right: Expression, relation: str) -> Expression | None:
    difference = Apply("add", (left, Apply("neg", (right,))))
    names = symbols(difference) - CONSTANTS
    if len(names) != 1:
        return None
    (name,) = names
    try:
        at = [evaluate(difference, {name: Fraction(x)}) for x in (0, 1, 2, 5)]
    except UnreadableError:
        return None
    if not all(map(is_exact, at)) or at[2] - at[1] != at[1] - at[0] or at[3] - at[0] != 5 * (at[1] - at[0]):
        return None
    slope = at[1] - at[0]
    if not slope:
        return None
    return _half_line(Number(-at[0] / slope), relation if slope > 0 else REVERSED[relation])


def pieces_of(expression: Expression) -> list[Expression] | None:
    """The parts of a union; a line without points in parts."""
    match expression:
        case Apply(operation="union", arguments=arguments):
            inner = [pieces_of(argument) for argument in arguments]
            return None if None in inner else [piece for found in inner for piece in found or []]
        case Apply(operation="without", arguments=(whole, Bracketed(opening="{", items=holes))):
            if whole not in (LINE, REALS, Symbol("R")):
                return None
            try:
                ordered = sorted(holes, key=lambda hole: float(evaluate(hole, {})))
            except (UnreadableError, KeyError, TypeError):
                return None
            ends = [Apply("neg", (_INFINITY,)), *ordered, _INFINITY]
            return [Bracketed("(", ")", pair) for pair in itertools.pairwise(ends)]
        case Apply(operation="without" | "intersection"):
            return None
        case Bracketed(opening="{", items=items):
            return [Bracketed("{", "}", (item,)) for item in items]
    return [expression]
