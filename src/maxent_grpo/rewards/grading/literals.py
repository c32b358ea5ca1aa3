"""Numbers as written: decimals, powers of ten, repeating decimals, mixed numbers; all read exactly."""

import re
from fractions import Fraction

from maxent_grpo.rewards.grading.expressions import Apply, Expression, Number, RefusedError, UnreadableError

MAX_DIGITS = 1000
MAX_EXPONENT = 5000  # of ten, in a literal such as 1e5000
REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))")


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
    r"""``0.1\overline{6}`` is one sixth, exactly."""
    match = REPEATING.fullmatch(text)
    if match is None or len(text) > MAX_DIGITS:
        raise RefusedError("too many digits")
    whole, fixed, period = match[1] or "0", match[2], match[3] or match[4]
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
