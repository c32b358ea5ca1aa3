"""Tokens of an answer: numbers, names, functions, signs, TeX commands, units and other text.

What a run of letters is depends on what stands before it: "m" behind a number is a unit, else an unknown.
`TokenStream` is a parser's place among them.
"""

import re
from dataclasses import dataclass

from math_answers.expressions import REPEATING, RefusedError, UnreadableError
from math_answers.spelling import DEGREE, PERCENT

MAX_TOKENS = 1500
MAX_DEPTH = 40  # of expressions inside one another

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
_MEASURED = re.compile(r"(-?[\d.,/]*\d)\s*([A-Za-z][A-Za-z/^\d .]*)")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_BEGIN = re.compile(r"\\begin\s*\{([A-Za-z]+\*?)\}\s*(?:\{[clr|\s]*\})?")
_END = re.compile(r"\\end\s*\{[A-Za-z]+\*?\}")


@dataclass(frozen=True)
class Token:
    """What a parser reads at once.

    ``kind`` is number, repeating, name, function, sign, command, text, begin, end, row or finish.
    """

    kind: str
    text: str
    spaced: bool = False  # white space before it


def has_thousands(spelled: str) -> bool:
    """Whether a comma in it could group digits as well as separate answers."""
    return _THOUSANDS.search(spelled) is not None


def tokenised(spelled: str, thousands: bool) -> list[Token]:
    """The tokens of an answer, and one that says that it is finished.

    Args:
        spelled: the answer, in the spelling of `respell`.
        thousands: read "1,234" outside brackets as one number, and not as two.

    Raises:
        UnreadableError: more than `MAX_TOKENS`.
    """
    tokens: list[Token] = []
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
            tokens.append(Token("number", grouped[0].replace(",", ""), spaced))
            at = grouped.end()
            continue
        if repeating := REPEATING.match(spelled, at):
            tokens.append(Token("repeating", repeating[0], spaced))
            at = repeating.end()
            continue
        if special := _special(spelled, at, spaced, tokens):
            found, at = special
            tokens += found
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
            tokens.append(Token(kind, match[0], spaced))
    return [*tokens, Token("finish", "")]


def _special(spelled: str, at: int, spaced: bool, before: list[Token]) -> tuple[list[Token], int] | None:
    """A text box, the begin or end of an environment, or the end of a row: its tokens, and where it ends."""
    if spelled[at] != "\\":
        return None
    if text := _TEXT.match(spelled, at):
        return _text_tokens(text[1], spaced, before), text.end()
    if begin := _BEGIN.match(spelled, at):
        return [Token("begin", begin[1], spaced)], begin.end()
    if end := _END.match(spelled, at):
        return [Token("end", "", spaced)], end.end()
    if spelled.startswith("\\\\", at):
        return [Token("row", "\\\\", spaced)], at + 2
    return None


def _command_token(command: str, spaced: bool) -> Token:
    name = command[1:]
    if name in FUNCTIONS and name != "sqrt":
        return Token("function", _INVERSES.get(name, name), spaced)
    if name in _NAMES:
        return Token("name", _SAME_NAME.get(name, name), spaced)
    if name in ("{", "}"):
        return Token("sign", command, spaced)
    if name in ("cdot", "times", "ast", "bullet"):
        return Token("sign", "*", spaced)
    if name == "div":
        return Token("sign", "/", spaced)
    if name in ("lvert", "rvert", "vert", "|", "lVert", "rVert", "Vert"):
        return Token("sign", "|", spaced)
    if name == "colon":
        return Token("sign", ":", spaced)
    if name in ("lbrace", "rbrace"):
        return Token("sign", r"\{" if name == "lbrace" else r"\}", spaced)
    return Token("command", command, spaced)


def _text_tokens(content: str, spaced: bool, before: list[Token]) -> list[Token]:
    content = content.strip()
    if not content:
        return []
    behind = bool(before) and (before[-1].kind in ("number", "text") or before[-1].text in ("}", ")", "/"))
    if len(content) == 1 and content.isalpha() and not (behind and content in _UNIT_LETTERS):
        return [Token("name", content, spaced)]
    if content in FUNCTIONS:
        return [Token("function", _INVERSES.get(content, content), spaced)]
    if content in _NAMES:
        return [Token("name", _SAME_NAME.get(content, content), spaced)]
    if measured := _MEASURED.fullmatch(content):  # a number and its unit in one box
        return [*tokenised(measured[1], True)[:-1], *_text_tokens(measured[2], True, [Token("number", "")])]
    if not _WORD.search(content):  # a formula in a text box
        return tokenised(content, True)[:-1]
    return [Token("text", " ".join(content.split()), spaced)]


def _word_tokens(word: str, spaced: bool, before: list[Token]) -> list[Token]:
    """A run of letters: a function, a Greek name, a unit behind a number, or symbols side by side."""
    if word in FUNCTIONS and not (before and before[-1].kind == "number" and word in _UNITS):
        return [Token("function", _INVERSES.get(word, word), spaced)]
    if word in _NAMES or word in _SAME_NAME:
        return [Token("name", _SAME_NAME.get(word, word), spaced)]
    behind = bool(before) and (
        before[-1].kind in ("number", "text") or before[-1].text in (")", "}", "]", "/", "*", PERCENT, DEGREE)
    )
    if behind and (word in _UNITS or (len(word) >= 4 and before[-1].kind in ("number", "text"))):
        return [Token("text", word, spaced)]
    for function in sorted(FUNCTIONS, key=len, reverse=True):
        if len(function) >= 3 and word.startswith(function) and function not in ("max", "min", "det", "deg"):
            rest = word[len(function) :]
            return [
                Token("function", _INVERSES.get(function, function), spaced),
                *_word_tokens(rest, False, []),
            ]
    return [Token("name", letter, spaced and i == 0) for i, letter in enumerate(word)]


class TokenStream:
    """A parser's place among the tokens, and how deep it is inside expressions."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._bars = 0  # absolute values that are open

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _take(self) -> Token:
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

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RefusedError("too deep")
