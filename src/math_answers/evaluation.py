"""Values of expressions: exact where they are rational, else to 45 digits, at chosen points.

Two expressions in the same unknowns are one function if they agree at every point tried; for polynomials and
quotients of small degree the chance of a wrong "equal" is nil in practice (Schwartz 1980, Zippel 1979).
"""

import functools
import math
import threading
import zlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, TypeAlias

from math_answers.expressions import (
    CONSTANTS,
    Apply,
    Bracketed,
    Expression,
    Number,
    Symbol,
    UnreadableError,
    has_operation,
    symbols,
)

Value: TypeAlias = Any
"""A `Fraction`, or a real or complex number of mpmath."""

STEPPED_OPERATIONS = frozenset({"floor", "ceil"})
"""Operations that are compared at whole numbers, too, and at these alone where a name is one of whole numbers."""

POSITIVE_POINTS = 3
"""As many points with positive coordinates are tried before those with any sign."""

WHOLE_NUMBER_OPERATIONS = frozenset({"factorial", "binomial", "gcd", "lcm"})
"""Operations that are only compared at whole numbers."""

_WHOLE_NUMBERS = "nkmijNKM"  # what names of whole numbers begin with
_WHOLE_POINTS = 29  # a prime, so that steps of 11 reach them all
_DIGITS = 60
_AGREEMENT = 45  # digits that two inexact values must share
_MAX_BITS = 20_000  # of an exact value
_MAX_LOG10 = 10_000_000  # of an inexact one
_MAX_FACTORIAL = 1500  # held exactly
_MAX_INEXACT_FACTORIAL = 10_000_000
_TRIGONOMETRIC = frozenset(["sin", "cos", "tan", "cot", "sec", "csc"])


MAX_STEPS = 30_000
"""Steps of evaluation in one comparison of two answers: no more than about half a second of work."""


class ExhaustedError(Exception):
    """A comparison took more than `MAX_STEPS`. It ends the comparison, and never leaves the grader."""


_work = threading.local()


def start_budget() -> None:
    """A fresh allowance of `MAX_STEPS` for one comparison. What is counted is work, not time: the same everywhere."""
    _work.steps = 0


def spend(steps: int) -> None:
    """Count work.

    Raises:
        ExhaustedError: the allowance is used up.
    """
    _work.steps = getattr(_work, "steps", 0) + steps
    if _work.steps > MAX_STEPS:
        raise ExhaustedError


@functools.cache
def context() -> Any:
    """A context of our own: its precision is nobody else's. Imported when something is not rational."""
    import mpmath

    own = mpmath.MPContext() if hasattr(mpmath, "MPContext") else mpmath.ctx_mp.MPContext()
    own.dps = _DIGITS
    return own


def evaluate(expression: Expression, point: Mapping[str, Fraction], real_only: bool = False) -> Value:
    """The value where every symbol that is no constant has the value that ``point`` gives it.

    Args:
        expression: what to evaluate.
        point: a value for every symbol.
        real_only: refuse an intermediate value that is not real: which branch of the root or logarithm of a
            negative number is meant is not written.

    Raises:
        UnreadableError: no number (a tuple, a pole, a unit inside), or one too large to hold.
    """
    try:
        return _evaluate(expression, point, real_only)
    except (ZeroDivisionError, OverflowError, ValueError, TypeError, MemoryError) as error:
        raise UnreadableError("no finite value") from error


def _evaluate(expression: Expression, point: Mapping[str, Fraction], real_only: bool) -> Value:
    spend(1)
    match expression:
        case Number(value=value):
            return value
        case Symbol(name="pi"):
            return +context().pi
        case Symbol(name="e"):
            return +context().e
        case Symbol(name="i"):
            return context().mpc(0, 1)
        case Symbol(name=name):
            return point[name]
        case Bracketed(opening="[", closing="]", items=(inner,)):
            return _evaluate(inner, point, real_only)
        case Apply(operation="call" | "decorated" as kind, arguments=arguments, name=name):
            return _call(name if kind == "call" else "decorated " + name, arguments, point, real_only)
        case Apply(operation="mul", arguments=factors, name="run"):
            return _mul(*[_evaluate(factor, point, real_only) for factor in factors])
        case Apply(operation=operation, arguments=arguments):
            rule = _RULES.get(operation)
            if rule is None:
                raise UnreadableError(f"no value for '{operation}'")
            if operation in _TRIGONOMETRIC:
                arguments = tuple(_radians(argument) for argument in arguments)
            value = rule(*[_evaluate(argument, point, real_only) for argument in arguments])
            if real_only and real(value) is None:
                raise UnreadableError("not real")
            return value
    raise UnreadableError("no number")


