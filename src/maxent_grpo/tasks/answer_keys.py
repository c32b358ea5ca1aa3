"""When are two arithmetic expressions the same answer? Two keys, a fine one and a coarse one.

`tree_key` identifies expressions that differ only by swapping the operands of ``+`` or ``×``. `flat_key` also
identifies re-bracketing and moved signs: ``a+b−c``, ``a−(c−b)`` and three more tree keys become one.
"""

from dataclasses import dataclass
from fractions import Fraction

from maxent_grpo.tasks.expressions import Expression, Negation, Number, Operation, apply

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
