"""The lowest layer of the grammar: operands, from numbers and names to functions, brackets and matrices."""

import re
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
    symbols,
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
_SYSTEMS = frozenset({"cases", "dcases", "aligned", "gathered", "align*", "align", "gather*", "split"})
_CALLED = frozenset({"f", "g", "h", "Gamma", "zeta", "phi"})
_FUNCTION_NAMES = frozenset("fghFGHTPQuyv")
_OF_EVENTS = frozenset({"<", ">", "=", "|", r"\mid", r"\le", r"\ge", r"\cap", r"\cup"})
_DECORATION = re.compile(r"'{1,4}|\^(?:prime){1,4}|\^-1|_\w{1,3}|_\w{1,3}'{1,3}|\^-1_\w")
_BIG = frozenset(
    {
        r"\sum",
        r"\prod",
        r"\int",
        r"\iint",
        r"\iiint",
        r"\oint",
        r"\lim",
        r"\bigcup",
        r"\bigcap",
        r"\forall",
        r"\exists",
    }
)
_PREFIXES = _BIG | {
    r"\lnot",
    r"\nabla",
    r"\Re",
    r"\Im",
    r"\arg",
    r"\ker",
    r"\dim",
    r"\Pr",
    r"\sup",
    r"\inf",
    r"\ce",
}
OPERAND_COMMANDS = _PREFIXES | {
    r"\frac", r"\sqrt", r"\binom", r"\lfloor", r"\lceil", r"\langle", r"\mathbb", r"\operatorname", r"\pmb",
}  # fmt: skip
"""Commands that can only begin an operand. Others between two operands are operations that only equal themselves."""