def _call(
    name: str, arguments: tuple[Expression, ...], point: Mapping[str, Fraction], real_only: bool
) -> Value:
    """The value of a function: of the few that have a name in mathematics, else one of its own for equal arguments."""
    values: list[Value | str] = []
    for argument in arguments:
        try:
            values.append(_evaluate(argument, point, real_only))
        except UnreadableError:
            inside = sorted(symbols(argument) & point.keys())
            values.append(f"{argument!r} at {[point[name] for name in inside]}")
    if name in _NAMED_FUNCTIONS and len(values) == 1 and not isinstance(values[0], str):
        value = _NAMED_FUNCTIONS[name](values[0])
        if value is not None:
            return value
    return _opaque(name, values)


def _totient(value: Value) -> Value | None:
    if not (is_exact(value) and value.denominator == 1 and 0 < value <= 10**9):
        return None
    n = result = int(value)
    divisor = 2
    while divisor * divisor <= n:
        if n % divisor == 0:
            while n % divisor == 0:
                n //= divisor
            result -= result // divisor
        divisor += 1
    return Fraction(result - result // n if n > 1 else result)


def _gamma(value: Value) -> Value | None:
    if real(value) is None or abs(value) > 500:
        return None
    if is_exact(value) and value.denominator == 1:
        return Fraction(math.factorial(int(value) - 1)) if value > 0 else None
    return context().gamma(_inexact(value))


def _zeta(value: Value) -> Value | None:
    argument = real(value)
    return context().zeta(_inexact(argument)) if argument is not None and 1 < argument <= 100 else None


def _radians(argument: Expression) -> Expression:
    match argument:
        case Apply(operation="degree", arguments=(angle,)):
            return Apply("mul", (angle, Symbol("pi"), Number(Fraction(1, 180))))
        case Apply(operation=operation, arguments=inner, name=name) if operation in ("add", "neg", "mul"):
            return Apply(operation, tuple(map(_radians, inner)), name)
    return argument


def is_exact(value: Value) -> bool:
    return isinstance(value, Fraction)


def agree(a: Value, b: Value) -> bool:
    """Whether two values are one number: exactly if both are rational, else to 45 digits."""
    if is_exact(a) and is_exact(b):
        return bool(a == b)
    mp = context()
    left, right = _inexact(a), _inexact(b)
    if not (mp.isfinite(left) and mp.isfinite(right)):
        return False
    scale = max(abs(left), abs(right))
    return bool(abs(left - right) <= scale * mp.mpf(10) ** -_AGREEMENT)


def distance(a: Value, b: Value) -> Value:
    """|a − b|, exact if both are."""
    return abs(a - b) if is_exact(a) and is_exact(b) else abs(_inexact(a) - _inexact(b))


def nearly(a: Value, b: Value, share: Fraction) -> bool:
    """Whether two values differ by no more than a share of the second."""
    return bool(abs(_inexact(a) - _inexact(b)) <= abs(_inexact(b)) * _inexact(share))


def within(size: Value, bound: Fraction) -> bool:
    """Whether a size is at most a rational bound."""
    return (
        bool(size <= bound)
        if is_exact(size)
        else bool(size <= _inexact(bound) * (1 + context().mpf(10) ** -_AGREEMENT))
    )


def quotient(a: Value, b: Value) -> Value:
    """a / b for b ≠ 0, exact if both are."""
    return a / b if is_exact(a) and is_exact(b) else _inexact(a) / _inexact(b)


def real(value: Value) -> Value | None:
    """The value if it is real up to rounding, else ``None``."""
    if is_exact(value):
        return value
    if hasattr(value, "imag") and abs(value.imag) > abs(value) * context().mpf(10) ** -_AGREEMENT:
        return None
    return value.real


def points_for(*sides: Expression) -> tuple[list[dict[str, Fraction]], bool]:
    """Points at which expressions are compared, and whether these are whole numbers because only those make sense."""
    names = frozenset().union(*map(symbols, sides)) - CONSTANTS
    whole, steps = (
        any(has_operation(side, operations) for side in sides)
        for operations in (WHOLE_NUMBER_OPERATIONS, STEPPED_OPERATIONS)
    )
    tried = points(names, whole)
    if steps and not whole:
        whole = all(name[:1] in _WHOLE_NUMBERS for name in names)
        tried = points(names, True) + ([] if whole else tried)
        tried += [{name: -value for name, value in point.items()} for point in tried[:4]]
    return tried, whole


def points(names: frozenset[str], whole: bool) -> list[dict[str, Fraction]]:
    """Points to try: the same for the same names. The first half has positive coordinates, the rest any sign.

    Args:
        names: the unknowns.
        whole: only whole numbers, for expressions with factorials, floors and the like.
    """
    if whole:
        return [
            {name: Fraction(_whole_coordinate(name, k)) for name in names} for k in range(_WHOLE_POINTS + 6)
        ]
    return [{name: _coordinate(name, k) for name in names} for k in range(2 * POSITIVE_POINTS)]


def _coordinate(name: str, k: int) -> Fraction:
    seed = zlib.crc32(f"{k} {name}".encode())
    signed = k - POSITIVE_POINTS  # of these the second has the other sign than the first
    negative = signed >= 0 and ((zlib.crc32(name.encode()) >> 9) + signed) % 2
    sign = -1 if negative else 1
    # Below one at every other point, where high powers vanish beside what is added to them.
    return sign * Fraction(seed % 9973 + 700, (seed >> 8) % 997 + (3001 if k % 2 else 40_009))


def _whole_coordinate(name: str, k: int) -> int:
    """Every whole number of a stretch, in an order of its own for each name: floors jump at few places."""
    if k >= _WHOLE_POINTS:  # no two names have the same value at all of these
        return 2 + zlib.crc32(f"{k} {name}".encode()) % 40
    return 2 + (k * 11 + zlib.crc32(name.encode())) % _WHOLE_POINTS


# -- rules of the operations -------------------------------------------------------------------------------


def _inexact(value: Value) -> Value:
    mp = context()
    if isinstance(value, Fraction):
        return mp.mpf(value.numerator) / mp.mpf(value.denominator)
    return value


def _bounded(value: Value) -> Value:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
            return _inexact(value)
        return value
    if value and abs(context().mag(value)) > _MAX_LOG10:
        raise UnreadableError("too large")
    return value


def _add(*terms: Value) -> Value:
    if all(map(is_exact, terms)):
        return _bounded(sum(terms, Fraction(0)))
    inexact = list(map(_inexact, terms))
    largest = max(map(abs, inexact))
    if any(term and abs(term) < largest * context().mpf(10) ** -_DIGITS for term in inexact):
        raise UnreadableError("a term is lost beside another")
    total = functools.reduce(lambda a, b: a + b, inexact)
    if abs(total) <= largest * context().mpf(10) ** -(_DIGITS - 5):
        return Fraction(0)  # what is left are errors of rounding
    return _bounded(total)


def _mul(*factors: Value) -> Value:
    product: Value = Fraction(1)
    for factor in factors:
        if is_exact(product) and is_exact(factor):
            product = _bounded(product * factor)
        else:
            product = _bounded(_inexact(product) * _inexact(factor))
    return product


def _inv(value: Value) -> Value:
    if not value:
        raise UnreadableError("a pole")
    return 1 / value


def _pow(base: Value, exponent: Value) -> Value:
    mp = context() if not (is_exact(base) and is_exact(exponent)) else None
    if is_exact(exponent) and exponent.denominator == 1 and is_exact(base):
        power = exponent.numerator
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(power) * bits <= _MAX_BITS:
            if base == 0 and power <= 0:
                raise UnreadableError("no power of zero")
            return base**power
        if base in (0, 1, -1):
            return base ** (power % 2 + 2) if base else Fraction(0)
    mp = mp or context()
    left, right = _inexact(base), _inexact(exponent)
    if not left:
        if mp.re(right) > 0:
            return Fraction(0)
        raise UnreadableError("no power of zero")
    if abs(right) * (abs(mp.log(left)) + 1) > _MAX_LOG10:
        raise UnreadableError("too large")
    return _bounded(mp.power(left, right))


def _root(value: Value, degree: Value) -> Value:
    if not (is_exact(degree) and degree.denominator == 1 and 1 <= degree <= 100):
        return _pow(value, _inv(degree))
    n = int(degree)
    if is_exact(value):
        negative = value < 0
        if negative and n % 2 == 0 and n != 2:
            raise UnreadableError("an even root of a negative number")
        roots = [_whole_root(part, n) for part in (abs(value.numerator), value.denominator)]
        if None not in roots and not (negative and n == 2):
            return Fraction(roots[0], roots[1]) * (-1 if negative else 1)  # type: ignore[arg-type]
        if negative and n % 2:
            return -context().root(_inexact(-value), n)
    elif n % 2 and (number := real(value)) is not None and number < 0:
        return -context().root(-number, n)
    return context().root(_inexact(value), n)


def _whole_root(value: int, n: int) -> int | None:
    if n == 2:
        root = math.isqrt(value)
    elif value.bit_length() > 1000:
        return None
    else:
        root = int(context().nint(context().root(value, n)))
    return root if root**n == value else None


def _whole(value: Value, most: int) -> int:
    if not is_exact(value):
        value = context().nint(value.real) if agree(value, context().nint(value.real)) else None
    elif value.denominator != 1:
        value = None
    if value is None or abs(value) > most:
        raise UnreadableError("not a whole number of this size")
    return int(value)


def _factorial(value: Value) -> Value:
    if is_exact(value) and value.denominator != 1 and abs(value) < 100:
        return context().gamma(_inexact(value) + 1)
    n = _whole(value, _MAX_INEXACT_FACTORIAL)
    if n > _MAX_FACTORIAL:
        return context().factorial(n)
    if n < 0:
        raise UnreadableError("a pole")
    return Fraction(math.factorial(n))


def _binomial(n: Value, k: Value) -> Value:
    if is_exact(n) and is_exact(k) and n.denominator == k.denominator == 1:
        top, bottom = _whole(n, _MAX_INEXACT_FACTORIAL), _whole(k, _MAX_INEXACT_FACTORIAL)
        if 0 <= top <= _MAX_FACTORIAL and bottom >= 0:
            return _bounded(Fraction(math.comb(top, bottom)))
        if 0 <= bottom <= top:
            mp = context()
            return mp.factorial(top) / mp.factorial(bottom) / mp.factorial(top - bottom)
    if abs(_inexact(n)) > 1000 or abs(_inexact(k)) > 1000:
        raise UnreadableError("too large")
    return context().binomial(_inexact(n), _inexact(k))


def _rounded(name: str, value: Value) -> Value:
    if is_exact(value):
        return Fraction(math.floor(value) if name == "floor" else math.ceil(value))
    whole = real(value)
    if whole is None or abs(whole) > 10**30:
        raise UnreadableError("no whole part")
    nearest = context().nint(whole)
    if agree(whole, nearest):
        return Fraction(int(nearest))
    return Fraction(int(getattr(context(), name)(whole)))


def _analytic(name: str, value: Value) -> Value:
    argument = _inexact(value)
    if abs(argument) > 10**15:
        raise UnreadableError("too large an argument")
    result = getattr(context(), name)(argument)
    if not context().isfinite(result) or abs(result) > 10**30:
        raise UnreadableError("a pole")
    return Fraction(0) if abs(result) < context().mpf(10) ** -(_DIGITS - 4) else result


def _log(value: Value, base: Value = None) -> Value:
    if not value or (base is not None and (not base or base == 1)):
        raise UnreadableError("a pole")
    mp = context()
    return mp.log(_inexact(value)) / mp.log(10 if base is None else _inexact(base))


def _abs(value: Value) -> Value:
    return abs(value)


def _extreme(pick: Any) -> Any:
    def rule(*values: Value) -> Value:
        if any(real(value) is None for value in values):
            raise UnreadableError("no order")
        return pick(values, key=lambda value: _inexact(real(value)))

    return rule


def _divisor(pick: Any) -> Any:
    return lambda *values: Fraction(pick(*[_whole(value, 10**100) for value in values]))


def _opaque(name: str, arguments: list[Value | str]) -> Fraction:
    """A function that we know nothing of: equal arguments give equal values, and nothing else does."""
    key = f"{name} " + " ".join(
        a if isinstance(a, str) else str(a) if is_exact(a) else context().nstr(a, 20) for a in arguments
    )
    seed = zlib.crc32(key.encode())
    return Fraction(seed % 99991 + 1009, (seed >> 7) % 9973 + 5003)


_NAMED_FUNCTIONS: dict[str, Any] = {"phi": _totient, "Gamma": _gamma, "zeta": _zeta}

_RULES: dict[str, Any] = {
    "add": _add,
    "neg": lambda value: -value,
    "mul": _mul,
    "inv": _inv,
    "pow": _pow,
    "root": _root,
    "factorial": _factorial,
    "binomial": _binomial,
    "floor": functools.partial(_rounded, "floor"),
    "ceil": functools.partial(_rounded, "ceil"),
    "abs": _abs,
    "log": _log,
    "ln": lambda value: _log(value, context().e),
    "max": _extreme(max),
    "min": _extreme(min),
    "gcd": _divisor(math.gcd),
    "lcm": _divisor(math.lcm),
    "percent": lambda value: value / 100,
    "degree": lambda value: _mul(value, +context().pi, Fraction(1, 180)),
    "ratio": lambda *terms: _mul(terms[0], _inv(terms[1])) if len(terms) == 2 else _no_ratio(),
    "arcsin": functools.partial(_analytic, "asin"),
    "arccos": functools.partial(_analytic, "acos"),
    "arctan": functools.partial(_analytic, "atan"),
    "arccot": functools.partial(_analytic, "acot"),
    **{
        name: functools.partial(_analytic, name)
        for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth")
    },
}


def _no_ratio() -> Value:
    raise UnreadableError("a ratio of more than two")
