"""The lowest layer of the grammar: operands, from numbers and names to functions, brackets and matrices."""

from abc import ABC, abstractmethod
from fractions import Fraction

from math_answers.expressions import (
    Apply,
    Bracketed,
    Expression,
    Listed,
    Matrix,
    Number,
    RefusedError,
    Related,
    Symbol,
    UnreadableError,
    number,
    repeating,
)
from math_answers.tokens import Token, TokenStream

_ACCENTS_WORDS = """
dot ddot hat bar tilde vec overline underline widehat widetilde overrightarrow check
"""
ACCENTS = frozenset(_ACCENTS_WORDS.split())
_SAME_ACCENT = {"overrightarrow": "vec", "widehat": "hat", "widetilde": "tilde", "overline": "bar"}
_MATRICES_WORDS = """
pmatrix bmatrix matrix Bmatrix smallmatrix array vmatrix Vmatrix
"""
_MATRICES = frozenset(_MATRICES_WORDS.split())


class Operands(TokenStream, ABC):
    """Reads one operand. The abstract methods are what may stand inside it, which the layers above read."""

    @abstractmethod
    def sum(self) -> Expression:
        """Read a sum."""

    @abstractmethod
    def _power(self) -> Expression:
        """Read an operand with its exponent."""

    @abstractmethod
    def _ratio(self) -> Expression:
        """Read sums with colons between them."""

    @abstractmethod
    def _items(self, *separators: str) -> list[Expression]:
        """Read relations or expressions with separators between them."""

    @abstractmethod
    def _exponent_text(self) -> str:
        """Read a small index as it is written."""

    def _primary(self) -> Expression:
        token = self._take()
        if token.kind == "number":
            return number(token.text)
        if token.kind == "repeating":
            return repeating(token.text)
        if token.kind == "name":
            return self._named(token)
        if token.kind == "function":
            return self._function(token.text)
        if token.kind == "begin":
            return self._matrix(token.text)
        if token.kind == "command":
            return self._command(token.text)
        if token.kind == "sign" and token.text in ("(", "[", "{", r"\{"):
            return self._bracketed(token.text)
        if token.kind == "sign" and token.text == "|":
            self._bars += 1
            inner = self.sum()
            self._bars -= 1
            self.expect("sign", "|")
            return Apply("abs", (inner,))
        if token.kind == "finish":
            raise RefusedError("nothing where an operand was expected")
        raise UnreadableError(f"'{token.text}' where an operand was expected")

    def _named(self, token: Token) -> Expression:
        if token.text in ("angle", "triangle"):
            letters = ""
            while self._next.kind == "name":
                letters += self._take().text
                if self._next.text == "_":
                    self._at += 1
                    letters += "_" + self._exponent_text()
            return Symbol(f"{token.text} {letters}")
        if token.text in ("cdots", "ldots", "dots"):
            return Symbol("dots")
        symbol = Symbol(token.text)
        if self._next.text == "(" and self._next.kind == "sign" and self._is_call(token.text):
            self._at += 1
            arguments = self._items(",")
            self.expect("sign", ")")
            return Apply("call", tuple(arguments), token.text)
        return symbol

    def _is_call(self, name: str) -> bool:
        """``f(…)`` always; ``x(t)`` and ``I(0)`` with one letter or number inside; "n(n+1)" is a product."""
        inside, behind = self._tokens[self._at + 1 : self._at + 3]
        if name in ("pi", "e", "i", "infty"):
            return False
        return name in ("f", "g", "h") or (
            inside.kind in ("number", "name") and behind.text == ")" and inside.text != name
        )

    def _function(self, name: str) -> Expression:
        exponent: Expression | None = None
        base: Expression | None = None
        for _ in range(2):
            if self._next.kind == "sign" and self._next.text == "_":
                self._at += 1
                base = self._braced()
            elif self._next.kind == "sign" and self._next.text in ("^", "**"):
                self._at += 1
                negative = self._accept("-")
                exponent = self._braced()
                exponent = Apply("neg", (exponent,)) if negative else exponent
        if self._next.kind == "sign" and self._next.text in ("(", "["):
            closing = ")" if self._take().text == "(" else "]"
            arguments = tuple(self._items(","))
            self.expect("sign", closing)
        else:
            arguments = (self._function_argument(),)
        if name == "sqrt":
            value: Expression = Apply("root", (arguments[0], Number(Fraction(2))))
        elif name == "exp":
            value = Apply("pow", (Symbol("e"), arguments[0]))
        elif name == "log" and base is not None:
            value = Apply("log", (arguments[0], base))
        else:
            value = Apply(name, arguments)
        inverse = {"sin", "cos", "tan", "cot"}
        if exponent == Apply("neg", (Number(Fraction(1)),)) and name in inverse:
            return Apply("arc" + name, arguments)
        return value if exponent is None else Apply("pow", (value, exponent))

    def _function_argument(self) -> Expression:
        """What stands behind a function without brackets: a product, up to the next function or sign."""
        factors = [self._power()]
        while self._next.kind in ("number", "name") or self._next.text in (r"\frac", r"\sqrt"):
            factors.append(self._power())
        if (
            self._next.kind == "sign"
            and self._next.text == "/"
            and self._tokens[self._at + 1].kind in ("number", "name")
        ):
            self._at += 1
            factors.append(Apply("inv", (self._power(),)))
        return product_of(factors)

    def _braced(self) -> Expression:
        """The argument of a TeX command: a group, or one token (one digit of a number)."""
        token = self._next
        if token.kind == "sign" and token.text == "{":
            self._at += 1
            inner = self.sum()
            self.expect("sign", "}")
            return inner
        if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            self._tokens[self._at] = Token("number", token.text[1:])
            return number(token.text[0])
        return self._primary()

    def _command(self, command: str) -> Expression:
        self._enter()
        try:
            if command == r"\frac":
                numerator, denominator = self._braced(), self._braced()
                return Apply("mul", (numerator, Apply("inv", (denominator,))), "frac")
            if command in (r"\binom", r"\dbinom", r"\tbinom"):
                return Apply("binomial", (self._braced(), self._braced()))
            if command == r"\sqrt":
                degree: Expression = Number(Fraction(2))
                if self._next.kind == "sign" and self._next.text == "[":
                    self._at += 1
                    degree = self.sum()
                    self.expect("sign", "]")
                if self._next.kind == "number":  # \sqrt13 is meant to hold 13
                    return Apply("root", (number(self._take().text), degree))
                return Apply("root", (self._braced(), degree))
            if command in (r"\lfloor", r"\lceil"):
                inner = self.sum()
                self.expect("command", r"\rfloor" if command == r"\lfloor" else r"\rceil")
                return Apply("floor" if command == r"\lfloor" else "ceil", (inner,))
            if command == r"\langle":
                items = self._items(",")
                self.expect("command", r"\rangle")
                return Bracketed("<", ">", tuple(items))
            if command == r"\mathbb":
                return Symbol("mathbb " + _flat(self._braced()))
            if command[1:] in ACCENTS:
                accent = _SAME_ACCENT.get(command[1:], command[1:])
                return Symbol(f"{accent} {_flat(self._braced())}")
            raise UnreadableError(f"the command {command}")
        finally:
            self._depth -= 1

    def _bracketed(self, opening: str) -> Expression:
        self._enter()
        outer, self._bars = self._bars, 0
        if opening == r"\{" and self._accept(r"\}"):
            self._bars, self._depth = outer, self._depth - 1
            return Symbol("emptyset")
        self._bars = 1 if opening == r"\{" and self._is_set_builder() else 0
        groups = self._items(",", ";")
        if opening == "{" and self._accept(r"\choose"):
            groups = [Apply("binomial", (groups[0], self._ratio()))]
        self._bars, self._depth = outer, self._depth - 1
        closing = self._take().text
        if opening == "{":
            if closing != "}":
                raise UnreadableError("an open group")
            return groups[0] if len(groups) == 1 else Listed(tuple(groups))
        if opening == r"\{":
            if closing != r"\}":
                raise UnreadableError("an open set")
            match groups:
                case [Related(sides=(_, *sides), relations=("mid", *relations))] if relations:
                    return Related(tuple(sides), tuple(relations))  # {x | x > 2} is what its condition says
            return Bracketed("{", "}", tuple(groups))
        if closing not in (")", "]"):
            raise UnreadableError("an open bracket")
        if len(groups) == 1 and ((opening, closing) == ("(", ")") or isinstance(groups[0], Matrix)):
            return groups[0]
        return Bracketed(opening, closing, tuple(groups))

    def _is_set_builder(self) -> bool:
        bar = self._tokens[self._at + 1] if self._at + 1 < len(self._tokens) else self._next
        return self._next.kind == "name" and bar.kind == "sign" and bar.text in ("|", ":")

    def _matrix(self, kind: str) -> Expression:
        if kind not in _MATRICES:
            raise UnreadableError(f"the environment {kind}")
        rows: list[tuple[Expression, ...]] = []
        row: list[Expression] = []
        while self._next.kind != "end":
            row.append(self.sum())
            if self._accept("&"):
                continue
            rows.append(tuple(row))
            row = []
            if self._next.kind == "row":
                self._at += 1
            elif self._next.kind != "end":
                raise UnreadableError("an open matrix")
        self._at += 1
        if row or not rows or len({len(r) for r in rows}) > 1:
            raise UnreadableError("a ragged matrix")
        if kind == "vmatrix":
            raise UnreadableError("a determinant")
        return Matrix(tuple(rows))


def product_of(factors: list[Expression]) -> Expression:
    """The factors as one expression, also if there is only one."""
    return Apply("mul", tuple(factors)) if len(factors) > 1 else factors[0]


def _flat(expression: Expression) -> str:
    """A name for what stands under an accent."""
    match expression:
        case Symbol(name=name):
            return name
        case Number(value=value):
            return str(value)
        case Apply(operation="mul", arguments=factors):
            return "".join(map(_flat, factors))
    raise UnreadableError("a strange name")
