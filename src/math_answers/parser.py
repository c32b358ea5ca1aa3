"""A small parser for final answers in TeX or plain text: sums and products, relations and lists.

It reads what answers are written in, and refuses the rest with `UnreadableError`: a model's text is data here, never
code. No token is ever passed over: a command or a word that nothing here knows becomes an operation or a symbol that
only equals itself. The work is bounded by `MAX_TOKENS` and `MAX_DEPTH` (`tokens`). Below it are the `operands`.
"""

import functools
from dataclasses import replace
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
    parts,
)
from math_answers.operands import Operands, product_of
from math_answers.relation_signs import RELATIONS
from math_answers.spelling import DEGREE, PERCENT
from math_answers.tokens import Token, tokenised
from math_answers.units import is_known_unit
from math_answers.words import LOGIC_WORDS, SCALES

_BASES = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "twelve": "12", "sixteen": "16",
}  # fmt: skip
_SETS = {r"\cup": "union", r"\cap": "intersection", r"\setminus": "without"}
_RESIDUES = frozenset({r"\pmod", r"\bmod", r"\mod", r"\pod"})
_ENDS = frozenset(
    {
        *(r"\And", r"\Or", r"\land", r"\lor", r"\pm", r"\mp", r"\\"),
        *(r"\rfloor", r"\rceil", r"\rangle", r"\choose"),
    }
)
_CJK_LOGIC = frozenset("不非无没或且和未")


