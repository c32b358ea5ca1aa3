"""One spelling for TeX, Unicode and plain text, before anything is parsed."""

import functools
import re
import unicodedata

from math_answers.units import is_known_unit
from math_answers.words import unwrapped

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SIGN_WORDS = r"""
− -  – -  — -  × \cdot  · \cdot  ⋅ \cdot  ∗ \cdot  ÷ /  ∕ /  ⁄ /  π \pi  θ \theta  φ \phi  Φ \Phi  τ \tau
Θ \Theta  α \alpha  β \beta  γ \gamma  λ \lambda  μ \mu  ω \omega  ∞ \infty  √ \sqrt  ≤ \le  ≥ \ge  ≠ \ne
≈ \approx  ∪ \cup  ∩ \cap  ∈ \in  ± \pm  ∓ \mp  ° ^\circ  ∅ \emptyset  ⊂ \subset  ⊆ \subseteq  ⊃ \supset
⊇ \supseteq  ∉ \notin  ∋ \ni  → \to  ← \leftarrow  ↔ \leftrightarrow  ⇒ \Rightarrow  ⇐ \Leftarrow
⇔ \Leftrightarrow  ↦ \mapsto  ≡ \equiv  ≢ \not\equiv  ≅ \cong  ∼ \sim  ≪ \ll  ≫ \gg  ∝ \propto  ∣ \mid  ∤ \nmid
∥ \parallel  ⊥ \perp  ∧ \land  ∨ \lor  ¬ \lnot  ∀ \forall  ∃ \exists  ∖ \setminus  △ \triangle  ∘ \circ
⊕ \oplus  ⊗ \otimes  ∑ \sum  ∏ \prod  ∫ \int  ∂ \partial  ∇ \nabla  Δ \Delta  ℤ \mathbb{Z}  ℚ \mathbb{Q}
ℕ \mathbb{N}  ℂ \mathbb{C}  δ \delta  ε \epsilon  ρ \rho  σ \sigma  Σ \Sigma  Ω \Omega  ψ \psi  ξ \xi  η \eta
ϕ \phi  … \dots  ⋯ \dots  ‰ \permille  ℝ \mathbb{R}  ∠ \angle  ½ \frac{1}{2}  ⅓ \frac{1}{3}  ⅛ \frac{1}{8}
⅕ \frac{1}{5}  ⅙ \frac{1}{6}  ⅔ \frac{2}{3}  ¼ \frac{1}{4}  ¾ \frac{3}{4}  ⟨ \langle  ⟩ \rangle  ⌊ \lfloor
⌋ \rfloor  ⌈ \lceil  ⌉ \rceil  ′ '  ″ ''  ’ '
"""
_INVISIBLE_SIGNS = (
    "\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)
_SIGN_PAIRS = _SIGN_WORDS.split()
_SIGNS = {
    sign: written + " " if "\\" in written and written[-1].isalpha() else written
    for sign, written in zip(_SIGN_PAIRS[::2], _SIGN_PAIRS[1::2], strict=True)
}
_SIGN_TABLE = str.maketrans(_SIGNS | dict.fromkeys(_INVISIBLE_SIGNS, "") | {"\0": " "})

# What only moves ink: sizes of brackets, styles, spaces.
_SIZES = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\.?"
    r"|\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|displaylimits|nonumber|hfill)(?![A-Za-z])"
)
_SPACES = re.compile(
    r"(?:\\(?:quad|qquad|enspace|enskip|thinspace|space)(?![A-Za-z])|(?<!\\)\\[;:>,\s]|~|\s)+"
)
_GLUED_DOUBLE_QUAD = re.compile(r"\\q?quad(?=[A-Za-z])")
_SPACED_THOUSANDS = re.compile(r"\s*-?\d{1,3}(?: \d{3})+(?:\.\d+)?\s*")
_THOUSANDS_GAP = re.compile(r"(?<=\d)(?:\\[,!:; ]|\\thinspace|~)\s*(?=\d{3}(?!\d))")
_GROUPED = re.compile(r"(?<![\d.,])([1-9]\d{0,2})((?:(?:,\s?\\!\s*|\{,\}|')\d{3})+)(?!\d)|(\{,\})")
_DELIMITERS = re.compile(r"\\?\$|(?<!\\)\\[()\[\]]")
_DOUBLED_BACKSLASH = re.compile(r"\\\\(?=[A-Za-z])")
_FRACTIONS = re.compile(r"\\(?:[dtc]frac|nicefrac|sfrac|tfrac|cfrac|xfrac)(?![A-Za-z])")
_UPRIGHT = re.compile(
    r"\\(?:mbox|hbox|textrm|textnormal|textup|textsf|textbf|textit|texttt|emph|operatorname\*?|mathrm|rm)"
    r"(?![A-Za-z])"
)
_FONTS = re.compile(
    r"\\(?:mathbf|mathit|mathsf|mathtt|mathcal|mathscr|mathnormal|boldsymbol|bm|bf|it|boxed|fbox|underline|uline|"
    r"ensuremath|mathop|mathbin|mathrel|mathord|strut|mathstrut|large|Large|huge|Huge|small|normalsize)(?![A-Za-z])"
)
_TEXT_CONNECTIVE = re.compile(r"\\text\s*\{\s*,?\s*(and|or|\\?&)\s*,?\s*\}")
_CONNECTIVE = re.compile(
    r"(?<![A-Za-z\\{\-])(and|or)(?![A-Za-z\-])|(?<=[\d)}])\s*(or)(?=[A-Za-z]\s?[=(_])|(?<=[\d)}])\s*(and)(?=[A-Za-z]\s?[=(_])"
)
_LOGIC = re.compile(r"\\(?:(wedge)|(vee))(?![A-Za-z])")
AND, OR = r"\And ", r"\Or "

