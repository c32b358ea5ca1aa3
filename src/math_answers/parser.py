"""A small parser for final answers in TeX or plain text: sums and products, relations and lists.

It reads what answers are written in, and refuses the rest with `UnreadableError`: a model's text is data here, never
code. Its work is bounded by `MAX_TOKENS` and `MAX_DEPTH` (`tokens`). Below it are the `operands`.
"""

from fractions import Fraction

from math_answers.expressions import (
    Apply,
    Bracketed,
    Expression,
    Listed,
    Number,
    RefusedError,
    Related,
    Symbol,
    UnreadableError,
    mixed_literal,
    mixed_spaced,
)
from math_answers.operands import ACCENTS, Operands, product_of
from math_answers.spelling import DEGREE, PERCENT
from math_answers.tokens import Token, tokenised

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


_RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=",
    r"\le": "<=", r"\leq": "<=", r"\leqslant": "<=", r"\ge": ">=", r"\geq": ">=", r"\geqslant": ">=",
    r"\lt": "<", r"\gt": ">", r"\ne": "!=", r"\neq": "!=", r"\approx": "~", r"\simeq": "~", r"\sim": "~",
    r"\in": "in", r"\equiv": "==", r"\cong": "~", r"\doteq": "~",
    r"\to": "->", r"\rightarrow": "->", r"\mapsto": "->", r"\Rightarrow": "=>", r"\implies": "=>",
    r"\iff": "<=>", r"\Leftrightarrow": "<=>", r"\subseteq": "subset", r"\subset": "subset",
    r"\perp": "perp", r"\parallel": "parallel", r"\mid": "mid",
}  # fmt: skip
_SETS = {r"\cup": "union", r"\cap": "intersection", r"\setminus": "without", r"\backslash": "without"}


def parse(spelled: str, thousands: bool = True) -> Expression:
    """Read an answer in the spelling of `respell`.

    Args:
        spelled: the answer.
        thousands: read "1,234" outside brackets as one number, and not as two.

    Raises:
        UnreadableError: anything that is not an answer in this grammar, or too much of it.
    """
    parser = _Answers(tokenised(spelled, thousands))
    expression = parser.answer()
    parser.expect("finish", "")
    return expression


class _Answers(Arithmetic):
    """Reads a whole answer."""

    def answer(self) -> Expression:
        groups = [self._items(",")]
        while self._accept(";"):
            if self._next.kind != "finish":
                groups.append(self._items(","))
        if len(groups) == 1:
            return _listed(groups[0])
        return Listed(tuple(_listed(group, tuple_like=True) for group in groups))

    def _items(self, *separators: str) -> list[Expression]:
        items = [self._relation()]
        while self._accept(*separators):
            if self._next.kind == "finish" or self._next.text in (")", "]", r"\}", "}", ";"):
                break
            items.append(self._relation())
        return items

    def _relation(self) -> Expression:
        self._enter()
        sides: list[Expression] = [self._set_expression()]
        relations: list[str] = []
        while (relation := self._relation_sign()) is not None:
            relations.append(relation)
            sides.append(self._set_expression())
        self._depth -= 1
        return Related(tuple(sides), tuple(relations)) if relations else sides[0]

    def _relation_sign(self) -> str | None:
        token = self._next
        if token.kind not in ("sign", "command"):
            return None
        text = "=" if token.text == ":=" else token.text
        if text == "|" and self._bars == 1 and self._tokens[self._at - 2].text == r"\{":
            text = r"\mid"
        if text == r"\not":
            self._at += 1
            inner = self._relation_sign()
            if inner not in ("=", "in"):
                raise UnreadableError("a negated relation")
            return "!=" if inner == "=" else "notin"
        relation = _RELATIONS.get(text)
        if relation is not None:
            self._at += 1
        return relation

    def _set_expression(self) -> Expression:
        left = self._ratio()
        while self._next.text in _SETS and self._next.kind == "command":
            operation = _SETS[self._take().text]
            right = self._ratio()
            if operation == "union" and isinstance(left, Apply) and left.operation == "union":
                left = Apply("union", (*left.arguments, right))
            else:
                left = Apply(operation, (left, right))
        return left

    def _ratio(self) -> Expression:
        terms = [self.sum()]
        while self._next.text == ":" and self._next.kind == "sign":
            self._at += 1
            terms.append(self.sum())
        return Apply("ratio", tuple(terms)) if len(terms) > 1 else terms[0]


def _listed(items: list[Expression], tuple_like: bool = False) -> Expression:
    if len(items) == 1:
        return items[0]
    return Bracketed("(", ")", tuple(items)) if tuple_like else Listed(tuple(items))