@functools.lru_cache(maxsize=1024)  # a gold is compared with many answers
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
                self._take_text(factors)
            elif token.kind == "sign" and token.text in ("*", r"\times"):
                self._at += 1
                right = self._signed_power()
                if token.text == r"\times" and _is_crossed(product_of(factors)) and _is_crossed(right):
                    factors = [Apply("call", (product_of(factors), right), r"\times")]
                else:
                    factors.append(right)
            elif token.kind == "sign" and token.text == "/":
                self._at += 1
                if self._next.kind == "text" and not _says_something(self._next.text):  # per something
                    factors = [Apply("unit", (product_of(factors),), "/" + self._unit())]
                else:
                    factors.append(Apply("inv", (self._signed_power(),)))
            elif token.kind == "command" and self._is_operation(token.text):
                self._at += 1
                left = product_of(factors)
                if self._starts_operand():
                    factors = [Apply("call", (left, self._signed_power()), token.text)]
                else:
                    factors = [Apply("decorated", (left,), token.text)]
            elif self._starts_factor():
                factor = self._power()
                if _is_number(factors[-1]) and isinstance(factor, Number):
                    raise UnreadableError("two numbers side by side")
                factors.append(factor)
            else:
                return product_of(factors)

    def _starts_factor(self) -> bool:
        token = self._next
        if token.kind == "sign" and token.text == "|":
            return self._bars == 0 and not self._builder
        return token.kind != "text" and self._starts_operand()

    def _is_operation(self, command: str) -> bool:
        """Whether a command between two operands is an operation that only equals itself: ∘, ⊗, ⋆ and the like."""
        return (
            command not in RELATIONS
            and command not in _SETS
            and command not in _RESIDUES
            and command not in _ENDS
            and command != r"\not"
            and not self._starts_operand()
        )

    def _take_text(self, factors: list[Expression]) -> None:
        """Words behind factors: a scale, a unit of measurement, or a word that only equals itself."""
        word = self._next.text
        if word.lower() in ("squared", "cubed"):
            self._at += 1
            factors[-1] = Apply("pow", (factors[-1], Number(Fraction(2 if word.lower() == "squared" else 3))))
        elif word.lower() in SCALES:
            self._at += 1
            factors.append(Number(SCALES[word.lower()]))
        elif _says_something(word) or not (_holds_number(factors) or is_known_unit(word)):
            factors.append(Symbol("'" + self._take().text.casefold()))
        else:
            unit = self._unit()
            factors[:] = [Apply("unit", (product_of(factors),), unit)]

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
            token, behind = self._next, self._tokens[min(self._at + 1, len(self._tokens) - 1)]
            if token.kind == "text" and not (words and _says_something(token.text)):
                words.append(self._take().text)
            elif token.kind == "sign" and token.text == "^" and words and self._is_power_of_unit():
                self._at += 1
                words.append("^" + self._exponent_text())
            elif (
                token.kind == "sign"
                and token.text in ("/", "*")
                and words
                and (behind.kind == "text" or (behind.kind == "name" and is_known_unit(behind.text)))
            ):
                words.append(self._take().text)
                if self._next.kind == "name":
                    words.append(self._take().text)
            else:
                return " ".join(words)

    def _is_power_of_unit(self) -> bool:
        ahead = [token for token in self._tokens[self._at + 1 : self._at + 4] if token.text not in ("{", "-")]
        return bool(ahead) and ahead[0].kind == "number"

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
        base = self._primary()
        if isinstance(base, Number) and not base.decimal:
            base = self._mixed(base)
        base = self._postfix(base)
        while self._next.kind == "sign" and self._next.text in ("^", "**"):
            self._at += 1
            base = self._postfix(self._raised(base))
        self._depth -= 1
        return base

    def _mixed(self, whole: Number) -> Expression:
        r"""``3\frac{1}{2}`` and ``3 1/2``: one number, to which a sign behind it belongs as a whole."""
        ahead = self._tokens[self._at : self._at + 8]
        if ahead[0].text == r"\frac" and _is_fraction(ahead[1:]):
            self._at += 1
            mixed = mixed_literal(whole, self._command(r"\frac"))
            if mixed is None:
                raise UnreadableError("no mixed number")
            return mixed
        if (
            len(ahead) > 2
            and ahead[0].kind == ahead[2].kind == "number"
            and ahead[1].text == "/"
            and ahead[0].spaced
        ):
            if not (ahead[0].text.isdigit() and ahead[2].text.isdigit()):
                raise UnreadableError("two numbers side by side")
            self._at += 3
            return mixed_spaced(
                whole, Number(Fraction(int(ahead[0].text))), Number(Fraction(int(ahead[2].text)))
            )
        return whole

    def _raised(self, base: Expression) -> Expression:
        """The base with the exponent that follows; an index behind the exponent belongs to the base."""
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
        if self._next.text in ("*", "+", "-") and self._tokens[self._at + 1].kind != "number":
            behind = self._tokens[self._at + 1]
            if behind.kind == "finish" or behind.text in (")", "]", ",", "=", "}", "(", "+", "-", "'"):
                return Apply("decorated", (base,), self._take().text)
        exponent = self._exponent()
        if self._next.kind == "sign" and self._next.text == "_" and not isinstance(base, Number):
            self._at += 1
            base = self._subscripted(base)
        return Apply("pow", (base, exponent))

    def _exponent(self) -> Expression:
        if self._next.kind == "sign" and self._next.text in ("-", "+"):
            negative = self._take().text == "-"
            exponent = self._exponent()
            return Apply("neg", (exponent,)) if negative else exponent
        self._enter()
        exponent = self._primary()
        if self._next.kind == "sign" and self._next.text == "!" and isinstance(exponent, Number):
            self._at += 1
            exponent = Apply("factorial", (exponent,))
        if self._next.kind == "sign" and self._next.text in ("^", "**"):
            self._at += 1
            exponent = self._raised(exponent)
        self._depth -= 1
        return exponent

    def _postfix(self, base: Expression) -> Expression:
        for _ in range(8):
            token = self._next
            if token.kind == "sign" and token.text == "!":
                base = Apply("factorial", (base,))
            elif token.kind == "sign" and token.text == PERCENT and not _is_marked(base):
                base = Apply("percent", (base,))
            elif token.kind == "command" and token.text == r"\permille":
                base = Apply("mul", (base, Number(Fraction(1, 1000))))
            elif token.kind == "sign" and token.text == DEGREE and not _is_marked(base):
                self._at += 1
                base = Apply("degree", (self._with_minutes(base),))
                if self._next.kind in ("name", "text") and self._next.text in ("C", "F", "K"):
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

    def _with_minutes(self, degrees: Expression) -> Expression:
        r"""``30^\circ 30' 15''``: degrees, sixtieths of a degree, and sixtieths of those."""
        terms = [degrees]
        for size in (60, 3600):
            end = self._at
            if self._tokens[end].kind != "number" or not isinstance(degrees, Number):
                break
            end += 1
            marks = 0
            while self._tokens[end].text in ("'", '"', "^", "{", "}", "prime") and end - self._at < 8:
                marks += {"'": 1, "prime": 1, '"': 2}.get(self._tokens[end].text, 0)
                end += 1
            if marks not in (1, 2) or 60**marks < size:
                break
            terms.append(Number(Fraction(self._next.text) / 60**marks))
            self._at = end
        return Apply("add", tuple(terms)) if len(terms) > 1 else degrees

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
            if token.kind not in ("number", "name", "text", "run", "command"):
                raise UnreadableError("a strange subscript")
            subscript = token.text
        if isinstance(base, Number):
            return Apply("based", (base,), _BASES.get(subscript.lower(), subscript))
        if isinstance(base, Symbol):
            return Symbol(f"{base.name}_{subscript}")
        return Apply("decorated", (base,), "_" + subscript)


