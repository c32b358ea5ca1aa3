"""Which relations give a quantity its value ("x = 5", "f(2) = 3", "AB = 4"), and what that value is.

The others are equations, which no value stands for.
"""

from fractions import Fraction

from maxent_grpo.rewards.grading.expressions import (
    CONSTANTS,
    Apply,
    Bracketed,
    Expression,
    Number,
    Related,
    Symbol,
    parts,
    symbols,
)
from maxent_grpo.rewards.grading.values import same_numbers


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
