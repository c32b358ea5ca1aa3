"""Arithmetic expressions: a bounded parser, and the keys that say which expressions are the same answer.

The parser reads what a model writes (``×``, ``÷``, ``\\times``, ``\\frac{a}{b}`` …) and never evaluates code. Its
input is hostile by assumption: length, nesting and the size of numbers have hard limits.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from operator import add, mul, sub, truediv
from typing import Any, Literal, TypeVar, cast

MAX_CHARACTERS = 200
MAX_NESTING = 32
MAX_DIGITS = 9

Operator = Literal["+", "-", "*", "/"]


class ExpressionError(ValueError):
    """The text is no arithmetic expression within the limits, or it divides by zero."""


@dataclass(frozen=True, slots=True)
class Number:
    value: int


@dataclass(frozen=True, slots=True)
class Negation:
    operand: "Expression"


@dataclass(frozen=True, slots=True)
class Operation:
    operator: Operator
    left: "Expression"
    right: "Expression"


Expression = Number | Negation | Operation

Value = TypeVar("Value")

_OPERATIONS: dict[Operator, Callable[[Any, Any], Any]] = {"+": add, "-": sub, "*": mul, "/": truediv}

_TOKEN = re.compile(r"[0-9]+|\\[A-Za-z]+|\\.|\S")
_SPELLINGS: dict[str, str] = {
    **dict.fromkeys(("×", "·", "⋅", "∗", "x", "X", "\\times", "\\cdot", "\\ast"), "*"),
    **dict.fromkeys(("÷", "∕", "\\div"), "/"),
    **dict.fromkeys(("−", "–"), "-"),
    **dict.fromkeys(("\\frac", "\\dfrac", "\\tfrac"), "frac"),
}
_LAYOUT = frozenset(
    ("$", "\\left", "\\right", "\\quad", "\\,", "\\;", "\\:", "\\!", "\\(", "\\)", "\\[", "\\]")
)
_SYMBOLS = frozenset(("+", "-", "*", "/", "(", ")", "{", "}", "frac"))


def parse(text: str) -> Expression:
    """The expression that ``text`` spells: integers, ``+ - * /`` in their usual spellings, brackets, ``\\frac``, signs.

    Raises:
        ExpressionError: ``text`` is longer than `MAX_CHARACTERS`, nests deeper than `MAX_NESTING`, has a number of more
            than `MAX_DIGITS` digits, or is no expression.
    """
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"longer than {MAX_CHARACTERS} characters")
    parser = _Parser(list(_tokens(text)))
    expression = parser.sum(0)
    if parser.peek() is not None:
        raise ExpressionError(f"unexpected {parser.peek()!r}")
    return expression


def _tokens(text: str) -> Iterator[str]:
    for raw in _TOKEN.findall(text):
        token = _SPELLINGS.get(raw, raw)
        if token in _LAYOUT:
            continue
        if "0" <= token[0] <= "9":
            if len(token) > MAX_DIGITS:
                raise ExpressionError(f"a number of more than {MAX_DIGITS} digits")
        elif token not in _SYMBOLS:
            raise ExpressionError(f"unexpected {token!r}")
        yield token


class _Parser:
    """Recursive descent; every rule takes the nesting depth at which it stands."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._position = 0

    def peek(self) -> str | None:
        return self._tokens[self._position] if self._position < len(self._tokens) else None

    def _take(self) -> str:
        token = self.peek()
        if token is None:
            raise ExpressionError("ends too early")
        self._position += 1
        return token

    def _expect(self, token: str) -> None:
        if (found := self._take()) != token:
            raise ExpressionError(f"expected {token!r}, found {found!r}")

    def _operator(self, *accepted: Operator) -> Operator | None:
        for operator in accepted:
            if self.peek() == operator:
                self._position += 1
                return operator
        return None

    def sum(self, depth: int) -> Expression:
        left = self._product(depth)
        while operator := self._operator("+", "-"):
            left = Operation(operator, left, self._product(depth))
        return left

    def _product(self, depth: int) -> Expression:
        left = self._signed(depth)
        while operator := self._operator("*", "/"):
            left = Operation(operator, left, self._signed(depth))
        return left

    def _signed(self, depth: int) -> Expression:
        if depth > MAX_NESTING:
            raise ExpressionError(f"nests deeper than {MAX_NESTING}")
        token = self._take()
        if token == "-":
            return Negation(self._signed(depth + 1))
        if token == "+":
            return self._signed(depth + 1)
        if token == "(":
            return self._bracketed(depth, ")")
        if token == "frac":
            self._expect("{")
            numerator = self._bracketed(depth, "}")
            self._expect("{")
            return Operation("/", numerator, self._bracketed(depth, "}"))
        if not token.isdigit():
            raise ExpressionError(f"unexpected {token!r}")
        return Number(int(token))

    def _bracketed(self, depth: int, closing: str) -> Expression:
        inner = self.sum(depth + 1)
        self._expect(closing)
        return inner


def apply(operator: Operator, left: Value, right: Value) -> Value:
    """``left operator right``, for fractions and whatever else has the four operations.

    Raises:
        ExpressionError: division by zero.
    """
    try:
        return cast(Value, _OPERATIONS[operator](left, right))
    except ZeroDivisionError as error:
        raise ExpressionError("division by zero") from error