# What only marks: colours, Markdown, HTML, special tokens of a chat template.
_SPECIAL_TOKENS = re.compile(r"<\|[^<>|]{1,40}\|>|</s>")
_HTML = re.compile(r"</?(?:b|i|em|strong|u|code|p|span|mark|tt|math|div|br ?/?)(?:\s[^<>]*)?>", re.IGNORECASE)
_BOLD = re.compile(r"(?<![\w)}\]*])(\*\*\*|\*\*|\*)(?=[^\s*])([^*]*[^\s*])\1(?![\w(*])")
_UNDERSCORED = re.compile(r"__([^_]+)__")
_CODE = re.compile(r"```[a-z]*\n?|`+")
_COLOR = re.compile(
    r"\\(?:textcolor|colorbox|fcolorbox\s*\{\w*\})\s*(?:\[\w*\]\s*)?\{[^{}]*\}|\\color\s*(?:\[\w*\]\s*)?\{[^{}]*\}"
)
_INVISIBLE = re.compile(
    r"\\[hv]?phantom\s*\{[^{}]*\}|\\(?:tag\*?|label)\s*\{[^{}]*\}|\\[hv]space\*?\s*\{[^{}]*\}"
    r"|\\(?:blacksquare|qed|qedsymbol|QED)(?![A-Za-z])"
)
_ENDS_PROOF = re.compile(r"[■□✓✅]|\\(?:Box|square)\s*\Z")
_ENDS_OR_PROSE = re.compile(r"[,;:=]\Z|(?<![A-Za-z\\])[A-Za-z]{3,}|\\begin|^[=&]|\n")
_LETTERS = re.compile(r"[A-Za-z]")
_COMMAS = re.compile(r",(?:\s*,)+")
_HEADING = re.compile(r"#+ ")

_CURRENCIES = {
    "$": "dollar", "usd": "dollar", "us$": "dollar", "€": "euro", "eur": "euro", "£": "pound", "gbp": "pound",
    "¥": "yen", "₹": "rupee", "rs": "rupee", "rs.": "rupee", "inr": "rupee", "cad": "dollar", "rmb": "yuan",
}  # fmt: skip
_CURRENCY = re.compile(
    r"(\\\$|€|£|¥|₹|(?<![A-Za-z])(?:US\\?\$|USD|EUR|GBP|CAD|RMB|INR|Rs\.?)(?![A-Za-z.]))\s*(-?\d[\d,]*(?:\.\d+)?)"
    r"(?![\d.]*\s*(?:\\times|\\cdot|[/*^e]))(\s*(?:\\text\s*\{\s*)?(?:hundred|thousand|million|billion|trillion)(?![A-Za-z])\s*\}?)?",
    re.IGNORECASE,
)
_CURRENCY_WORD = re.compile(r"USD|EUR|GBP|CAD|RMB|INR|Rs", re.IGNORECASE)
_CURRENCY_BEHIND = re.compile(r"(?<=\d)\s*(€|£|¥|₹)")

