"""Units of measurement: the one that an answer ends with, and one name for all spellings of it."""

import re

from math_answers.expressions import Apply, Expression, Number, Symbol, has_operation, mapped

_UNIT_FAMILIES = """
cm centimeter centimeters centimetre centimetres
mm millimeter millimeters millimetre millimetres
nm nanometer nanometers
µm micrometer micrometers micron microns
dm decimeter decimeters
m meter meters metre metres
km kilometer kilometers kilometre kilometres
in inch inches
ft foot feet
yd yard yards
mi mile miles
g gram grams
mg milligram milligrams
kg kilogram kilograms
t ton tons tonne tonnes
lb lbs pounds
oz ounce ounces
s sec secs second seconds
ms millisecond milliseconds
min mins minute minutes
h hr hrs hour hours
day days
week weeks
month months
year years yr yrs
$ dollar dollars usd
cent cents
euro euros
pound
yen
yuan rmb 元 块
rupee rupees
l liter liters litre litres
ml milliliter milliliters
j joule joules
kj kilojoule kilojoules
cal calorie calories
kcal kilocalorie kilocalories
w watt watts
kw kilowatt kilowatts
mw megawatt megawatts
n newton newtons
v volt volts
a amp amps ampere amperes
c coulomb coulombs
pa pascal pascals
kpa kilopascal kilopascals
atm
bar bars
ohm ohms
f farad farads
tesla teslas
ev
kev
mev
gev
hz hertz
khz kilohertz
mhz megahertz
k kelvin kelvins
mol mole moles
rad rads radian radians
deg degree degrees
erg ergs
mph
permille
°c celsius
°f fahrenheit
"""
_UNIT_NAMES = {name: line.split()[0] for line in _UNIT_FAMILIES.strip().splitlines() for name in line.split()}
_UNIT_TOKEN = re.compile(r"°?[^\W\d_]+|[$]|\^\s*[{(]?\s*(-?\d{1,3})|/|'+")
_POWER_BEFORE = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWER_BEHIND = {"squared": 2, "cubed": 3}
_IGNORED = frozenset({"unit", "units", "ordinal", "of", "the", "a", "an", "in", "total", "altogether"})
_COMPOUND = {"mph": "mi/h", "kmh": "km/h", "kph": "km/h", "kmph": "km/h", "mps": "m/s", "mpg": "mi/gal"}
_PLURALS = (
    ("ies", "y"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("sses", "ss"),
    ("xes", "x"),
    ("men", "man"),
    ("s", ""),
)


def split_unit(expression: Expression) -> tuple[Expression, str]:
    """An answer without the unit that it ends with, and that unit, by one name for all spellings.

    Units inside it are kept, as names that it is multiplied by.
    """
    match expression:
        case Apply(operation="unit", arguments=(inner,), name=written):
            return _with_names(inner), _unit_name(written)
        case Apply(operation="neg", arguments=(inner,)):
            value, unit = split_unit(inner)
            return Apply("neg", (value,)), unit
        case Apply(operation="add", arguments=terms, name=name):
            split = [split_unit(term) for term in terms]
            if len({unit for _, unit in split}) == 1:
                return Apply("add", tuple(value for value, _ in split), name), split[0][1]
    return _with_names(expression), ""


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
    """Whether all words of a unit are units of measurement, and none is what was counted."""
    return bool(unit) and all(
        word in _COMPOUND or word in _UNIT_NAMES or word.partition("^")[0] in _UNIT_NAMES
        for word in unit.lower().split()
    )


def same_units(ours: str, theirs: str) -> bool:
    """Whether two units, by the names that `split_unit` gives, are one: the same, or one with words added to it."""
    if ours == theirs:
        return True
    if is_known_unit(ours) and is_known_unit(theirs):
        return False
    left, right = set(ours.split()), set(theirs.split())
    return left <= right or right <= left


def _with_names(expression: Expression) -> Expression:
    if isinstance(expression, Apply) and expression.operation == "unit":
        return Apply(
            "mul", (_with_names(expression.arguments[0]), Symbol("unit " + _unit_name(expression.name)))
        )
    if not has_operation(expression, frozenset({"unit"})):
        return expression
    return mapped(expression, _with_names)


def _unit_name(written: str) -> str:
    """One name for all spellings of a unit: its words with their powers, in alphabetical order."""
    powers: dict[str, int] = {}
    sign, before, last = 1, 1, ""
    written = written.lower()
    written = _COMPOUND.get(written, written)
    for token in _UNIT_TOKEN.finditer(written):
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
        elif word not in _IGNORED:
            last = _UNIT_NAMES.get(word) or _singular(word)
            powers[last] = powers.get(last, 0) + sign * before
            before = 1
    return " ".join(f"{word}^{power}" for word, power in sorted(powers.items()))


def _singular(word: str) -> str:
    if len(word) < 4:
        return word
    for plural, ending in _PLURALS:
        if word.endswith(plural) and not word.endswith("ss"):
            singular = word.removesuffix(plural) + ending
            return _UNIT_NAMES.get(singular, singular)
    return word