def evaluate(expression: Expression) -> Fraction:
    """The exact value. Raises `ExpressionError` on division by zero."""
    match expression:
        case Number(value):
            return Fraction(value)
        case Negation(operand):
            return -evaluate(operand)
        case Operation(operator, left, right):
            return apply(operator, evaluate(left), evaluate(right))


def numbers_in(expression: Expression) -> list[int]:
    """The integers that the expression is written with, in order of appearance."""
    match expression:
        case Number(value):
            return [value]
        case Negation(operand):
            return numbers_in(operand)
        case Operation(_, left, right):
            return numbers_in(left) + numbers_in(right)


Term = tuple[int, str]
"""Sign of the term's value (−1, 0 or 1) and the key of its absolute value."""


def tree_key(expression: Expression) -> str:
    """The fully bracketed expression with the operands of each ``+`` and ``*`` in sorted order."""
    match expression:
        case Number(value):
            return str(value)
        case Negation(operand):
            return f"(-{tree_key(operand)})"
        case Operation(operator, left, right):
            keys = [tree_key(left), tree_key(right)]
            if operator in "+*":
                keys.sort()
            return f"({keys[0]}{operator}{keys[1]})"


@dataclass(frozen=True, slots=True)
class FlatForm:
    """The normal form of an expression under the laws of the two abelian groups (+, −) and (×, ÷) and the sign rules.

    Laws: ``+`` and ``×`` commute and associate; a−b = a+(−b); a÷b = a·b⁻¹; (a·b)⁻¹ = a⁻¹·b⁻¹; (−a)·b = −(a·b);
    −(a+b) = −a−b. Distributivity is *not* among them: 2·(3+4) and 2·3+2·4 are different answers.

    A sum is a sorted tuple of signed terms; a product is a signed pair of sorted numerators and denominators, each
    oriented to have a positive value (one of value 0 takes the smaller of its two keys, and a term of value 0 has
    sign 0), which makes the form unique. Where ``terms`` is empty the form is a product.
    """

    value: Fraction
    terms: tuple[Term, ...] = ()
    numerators: tuple[str, ...] = ()
    denominators: tuple[str, ...] = ()

    @classmethod
    def number(cls, value: int) -> "FlatForm":
        return cls(Fraction(value), numerators=(str(value),))

    @property
    def sign(self) -> int:
        return (self.value > 0) - (self.value < 0)

    @property
    def key(self) -> str:
        """The form as an expression that parses back to it: ``4*(7-5)/3``, ``3*5+2-4``."""
        return _sum_text(self.terms or self._as_terms(1))

    def __neg__(self) -> "FlatForm":
        terms = tuple(sorted((-sign, body) for sign, body in self.terms))
        return FlatForm(-self.value, terms, self.numerators, self.denominators)

    def __add__(self, other: "FlatForm") -> "FlatForm":
        return FlatForm(self.value + other.value, tuple(sorted(self._as_terms(1) + other._as_terms(1))))

    def __sub__(self, other: "FlatForm") -> "FlatForm":
        return FlatForm(self.value - other.value, tuple(sorted(self._as_terms(1) + other._as_terms(-1))))

    def __mul__(self, other: "FlatForm") -> "FlatForm":
        (up, down), (other_up, other_down) = self._as_factors(), other._as_factors()
        return _product(self.value * other.value, up + other_up, down + other_down)

    def __truediv__(self, other: "FlatForm") -> "FlatForm":
        if other.value == 0:
            raise ZeroDivisionError
        (up, down), (other_up, other_down) = self._as_factors(), other._as_factors()
        return _product(self.value / other.value, up + other_down, down + other_up)

    def _as_terms(self, sign: int) -> tuple[Term, ...]:
        if self.terms:
            return tuple((sign * term_sign, body) for term_sign, body in self.terms)
        body = "*".join(self.numerators) + "".join(f"/{factor}" for factor in self.denominators)
        return ((sign * self.sign, body),)

    def _as_factors(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Numerators and denominators of the absolute value; the sign stays in ``value``."""
        if not self.terms:
            return self.numerators, self.denominators
        if self.value == 0:
            return (min(f"({self.key})", f"({(-self).key})"),), ()
        return (f"({(self if self.value > 0 else -self).key})",), ()


def _product(value: Fraction, numerators: tuple[str, ...], denominators: tuple[str, ...]) -> FlatForm:
    return FlatForm(value, numerators=tuple(sorted(numerators)), denominators=tuple(sorted(denominators)))


def _sum_text(terms: tuple[Term, ...]) -> str:
    added = [body for sign, body in terms if sign >= 0]
    subtracted = [body for sign, body in terms if sign < 0]
    return "+".join(added) + "".join(f"-{body}" for body in subtracted)


def flat_form(expression: Expression) -> FlatForm:
    """The normal form of ``expression``. Raises `ExpressionError` on division by zero."""
    match expression:
        case Number(value):
            return FlatForm.number(value)
        case Negation(operand):
            return -flat_form(operand)
        case Operation(operator, left, right):
            return apply(operator, flat_form(left), flat_form(right))


def flat_key(expression: Expression) -> str:
    """The key of ``expression``'s normal form (see `FlatForm`). Raises `ExpressionError` on division by zero."""
    return flat_form(expression).key
