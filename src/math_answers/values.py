"""Whether two numbers, or two formulas in unknowns, are one value: units, percents, bases and rounding.

Constants are compared exactly or to 45 digits, formulas at points (`evaluation`). What a value is counted in and how
far a decimal may be rounded is the policy's. Verdicts on many pairs are put together from verdicts on one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TypeAlias

from math_answers.evaluation import (
    POSITIVE_POINTS,
    Value,
    agree,
    distance,
    evaluate,
    is_exact,
    points_for,
    real,
    within,
)
from math_answers.expressions import (
    CONSTANTS,
    Apply,
    Expression,
    Number,
    Symbol,
    UnreadableError,
    has_operation,
    mapped,
    symbols,
)
from math_answers.policy import GraderPolicy
from math_answers.units import same_units, split_letter_unit, split_unit

Same: TypeAlias = Callable[[Expression, Expression], bool | None]
"""Whether the first, an answer or a part of one, says what the second, of the gold, says."""

MAX_ITEMS = 100
MAX_NAMES = 60


def every(verdicts: Iterable[bool | None]) -> bool | None:
    """Whether all are true: false if one is false, undecided if one is undecided and none false."""
    undecided = False
    for verdict in verdicts:
        if verdict is False:
            return False
        undecided |= verdict is None
    return None if undecided else True


def matched(ours: Sequence[Expression], theirs: Sequence[Expression], same: Same) -> bool | None:
    """Whether each answer has its own partner. Being the same is transitive, so the first will do."""
    if len(ours) != len(theirs) or len(ours) > MAX_ITEMS:
        return False
    left = list(ours)
    undecided = False
    for wanted in theirs:
        for i, item in enumerate(left):
            verdict = same(item, wanted)
            undecided |= verdict is None
            if verdict:
                del left[i]
                break
        else:
            return None if undecided else False
    return True


def distinct(items: Sequence[Expression], same: Same) -> list[Expression]:
    """The items without repetitions; only as many are looked at as may be compared."""
    found: list[Expression] = []
    for item in items[: MAX_ITEMS + 1]:
        if not any(same(item, other) for other in found):
            found.append(item)
    return found


_FLOAT_NOISE = Fraction(1, 10**12)  # double precision prints 0.30000000000000004
_FLOAT_DIGITS = 12


def same_values(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    """Whether two answers of one part each have the same value, in the same unit and base."""
    pred, our_unit = split_unit(pred)
    gold, their_unit = split_unit(gold)
    if our_unit and not their_unit:
        gold, their_unit = split_letter_unit(gold)
    elif their_unit and not our_unit:
        pred, our_unit = split_letter_unit(pred)
    if policy.units == "required" and (our_unit or their_unit) and our_unit != their_unit:
        return False
    pred, gold = _sign_inside(pred), _sign_inside(gold)
    kinds = [side.operation if isinstance(side, Apply) else "" for side in (pred, gold)]
    if policy.units != "ignored" and not _units_agree(our_unit, their_unit, kinds):
        return False
    if any(map(_based, (pred, gold))):
        return _same_in_base(pred, gold, policy)
    if "rad^1" not in (our_unit, their_unit):
        for kind in ("percent", "degree"):
            if kinds == [kind, kind]:
                return same_values(pred.arguments[0], gold.arguments[0], policy)  # type: ignore[union-attr]
        if has_operation(pred, _SIGNS) or has_operation(gold, _SIGNS):
            verdicts = [
                _equal(p, g, policy) for p in _readings(pred, policy) for g in _readings(gold, policy)
            ]
            return True if True in verdicts else None if None in verdicts else False
    if "ratio" in kinds:
        return _same_ratios(pred, gold, policy)
    return _equal(pred, gold, policy)


def _units_agree(ours: str, theirs: str, kinds: list[str]) -> bool:
    """Whether a unit may be missing on one side, or is the same on both. A sign for percent or degrees is one, too."""
    if set(kinds) == _SIGNS:
        return False
    if ours and theirs:
        return same_units(ours, theirs)
    if (ours or theirs).startswith("'"):  # 5' may be feet, minutes or a derivative
        return False
    if ours or theirs:
        other = kinds[1] if ours else kinds[0]
        return other not in _SIGNS or (other == "degree" and (ours or theirs) in ("rad^1", "°c^1", "°f^1"))
    return True


_SIGNS = frozenset({"percent", "degree"})


def _sign_inside(expression: Expression) -> Expression:
    """−(90°) as (−90)°, so that the outermost operation tells the kind."""
    match expression:
        case Apply(
            operation="neg", arguments=(Apply(operation="percent" | "degree" as kind, arguments=(inner,)),)
        ):
            return Apply(kind, (Apply("neg", (inner,)),))
    return expression


def _readings(expression: Expression, policy: GraderPolicy) -> list[Expression]:
    """The value with its sign of percent or degrees, and as a number of these."""
    readings = [expression]
    if (
        isinstance(expression, Apply)
        and expression.operation == "percent"
        and symbols(expression) <= CONSTANTS
    ):
        readings = [] if policy.percent == "sign_optional" else readings
        return readings if policy.percent == "value" else [expression.arguments[0], *readings]
    if (
        policy.degrees == "optional"
        and has_operation(expression, frozenset({"degree"}))
        and _is_angle(expression)
    ):
        readings = [_without_degrees(expression), *readings]
    return readings


def _is_angle(expression: Expression) -> bool:
    """Whether only numbers and unknowns are in it, no words or sets."""
    return all(
        len(name) == 1 or name.isalpha() for name in symbols(expression) - {"infty", "emptyset"}
    ) and not (symbols(expression) & {"infty", "emptyset"})


def _without_degrees(expression: Expression) -> Expression:
    """Sums and multiples of degrees as numbers; the angle inside a function stays."""
    match expression:
        case Apply(operation="degree", arguments=(inner,)):
            return _without_degrees(inner)
        case Apply(operation="add" | "neg" | "mul"):
            return mapped(expression, _without_degrees)
    return expression


def _based(expression: Expression) -> bool:
    return isinstance(expression, Apply) and expression.operation == "based"


def _same_in_base(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    (ours, our_base), (theirs, their_base) = _digits_and_base(pred), _digits_and_base(gold)
    if our_base == their_base or (policy.base == "optional" and "" in (our_base, their_base)):
        return ours is not None and ours == theirs
    if not (our_base and their_base):
        return False
    try:
        return int(ours or "", int(our_base)) == int(theirs or "", int(their_base))
    except ValueError:
        return False


def _digits_and_base(expression: Expression) -> tuple[str | None, str]:
    match expression:
        case Apply(operation="based", arguments=(Number(value=value),), name=base):
            return str(value), base
        case Number(value=value):
            return str(value), ""
    return None, ""


def _same_ratios(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    """3 : 1 is 6 : 2 and 3; a time of day, 12:00, is only itself."""
    terms = [
        list(side.arguments) if isinstance(side, Apply) and side.operation == "ratio" else None
        for side in (pred, gold)
    ]
    if terms[0] is None or terms[1] is None:
        return _equal(pred, gold, policy)
    if len(terms[0]) != len(terms[1]):
        return False
    first = [Apply("mul", (term, Apply("inv", (terms[0][0],)))) for term in terms[0]]
    second = [Apply("mul", (term, Apply("inv", (terms[1][0],)))) for term in terms[1]]
    return every(_equal(p, g, policy) for p, g in zip(first, second, strict=True))


def same_numbers(left: Expression, right: Expression) -> bool:
    """Whether two constants are exactly one number."""
    values = _value_at(left, {}), _value_at(right, {})
    return None not in values and agree(*values)


def _equal(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    names = (symbols(pred) | symbols(gold)) - CONSTANTS
    if not names:
        return _equal_constants(pred, gold, policy)
    runs = _run(pred), _run(gold)
    if (
        runs[0] and runs[1]
    ):  # points of a figure, Roman numbers, an order of letters: AB may be BA, and ABC no BAC
        return runs[0] == runs[1] or (
            len(runs[0]) == 2 and runs[0] == runs[1][::-1] and not set(runs[0]) <= set("IVX")
        )
    if not symbols(pred) >= symbols(gold) - CONSTANTS and not symbols(pred) - CONSTANTS:
        return False
    if len(names) > MAX_NAMES:
        return None
    tried, whole = points_for(pred, gold)
    compared = one_sided = 0
    for k, point in enumerate(tried):
        real_only = k >= POSITIVE_POINTS and not whole
        ours, theirs = _value_at(pred, point, real_only), _value_at(gold, point, real_only)
        if ours is not None and theirs is not None:
            if not agree(ours, theirs):
                return False
            compared += 1
        one_sided += (ours is None) != (theirs is None)
    if compared >= 2:
        return True
    return False if one_sided >= POSITIVE_POINTS else None


def _run(expression: Expression) -> str:
    """The capitals of a run of them."""
    match expression:
        case Apply(operation="mul", name="run", arguments=letters):
            return "".join(letter.name for letter in letters if isinstance(letter, Symbol))
    return ""


def _value_at(expression: Expression, point: Mapping[str, Fraction], real_only: bool = False) -> Value | None:
    try:
        return evaluate(expression, point, real_only)
    except (UnreadableError, KeyError):
        return None


def _equal_constants(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    ours, theirs = _value_at(pred, {}), _value_at(gold, {})
    if ours is None or theirs is None:
        return None if ours is theirs else False
    if (
        agree(ours, theirs)
        or _rounded_to(pred, ours, theirs, policy)
        or _rounded_to(gold, theirs, ours, policy)
    ):
        return True
    if not policy.relative_tolerance or (_literal(pred) is None and _literal(gold) is None):
        return False
    return bool(distance(ours, theirs) <= abs(theirs) * policy.relative_tolerance)


def _rounded_to(written: Expression, value: Value, other: Value, policy: GraderPolicy) -> bool:
    """Whether a decimal is another number rounded to the digits that it shows."""
    literal = _literal(written)
    if literal is None or not is_exact(value):
        return False
    resolution, digits = literal
    other = real(other)
    if other is None:
        return False
    away = distance(value, other)
    if digits >= _FLOAT_DIGITS and within(away, abs(value) * _FLOAT_NOISE):
        return True
    if is_exact(other) and _terminates(other.denominator):
        return False  # it has an exact decimal form, and this is another
    return digits >= policy.significant_digits and within(away, resolution / 2)


def _literal(expression: Expression) -> tuple[Fraction, int] | None:
    """The resolution and number of significant digits of a decimal literal, perhaps times a power of ten."""
    match expression:
        case Number(decimal=True, resolution=resolution, digits=digits):
            return resolution, digits
        case Apply(operation="neg", arguments=(inner,)):
            return _literal(inner)
        case Apply(
            operation="mul",
            arguments=(
                Number(decimal=True) as mantissa,
                Apply(operation="pow", arguments=(Number(value=base), _)) as power,
            ),
        ) if base == 10:
            try:
                scale = evaluate(power, {})
            except UnreadableError:
                return None
            return (mantissa.resolution * scale, mantissa.digits) if is_exact(scale) else None
    return None


def _terminates(denominator: int) -> bool:
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1
