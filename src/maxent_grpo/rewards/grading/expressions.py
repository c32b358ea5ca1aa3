"""What an answer is made of, once read."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeAlias


class UnreadableError(Exception):
    """A text or an expression that this grader cannot read or give a value. Never leaves the grader."""


class RefusedError(UnreadableError):
    """A text that is no answer at all: cut off where an operand had to follow, or beyond the limits of size."""


@dataclass(frozen=True)
class Number:
    """A literal. ``decimals`` is the number of digits behind the point, ``digits`` the significant ones."""

    value: Fraction
    decimal: bool = False  # written with a point or an exponent of ten
    resolution: Fraction = Fraction(0)  # one unit of the last digit shown, for decimals
    digits: int = 0


@dataclass(frozen=True)
class Symbol:
    """A letter, a Greek letter, a name with a subscript, or an object that only equals itself (∞, ∅)."""

    name: str


@dataclass(frozen=True)
class Apply:
    """An operation: ``add``, ``mul``, ``inv``, ``neg``, ``pow``, ``root``, a function's name, ``call`` …

    ``name`` says which, where the operation alone does not: the function called, the unit, the base.
    """

    operation: str
    arguments: "tuple[Expression, ...]"
    name: str = ""


@dataclass(frozen=True)
class Bracketed:
    """Two or more items, or a set, between brackets: tuple, interval, set."""

    opening: str  # "(", "[", "{" or "<"
    closing: str
    items: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Listed:
    """Answers side by side, without brackets."""

    items: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Related:
    """A chain of relations: n sides, n − 1 relations between them."""

    sides: "tuple[Expression, ...]"
    relations: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of entries."""

    rows: "tuple[tuple[Expression, ...], ...]"


CONSTANTS = frozenset({"pi", "e", "i"})
"""The symbols that stand for a number."""

Expression: TypeAlias = Number | Symbol | Apply | Bracketed | Listed | Related | Matrix


def parts(expression: Expression) -> "tuple[Expression, ...]":
    """The expressions directly inside one."""
    match expression:
        case Apply(arguments=inner) | Bracketed(items=inner) | Listed(items=inner) | Related(sides=inner):
            return inner
        case Matrix(rows=rows):
            return tuple(entry for row in rows for entry in row)
    return ()


def symbols(expression: Expression) -> frozenset[str]:
    """The names of all symbols inside."""
    if isinstance(expression, Symbol):
        return frozenset({expression.name})
    return frozenset().union(*map(symbols, parts(expression)))


def has_operation(expression: Expression, operations: frozenset[str]) -> bool:
    """Whether any of the operations occurs inside."""
    if isinstance(expression, Apply) and expression.operation in operations:
        return True
    return any(has_operation(part, operations) for part in parts(expression))


def mapped(expression: Expression, change: Callable[[Expression], Expression]) -> Expression:
    """The expression with ``change`` made to each one directly inside it."""
    match expression:
        case Apply(arguments=inner):
            return replace(expression, arguments=tuple(map(change, inner)))
        case Bracketed(items=inner) | Listed(items=inner):
            return replace(expression, items=tuple(map(change, inner)))
        case Related(sides=inner):
            return replace(expression, sides=tuple(map(change, inner)))
        case Matrix(rows=rows):
            return Matrix(tuple(tuple(map(change, row)) for row in rows))
    return expression


def substituted(expression: Expression, name: str, by: Expression) -> Expression:
    """The expression with ``by`` wherever the symbol ``name`` stood."""
    if expression == Symbol(name):
        return by
    return mapped(expression, lambda part: substituted(part, name, by))
