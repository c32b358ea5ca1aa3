"""A small parser for final answers in TeX or plain text.

It reads what answers are written in, and refuses the rest with `UnreadableError`: a model's text is data here,
never code. Its work is bounded by `MAX_TOKENS` and `MAX_DEPTH`.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from maxent_grpo.rewards.grading.expressions import (
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
)
from maxent_grpo.rewards.grading.spelling import DEGREE, PERCENT

MAX_TOKENS = 1500
MAX_DEPTH = 40
MAX_DIGITS = 1000
MAX_EXPONENT = 5000  # of ten, in a literal such as 1e5000

_FUNCTIONS_WORDS = """
sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth asin acos atan log ln lg exp sqrt
max min gcd lcm det deg
"""
FUNCTIONS = frozenset(_FUNCTIONS_WORDS.split())
_INVERSES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log"}
_NAMES_WORDS = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi omicron pi
rho varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma
Upsilon Phi Psi Omega hbar ell infty emptyset varnothing nabla partial odot AA angle triangle circ prime
aleph wp Re Im mho cdots ldots dots imath jmath top
"""
_NAMES = frozenset(_NAMES_WORDS.split())
_SAME_NAME = {
    "varnothing": "emptyset",
    "infinity": "infty",
    "inf": "infty",
    "oo": "infty",
    "varepsilon": "epsilon",
    "varphi": "phi",
    "vartheta": "theta",
    "imath": "i",
    "ldots": "dots",
    "cdots": "dots",
}
_RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=",
    r"\le": "<=", r"\leq": "<=", r"\leqslant": "<=", r"\ge": ">=", r"\geq": ">=", r"\geqslant": ">=",
    r"\lt": "<", r"\gt": ">", r"\ne": "!=", r"\neq": "!=", r"\approx": "~", r"\simeq": "~", r"\sim": "~",
    r"\in": "in", r"\equiv": "==", r"\cong": "~", r"\doteq": "~",
    r"\to": "->", r"\rightarrow": "->", r"\mapsto": "->", r"\Rightarrow": "=>", r"\implies": "=>",
    r"\iff": "<=>", r"\Leftrightarrow": "<=>", r"\subseteq": "subset", r"\subset": "subset",
    r"\perp": "perp", r"\parallel": "parallel", r"\mid": "mid",
}  # fmt: skip
_ACCENTS_WORDS = """
dot ddot hat bar tilde vec overline underline widehat widetilde overrightarrow check
"""
_ACCENTS = frozenset(_ACCENTS_WORDS.split())
_SAME_ACCENT = {"overrightarrow": "vec", "widehat": "hat", "widetilde": "tilde", "overline": "bar"}
_SETS = {r"\cup": "union", r"\cap": "intersection", r"\setminus": "without", r"\backslash": "without"}
_UNITS_WORDS = """
cm mm km dm nm pm ft yd mi kg mg lb lbs oz ml mL kL sec secs min mins hr hrs kmh mph kph Hz kHz MHz GHz
kJ kcal cal eV keV MeV rad rads sq cu inch inches in foot feet yard yards mile miles meter meters metre
metres centimeter centimeters unit units second seconds minute minutes hour hours day days week weeks
month months year years dollar dollars cent cents yuan euro euros people
"""
_UNITS = frozenset(_UNITS_WORDS.split())
_UNIT_LETTERS = frozenset("mgshJWNVLKAF")
_WORD = re.compile(r"[A-Za-z]+")
_TOKEN = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+(?![\d.]))?)"
    r"|(?P<command>\\[A-Za-z]+|\\.)"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<sign>\*\*|<=|>=|!=|==|->|:=|\S)"
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d]|,\d)(?:\.\d+)?")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))")
_MEASURED = re.compile(r"(-?[\d.,/]*\d)\s*([A-Za-z][A-Za-z/^\d .]*)")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_BEGIN = re.compile(r"\\begin\s*\{([A-Za-z]+\*?)\}\s*(?:\{[clr|\s]*\})?")
_END = re.compile(r"\\end\s*\{[A-Za-z]+\*?\}")
_MATRICES_WORDS = """
pmatrix bmatrix matrix Bmatrix smallmatrix array vmatrix Vmatrix
"""
_MATRICES = frozenset(_MATRICES_WORDS.split())


