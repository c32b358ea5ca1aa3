"""Where an expression in one unknown may change its sign: zeros and poles of polynomials, corners of |…|."""

from fractions import Fraction
from functools import cmp_to_key

from math_answers.evaluation import Value, agree, context, evaluate, is_exact, real, spend
from math_answers.expressions import (
    CONSTANTS,
    Apply,
    Expression,
    Number,
    Symbol,
    UnreadableError,
    mapped,
    parts,
    symbols,
)

_MAX_DEGREE = 8
_MAX_ABSOLUTE = 3


def compared(a: Value, b: Value) -> int:
    """−1, 0 or 1 as the first of two real values is smaller, the same or larger."""
    if agree(a, b):
        return 0
    if is_exact(a) and is_exact(b):
        return -1 if a < b else 1
    return -1 if inexact(a) < inexact(b) else 1


def inexact(value: Value) -> Value:
    """A real value to 60 digits."""
    return context().mpf(value.numerator) / value.denominator if is_exact(value) else value


def sign_changes(expression: Expression, name: str) -> list[Value]:
    """Where an expression of one unknown may change its sign: zeros, poles, and corners of absolute values."""
    absolutes = _absolutes(expression)
    if len(absolutes) > _MAX_ABSOLUTE:
        raise UnreadableError("too many absolute values")
    found: list[Value] = []
    for inner in absolutes:
        found += _zeros_and_poles(inner, name)
    for signs in range(2 ** len(absolutes)):
        chosen = {absolute: bool(signs >> i & 1) for i, absolute in enumerate(absolutes)}
        found += _zeros_and_poles(_resolved(expression, chosen), name)
    different: list[Value] = []
    for value in found:
        if not any(agree(value, other) for other in different):
            different.append(value)
    return sorted(different, key=cmp_to_key(compared))


def _absolutes(expression: Expression) -> list[Expression]:
    found = [absolute for part in parts(expression) for absolute in _absolutes(part)]
    if isinstance(expression, Apply) and expression.operation == "abs":
        if found:
            raise UnreadableError("nested absolute values")
        found = [expression.arguments[0]]
    return list(dict.fromkeys(found))


def _resolved(expression: Expression, negative: dict[Expression, bool]) -> Expression:
    match expression:
        case Apply(operation="abs", arguments=(inner,)):
            return Apply("neg", (inner,)) if negative[inner] else inner
    return mapped(expression, lambda part: _resolved(part, negative))


def _zeros_and_poles(expression: Expression, name: str) -> list[Value]:
    top, bottom = _quotient(expression, name)
    return _zeros(top) + _zeros(bottom)


Polynomial = list[Fraction]
"""Coefficients from the constant one up."""


def _quotient(expression: Expression, name: str) -> tuple[Polynomial, Polynomial]:
    """An expression as one polynomial over another, with rational coefficients."""
    match expression:
        case Number(value=value):
            return [value], [Fraction(1)]
        case Symbol(name=found) if found == name:
            return [Fraction(0), Fraction(1)], [Fraction(1)]
        case Apply(operation="neg", arguments=(inner,)):
            top, bottom = _quotient(inner, name)
            return [-c for c in top], bottom
        case Apply(operation="inv", arguments=(inner,)):
            top, bottom = _quotient(inner, name)
            return bottom, top
        case Apply(operation="add", arguments=terms):
            quotients = [_quotient(term, name) for term in terms]
            top, bottom = quotients[0]
            for other_top, other_bottom in quotients[1:]:
                top = _plus(_times(top, other_bottom), _times(other_top, bottom))
                bottom = _times(bottom, other_bottom)
            return top, bottom
        case Apply(operation="mul", arguments=factors):
            top, bottom = [Fraction(1)], [Fraction(1)]
            for factor in factors:
                other_top, other_bottom = _quotient(factor, name)
                top, bottom = _times(top, other_top), _times(bottom, other_bottom)
            return top, bottom
        case Apply(operation="pow", arguments=(base, Number(value=power))) if (
            power.denominator == 1 and 0 <= power <= 8
        ):
            top, bottom = [Fraction(1)], [Fraction(1)]
            base_top, base_bottom = _quotient(base, name)
            for _ in range(int(power)):
                top, bottom = _times(top, base_top), _times(bottom, base_bottom)
            return top, bottom
    if not symbols(expression) - CONSTANTS and is_exact(value := evaluate(expression, {})):
        return [value], [Fraction(1)]
    raise UnreadableError("no quotient of polynomials")


def _plus(a: Polynomial, b: Polynomial) -> Polynomial:
    size = max(len(a), len(b))
    return _trimmed(
        [(a[i] if i < len(a) else 0) + (b[i] if i < len(b) else Fraction(0)) for i in range(size)]
    )


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    if len(a) + len(b) > 2 * _MAX_DEGREE + 2:
        raise UnreadableError("too high a degree")
    spend(len(a) * len(b) // 4)
    product = [Fraction(0)] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            product[i + j] += x * y
    return _trimmed(product)


def _trimmed(a: Polynomial) -> Polynomial:
    while len(a) > 1 and not a[-1]:
        a = a[:-1]
    return a


def _zeros(a: Polynomial) -> list[Value]:
    """The real zeros: exact up to degree 1, else to 60 digits, each once."""
    a = _without_repeated(a)
    if len(a) == 1:
        return []
    if len(a) == 2:
        return [-a[0] / a[1]]
    if len(a) - 1 > _MAX_DEGREE:
        raise UnreadableError("too high a degree")
    if len(a) == 3:
        discriminant = a[1] ** 2 - 4 * a[2] * a[0]
        if discriminant < 0:
            return []
        root: Value = real(evaluate(Apply("root", (Number(discriminant), Number(Fraction(2)))), {}))
        signed = [root, -root]
        return [
            (r - a[1]) / (2 * a[2]) if is_exact(r) else (r - inexact(a[1])) / inexact(2 * a[2])
            for r in signed
        ]
    spend(5000)
    try:
        roots = context().polyroots([inexact(c) for c in reversed(a)], maxsteps=200, extraprec=200)
    except (context().NoConvergence, ValueError, ZeroDivisionError) as error:
        raise UnreadableError("no zeros found") from error
    return [
        root.real if hasattr(root, "real") else root
        for root in roots
        if abs(context().im(root)) < context().mpf(10) ** -20
    ]


def _without_repeated(a: Polynomial) -> Polynomial:
    """The polynomial with the same zeros, each once: a / gcd(a, a′)."""
    a = _trimmed(a)
    if len(a) < 3:
        return a
    left, right = a, _trimmed([i * c for i, c in enumerate(a)][1:])
    while any(right):
        left, right = right, _divided(left, right)[1]
    return _divided(a, left)[0] if len(left) > 1 else a


def _divided(a: Polynomial, b: Polynomial) -> tuple[Polynomial, Polynomial]:
    b = _trimmed(b)
    rest, result = list(a), [Fraction(0)] * max(1, len(a) - len(b) + 1)
    while len(rest) >= len(b) and any(rest):
        rest = _trimmed(rest)
        if len(rest) < len(b):
            break
        factor, shift = rest[-1] / b[-1], len(rest) - len(b)
        result[shift] = factor
        rest = [c - (factor * b[i - shift] if 0 <= i - shift < len(b) else 0) for i, c in enumerate(rest)][
            :-1
        ] or [Fraction(0)]
    return _trimmed(result), _trimmed(rest)