_REMARK = re.compile(
    r"(?:\\text\s*\{\s*)?[(\[]\s*(?:\\text\s*\{\s*)?(?:(about|approx\w*\.?|roughly|around|\\approx)|since|because"
    r"|i\.?e\.?|note|by|using|see|after|rounded|exact(?:ly)? value|checked|only|constant)(?![A-Za-z])"
    r"(?P<rest>[^()]*(?:\([^()]*\)[^()]*)*)[)\]]\s*\}?[\s.]*\Z",
    re.IGNORECASE,
)
_LEADING_NUMBER = re.compile(r"[\s}]*(?:equal to|to)?\s*\$?\s*(-?[\d.,]*\d)")
_LEADING_EQUALS = re.compile(r"(?:=|\\approx(?![A-Za-z]))\s?")
_ANNOUNCEMENT = re.compile(
    r"(?:\\text\s?\{\s?)?(?:(?:the )?(?:final )?answer\s?(?:is|:|=)|approximately|approx\.?|about|"
    r"roughly|exactly|precisely|only|just|simply)"
    r"(?:\s?\}\s?|\s|(?=[\d\\]))\s?",
    re.IGNORECASE,
)
_PERCENT = re.compile(
    r"\\?%|\\text\s*\{\s*(?:percent|pct|percentage|\\?%)\s*\}|(?<![A-Za-z])(?:percentage|percent|pct)(?![A-Za-z])"
)
_DEGREES = re.compile(
    r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])|\\text\s*\{\s*(?:degrees?|deg\.?)\s*\}"
    r"|(?<=[\d\s})])(?:degrees?|deg)(?![A-Za-z])"
)
_AND_SO_ON = re.compile(r"\.\.\.+|…")
_UNIT_FRACTION = re.compile(r"\\frac\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}")
_FRENCH_INTERVAL = re.compile(r"([\[\]])([^\[\]]*[,;][^\[\]]*)([\[\]])")
_NON = re.compile(r"(?<![A-Za-z\\])non[- ](?=[\w\\$(])")
_PERMILLE = re.compile(r"(?:\\text\s*\{\s*)?(?<![A-Za-z])(?:permille|per mille|per mil)(?![A-Za-z])\s*\}?")
_ORDINAL = re.compile(
    r"(?<=\d)(?:(?:st|nd|rd|th)(?![A-Za-z])|\s*\^\s*\{?\s*(?:\\text\s*\{\s*)?(?:st|nd|rd|th)\s*\}?\s*\}?(?![A-Za-z]))"
    r"|(?<=\d)\s*\\text\s*\{\s*(?:st|nd|rd|th)\s*\}"
)
_BRACED_UNIT = re.compile(r"(?<=\d)\s*\{\s*([A-Za-z]+)\s*\}\s*\Z")
_SOLE_GROUP = re.compile(r"\{((?:[^{}]|\{[^{}]*\})*)\}")
_LEFT_BRACE_SYSTEM = re.compile(
    r"\\left\s*(?:\\\{|\\lbrace)\s*\\begin\s*\{(array|aligned|matrix|gathered)\}\s*(?:\{[^{}]*\})?(.*?)\\end\s*\{\1\}\s*\\right\s*\.",
    re.DOTALL,
)
PERCENT = "%"
DEGREE = "°"


@functools.lru_cache(maxsize=1024)  # a gold is compared with many answers
def respell(text: str) -> str:
    """The same answer with one spelling for signs, fractions, fonts, spaces, percent, degrees, money, "and" and "or".

    Linear in the length of the text. What carries meaning stays: commas, brackets, ``\\text``, order, words. What only
    marks goes (bold, code, colour, the tokens of a chat template), as does the sentence around an answer.
    """
    text = _plain_signs(unmarked(text))
    if _SPACED_THOUSANDS.fullmatch(text):
        return text.replace(" ", "").replace("$", "")
    if "\\" in text or "$" in text:
        text = _plain_commands(text)
    text = _SPACES.sub(" ", text).strip()
    while text.startswith("{") and r"\choose" not in text and (group := _SOLE_GROUP.fullmatch(text)):
        text = group[1].strip()
    if "(" in text or "[" in text or "]" in text:
        text = unwrapped(_REMARK.sub(_without_remark, text))
        if r"\sqrt[" not in text:
            text = _FRENCH_INTERVAL.sub(_with_round_brackets, text)
    else:
        text = unwrapped(text)
    text = _DEGREES.sub(DEGREE, _PERCENT.sub(PERCENT, text)).strip()
    text = _LEADING_EQUALS.sub("", text, count=1) if text.startswith(("=", r"\approx")) else text
    if _LETTERS.search(text):
        text = _plain_words(text)
    if "," in text:
        text = _COMMAS.sub(",", text)
    return text.rstrip(" .,;:\\").strip()