_NOT_OPERANDS = frozenset(
    {r"\rfloor", r"\rceil", r"\rangle", r"\}", r"\choose", r"\And", r"\Or", r"\land", r"\lor", r"\\"}
)


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
    def _relation(self) -> Expression:
        """Read sides with relations between them."""

    @abstractmethod
    def _series(self, *separators: str) -> tuple[list[Expression], str]:
        """Read items with separators, "and" or "or" between them, and which of these words stood there."""

    @abstractmethod
    def _product(self) -> Expression:
        """Read factors side by side."""

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
        if token.kind == "run":
            return Apply("mul", tuple(map(Symbol, token.text)), "run")
        if token.kind == "text":
            return self._words(token)
        if token.kind == "function":
            return self._function(token.text)
        if token.kind == "begin":
            return self._environment(token.text)
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

    def _words(self, token: Token) -> Expression:
        """Words side by side are one symbol, whose letter case means nothing."""
        found = [token.text]
        while self._next.kind == "text":
            found.append(self._take().text)
        return Symbol("'" + " ".join(found).casefold())

    def _named(self, token: Token) -> Expression:
        if token.text in ("angle", "triangle"):
            letters = ""
            while self._next.kind in ("name", "run"):
                letters += self._take().text
                if self._next.text == "_":
                    self._at += 1
                    letters += "_" + self._exponent_text()
            return Symbol(f"{token.text} {min(letters, letters[::-1]) if '_' not in letters else letters}")
        if token.text in ("cdots", "ldots", "dots"):
            return Symbol("dots")
        symbol = Symbol(token.text)
        if (decorated := self._decorated_call(token.text)) is not None:
            return decorated
        if self._next.text == "(" and self._next.kind == "sign" and self._is_call(token.text):
            self._at += 1
            arguments = self._items(",")
            self.expect("sign", ")")
            return Apply("call", tuple(arguments), token.text)
        return symbol

    def _decorated_call(self, name: str) -> Expression | None:
        """``f'(x)``, ``f^{-1}(x)`` or ``f_n(x)``, of a name that is only used for functions."""
        if name not in _FUNCTION_NAMES or self._next.kind != "sign" or self._next.text not in ("'", "^", "_"):
            return None
        end, written = self._at, ""
        while self._tokens[end].text != "(" or self._tokens[end].kind != "sign":
            inside = self._tokens[end]
            if inside.kind == "finish" or inside.text in (" ", "=", ",", ")") or end - self._at > 8:
                return None
            written += inside.text if inside.text not in "{}" else ""
            end += 1
        if not _DECORATION.fullmatch(written):
            return None
        self._at = end + 1
        arguments = self._items(",")
        self.expect("sign", ")")
        return Apply("call", tuple(arguments), name + written.replace("^prime", "'"))

    def _is_call(self, name: str) -> bool:
        """``f(…)`` always; ``x(t)`` and ``I(0)`` with one letter or number inside; "n(n+1)" is a product."""
        if self._at + 2 >= len(self._tokens):
            return False
        inside, behind = self._tokens[self._at + 1 : self._at + 3]
        if name in ("pi", "e", "i", "infty"):
            return False
        if name in ("P", "E") and any(token.text in _OF_EVENTS for token in self._bracket_ahead()):
            return True
        return name in _CALLED or (
            inside.kind in ("number", "name") and behind.text == ")" and inside.text != name
        )

    def _bracket_ahead(self) -> list[Token]:
        end = next((i for i, token in enumerate(self._tokens[self._at :]) if token.text == ")"), 0)
        return self._tokens[self._at : self._at + end]

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
        if name == "cis":
            angle = arguments[0]
            value: Expression = Apply(
                "add", (Apply("cos", (angle,)), Apply("mul", (Symbol("i"), Apply("sin", (angle,)))))
            )
        elif name == "sqrt":
            value = Apply("root", (arguments[0], Number(Fraction(2))))
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
        while self._next.kind in ("number", "name", "run") or self._next.text in (r"\frac", r"\sqrt"):
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
            if command == r"\binom":
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
            return self._opaque(command)
        finally:
            self._depth -= 1

    def _opaque(self, command: str) -> Expression:
        """A command that nothing here knows, before its operand: a function that only equals itself.

        Sums, integrals and the like take the product behind them; their limits may come in either order.
        """
        if command in _NOT_OPERANDS:
            raise UnreadableError(f"the command {command}")
        limits: dict[str, Expression] = {}
        while self._next.kind == "sign" and self._next.text in ("_", "^") and self._next.text not in limits:
            sign = self._take().text
            limits[sign] = self._limit()
        arguments = tuple(limits[sign] for sign in sorted(limits))
        name = command + "".join(sorted(limits))
        if not self._starts_operand():
            return Apply("call", arguments, name) if arguments else Symbol(command)
        body = self._product() if command in _BIG else self._power()
        return Apply("call", (*arguments, body), name)

    def _limit(self) -> Expression:
        if not self._accept("{"):
            return self._primary()
        items, joiner = self._series(",", ";")
        self.expect("sign", "}")
        return items[0] if len(items) == 1 else Listed(tuple(items), joiner)

    def _starts_operand(self) -> bool:
        token = self._next
        if token.kind in ("number", "repeating", "name", "run", "function", "begin", "text"):
            return True
        if token.kind == "sign":
            if token.text == "(" and self._tokens[self._at + 1].text in (r"\bmod", r"\pmod", r"\mod"):
                return False
            return token.text in ("(", "[", "{", r"\{") or (
                token.text == "|" and not self._bars and not self._builder
            )
        return token.kind == "command" and (token.text in OPERAND_COMMANDS or token.text[1:] in ACCENTS)

    def _bracketed(self, opening: str) -> Expression:
        self._enter()
        outer, self._bars = (self._bars, self._builder), 0
        self._builder = opening == r"\{"
        if opening == r"\{" and self._accept(r"\}"):
            (self._bars, self._builder), self._depth = outer, self._depth - 1
            return Symbol("emptyset")
        items, joiner = self._series(",", ";")
        if opening == r"\{" and len(items) == 1 and self._accept("|", ":", r"\mid"):
            self._builder = False
            conditions, joiner = self._series(",", ";")
            self.expect("sign", r"\}")
            (self._bars, self._builder), self._depth = outer, self._depth - 1
            return _set_of(items[0], conditions, joiner)
        if opening == "{" and self._accept(r"\choose"):
            items = [Apply("binomial", (items[0], self._ratio()))]
        (self._bars, self._builder), self._depth = outer, self._depth - 1
        closing = self._take().text
        if opening == "{":
            if closing != "}":
                raise UnreadableError("an open group")
            return items[0] if len(items) == 1 else Listed(tuple(items), joiner)
        if opening == r"\{":
            if closing != r"\}":
                raise UnreadableError("an open set")
            return Bracketed("{", "}", tuple(items))
        if closing not in (")", "]"):
            raise UnreadableError("an open bracket")
        if len(items) == 1 and ((opening, closing) == ("(", ")") or isinstance(items[0], Matrix)):
            return items[0]
        if joiner and all(isinstance(item, Related) for item in items):
            return Listed(tuple(items), joiner)
        return Bracketed(opening, closing, tuple(items))

    def _environment(self, kind: str) -> Expression:
        if kind in _SYSTEMS:
            return self._system(kind)
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
        matrix = Matrix(tuple(rows))
        return Apply("det", (matrix,)) if kind == "vmatrix" else matrix

    def _system(self, kind: str) -> Expression:
        """Equations one below the other, or the values of a function with their conditions."""
        if kind not in ("cases", "dcases"):  # here & only aligns
            end = next((i for i, token in enumerate(self._tokens[self._at :]) if token.kind == "end"), 0)
            row = [token for token in self._tokens[self._at : self._at + end] if token.text != "&"]
            self._tokens[self._at : self._at + end] = row
        rows: list[Expression] = []
        pieces: list[Expression] = []
        while self._next.kind != "end":
            items, joiner = self._series(",", ";")
            if self._accept("&"):
                if self._next.kind == "text" and self._next.text.lower() in (
                    "if",
                    "when",
                    "for",
                    "where",
                    "as",
                    "on",
                ):
                    self._at += 1
                conditions, joiner = self._series(",", ";")
                condition = (
                    conditions[0] if len(conditions) == 1 else Listed(tuple(conditions), joiner or "and")
                )
                value = items[0] if len(items) == 1 else Listed(tuple(items))
                pieces.append(Apply("case", (value, condition)))
            else:
                rows += items
            if self._next.kind == "row":
                self._at += 1
            elif self._next.kind != "end":
                raise UnreadableError("an open system")
        self._at += 1
        if bool(rows) == bool(pieces):
            raise UnreadableError("no system")
        if pieces:
            return Apply("cases", tuple(pieces))
        return Listed(tuple(rows), "and") if len(rows) > 1 else rows[0]


def _set_of(head: Expression, conditions: list[Expression], joiner: str) -> Expression:
    """The set of all x with some property: what its condition says, where x is a plain real number."""
    condition = conditions[0] if len(conditions) == 1 else Listed(tuple(conditions), joiner or "and")
    match head:
        case (
            Symbol(name=name)
            | Related(relations=("in",), sides=(Symbol(name=name), Symbol(name="mathbb R" | "R")))
        ) if name in symbols(condition):
            return condition
    return Apply("set of", (head, condition))


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
