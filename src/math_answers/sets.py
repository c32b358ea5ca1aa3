"""Sets of real numbers by value: intervals, what inequalities in one unknown bound, unions, intersections, complements.

A set is a sequence of pieces that do not touch, from left to right. Ends are compared as numbers, not as spelled.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cmp_to_key, reduce

from math_answers.evaluation import Value, agree, context, evaluate, is_exact, real, spend
from math_answers.expressions import (
    CONSTANTS,
    Apply,
    Bracketed,
    Expression,
    Listed,
    Related,
    Symbol,
    UnreadableError,
    mapped,
    symbols,
)
from math_answers.polynomials import compared, inexact, sign_changes
from math_answers.relation_signs import backwards, plain
from math_answers.relations import ORDER, is_single_name

REALS = Symbol("mathbb R")
_INFINITY = Symbol("infty")
_MAX_PIECES = 60


@dataclass(frozen=True)
class Piece:
    """An interval or, where both ends are one and belong to it, a point. ``None`` is an end at infinity."""

    low: Value | None
    high: Value | None
    has_low: bool
    has_high: bool


RealSet = tuple[Piece, ...]
LINE: RealSet = (Piece(None, None, False, False),)


def same_real_sets(pred: Expression, gold: Expression) -> bool | None:
    """Whether two answers are one set of real numbers; ``None`` if one is no such set, or has unknown ends.

    The unknown that is bounded must be the same where both name it.
    """
    pred, gold = _atomic(pred), _atomic(gold)
    try:
        names = _unknown(pred), _unknown(gold)
        if names[0] is not None and names[1] is not None and names[0] != names[1]:
            return False
        ours, theirs = real_set(pred), real_set(gold)
    except (UnreadableError, KeyError, ZeroDivisionError, OverflowError):
        return None
    return len(ours) == len(theirs) and all(map(_same_pieces, ours, theirs))


def _atomic(expression: Expression) -> Expression:
    """With f(x) as a name of its own."""
    if isinstance(expression, Apply) and is_single_name(expression):
        return Symbol(repr(expression))
    return mapped(expression, _atomic)


def is_set(expression: Expression) -> bool:
    """Whether an answer says by its form that it is a set of numbers, and no value or tuple."""
    match expression:
        case Related(relations=relations):
            return any(
                plain(relation) in ORDER or relation in ("!=", "in", "not in") for relation in relations
            )
        case Apply(operation="union" | "intersection" | "without"):
            return True
        case Apply(operation="and" | "or", arguments=items) | Listed(items=items):
            return any(map(is_set, items))
        case Apply(operation="add" | "decorated", arguments=(first, *_)):
            return is_set(first) or (isinstance(first, Bracketed) and first.opening in ("{", "(", "["))
        case Bracketed(opening=opening, closing=closing, items=items):
            return len(items) == 2 and (opening, closing) in (("(", "]"), ("[", ")"))
        case Symbol():
            return expression == REALS
    return False


def interval_of(expression: Expression) -> Expression | None:
    """The interval, or union of intervals, of inequalities that bound one name; their ends may be unknown."""
    match expression:
        case Related(sides=(low, name, high), relations=(first, second)) if (
            is_single_name(name) and first[:1] == second[:1] and {first, second} <= ORDER
        ):
            if first.startswith(">"):
                low, high, first, second = high, low, second, first
            return Bracketed("[" if "=" in first else "(", "]" if "=" in second else ")", (low, high))
        case Related(sides=(left, right), relations=(relation,)) if relation in ORDER:
            if not is_single_name(left):
                left, right, relation = right, left, backwards(relation) or ""
            if not is_single_name(left) or symbols(left) & symbols(right):
                return None
            if relation.startswith("<"):
                return Bracketed("(", "]" if "=" in relation else ")", (Apply("neg", (_INFINITY,)), right))
            return Bracketed("[" if "=" in relation else "(", ")", (right, _INFINITY))
        case Listed(items=items, joiner="or"):
            parts_of = [interval_of(item) for item in items]
            known = tuple(part for part in parts_of if part is not None)
            return Apply("union", known) if len(known) == len(items) else None
    return None


def real_set(expression: Expression) -> RealSet:
    """The set that an answer describes.

    Raises:
        UnreadableError: it describes none, or one with unknown ends.
    """
    spend(5)
    match expression:
        case Symbol(name="mathbb R" | "R"):
            return LINE
        case Symbol(name="emptyset"):
            return ()
        case Apply(operation="decorated", arguments=(Symbol(name="mathbb R"),), name="+" | "-" as sign):
            return (
                (Piece(Fraction(0), None, False, False),)
                if sign == "+"
                else (Piece(None, Fraction(0), False, False),)
            )
        case Bracketed(opening="{", items=items):
            return _union([_point(item) for item in items])
        case Bracketed(opening="(" | "[" as opening, closing=")" | "]" as closing, items=(low, high)):
            return _interval(low, high, opening == "[", closing == "]")
        case Apply(operation="union", arguments=sets):
            return _union(list(map(real_set, sets)))
        case Apply(operation="intersection", arguments=sets):
            return reduce(_common, map(real_set, sets))
        case (
            Apply(operation="without", arguments=(whole, hole))
            | Apply(operation="add", arguments=(whole, Apply(operation="neg", arguments=(hole,))))
        ):
            return _common(real_set(whole), _complement(real_set(hole)))
        case Apply(operation="and", arguments=items):
            return reduce(_common, map(real_set, items))
        case Apply(operation="or", arguments=items):
            return _union(list(map(real_set, items)))
        case Listed(items=items, joiner=joiner):
            return _joined(items, joiner)
        case Related():
            return _bounded(expression)
    raise UnreadableError("no set of numbers")


def _joined(items: Sequence[Expression], joiner: str) -> RealSet:
    """Conditions side by side hold together, if they can; solutions and intervals side by side are alternatives."""
    sets = list(map(real_set, items))
    conditions = all(isinstance(item, Related) and "=" not in item.relations for item in items)
    if joiner == "and" and any(isinstance(item, Related) and item.relations != ("=",) for item in items):
        return reduce(_common, sets)
    if joiner == "or" or not conditions:
        return _union(sets)
    return reduce(_common, sets) or _union(sets)


def _unknown(expression: Expression) -> str | None:
    names: set[str] = set()
    match expression:
        case Related(sides=sides):
            names = (
                {name for side in sides for name in symbols(side)}
                - CONSTANTS
                - {"infty", "mathbb R", "emptyset"}
            )
        case Apply(operation="and" | "or", arguments=items) | Listed(items=items):
            names = {name for item in items if (name := _unknown(item)) is not None}
    if len(names) > 1:
        raise UnreadableError("several unknowns")
    return names.pop() if names else None


# -- algebra of sets ----------------------------------------------------------------------------------------------


def _interval(low: Expression, high: Expression, has_low: bool, has_high: bool) -> RealSet:
    ends = [None if _is_infinite(end) else _number(end) for end in (low, high)]
    if (ends[0] is None and _sign(low) > 0) or (ends[1] is None and _sign(high) < 0):
        raise UnreadableError("infinity on the wrong side")
    if ends[0] is not None and ends[1] is not None:
        order = compared(ends[0], ends[1])
        if order > 0 or (order == 0 and not (has_low and has_high)):
            raise UnreadableError("an interval that holds nothing")
    return (Piece(ends[0], ends[1], has_low and ends[0] is not None, has_high and ends[1] is not None),)


def _point(item: Expression) -> RealSet:
    value = _number(item)
    return (Piece(value, value, True, True),)


def _is_infinite(end: Expression) -> bool:
    return _INFINITY.name in symbols(end)


def _sign(end: Expression) -> int:
    return -1 if isinstance(end, Apply) and end.operation == "neg" else 1


def _number(expression: Expression) -> Value:
    if symbols(expression) - CONSTANTS:
        raise UnreadableError("an unknown end")
    value = real(evaluate(expression, {}))
    if value is None:
        raise UnreadableError("no real end")
    return value


def _same_pieces(p: Piece, g: Piece) -> bool:
    return (p.has_low, p.has_high) == (g.has_low, g.has_high) and all(
        (a is None) == (b is None) and (a is None or agree(a, b))
        for a, b in ((p.low, g.low), (p.high, g.high))
    )


def _ends(sets: Sequence[RealSet]) -> list[Value]:
    found: list[Value] = []
    for end in (
        end for pieces in sets for piece in pieces for end in (piece.low, piece.high) if end is not None
    ):
        if not any(agree(end, other) for other in found):
            found.append(end)
    if len(found) > _MAX_PIECES:
        raise UnreadableError("too many pieces")
    return sorted(found, key=cmp_to_key(compared))


def _from_truth(ends: Sequence[Value], holds: Callable[[Value], bool]) -> RealSet:
    """The set whose members are told by ``holds``, which changes only at ``ends`` (in ascending order)."""
    if not ends:
        return LINE if holds(Fraction(0)) else ()
    between = [
        ends[0] - 1,
        *((inexact(a) + inexact(b)) / 2 for a, b in itertools.pairwise(ends)),
        ends[-1] + 1,
    ]
    pieces: list[Piece] = []
    low: Value | None = None
    inside = holds(between[0])
    has_low = False
    for end, behind in zip(ends, between[1:], strict=True):
        at, after = holds(end), holds(behind)
        if inside and not (at and after):
            pieces.append(Piece(low, end, has_low, at))
        elif not inside and at and not after:
            pieces.append(Piece(end, end, True, True))
        if after and not (inside and at):
            low, has_low = end, at and not inside
        inside = after
    if inside:
        pieces.append(Piece(low, None, has_low, False))
    return tuple(pieces)


def _contains(pieces: RealSet, value: Value) -> bool:
    for piece in pieces:
        above = (
            piece.low is None or (order := compared(piece.low, value)) < 0 or (order == 0 and piece.has_low)
        )
        below = (
            piece.high is None
            or (order := compared(value, piece.high)) < 0
            or (order == 0 and piece.has_high)
        )
        if above and below:
            return True
    return False


def _union(sets: Sequence[RealSet]) -> RealSet:
    return _from_truth(_ends(sets), lambda x: any(_contains(pieces, x) for pieces in sets))


def _common(a: RealSet, b: RealSet) -> RealSet:
    return _from_truth(_ends([a, b]), lambda x: _contains(a, x) and _contains(b, x))


def _complement(pieces: RealSet) -> RealSet:
    return _from_truth(_ends([pieces]), lambda x: not _contains(pieces, x))


# -- inequalities -------------------------------------------------------------------------------------------------


def _bounded(claim: Related) -> RealSet:
    """What a chain of relations in one unknown allows."""
    sets = []
    for left, relation, right in zip(claim.sides, claim.relations, claim.sides[1:], strict=False):
        relation = plain(relation)
        if relation in ("in", "not in") and isinstance(left, Symbol):
            members = real_set(right)
            sets.append(members if relation == "in" else _complement(members))
        elif relation in ORDER or relation in ("=", "!="):
            sets.append(_allowed(left, relation, right))
        else:
            raise UnreadableError("no bound")
    return reduce(_common, sets)


def _allowed(left: Expression, relation: str, right: Expression) -> RealSet:
    if _is_infinite(left) or _is_infinite(right):
        below = (_is_infinite(left) and _sign(left) < 0) or (_is_infinite(right) and _sign(right) > 0)
        if relation == ("<" if below else ">"):
            return LINE
        raise UnreadableError("a bound at infinity")
    if isinstance(right, Symbol) and right.name not in CONSTANTS and not isinstance(left, Symbol):
        turned = backwards(relation)
        assert turned is not None
        left, relation, right = right, turned, left
    if isinstance(left, Symbol) and left.name not in CONSTANTS and not symbols(right) - CONSTANTS:
        return _simple(relation, _number(right))
    difference = Apply("add", (left, Apply("neg", (right,))))
    names = symbols(difference) - CONSTANTS
    if len(names) != 1:
        raise UnreadableError("not one unknown")
    (name,) = names
    ends = sign_changes(difference, name)

    def holds(x: Value) -> bool:
        try:
            value = real(_evaluated(difference, name, x))
        except UnreadableError:
            return False
        return value is not None and _compares(value, relation)

    return _from_truth(ends, holds)


def _simple(relation: str, bound: Value) -> RealSet:
    match relation:
        case "<" | "<=":
            return (Piece(None, bound, False, relation == "<="),)
        case ">" | ">=":
            return (Piece(bound, None, relation == ">=", False),)
        case "=":
            return (Piece(bound, bound, True, True),)
    return (Piece(None, bound, False, False), Piece(bound, None, False, False))


def _compares(value: Value, relation: str) -> bool:
    zero = not value if is_exact(value) else abs(value) < context().mpf(10) ** -25
    if zero:
        return relation in ("=", "<=", ">=")
    return (
        relation == "!=" or (value < 0 and relation in ("<", "<=")) or (value > 0 and relation in (">", ">="))
    )


def _evaluated(expression: Expression, name: str, x: Value) -> Value:
    return evaluate(expression, {name: x})