@dataclass(frozen=True)
class _Token:
    kind: str  # number, name, function, sign, command, text, begin, end, row, finish
    text: str
    spaced: bool = False  # white space before it


def parse(spelled: str, thousands: bool = True) -> Expression:
    """Read an answer in the spelling of `respell`.

    Args:
        spelled: the answer.
        thousands: read "1,234" outside brackets as one number, and not as two.

    Raises:
        UnreadableError: anything that is not an answer in this grammar, or too much of it.
    """
    parser = _Parser(_tokens(spelled, thousands))
    expression = parser.answer()
    parser.expect("finish", "")
    return expression


def has_thousands(spelled: str) -> bool:
    """Whether a comma in it could group digits as well as separate answers."""
    return _THOUSANDS.search(spelled) is not None


def _tokens(spelled: str, thousands: bool) -> list[_Token]:
    tokens: list[_Token] = []
    at, depth = 0, 0
    while at < len(spelled):
        if len(tokens) > MAX_TOKENS:
            raise RefusedError("too long")
        start = at
        while at < len(spelled) and spelled[at].isspace():
            at += 1
        if at == len(spelled):
            break
        spaced = at > start
        if thousands and depth == 0 and (grouped := _THOUSANDS.match(spelled, at)):
            tokens.append(_Token("number", grouped[0].replace(",", ""), spaced))
            at = grouped.end()
            continue
        if repeating := _REPEATING.match(spelled, at):
            tokens.append(_Token("repeating", repeating[0], spaced))
            at = repeating.end()
            continue
        if spelled[at] == "\\":
            for kind, pattern in (("text", _TEXT), ("begin", _BEGIN), ("end", _END)):
                if special := pattern.match(spelled, at):
                    if kind == "text":
                        tokens += _text_tokens(special[1], spaced, tokens)
                    else:
                        tokens.append(_Token(kind, special[1] if kind == "begin" else "", spaced))
                    at = special.end()
                    break
            else:
                special = None
            if special:
                continue
            if spelled.startswith("\\\\", at):
                tokens.append(_Token("row", "\\\\", spaced))
                at += 2
                continue
        match = _TOKEN.match(spelled, at)
        if match is None:
            raise UnreadableError("no token")
        at = match.end()
        if match["word"]:
            tokens += _word_tokens(match[0], spaced, tokens)
        elif match["command"]:
            depth += (match[0] == r"\{") - (match[0] == r"\}")
            tokens.append(_command_token(match[0], spaced))
        else:
            kind = "number" if match["number"] else "sign"
            depth += (match[0] in "([") - (match[0] in ")]") if kind == "sign" else 0
            tokens.append(_Token(kind, match[0], spaced))
    return [*tokens, _Token("finish", "")]


def _command_token(command: str, spaced: bool) -> _Token:
    name = command[1:]
    if name in FUNCTIONS and name != "sqrt":
        return _Token("function", _INVERSES.get(name, name), spaced)
    if name in _NAMES:
        return _Token("name", _SAME_NAME.get(name, name), spaced)
    if name in ("{", "}"):
        return _Token("sign", command, spaced)
    if name in ("cdot", "times", "ast", "bullet"):
        return _Token("sign", "*", spaced)
    if name == "div":
        return _Token("sign", "/", spaced)
    if name in ("lvert", "rvert", "vert", "|", "lVert", "rVert", "Vert"):
        return _Token("sign", "|", spaced)
    if name == "colon":
        return _Token("sign", ":", spaced)
    if name in ("lbrace", "rbrace"):
        return _Token("sign", r"\{" if name == "lbrace" else r"\}", spaced)
    return _Token("command", command, spaced)


