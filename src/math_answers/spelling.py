"""One spelling for TeX, Unicode and plain text, before anything is parsed."""

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SIGNS = {
    "−": "-",
    "–": "-",
    "—": "-",
    "×": r"\cdot ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∗": r"\cdot ",
    "÷": "/",
    "∕": "/",
    "⁄": "/",
    "π": r"\pi ",
    "θ": r"\theta ",
    "φ": r"\phi ",
    "Φ": r"\Phi ",
    "τ": r"\tau ",
    "Θ": r"\Theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "γ": r"\gamma ",
    "λ": r"\lambda ",
    "μ": r"\mu ",
    "ω": r"\omega ",
    "∞": r"\infty ",
    "√": r"\sqrt ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "°": r"^\circ ",
    "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}",
    "∠": r"\angle ",
    "€": "",
    "£": "",
    "½": r"\frac{1}{2}",
    "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "′": "'",
    "’": "'",
    "\x00": " ",
    **dict.fromkeys(
        "\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff", ""
    ),
}
_SIGN_TABLE = str.maketrans(_SIGNS)

# What only moves ink: sizes of brackets, styles, spaces.
_SIZES = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\.?"
    r"|\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|displaylimits|nonumber|hfill)(?![A-Za-z])"
)
_SPACES = re.compile(
    r"(?:\\(?:quad|qquad|enspace|enskip|thinspace|space)(?![A-Za-z])|(?<!\\)\\[;:>,\s]|~|\s)+"
)
_GLUED_DOUBLE_QUAD = re.compile(r"\\q?quad(?=[A-Za-z])")
_THOUSANDS_GAP = re.compile(r"(?<=\d)(?:\\[,!:; ]|\\thinspace|~)\s*(?=\d{3}(?!\d))")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),\s?\\!\s*(?=\d{3}(?!\d))")
_DELIMITERS = re.compile(r"\\?\$|(?<!\\)\\[()\[\]]")
_DOUBLED_BACKSLASH = re.compile(r"\\\\(?=[A-Za-z])")
_FRACTIONS = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_UPRIGHT = re.compile(
    r"\\(?:mbox|hbox|textrm|textnormal|textup|textsf|textbf|textit|texttt|emph|operatorname\*?|mathrm|rm)"
    r"(?![A-Za-z])"
)
_FONTS = re.compile(r"\\(?:mathbf|mathit|mathsf|mathcal|mathscr|boldsymbol|bm|bf|it|boxed|fbox)(?![A-Za-z])")
_CONNECTIVES = re.compile(
    r"\\text\s*\{\s*,?\s*(?:and|or|\&)\s*,?\s*\}|(?<![A-Za-z\\{])(?:and|or)(?![A-Za-z])"
    r"|(?<=[\d)}])\s*or(?=[A-Za-z]\s?[=(_])|\\(?:lor|land|vee|wedge)(?![A-Za-z])"
)
_ANNOUNCEMENT = re.compile(
    r"(?:=|\\approx(?![A-Za-z]))\s?"
    r"|(?:\\text\s?\{\s?)?(?:(?:the )?(?:final )?answer\s?(?:is|:|=)|approximately|approx\.?|about|roughly|exactly)"
    r"(?:\s?\}\s?|\s|(?=[\d\\]))\s?",
    re.IGNORECASE,
)
_PERCENT = re.compile(
    r"\\?%|\\text\s*\{\s*(?:percent|pct|percentage|\\?%)\s*\}|(?<![A-Za-z])(?:percentage|percent|pct)(?![A-Za-z])"
)
_DEGREES = re.compile(
    r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|\\text\s*\{\s*(?:degrees?|deg\.?)\s*\}"
    r"|(?<=[\d\s})])(?:degrees?|deg)(?![A-Za-z])"
)
PERCENT = "%"
DEGREE = "°"


def respell(text: str) -> str:
    """The same answer with one spelling for signs, fractions, fonts, spaces, percent and degrees.

    Linear in the length of the text. What carries meaning stays: commas, brackets, ``\\text``, order.
    """
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^{" + run[0].translate(_SUPERSCRIPTS) + "}", text)
    text = unicodedata.normalize("NFKC", text.translate(_SIGN_TABLE))
    if r"\begin" not in text:
        text = _DOUBLED_BACKSLASH.sub(r"\\", text)
    text = _THOUSANDS_COMMA.sub(",", text).replace("{,}", ",").replace(r"\!", "").replace("{ ,}", ",")
    text = _THOUSANDS_GAP.sub("", text)
    text = _DELIMITERS.sub(" ", text)
    text = _FRACTIONS.sub(r"\\frac", _SIZES.sub(" ", text))
    text = _FONTS.sub("", _UPRIGHT.sub(r"\\text", text))
    text = _GLUED_DOUBLE_QUAD.sub(" ", text)
    text = _SPACES.sub(" ", text)
    text = _DEGREES.sub(DEGREE, _PERCENT.sub(PERCENT, text))
    text = _ANNOUNCEMENT.sub("", text.strip(), count=1) if _ANNOUNCEMENT.match(text.strip()) else text
    text = _CONNECTIVES.sub(" , ", text)
    text = re.sub(r",(?:\s*,)+", ",", text)
    return text.rstrip(" .,;:\\").strip()


_TEXT_COMMAND = re.compile(r"\\text\s*")
_NOT_IN_WORDS = re.compile(r"[\s{}~\"'`*]+")
_CHOICE = re.compile(r"[(\[]([a-z])[)\].:]*\Z|([a-z])[).:]\Z")


def words(spelled: str) -> str:
    """The key under which two verbal answers are one: no fonts, spaces, quotes or letter case."""
    key = _NOT_IN_WORDS.sub("", _TEXT_COMMAND.sub("", spelled)).casefold().rstrip(".")
    choice = _CHOICE.match(key)
    return (choice[1] or choice[2]) if choice else key


_VERBAL = re.compile(r"[A-Za-z][A-Za-z'\-]{3,}(?:[\s,]+[A-Za-z'\-]+)*")
_FUNCTION_RUN = re.compile(r"(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt)[a-z]{0,2}")
_WHOLLY_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_LETTER = re.compile(r"[A-Za-z]")


def is_verbal(spelled: str) -> bool:
    """Whether an answer is words and nothing to calculate with: "Evelyn", ``\\text{(C)}``."""
    if whole := _WHOLLY_TEXT.fullmatch(spelled):
        return bool(_LETTER.search(whole[1])) and not re.search(r"\d", whole[1])
    return _VERBAL.fullmatch(spelled) is not None and _FUNCTION_RUN.fullmatch(spelled) is None
