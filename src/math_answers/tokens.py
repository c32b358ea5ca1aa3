"""Tokens of an answer: numbers, names, functions, signs, TeX commands, units and other text.

What a run of letters is depends on what stands before it: "m" behind a number is a unit, else an unknown.
`TokenStream` is a parser's place among them.
"""

import re
from dataclasses import dataclass

from math_answers.expressions import REPEATING, RefusedError, UnreadableError
from math_answers.spelling import DEGREE, PERCENT
from math_answers.words import is_word

MAX_TOKENS = 1500
MAX_DEPTH = 40  # of expressions inside one another

_FUNCTIONS_WORDS = """
sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth asin acos atan log ln lg exp sqrt
max min gcd lcm det deg cis
"""
FUNCTIONS = frozenset(_FUNCTIONS_WORDS.split())
_INVERSES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log"}
_NAMES_WORDS = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi omicron pi
rho varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma
Upsilon Phi Psi Omega hbar ell infty emptyset varnothing nabla partial AA angle triangle prime
aleph wp mho cdots ldots dots dotsc dotsb imath jmath
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
    "dotsc": "dots",
    "dotsb": "dots",
}
_UNITS_WORDS = """
cm mm km dm nm pm ft yd mi kg mg lb lbs oz ml mL kL sec secs min mins hr hrs kmh mph kph mpg Hz kHz MHz GHz dB
kJ kcal cal eV keV MeV GeV rad rads sq cu inch inches in foot feet yard yards mile miles meter meters metre
metres centimeter centimeters unit units second seconds minute minutes hour hours day days week weeks
month months year years dollar dollars cent cents yuan euro euros people kW MW kPa MPa Pa atm bar mol Wb
kV mV mA nC pF uF kN ha mins ms ns us kmph amp amps volt volts watt watts ohm ohms joule joules newton newtons kelvin
ways way USD EUR GBP
"""
_UNITS = frozenset(_UNITS_WORDS.split())
_UNIT_LETTERS = frozenset("mgshJWNVLKAFCT")
_SPACED_UNIT_LETTERS = frozenset("NJWVKACT")
_LETTER_UNIT = re.compile(
    r"(?:m/s(?:\^\{?2\}?|2)?|N/m(?:\^\{?2\}?)?|J/s|J/K|V/m|C/s|W/m\^\{?2\}?|m\^\{?[23]\}?(?:/s)?"
    r"|m s\^\{?-[12]\}?|N m|N \* ?m)"
    r"(?![A-Za-z0-9^])"
)
_WORD = re.compile(r"[A-Za-z]+")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]+")
_TOKEN = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+(?![\d.]))?)"
    r"|(?P<dots>\.\.\.+)"
    r"|(?P<command>\\[A-Za-z]+|\\.)"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<sign>\*\*|<=>|<->|<=|>=|=<|=>|!=|==|->|:=|\S)"
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d]|,\d)(?:\.\d+)?")
_TEXT = re.compile(r"\\text\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_ONLY_WORDS = re.compile(r"[^\W\d_]+(?:[\s,'\-][^\W\d_]+|')*")
_BEGIN = re.compile(r"\\begin\s*\{([A-Za-z]+\*?)\}\s*(?:\{[clr|\s]*\})?")
_END = re.compile(r"\\end\s*\{[A-Za-z]+\*?\}")
_BOUNDARY_BEHIND = re.compile(r"\s*(?:\Z|[,;)\]|]|\\[})]|\\(?:And|Or|land|lor)\b|\\text|[A-Za-z]|\d)")

_ALIASES = {
    "leq": "le", "leqslant": "le", "leqq": "le", "geq": "ge", "geqslant": "ge", "geqq": "ge", "neq": "ne",
    "rightarrow": "to", "longrightarrow": "to", "longmapsto": "mapsto", "gets": "leftarrow",
    "longleftarrow": "leftarrow",
    "implies": "Rightarrow", "Longrightarrow": "Rightarrow", "impliedby": "Leftarrow", "Longleftarrow": "Leftarrow",
    "iff": "Leftrightarrow", "Longleftrightarrow": "Leftrightarrow", "longleftrightarrow": "leftrightarrow",
    "owns": "ni", "neg": "lnot", "backslash": "setminus", "smallsetminus": "setminus", "divides": "mid",
    "shortmid": "mid", "nshortmid": "nmid", "lvert": "vert", "rvert": "vert", "dbinom": "binom", "tbinom": "binom",
    "nleqslant": "nleq", "ngeqslant": "ngeq", "top": "top",
}  # fmt: skip
_NEGATED = {
    "nmid": "mid", "ncong": "cong", "nsim": "sim", "nleq": "le", "ngeq": "ge", "nless": "lt", "ngtr": "gt",
    "nsubseteq": "subseteq", "nsupseteq": "supseteq", "notin": "in", "notni": "ni", "nparallel": "parallel",
    "nrightarrow": "to", "nleftarrow": "leftarrow", "nRightarrow": "Rightarrow", "nLeftarrow": "Leftarrow",
    "nLeftrightarrow": "Leftrightarrow", "nleftrightarrow": "leftrightarrow", "nprec": "prec", "nsucc": "succ",
    "nvdash": "vdash", "nvDash": "vDash", "napprox": "approx", "nequiv": "equiv", "nexists": "exists",
}  # fmt: skip
_SIGNS = {
    "<=": r"\le", "=<": r"\le", ">=": r"\ge", "!=": r"\ne", "==": "=", ":=": "=", "->": r"\to", "=>": r"\Rightarrow",
    "<=>": r"\Leftrightarrow", "<->": r"\leftrightarrow",
}  # fmt: skip


@dataclass(frozen=True)
class Token:
    """What a parser reads at once.

    ``kind`` is number, repeating, name, run (capitals side by side), function, sign, command, negated (a relation),
    text, begin, end, row or finish.
    """

    kind: str
    text: str
    spaced: bool = False  # white space before it


def has_thousands(spelled: str) -> bool:
    """Whether a comma in it could group digits as well as separate answers: not in 1,000, since 000 is no answer."""
    return any(",0" not in grouped[0] for grouped in _THOUSANDS.finditer(spelled))


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
            tokens += _word_tokens(match[0], spaced, tokens, spelled, at)
        elif match["command"]:
            depth += (match[0] == r"\{") - (match[0] == r"\}")
            tokens.append(_command_token(match[0], spaced))
        elif match["dots"]:
            tokens.append(Token("name", "dots", spaced))
        else:
            kind = "number" if match["number"] else "sign"
            depth += (match[0] in "([") - (match[0] in ")]") if kind == "sign" else 0
            text = _SIGNS.get(match[0], match[0])
            tokens.append(Token("command" if text[0] == "\\" and len(text) > 1 else kind, text, spaced))
    return [*tokens, Token("finish", "")]


def _special(spelled: str, at: int, spaced: bool, before: list[Token]) -> tuple[list[Token], int] | None:
    """A text box, the begin or end of an environment, the end of a row, letters that are a unit: its tokens and end."""
    if spelled[at] in "mNJVCW" and _is_measure(before) and (unit := _LETTER_UNIT.match(spelled, at)):
        return [Token("text", unit[0], spaced)], unit.end()
    if spelled[at] > "\u3000" and (run := _CJK.match(spelled, at)):
        return [Token("text", run[0], spaced)], run.end()
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
        return Token("sign", r"\times" if name == "times" else "*", spaced)
    if name == "div":
        return Token("sign", "/", spaced)
    if name in ("lvert", "rvert", "vert", "|", "lVert", "rVert", "Vert"):
        return Token("sign", "|", spaced)
    if name in ("lt", "gt", "colon", "lbrace", "rbrace", "lbrack", "rbrack"):
        signs = {
            "lt": "<",
            "gt": ">",
            "colon": ":",
            "lbrace": r"\{",
            "rbrace": r"\}",
            "lbrack": "[",
            "rbrack": "]",
        }
        return Token("sign", signs[name], spaced)
    if name in _NEGATED:
        return Token("negated", "\\" + _NEGATED[name], spaced)
    return Token("command", "\\" + _ALIASES.get(name, name), spaced)


def _text_tokens(content: str, spaced: bool, before: list[Token]) -> list[Token]:
    """What is upright: words, one token each; a name if it is one letter; formulas between words are formulas."""
    content = content.strip()
    if not content:
        return []
    behind = bool(before) and (before[-1].kind in ("number", "text") or before[-1].text in ("}", ")", "/"))
    if len(content) == 1 and content.isalpha() and not (behind and content in _UNIT_LETTERS):
        return [Token("name", content, spaced)]
    if content in FUNCTIONS and not (behind and content in _UNITS):
        return [Token("function", _INVERSES.get(content, content), spaced)]
    if content in _NAMES or content in _SAME_NAME:
        return [Token("name", _SAME_NAME.get(content, content), spaced)]
    if content in ("mod", "modulo"):
        return [Token("command", r"\bmod", spaced)]
    if _ONLY_WORDS.fullmatch(content):
        return [Token("text", word, spaced) for word in re.split(r"[\s,]+", content)]
    found: list[Token] = []
    for token in tokenised(content, True)[:-1]:
        joined = (
            found
            and token.kind in ("name", "run", "function")
            and found[-1].kind == "letters"
            and not token.spaced
        )
        if joined:
            found[-1] = Token("letters", found[-1].text + token.text, found[-1].spaced)
        else:
            found.append(
                Token("letters", token.text, token.spaced) if token.kind in ("name", "run") else token
            )
    return [
        token
        if token.kind != "letters"
        else Token(
            "text" if len(token.text) > 1 or token.text in _UNIT_LETTERS else "name", token.text, token.spaced
        )
        for token in found
    ]


def _word_tokens(word: str, spaced: bool, before: list[Token], spelled: str, end: int) -> list[Token]:
    """A run of letters: a function, a Greek name, a unit behind a number, a word, or names side by side."""
    last = before[-1] if before else None
    if word in ("mod", "modulo"):
        return [Token("command", r"\bmod", spaced)]
    if word in FUNCTIONS and not (last and last.kind == "number" and word in _UNITS):
        return [Token("function", _INVERSES.get(word, word), spaced)]
    if word in _NAMES or word in _SAME_NAME:
        return [Token("name", _SAME_NAME.get(word, word), spaced)]
    behind = last is not None and (
        last.kind in ("number", "text") or last.text in (")", "}", "]", "/", "*", PERCENT, DEGREE)
    )
    if last is not None and last.kind == "text" and len(word) > 1:
        return [Token("text", word, spaced)]
    if behind and (
        word in _UNITS or (len(word) >= 4 and last is not None and last.kind in ("number", "text"))
    ):
        return [Token("text", word, spaced)]
    if len(word) == 1:
        is_unit = spaced and word in _SPACED_UNIT_LETTERS and _is_measure(before)
        ends = not spelled[end:].strip() or spelled[end:].lstrip()[0] in ",;"
        return [Token("text" if is_unit and ends else "name", word, spaced)]
    for function in sorted(FUNCTIONS, key=len, reverse=True):
        if len(function) >= 3 and word.startswith(function) and function not in ("max", "min", "det", "deg"):
            rest = word[len(function) :]
            return [
                Token("function", _INVERSES.get(function, function), spaced),
                *_word_tokens(rest, False, [], spelled, end),
            ]
    if _stands_alone(word, last, spelled, end) and is_word(word):
        return [Token("text", word, spaced)]
    if word.isupper() and spelled[end : end + 1] not in ("_", "^", "'", "("):
        return [Token("run", word, spaced)]
    return [Token("name", letter, spaced and i == 0) for i, letter in enumerate(word)]


def _is_measure(before: list[Token]) -> bool:
    """Whether a number stands before, and is no exponent or index of a letter."""
    if not before or before[-1].kind != "number":
        return False
    if len(before) > 1 and before[-2].text in ("^", "_", "**"):
        return len(before) > 2 and before[-3].kind == "number" and before[-2].text != "_"
    return True


def _stands_alone(word: str, last: Token | None, spelled: str, end: int) -> bool:
    """Whether a run of letters could be a word: long ones always, short ones where they are no factor."""
    if len(word) >= 4:
        return True
    free = (
        last is None or last.kind == "text" or last.text in (",", ";", "(", "[", r"\{", "=", r"\And", r"\Or")
    )
    return free and _BOUNDARY_BEHIND.match(spelled, end) is not None


class TokenStream:
    """A parser's place among the tokens, and how deep it is inside expressions."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._bars = 0  # absolute values that are open
        self._builder = False  # before the bar of a set {x | …}

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