def _text_tokens(content: str, spaced: bool, before: list[_Token]) -> list[_Token]:
    content = content.strip()
    if not content:
        return []
    behind = bool(before) and (before[-1].kind in ("number", "text") or before[-1].text in ("}", ")", "/"))
    if len(content) == 1 and content.isalpha() and not (behind and content in _UNIT_LETTERS):
        return [_Token("name", content, spaced)]
    if content in FUNCTIONS:
        return [_Token("function", _INVERSES.get(content, content), spaced)]
    if content in _NAMES:
        return [_Token("name", _SAME_NAME.get(content, content), spaced)]
    if measured := _MEASURED.fullmatch(content):  # a number and its unit in one box
        return [*_tokens(measured[1], True)[:-1], *_text_tokens(measured[2], True, [_Token("number", "")])]
    if not _WORD.search(content):  # a formula in a text box
        return _tokens(content, True)[:-1]
    return [_Token("text", " ".join(content.split()), spaced)]


def _word_tokens(word: str, spaced: bool, before: list[_Token]) -> list[_Token]:
    """A run of letters: a function, a Greek name, a unit behind a number, or symbols side by side."""
    if word in FUNCTIONS and not (before and before[-1].kind == "number" and word in _UNITS):
        return [_Token("function", _INVERSES.get(word, word), spaced)]
    if word in _NAMES or word in _SAME_NAME:
        return [_Token("name", _SAME_NAME.get(word, word), spaced)]
    behind = bool(before) and (
        before[-1].kind in ("number", "text") or before[-1].text in (")", "}", "]", "/", "*", PERCENT, DEGREE)
    )
    if behind and (word in _UNITS or (len(word) >= 4 and before[-1].kind in ("number", "text"))):
        return [_Token("text", word, spaced)]
    for function in sorted(FUNCTIONS, key=len, reverse=True):
        if len(function) >= 3 and word.startswith(function) and function not in ("max", "min", "det", "deg"):
            rest = word[len(function) :]
            return [
                _Token("function", _INVERSES.get(function, function), spaced),
                *_word_tokens(rest, False, []),
            ]
    return [_Token("name", letter, spaced and i == 0) for i, letter in enumerate(word)]


