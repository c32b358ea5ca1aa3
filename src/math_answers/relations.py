"""Whether two answers are one claim, at least one of them a relation: equation, inequality, membership.

A relation is its interval, its set, the value that it gives ("x = 5", "f(2) = 3", "AB = 4"), or itself, up to a factor
on both sides.
"""

import itertools
from fractions import Fraction

from math_answers.evaluation import (
    WHOLE_NUMBER_OPERATIONS,
    Value,
    agree,
    evaluate,
    is_exact,
    points,
    quotient,
    real,
)
from math_answers.expressions import (
    CONSTANTS,
    Apply,
    Bracketed,
    Expression,
    Listed,
    Matrix,
    Number,
    Related,
    Symbol,
    UnreadableError,
    has_operation,
    parts,
    substituted,
    symbols,
)
from math_answers.policy import GraderPolicy
from math_answers.values import Same, every, same_numbers, same_values


def answer_in(claim: Expression | None, lenient: bool) -> Expression | None:
    """What a relation gives as the answer: the right side of a definition, the set behind ∈, else ``None``.

    Args:
        claim: a relation.
        lenient: let the left side also be a sum or a function of unknowns, "m + n = 16". A gold of that form
            is an equation, which no number stands for.
    """
    match claim:
        case Related(sides=(left, *_, right), relations=relations) if set(relations) <= {"=", "==", "mid"}:
            if set(relations) != {"="}:
                return None
            if gives_name(left, right) or (lenient and _asks_for(left, right)):
                return right
            if len(claim.sides) == 2 and gives_name(right, left):
                return left
            if is_constant(left) and same_numbers(left, right):
                return right
    return None


def head_of(item: Expression) -> Expression | None:
    """What an item gives a value to, if it does: the x of "x = 5"."""
    match item:
        case Related(sides=(head, *_, value), relations=relations) if set(relations) == {"="}:
            return head if gives_name(head, value) else None
    return None


def gives_name(head: Expression, value: Expression) -> bool:
    """Whether "head = value" gives a value a name, rather than being an equation."""
    if symbols(head) & symbols(value) - {"infty"} and not isinstance(head, Apply):
        return False
    if is_single_name(head):
        return not (_is_name(value) and not isinstance(head, Apply))
    return _is_name(head) and not _is_name(value) and value != Number(Fraction(0))


def is_single_name(head: Expression) -> bool:
    """A name that is not put together from others: x, f(2), x̄, (x, y)."""
    match head:
        case Symbol(name=name):
            return name not in ("pi", "infty", "emptyset")
        case Apply(operation="call"):
            return True
        case Apply(operation="decorated", arguments=(inner,)):
            return is_single_name(inner)
        case Bracketed(items=items):
            return len(items) > 1 and all(map(is_single_name, items))
    return False


def _is_name(head: Expression) -> bool:
    """A name of a quantity: x, f(2), AB, |AB|, S_1 : S_2, (p, q)."""
    if is_single_name(head):
        return True
    match head:
        case Apply(operation="mul", arguments=factors):
            if isinstance(factors[-1], Symbol) and factors[-1].name.startswith("angle "):
                return True
            return all(
                (isinstance(factor, Symbol) and factor.name[:1].isupper())
                or (isinstance(factor, Apply) and factor.operation == "inv" and _is_name(factor.arguments[0]))
                for factor in factors
            )
        case Apply(operation="ratio" | "abs", arguments=arguments):
            return all(map(_is_name, arguments))
    return False


def _asks_for(left: Expression, right: Expression) -> bool:
    return (
        is_constant(right)
        and right != Number(Fraction(0))
        and bool(symbols(left) - CONSTANTS)
        and not _has_number(left)
    )


def _has_number(expression: Expression) -> bool:
    if isinstance(expression, Apply) and expression.operation in ("call", "root"):
        return expression.operation == "root" and _has_number(expression.arguments[0])
    return isinstance(expression, Number) or any(map(_has_number, parts(expression)))


def is_constant(expression: Expression | None) -> bool:
    return expression is not None and not isinstance(expression, Related) and symbols(expression) <= CONSTANTS


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


def same_claims(pred: Expression, gold: Expression, policy: GraderPolicy, same: Same) -> bool | None:
    """Whether ``pred`` and ``gold``, one of them a relation, make the same claim.

    Args:
        pred: the answer, in simplest form.
        gold: the right answer, in simplest form.
        policy: the conventions.
        same: compares intervals, sets and values by these conventions.
    """
    pred, gold = _without_approximation(pred), _without_approximation(gold)
    if _is_membership(pred) or _is_membership(gold):
        return same(_members(pred), _members(gold))
    bounds = [interval_of(pred), interval_of(gold)]
    if any(bounds) and not (isinstance(pred, Related) and isinstance(gold, Related)):
        return same(bounds[0] or pred, bounds[1] or gold)
    if all(bounds) and symbols(pred) == symbols(gold):
        verdict = same(bounds[0], bounds[1])  # type: ignore[arg-type]
        if verdict is not False:
            return verdict
    if isinstance(pred, Related) and isinstance(gold, Related):
        if (verdict := _same_equations(pred, gold, policy, same)) is not False:
            return verdict
        if not is_constant(answer_in(pred, True)) and _unlike_heads(pred, gold):
            return False
    ours = answer_in(pred, True) if isinstance(pred, Related) else pred
    theirs = answer_in(gold, False) if isinstance(gold, Related) else gold
    if ours is None or theirs is None:
        return False
    if isinstance(ours, Related) or isinstance(theirs, Related):
        return None
    return same(_renamed(ours, pred, gold), theirs)


