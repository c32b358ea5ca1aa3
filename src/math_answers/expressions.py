"""What an answer is made of, once read, and how its number literals are read: exactly."""

import re
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
    joiner: str = ""
    """``and`` or ``or`` where one of them stands between; "" between commas alone."""


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


MAX_DIGITS = 1000
MAX_EXPONENT = 5000  # of ten, in a literal such as 1e5000
REPEATING = re.compile(
    r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))"
    r"|(\d{0,20})\.(\d{0,20}?)(\d{1,12}?)(?:\7){1,24}\s*(?:\.\.\.+|\\[lc]?dots)"
    r"|(\d{0,20})\.\((\d{1,20})\)"
)


def number(text: str) -> Number:
    """A decimal literal, perhaps with an exponent of ten, and the digits that it shows."""
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or (exponent and abs(int(exponent[:8])) > MAX_EXPONENT):
        raise RefusedError("too many digits")
    whole, point, fraction = mantissa.partition(".")
    value = Fraction(int((whole or "0") + fraction), 10 ** len(fraction)) * Fraction(10) ** int(exponent or 0)
    if not point and not exponent:
        return Number(value)
    resolution = Fraction(10) ** (int(exponent or 0) - len(fraction))
    return Number(value, True, resolution, len((whole + fraction).lstrip("0")))


def repeating(text: str) -> Number:
    r"""``0.1\overline{6}`` is one sixth, exactly; ``0.1666...`` and ``0.(3)`` repeat, too."""
    match = REPEATING.fullmatch(text)
    if match is None or len(text) > MAX_DIGITS:
        raise RefusedError("too many digits")
    if match[3] or match[4]:
        whole, fixed, period = match[1], match[2], match[3] or match[4]
    else:
        whole, fixed, period = (match[5], match[6], match[7]) if match[7] else (match[8], "", match[9])
    whole = whole or "0"
    before, after = int(whole + fixed), int(whole + fixed + period)
    return Number(Fraction(after - before, 10 ** len(fixed) * (10 ** len(period) - 1)))


def mixed_literal(whole: Expression, factor: Expression) -> Expression | None:
    r"""``1\frac{4}{5}`` is nine fifths: a whole number before a fraction of whole numbers."""
    if not (isinstance(whole, Number) and not whole.decimal):
        return None
    match factor:
        case Apply(
            operation="mul",
            name="frac",
            arguments=(Number(decimal=False), Apply(operation="inv", arguments=(Number(decimal=False),))),
        ):
            return Apply("add", (whole, factor), "mixed")
    return None


def mixed_spaced(whole: Number, numerator: Number, denominator: Expression) -> Expression:
    """``3 1/2`` is seven halves."""
    if whole.decimal or numerator.decimal or not isinstance(denominator, Number) or denominator.decimal:
        raise UnreadableError("two numbers side by side")
    fraction = Apply("mul", (numerator, Apply("inv", (denominator,))), "frac")
    return Apply("add", (whole, fraction), "mixed")