class _Parser:
    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._bars = 0  # absolute values that are open

    # -- tokens --------------------------------------------------------------------------------------------

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._tokens[self._at]
        if token.kind == "finish":
            raise RefusedError("nothing where something had to follow")
        self._at += 1
        return token

    def _accept(self, *texts: str) -> bool:
        if self._next.text in texts and self._next.kind in ("sign", "command", "name"):
            self._at += 1
            return True
        return False

    def expect(self, kind: str, text: str) -> None:
        token = self._next
        if token.kind != kind or token.text != text:
            raise UnreadableError(f"'{token.text}' where '{text}' was expected")
        if kind != "finish":
            self._at += 1

    # -- answers: lists, relations, sets -------------------------------------------------------------------

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

    # -- arithmetic ----------------------------------------------------------------------------------------

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
                    self._tokens[self._at] = _Token("text", rest)
                    self._at += not rest
                else:
                    factors = [Apply("unit", (_product_of(factors),), self._unit())]
            elif token.kind == "sign" and token.text == "*":
                self._at += 1
                factors.append(self._signed_power())
            elif token.kind == "sign" and token.text == "/":
                self._at += 1
                if self._next.kind == "text":  # per something
                    factors = [Apply("unit", (_product_of(factors),), "/" + self._unit())]
                else:
                    factors.append(Apply("inv", (self._signed_power(),)))
            elif token.kind == "command" and token.text in (r"\bmod", r"\pmod", r"\mod"):
                raise UnreadableError("a residue")
            elif self._starts_factor(token):
                factor = self._power()
                if (mixed := _mixed(factors[-1], factor, self._tokens, self._at)) is not None:
                    factors[-1] = mixed
                elif (
                    isinstance(factors[-1], Number)
                    and isinstance(factor, Number)
                    and not (self._next.kind == "sign" and self._next.text == "/")
                ):
                    raise UnreadableError("two numbers side by side")
                elif isinstance(factors[-1], Number) and isinstance(factor, Number):
                    self._at += 1  # "3 1/2"
                    factors[-1] = _mixed_plain(factors[-1], factor, self._power())
                else:
                    factors.append(factor)
            else:
                return _product_of(factors)

    def _starts_factor(self, token: _Token) -> bool:
        if token.kind in ("number", "repeating", "name", "function", "begin"):
            return True
        if token.kind == "command":
            return token.text in (
                r"\frac", r"\sqrt", r"\binom", r"\lfloor", r"\lceil", r"\langle", r"\mathbb", r"\dbinom",
                r"\tbinom", r"\operatorname", r"\log", r"\pmb",
            ) or token.text[1:] in _ACCENTS  # fmt: skip
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

    # -- operands ------------------------------------------------------------------------------------------

    def _primary(self) -> Expression:
        token = self._take()
        if token.kind == "number":
            return _number(token.text)
        if token.kind == "repeating":
            return _repeating(token.text)
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

    def _named(self, token: _Token) -> Expression:
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
        return _product_of(factors)

    def _braced(self) -> Expression:
        """The argument of a TeX command: a group, or one token (one digit of a number)."""
        token = self._next
        if token.kind == "sign" and token.text == "{":
            self._at += 1
            inner = self.sum()
            self.expect("sign", "}")
            return inner
        if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            self._tokens[self._at] = _Token("number", token.text[1:])
            return _number(token.text[0])
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
                    return Apply("root", (_number(self._take().text), degree))
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
            if command[1:] in _ACCENTS:
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

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RefusedError("too deep")


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


def _listed(items: list[Expression], tuple_like: bool = False) -> Expression:
    if len(items) == 1:
        return items[0]
    return Bracketed("(", ")", tuple(items)) if tuple_like else Listed(tuple(items))


def _product_of(factors: list[Expression]) -> Expression:
    return Apply("mul", tuple(factors)) if len(factors) > 1 else factors[0]


def _primed(base: Expression, count: int) -> Expression:
    if isinstance(base, Number):
        return Apply("unit", (base,), "'" * count)
    if isinstance(base, Symbol):
        return Symbol(base.name + "'" * count)
    return Apply("decorated", (base,), "'" * count)


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


def _number(text: str) -> Number:
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or (exponent and abs(int(exponent[:8])) > MAX_EXPONENT):
        raise RefusedError("too many digits")
    whole, point, fraction = mantissa.partition(".")
    value = Fraction(int((whole or "0") + fraction), 10 ** len(fraction)) * Fraction(10) ** int(exponent or 0)
    if not point and not exponent:
        return Number(value)
    resolution = Fraction(10) ** (int(exponent or 0) - len(fraction))
    return Number(value, True, resolution, len((whole + fraction).lstrip("0")))


def _repeating(text: str) -> Number:
    r"""``0.1\overline{6}`` is one sixth, exactly."""
    match = _REPEATING.fullmatch(text)
    if match is None or len(text) > MAX_DIGITS:
        raise RefusedError("too many digits")
    whole, fixed, period = match[1] or "0", match[2], match[3] or match[4]
    before, after = int(whole + fixed), int(whole + fixed + period)
    return Number(Fraction(after - before, 10 ** len(fixed) * (10 ** len(period) - 1)))


def _mixed(whole: Expression, factor: Expression, tokens: list[_Token], at: int) -> Expression | None:
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


def _mixed_plain(whole: Number, numerator: Number, denominator: Expression) -> Expression:
    if whole.decimal or numerator.decimal or not isinstance(denominator, Number) or denominator.decimal:
        raise UnreadableError("two numbers side by side")
    fraction = Apply("mul", (numerator, Apply("inv", (denominator,))), "frac")
    return Apply("add", (whole, fraction), "mixed")