def _plain_signs(text: str) -> str:
    """With ASCII for Unicode, digits without groups, and currencies as units."""
    if "\n\n" in text:
        text = _listed_lines(text)
    if not text.isascii():
        text = _SUPERSCRIPT_RUN.sub(lambda run: "^{" + run[0].translate(_SUPERSCRIPTS) + "}", text)
        text = _AND_SO_ON.sub(r"\\ldots ", text)
        text = unicodedata.normalize("NFKC", text.translate(_SIGN_TABLE))
    text = text.replace("\0", " ")
    if "..." in text:
        text = _AND_SO_ON.sub(r"\\ldots ", text)
    if "\\\\" in text and r"\begin" not in text:
        text = _DOUBLED_BACKSLASH.sub(r"\\", text)
    if "," in text or "'" in text:
        text = _GROUPED.sub(_ungrouped, text.replace("{ ,}", "{,}"))
    if "\\" in text or "~" in text:
        text = _THOUSANDS_GAP.sub("", text.replace(r"\!", ""))
    if "\\$" in text or not text.isascii() or _CURRENCY_WORD.search(text):
        text = _CURRENCY.sub(_priced, text)
        text = _CURRENCY_BEHIND.sub(lambda sign: rf"\text{{ {_CURRENCIES[sign[1]]}}}", text)
    return text


def _plain_commands(text: str) -> str:
    """With one TeX command for what has several, and none for what only moves ink."""
    text = _DELIMITERS.sub(" ", text)
    if r"\begin" in text:
        text = _LEFT_BRACE_SYSTEM.sub(r"\\begin{cases}\2\\end{cases}", text)
    text = _FRACTIONS.sub(r"\\frac", _SIZES.sub(" ", text))
    text = _FONTS.sub(" ", _UPRIGHT.sub(r"\\text", text))
    if "quad" in text:
        text = _GLUED_DOUBLE_QUAD.sub(" ", text)
    if r"\text" in text:
        text = _UNIT_FRACTION.sub(r"\\text{\1/\2}", text)
    return _LOGIC.sub(lambda found: r"\land" if found[1] else r"\lor", text.replace(r"\&", AND))


def _plain_words(text: str) -> str:
    """With commands for "and", "or" and "non-", units for "th" and "{cm}", without what only announces an answer."""
    text = _NON.sub(r"\\text{non} ", _PERMILLE.sub(r"\\permille ", text))
    text = _BRACED_UNIT.sub(_unit_of_group, _ORDINAL.sub(r"\\text{ ordinal}", text))
    text = _ANNOUNCEMENT.sub("", text, count=1) if _ANNOUNCEMENT.match(text) else text
    text = _TEXT_CONNECTIVE.sub(lambda found: AND if found[1] in ("and", "&", r"\&") else OR, text)
    return _CONNECTIVE.sub(lambda found: f" {AND}" if "and" in found.groups() else f" {OR}", text)


def unmarked(text: str) -> str:
    """The text without colours, Markdown, HTML and special tokens."""
    if "<" in text:
        text = _HTML.sub(" ", _SPECIAL_TOKENS.sub(" ", text))
    if "*" in text:
        text = _BOLD.sub(r" \2 ", text)
    if "`" in text:
        text = _CODE.sub("", text)
    if "__" in text:
        text = _UNDERSCORED.sub(r"\1", text)
    if "olor" in text:
        text = _COLOR.sub(" ", text)
    if "\\" in text:
        text = _INVISIBLE.sub(" ", text)
    return _ENDS_PROOF.sub(" ", _HEADING.sub("", text.strip(), count=1) if text.startswith("#") else text)


def _listed_lines(text: str) -> str:
    """Formulas with blank lines between them as a list."""
    chunks = [chunk.strip() for chunk in re.split(r"\n\s*\n", text) if chunk.strip()]
    if len(chunks) < 2 or any(_ENDS_OR_PROSE.search(chunk) for chunk in chunks):
        return text
    return " , ".join(chunks)


def _ungrouped(found: re.Match[str]) -> str:
    r"""``1{,}000``, ``1,\!000`` and ``1'000`` as 1000; another ``{,}`` is a comma."""
    return "," if found[3] else found[1] + re.sub(r"\D", "", found[2])


def _with_round_brackets(found: re.Match[str]) -> str:
    """``]0, 1[`` as ``(0, 1)``."""
    return ("(" if found[1] == "]" else "[") + found[2] + (")" if found[3] == "[" else "]")


def _unit_of_group(found: re.Match[str]) -> str:
    return rf"\text{{ {found[1]}}}" if is_known_unit(found[1]) else found[0]


def _priced(found: re.Match[str]) -> str:
    name = _CURRENCIES[found[1].lower().replace("\\", "")]
    return rf"{found[2]}{found[3] or ''}\text{{ {name}}}"


def _without_remark(found: re.Match[str]) -> str:
    """Nothing in place of "(since x > 0)"; "(about 18.9 cards)" stays as what the value is near to."""
    if found[1] and (number := _LEADING_NUMBER.match(found["rest"])):
        return rf" \approx {number[1]}"
    return ""
