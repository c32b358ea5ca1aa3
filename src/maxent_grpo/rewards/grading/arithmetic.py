"""The middle layer of the grammar: sums, products, powers, and the signs and units behind an operand."""

from fractions import Fraction

from maxent_grpo.rewards.grading.expressions import (
    Apply,
    Expression,
    Number,
    RefusedError,
    Symbol,
    UnreadableError,
)
from maxent_grpo.rewards.grading.literals import mixed_literal, mixed_spaced
from maxent_grpo.rewards.grading.operands import ACCENTS, Operands, product_of
from maxent_grpo.rewards.grading.spelling import DEGREE, PERCENT
from maxent_grpo.rewards.grading.tokens import Token

_SCALES = {
    "hundred": Fraction(100),
    "thousand": Fraction(10**3),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
}
_BASES = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "twelve": "12", "sixteen": "16",
}  # fmt: skip


class Arithmetic(Operands):
    """Reads expressions of numbers and unknowns. Relations and lists inside brackets are the top layer's."""

    def sum(self) -> Expression:
        self._enter()
        terms = [self._signed_product()]
        while self._next.text in ("+", "-", r"\pm", r"\mp") and self._next.kind in ("sign", "command"):
            if self._next.text in (r"\pm", r"\mp"):
                operation = "pm" if self._take().text == r"\pm" else "mp"
                terms.append(Apply(operation, (self._product(),)))
            else:
                terms.append(self._signed_product())
        self._depth -= 1
        return Apply("add", tuple(terms)) if len(terms) > 1 else terms[0]

    def _signed_product(self) -> Expression:
        negative = False
        while self._next.text in ("+", "-") and self._next.kind == "sign":
            negative ^= self._take().text == "-"
        if self._next.text in (r"\pm", r"\mp") and self._next.kind == "command":
            operation = "pm" if self._take().text == r"\pm" else "mp"
            inner: Expression = Apply(operation, (self._product(),))
        else:
            inner = self._product()
        return Apply("neg", (inner,)) if negative else inner

    def _product(self) -> Expression:
        factors = [self._power()]
        while True:
            token = self._next
            if token.kind == "text":
                scale, _, rest = token.text.partition(" ")
                if scale.lower() in _SCALES:
                    factors.append(Number(_SCALES[scale.lower()]))
                    self._tokens[self._at] = Token("text", rest)
                    self._at += not rest
                else:
                    factors = [Apply("unit", (product_of(factors),), self._unit())]
            elif token.kind == "sign" and token.text == "*":
                self._at += 1
                factors.append(self._signed_power())
            elif token.kind == "sign" and token.text == "/":
                self._at += 1
                if self._next.kind == "text":  # per something
                    factors = [Apply("unit", (product_of(factors),), "/" + self._unit())]
                else:
                    factors.append(Apply("inv", (self._signed_power(),)))
            elif token.kind == "command" and token.text in (r"\bmod", r"\pmod", r"\mod"):
                raise UnreadableError("a residue")
            elif self._starts_factor(token):
                factor = self._power()
                if (mixed := mixed_literal(factors[-1], factor)) is not None:
                    factors[-1] = mixed
                elif (
                    isinstance(factors[-1], Number)
                    and isinstance(factor, Number)
                    and not (self._next.kind == "sign" and self._next.text == "/")
                ):
                    raise UnreadableError("two numbers side by side")
                elif isinstance(factors[-1], Number) and isinstance(factor, Number):
                    self._at += 1  # "3 1/2"
                    factors[-1] = mixed_spaced(factors[-1], factor, self._power())
                else:
                    factors.append(factor)
            else:
                return product_of(factors)

    def _starts_factor(self, token: Token) -> bool:
        if token.kind in ("number", "repeating", "name", "function", "begin"):
            return True
        if token.kind == "command":
            return token.text in (
                r"\frac", r"\sqrt", r"\binom", r"\lfloor", r"\lceil", r"\langle", r"\mathbb", r"\dbinom",
                r"\tbinom", r"\operatorname", r"\log", r"\pmb",
            ) or token.text[1:] in ACCENTS  # fmt: skip
        if token.kind == "sign" and token.text == "|":
            return self._bars == 0
        return token.kind == "sign" and token.text in ("(", "[", "{", r"\{")

    def _signed_power(self) -> Expression:
        negative = False
        while self._next.text in ("+", "-") and self._next.kind == "sign":
            negative ^= self._take().text == "-"
        power = self._power()
        return Apply("neg", (power,)) if negative else power

    def _unit(self) -> str:
        """The tokens of a unit as one word: text, powers of it, and quotients."""
        words: list[str] = []
        while True:
            token = self._next
            if token.kind == "text":
                words.append(self._take().text)
            elif token.kind == "sign" and token.text == "^" and words:
                self._at += 1
                words.append("^" + self._exponent_text())
            elif (
                token.text in ("/", "*")
                and token.kind == "sign"
                and self._tokens[self._at + 1].kind in ("text", "name")
            ):
                words.append(self._take().text)
                if self._next.kind == "name":
                    words.append(self._take().text)
            elif token.kind == "name" and words and not token.text.startswith("inf"):
                words.append(self._take().text)
            else:
                return " ".join(words)

    def _exponent_text(self) -> str:
        if self._next.text == "{" and self._next.kind == "sign":
            self._at += 1
            inner = ""
            while self._next.kind != "finish" and self._next.text != "}":
                inner += self._take().text
            self.expect("sign", "}")
            return inner
        sign = self._take().text
        return sign + (self._take().text if sign == "-" and self._next.kind == "number" else "")

    def _power(self) -> Expression:
        self._enter()
        base = self._postfix(self._primary())
        if self._next.kind == "sign" and self._next.text in ("^", "**"):
            self._at += 1
            base = self._raised(base)
            base = self._postfix(base)
        self._depth -= 1
        return base

    def _raised(self, base: Expression) -> Expression:
        if self._next.kind == "name" and self._next.text == "prime":
            self._at += 1
            return _primed(base, 1)
        if self._next.text == "{" and self._tokens[self._at + 1].text == "prime":
            self._at += 1
            count = 0
            while self._accept("prime"):
                count += 1
            self.expect("sign", "}")
            primed = _primed(base, count)
            return self._raised(primed) if self._accept("^") else primed
        if self._next.text in ("*", "+", "-") and self._tokens[self._at + 1].kind == "finish":
            return Apply("decorated", (base,), self._take().text)
        if self._next.kind == "sign" and self._next.text in ("-", "+"):
            negative = self._take().text == "-"
            exponent = self._power()
            return Apply("pow", (base, Apply("neg", (exponent,)) if negative else exponent))
        return Apply("pow", (base, self._power()))

    def _postfix(self, base: Expression) -> Expression:
        for _ in range(8):
            token = self._next
            if token.kind == "sign" and token.text == "!":
                base = Apply("factorial", (base,))
            elif token.kind == "sign" and token.text == PERCENT:
                base = Apply("percent", (base,))
            elif token.kind == "sign" and token.text == DEGREE:
                base = Apply("degree", (base,))
                self._at += 1
                if self._next.kind == "name" and self._next.text in ("C", "F", "K"):
                    base = Apply("unit", base.arguments, "°" + self._take().text)
                continue
            elif token.kind == "sign" and token.text == "'":
                base = _primed(base, 1)
            elif token.kind == "sign" and token.text == "_":
                self._at += 1
                base = self._subscripted(base)
                continue
            else:
                return base
            self._at += 1
        raise RefusedError("too many signs behind one operand")

    def _subscripted(self, base: Expression) -> Expression:
        if self._next.kind == "sign" and self._next.text == "{":
            self._at += 1
            subscript, depth = "", 1
            while depth:
                token = self._take()
                if token.kind == "finish":
                    raise UnreadableError("an open subscript")
                depth += (token.text == "{") - (token.text == "}")
                subscript += token.text if depth and token.text not in "{}" else ""
        else:
            token = self._take()
            if token.kind not in ("number", "name", "text"):
                raise UnreadableError("a strange subscript")
            subscript = token.text
        if isinstance(base, Number):
            return Apply("based", (base,), _BASES.get(subscript.lower(), subscript))
        if isinstance(base, Symbol):
            return Symbol(f"{base.name}_{subscript}")
        return Apply("decorated", (base,), "_" + subscript)


def _primed(base: Expression, count: int) -> Expression:
    if isinstance(base, Number):
        return Apply("unit", (base,), "'" * count)
    if isinstance(base, Symbol):
        return Symbol(base.name + "'" * count)
    return Apply("decorated", (base,), "'" * count)
