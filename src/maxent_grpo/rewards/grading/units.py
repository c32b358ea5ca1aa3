"""Units of measurement: the one that an answer ends with, and one name for all spellings of it."""

import re

from maxent_grpo.rewards.grading.expressions import Apply, Expression, Number, Symbol, has_operation, mapped

_UNIT_FAMILIES = """
cm centimeter centimeters centimetre centimetres
mm millimeter millimeters millimetre millimetres
nm nanometer nanometers
m meter meters metre metres
km kilometer kilometers kilometre kilometres
in inch inches
ft foot feet
yd yard yards
mi mile miles
g gram grams
mg milligram milligrams
kg kilogram kilograms
lb lbs pound pounds
oz ounce ounces
s sec secs second seconds
min mins minute minutes
h hr hrs hour hours
day days
week weeks
month months
year years yr yrs
$ dollar dollars usd
cent cents
l liter liters litre litres
ml milliliter milliliters
j joule joules
kj kilojoule kilojoules
cal calorie calories
kcal kilocalorie kilocalories
w watt watts
n newton newtons
v volt volts
ev
kev
mev
hz hertz
k kelvin
mol mole moles
rad radian radians
erg ergs
"""
_UNIT_NAMES = {name: line.split()[0] for line in _UNIT_FAMILIES.strip().splitlines() for name in line.split()}
_UNIT_TOKEN = re.compile(r"[^\W\d_]+|[$]|\^\s*[{(]?\s*(-?\d{1,3})|/")
_POWER_BEFORE = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWER_BEHIND = {"squared": 2, "cubed": 3}


def split_unit(expression: Expression) -> tuple[Expression, str]:
    """An answer without units, and the unit that it ends with, by one name for all spellings."""
    name = ""
    match expression:
        case Apply(operation="unit", arguments=(inner,), name=written):
            name = _unit_name(written)
            expression = inner
        case Apply(operation="neg", arguments=(Apply(operation="unit", arguments=(inner,), name=written),)):
            name = _unit_name(written)
            expression = Apply("neg", (inner,))
    return _unitless(expression), name


def split_letter_unit(expression: Expression) -> tuple[Expression, str]:
    """``5m`` beside an answer with a unit: the letter is one, too, and no unknown."""
    match expression:
        case Apply(operation="mul", arguments=(*factors, Symbol(name=letter))) if (
            letter.lower() in _UNIT_NAMES
        ):
            written = letter
        case Apply(
            operation="mul",
            arguments=(
                *factors,
                Apply(operation="pow", arguments=(Symbol(name=letter), Number(value=power))),
            ),
        ) if letter.lower() in _UNIT_NAMES:
            written = f"{letter}^{power}"
        case _:
            return expression, ""
    return (factors[0] if len(factors) == 1 else Apply("mul", tuple(factors))), _unit_name(written)


def is_known_unit(unit: str) -> bool:
    return bool(unit) and all(word.partition("^")[0] in _UNIT_NAMES for word in unit.split())


def _unitless(expression: Expression) -> Expression:
    if isinstance(expression, Apply) and expression.operation == "unit":
        return _unitless(expression.arguments[0])
    if not has_operation(expression, frozenset({"unit"})):
        return expression
    return mapped(expression, _unitless)


def _unit_name(written: str) -> str:
    """One name for all spellings of a unit: its words with their powers, in alphabetical order."""
    powers: dict[str, int] = {}
    sign, before, last = 1, 1, ""
    for token in _UNIT_TOKEN.finditer(written.lower()):
        word = token[0]
        if word in ("/", "per"):
            sign = -1
        elif token[1]:
            if last:
                powers[last] += sign * (int(token[1]) - 1)
        elif word in _POWER_BEFORE:
            before = _POWER_BEFORE[word]
        elif word in _POWER_BEHIND and last:
            powers[last] += sign * (_POWER_BEHIND[word] - 1)
        elif word not in ("unit", "units"):
            last = _UNIT_NAMES.get(word, word)
            powers[last] = powers.get(last, 0) + sign * before
            before = 1
    return " ".join(f"{word}^{power}" for word, power in sorted(powers.items()))