class _Answers(Arithmetic):
    """Reads a whole answer."""

    def answer(self) -> Expression:
        groups = [self._series(",")]
        while self._accept(";"):
            if self._next.kind != "finish":
                groups.append(self._series(","))
        if len(groups) == 1:
            return _listed(*groups[0])
        return Listed(
            tuple(items[0] if len(items) == 1 else Bracketed("(", ")", tuple(items)) for items, _ in groups)
        )

    def _items(self, *separators: str) -> list[Expression]:
        return self._series(*separators)[0]

    def _series(self, *separators: str) -> tuple[list[Expression], str]:
        """Items with separators between them. "and" binds before "or" and the comma where both words occur."""
        items = [self._relation()]
        joiners: list[str] = []
        while True:
            comma = self._accept(*separators)
            word = "and" if self._accept(r"\And") else "or" if self._accept(r"\Or") else ""
            if not comma and not word:
                break
            if self._next.kind in ("finish", "row", "end") or self._next.text in (
                ")",
                "]",
                r"\}",
                "}",
                ";",
                "&",
            ):
                if word:
                    raise UnreadableError("nothing behind a connective")
                break
            joiners.append(word)
            items.append(self._relation())
        found = set(joiners) - {""}
        if len(found) == 2:
            groups = [[items[0]]]
            for joiner, item in zip(joiners, items[1:], strict=True):
                if joiner == "and":
                    groups[-1].append(item)
                else:
                    groups.append([item])
            items = [group[0] if len(group) == 1 else Listed(tuple(group), "and") for group in groups]
            return items, "or"
        items = _one_modulus(items)
        return items, found.pop() if found else ""

    def _relation(self) -> Expression:
        terms = [self._comparison()]
        operations: list[str] = []
        while self._next.kind == "command" and self._next.text in (r"\land", r"\lor"):
            operations.append("and" if self._take().text == r"\land" else "or")
            terms.append(self._comparison())
        if not operations:
            return terms[0]
        if "or" not in operations or "and" not in operations:
            return Apply(operations[0], tuple(terms))
        groups = [[terms[0]]]
        for operation, term in zip(operations, terms[1:], strict=True):
            if operation == "and":
                groups[-1].append(term)
            else:
                groups.append([term])
        return Apply(
            "or", tuple(group[0] if len(group) == 1 else Apply("and", tuple(group)) for group in groups)
        )

    def _comparison(self) -> Expression:
        self._enter()
        sides: list[Expression] = [self._set_expression()]
        relations: list[str] = []
        while (relation := self._relation_sign()) is not None:
            relations.append(relation)
            sides.append(self._set_expression())
        self._depth -= 1
        claim = Related(tuple(sides), tuple(relations)) if relations else sides[0]
        modulus = self._modulus()
        return claim if modulus is None else Apply("residue", (claim, modulus))

    def _modulus(self) -> Expression | None:
        r"""``\pmod 7``, ``(\bmod 7)``, ``(mod 7)``, ``mod 7``."""
        token, behind = self._next, self._tokens[min(self._at + 1, len(self._tokens) - 1)]
        bracket = token.kind == "sign" and token.text == "("
        word = behind if bracket else token
        if not (word.kind == "command" and word.text in _RESIDUES) and not (
            word.kind == "text" and word.text.lower() in ("mod", "modulo")
        ):
            return None
        self._at += 1 + bracket
        modulus = self._braced() if word.text == r"\pmod" and self._next.text == "{" else self.sum()
        if bracket:
            self.expect("sign", ")")
        return modulus

    def _relation_sign(self) -> str | None:
        token = self._next
        if token.kind == "negated":
            self._at += 1
            return "not " + RELATIONS.get(token.text, token.text)
        if token.kind not in ("sign", "command"):
            return None
        if token.text == r"\not":
            self._at += 1
            inner = self._relation_sign()
            if inner is None:
                raise UnreadableError("a negation of nothing")
            return "!=" if inner == "=" else "not " + inner
        if self._builder and token.text == r"\mid":
            return None
        relation = RELATIONS.get(token.text)
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
        if isinstance(terms[0], Symbol) and terms[0].name.startswith("'") and self._next.text == ":":
            self._at += 1
            return Related((terms[0], self.sum()), ("=",))  # "Minimum: 1"
        while self._next.text == ":" and self._next.kind == "sign" and not self._builder:
            self._at += 1
            terms.append(self.sum())
        return Apply("ratio", tuple(terms)) if len(terms) > 1 else terms[0]