def _is_membership(claim: Expression) -> bool:
    return isinstance(claim, Related) and claim.relations == ("in",) and is_single_name(claim.sides[0])


def _members(claim: Expression) -> Expression:
    """The set behind ``x ∈``."""
    return claim.sides[1] if isinstance(claim, Related) and _is_membership(claim) else claim


def _without_approximation(expression: Expression) -> Expression:
    r"""``√3/3 ≈ 0.577`` is √3/3, ``x = 1/3 ≈ 0.33`` is x = 1/3, and ``x ≈ 11`` says x = 11."""
    if not isinstance(expression, Related) or "~" not in expression.relations:
        return expression
    cut = expression.relations.index("~")
    if cut == 0 and len(expression.sides) == 2 and gives_name(*expression.sides):
        return Related(expression.sides, ("=",))
    if cut == 0:
        return expression.sides[0]
    return Related(expression.sides[: cut + 1], expression.relations[:cut])


def _unlike_heads(pred: Related, gold: Related) -> bool:
    """Whether both define something, but not the same: y = 2x against x = 2x."""
    heads = head_of(pred), head_of(gold)
    return (
        isinstance(heads[0], Symbol)
        and isinstance(heads[1], Symbol)
        and heads[0] != heads[1]
        and heads[0].name in symbols(gold)
    )


def _renamed(value: Expression, pred: Expression, gold: Expression) -> Expression:
    """f(x) = 2x and f(n) = 2n are one function."""
    match head_of(pred), head_of(gold):
        case (
            Apply(operation="call", arguments=(Symbol(name=ours),)),
            Apply(operation="call", arguments=(Symbol(name=theirs),)),
        ) if ours != theirs and theirs not in symbols(value):
            return substituted(value, ours, Symbol(theirs))
    return value


def _same_equations(pred: Related, gold: Related, policy: GraderPolicy, same: Same) -> bool | None:
    if pred.relations == gold.relations and len(pred.sides) == len(gold.sides):
        verdict = every(_same_sides(p, g, policy, same) for p, g in zip(pred.sides, gold.sides, strict=True))
        if verdict:
            return True
    if len(pred.sides) != 2 or len(gold.sides) != 2:
        if len(pred.sides) == len(gold.sides) and all(r in REVERSED for r in pred.relations + gold.relations):
            turned = Related(pred.sides[::-1], tuple(REVERSED[r] for r in pred.relations[::-1]))
            return turned.relations == gold.relations and every(
                _same_sides(p, g, policy, same) for p, g in zip(turned.sides, gold.sides, strict=True)
            )
        return False
    if pred.relations == ("in",) or gold.relations == ("in",):
        return False
    factor = _proportional(pred, gold)
    if factor is None:
        return False
    ours, theirs = pred.relations[0], gold.relations[0]
    if ours in REVERSED:
        return (ours if factor > 0 else REVERSED[ours]) == theirs
    return ours == theirs


def _same_sides(pred: Expression, gold: Expression, policy: GraderPolicy, same: Same) -> bool | None:
    """Whether two sides of relations are one."""
    if isinstance(pred, Bracketed | Listed | Matrix) or isinstance(gold, Bracketed | Listed | Matrix):
        return same(pred, gold)
    return pred == gold or same_values(pred, gold, policy)


def _proportional(pred: Related, gold: Related) -> Value | None:
    """The constant c with (left − right of pred) = c·(left − right of gold) ≠ 0, if there is one."""
    ours, theirs = (Apply("add", (side.sides[0], Apply("neg", (side.sides[1],)))) for side in (pred, gold))
    names = symbols(ours) - CONSTANTS
    if not names or names != symbols(theirs) - CONSTANTS:
        return None
    factor: Value = None
    agreeing = 0
    for point in points(names, has_operation(ours, WHOLE_NUMBER_OPERATIONS)):
        try:
            a, b = evaluate(ours, point), evaluate(theirs, point)
        except UnreadableError:
            continue
        if not a or not b:
            return None
        ratio = quotient(a, b)
        if real(ratio) is None or (factor is not None and not agree(factor, ratio)):
            return None
        factor = real(ratio)
        agreeing += 1
    return factor if agreeing >= 3 else None
