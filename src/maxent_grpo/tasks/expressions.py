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