def _listed(items: list[Expression], joiner: str) -> Expression:
    return items[0] if len(items) == 1 else Listed(tuple(items), joiner)


def _one_modulus(items: list[Expression]) -> list[Expression]:
    r"""In ``n \equiv 0, 1 \pmod 4`` the modulus is that of all items."""
    match items:
        case [*first, Apply(operation="residue", arguments=(_, modulus))] if first and not any(
            isinstance(item, Apply) and item.operation == "residue" for item in first
        ):
            return [*(Apply("residue", (item, modulus)) for item in first), items[-1]]
    return items


def _is_fraction(tokens: list[Token]) -> bool:
    r"""Whether the two arguments of a ``\frac`` are whole numbers."""
    if tokens and tokens[0].kind == "number" and tokens[0].text.isdigit():
        rest = tokens[1:]
        if len(tokens[0].text) == 2:
            return True
        if len(tokens[0].text) > 2:
            return True
    elif len(tokens) > 2 and tokens[0].text == "{" and tokens[1].text.isdigit() and tokens[2].text == "}":
        rest = tokens[3:]
    else:
        return False
    if rest and rest[0].kind == "number" and rest[0].text.isdigit():
        return True
    return len(rest) > 2 and rest[0].text == "{" and rest[1].text.isdigit() and rest[2].text == "}"


def _is_marked(base: Expression) -> bool:
    return isinstance(base, Apply) and base.operation in ("percent", "degree")


def _is_number(factor: Expression) -> bool:
    match factor:
        case Apply(operation="percent" | "degree" | "factorial" | "unit", arguments=(inner,)):
            return _is_number(inner)
    return isinstance(factor, Number)


def _is_crossed(factor: Expression) -> bool:
    """Whether × beside this is no product of numbers: a vector, a set, a matrix's name."""
    match factor:
        case Symbol(name=name):
            return name.startswith(("vec ", "mathbb ")) or (len(name) == 1 and name.isupper())
        case Apply(operation="call", name=r"\times"):
            return True
    return False


def _says_something(word: str) -> bool:
    return word.lower() in LOGIC_WORDS or not _CJK_LOGIC.isdisjoint(word)


def _holds_number(factors: list[Expression]) -> bool:
    return any(isinstance(factor, Number) or _holds_number(list(parts(factor))) for factor in factors)


def _primed(base: Expression, count: int) -> Expression:
    match base:
        case Number():
            return Apply("unit", (base,), "'" * count)
        case Apply(operation="unit", arguments=(Number(),), name=name) if set(name) == {"'"}:
            return replace(base, name=name + "'" * count)
        case Symbol(name=name):
            return Symbol(name + "'" * count)
    return Apply("decorated", (base,), "'" * count)
