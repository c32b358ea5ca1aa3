"""Answers in words: which runs of letters are words, sentences around an answer, choices, dates and times of day."""

import re
from dataclasses import dataclass
from fractions import Fraction

_SHORT = """
yes no odd one two six ten red blue tan pink all any few none nil zero dne na true max min top left up down in out on
off sum day mon tue wed thu fri sat sun jan feb mar apr may jun jul aug sep oct nov dec son mom dad boy girl cat dog
bat rat cow pig hen fox owl bee ant act car bus van bed bag box cup pen key map sea sky ice tie win won lose lost draw
big low high old new her his him she he it its we us you not nor and or if is are was be so too sam tom tim bob ben
dan jim joe ann amy sue kim eve ivy roy leo ted ned ray lee ron don ken jon dna cube cone cash cent even prime both
"""
SHORT_WORDS = frozenset(_SHORT.split())
"""Words of two or three letters that an answer could be, and no product of unknowns."""

_LOGIC = """
not no non nor never neither none nobody nothing without except but unless if iff when whenever while where whether
or either and xor both than less more fewer greater smaller larger lesser least most atleast atmost over under above
below beyond between beside within up down until to at from off minus plus negative positive opposite reciprocal
inverse half twice thrice double triple cube root mod modulo modulus base times divided multiplied is isn are aren was
wasn be been isnt arent wasnt cannot cant dont doesnt does do did false wrong incorrect untrue impossible instead
rather as so then for some all every each forall exists almost nearly about approximately roughly around first
second third remainder only odd even prime infinitely many factorial choose given because since hence thus therefore
diverges converges undefined otherwise else maybe perhaps possibly probably ago before after point
"""
LOGIC_WORDS = frozenset(_LOGIC.split())
"""Words that say something about the answer, so that none of them is ever passed over or taken for a unit."""

_LEAD = """
is are was be so then hence thus therefore for from to at all each first second third every half given before after
does do did and many as when
"""
_LEAD_WORDS = frozenset(_LEAD.split())  # that a sentence may begin with, and say nothing against its end

_VERBS = (
    r"is|are|was|were|be|becomes?|equals?|equal(?:s)? to|gets?|got|obtains?|obtained|finds?|found|has|have|had|gives?|"
    r"gave|makes?|made|needs?|needed|earns?|earned|costs?|spends?|spent|pays?|paid|takes?|took|sells?|sold|buys?|bought|"
    r"uses?|used|receives?|received|remains?|left|collects?|collected|eats?|ate|drinks?|drank|travels?|traveled|walks?|"
    r"walked|runs?|ran|drives?|drove|lives?|weighs?|contains?|includes?|requires?|saves?|saved|owes?|owed|yields?|yielded|"
    r"sums? to"
)
_SENTENCE = re.compile(
    rf"(?P<lead>(?:[A-Za-z'\-,\s{{}}]|\\text)*?(?<![A-Za-z\\])(?:{_VERBS})"
    r"(?:\s+(?:exactly|precisely|simply|just|also|thus|therefore|then|equal to|a total of|now))?)"
    r"[\s}]*:?\s*(?<![A-Za-z])(?P<rest>(?:[$\d\\(\[{+\-.|]|[A-Za-z](?:\b|\s?=)).*)",
    re.IGNORECASE,
)
_ADVERB = re.compile(
    r"(?:\\text\s?\{\s*)?(?:(?:so|thus|therefore|hence|then|finally|and so|consequently|in conclusion|which gives|"
    r"it follows that|we (?:get|have|obtain|find|conclude)(?: that)?|this (?:gives|means|implies)(?: that)?|"
    r"(?:the )?(?:final |correct )?(?:answers?|solutions?|results?|values?)(?: (?:is|are)| ?[:=])|answer|"
    r"答案(?:是|为)?|一?共有?|总共|所以|因此|故|结果(?:是|为))"
    r"\s*[,:]?\s*)+\}?\s*(?=[\d\\(\[{+\-.|$√π]|[A-Za-z](?![A-Za-z])|[A-Za-z]{1,8}\s*=)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z']+")
_NEXT_SENTENCE = re.compile(r"[.!?]\s+[A-Z]")


def unwrapped(spelled: str) -> str:
    """The answer without the sentence around it: "The value of x is 7." is 7; "It is not 7" stays as it is."""
    if adverb := _ADVERB.match(spelled):
        rest = spelled[adverb.end() :]
        spelled = (
            rest if spelled[: adverb.end()].count("{") == spelled[: adverb.end()].count("}") else spelled
        )
    if (
        " " not in spelled
        or len(spelled) > 400
        or (not spelled[:1].isalpha() and not spelled.startswith(r"\text"))
    ):
        return spelled
    for _ in range(2):
        sentence = _SENTENCE.fullmatch(spelled)
        if (
            sentence is None
            or len(_WORD.findall(sentence["lead"])) < 2
            or _NEXT_SENTENCE.search(sentence["rest"])
            or has_logic(sentence["lead"], but_verbs=True)
            or has_logic(re.sub(r"\\[A-Za-z]+", " ", sentence["rest"]))
        ):
            return spelled
        spelled = sentence["rest"].strip().rstrip(".").strip()
    return spelled


def has_logic(text: str, but_verbs: bool = False) -> bool:
    """Whether a text holds a word that says something about the answer, as "not" or "least" do.

    Args:
        text: words and perhaps formulas.
        but_verbs: leave those out that stand in every sentence.
    """
    found = {word.replace("'", "") for word in _WORD.findall(text.lower())} & LOGIC_WORDS
    return bool(found - _LEAD_WORDS if but_verbs else found)


# -- words --------------------------------------------------------------------------------------------------------

_TEXT_COMMAND = re.compile(r"\\text\s*")
_COMMAS = re.compile(r",?\\and,?")
_NOT_IN_WORDS = re.compile(r"[\s{}~\"`*]+")
_QUOTED = re.compile(r"(\\text\s*\{)?\s*'([^']*)'\s*\}?")
_VERBAL = re.compile(r"[A-Za-z][A-Za-z'\-]{3,}(?:[\s,]+[A-Za-z'\-]+)*")
_FUNCTION_RUN = re.compile(r"(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt)[a-z]{0,2}")
_WHOLLY_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_LETTER = re.compile(r"[^\W\d_]")
_CONSECUTIVE = "abcdefghijklmnopqrstuvwxyz"


def is_word(run: str) -> bool:
    """Whether a run of two or more letters is a word, and no product of one-letter names."""
    lower = run.lower()
    if lower in SHORT_WORDS:
        return True
    if len(run) > 2 and run[0].isupper() and run[1:].islower():
        return True
    if len(run) < 4:
        return False
    return not (run.islower() and ("".join(sorted(lower)) in _CONSECUTIVE or not set(lower) & set("aeiou")))


def words(spelled: str) -> str:
    """The key under which two verbal answers are one: no fonts, spaces, quotes or letter case; "and" is a comma."""
    if quoted := _QUOTED.fullmatch(spelled):
        spelled = quoted[2]
    key = _NOT_IN_WORDS.sub("", _TEXT_COMMAND.sub("", spelled)).casefold().rstrip(".")
    return _COMMAS.sub(",", key) if "\\and" in key else key


def is_verbal(spelled: str) -> bool:
    """Whether an answer is words and nothing to calculate with: "Evelyn", "no", ``\\text{(C)}``."""
    if whole := _WHOLLY_TEXT.fullmatch(spelled):
        return bool(_LETTER.search(whole[1])) and not re.search(r"\d", whole[1])
    if spelled.isalpha() and spelled.isascii():
        return len(spelled) > 1 and is_word(spelled) and _FUNCTION_RUN.fullmatch(spelled) is None
    return _VERBAL.fullmatch(spelled) is not None and _FUNCTION_RUN.fullmatch(spelled) is None


_COUNTED = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty
"""
_NUMBER_WORDS = {word: value for value, word in enumerate(_COUNTED.split())}
_EMPTY = frozenset({"emptyset", "theemptyset", "nullset"})


def synonym(spelled: str) -> str | None:
    """The formula that a verbal answer stands for: "seven", "empty set", "all real numbers"."""
    key = words(spelled)
    if key in _NUMBER_WORDS:
        return str(_NUMBER_WORDS[key])
    if key in _EMPTY:
        return r"\emptyset"
    if key in ("allrealnumbers", "allreals", "therealnumbers", "realnumbers"):
        return r"\mathbb{R}"
    return r"\infty" if key in ("infinity", "infinite") else None


# -- qualifiers ---------------------------------------------------------------------------------------------------

_QUALIFIER = re.compile(
    r"\s*[,;]?\s*(?P<open>[(\[]?)\s*(?:\\text\s*\{[\s(,]*)?"
    r"(?:(?P<word>for\s+(?:all|every|each|any|some|arbitrary)|\\forall|for|where|whenever)(?![A-Za-z])"
    r"|(?=[A-Za-z]\s*\\in\s*\\mathbb))(?P<rest>[^,;]*?)(?=\s*(?:[,;]|\\And|\Z))"
)
_DOMAIN_WORDS = (
    ("R", r"real|mathbb\{?r"),
    ("Z", r"integer|mathbb\{?z"),
    ("Q", r"rational|mathbb\{?q"),
    ("N", r"natural|mathbb\{?n"),
    ("C", r"complex|mathbb\{?c"),
)
_BOUNDED_NAME = re.compile(
    r"[^A-Za-z\\]*(?:(?:real|integers?|rational|positive|numbers?|constants?|\\text)[\s{}]*)*([A-Za-z])(?![A-Za-z])"
)
_BOUNDS = re.compile(r"[<>]|\\(?:le|ge|ne|in|leq|geq|neq|notin)(?![A-Za-z])")


@dataclass(frozen=True)
class Qualifier:
    """For what an answer is said to hold: "for all x ∈ ℝ", "where c is a constant", "(for n ≥ 2)"."""

    some: bool
    domain: str
    name: str
    words: str
    explains: bool  # begins with "where"

    def agrees(self, other: "Qualifier") -> bool:
        """Whether two say the same, or one only less."""
        if self.some != other.some:
            return False
        if self.domain and other.domain and not self.explains and not other.explains:
            return self.domain == other.domain
        return self.words == other.words or self.words == self.name or other.words == other.name


def split_qualifiers(spelled: str) -> tuple[str, list[Qualifier]]:
    """An answer without what it is said to hold for, and that. Bounds on an unknown keep what they are for."""
    if (
        "for" not in spelled
        and "where" not in spelled
        and r"\in" not in spelled
        and "whenever" not in spelled
    ):
        return spelled, []
    found: list[Qualifier] = []
    core, at = "", 0
    for match in _QUALIFIER.finditer(spelled):
        if match["word"] is None and not match["open"]:
            continue  # a membership without brackets is an item of its own
        rest, end = match["rest"], match.end()
        explains = match["word"] in ("where", "whenever")
        if explains:
            rest, end = spelled[match.start("rest") :], len(spelled)
        name = _BOUNDED_NAME.match(rest)
        if name is None:
            return spelled, []
        some = (match["word"] or "").endswith(("some", "arbitrary"))
        key = re.sub(r"\\text|[\s{}()\[\]]", "", rest).casefold().rstrip(".")
        domain = next(
            (d for d, words_of in _DOMAIN_WORDS if re.search(words_of, rest.casefold().replace(" ", ""))), ""
        )
        found.append(Qualifier(some, domain, name[1], key, explains))
        core += spelled[at : match.start()]
        at = end
        if at == len(spelled):
            break
    core = (core + spelled[at:]).strip(" ,;")
    if not found or not core or _BOUNDS.search(core) or core.count("{") != core.count("}"):
        return spelled, []
    for qualifier in found:
        if (
            qualifier.some
            and qualifier.name
            and f"({qualifier.name})" in core.partition("=")[0].replace(" ", "")
        ):
            return spelled, []
    return core, found


# -- choices ------------------------------------------------------------------------------------------------------

_CHOICE = re.compile(r"(?:\\text\s*\{\s*)?(\(?)\s*([A-Ja-j])\s*([).:]*)\s*\}?[).:]*")
_CHOICE_AND_TEXT = re.compile(
    r"(?:\\text\s*\{\s*)?(?:\(\s*([A-J])\s*\)|([A-J])\s*[).:])(?:\s*\}\s*|\s+)\S.*", re.DOTALL
)


def same_choice(pred: str, gold: str) -> bool | None:
    """Whether two letters of a multiple-choice question are one; ``None`` if these are none.

    Between brackets the letter case means nothing. "(A) 5" is the choice A where the gold is a choice.
    """
    theirs = _CHOICE.fullmatch(gold)
    if theirs is None:
        return None
    if (ours := _CHOICE.fullmatch(pred)) is not None:
        if theirs[0] in ("e", "i") and ours[2] != theirs[0]:
            return None
        marked = ours[1] or ours[3] or theirs[1] or theirs[3] or r"\text" in pred + gold
        return ours[2].lower() == theirs[2].lower() if marked else None
    if (ours := _CHOICE_AND_TEXT.fullmatch(pred)) is not None and theirs[2].isupper():
        return (ours[1] or ours[2]) == theirs[2]
    return None


# -- dates and times ----------------------------------------------------------------------------------------------

_MONTH_NAMES = "january february march april may june july august september october november december"
_MONTHS = {
    name[:length]: number
    for number, name in enumerate(_MONTH_NAMES.split(), 1)
    for length in {3, 4, len(name)}
}
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_DATES = [
    re.compile(rf"(?P<month>{_MONTH})\.?\s*(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:,?\s+(?P<year>\d{{4}}))?"),
    re.compile(
        rf"(?:the\s+)?(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\s*(?:of\s+)?(?P<month>{_MONTH})\.?(?:,?\s*(?P<year>\d{{4}}))?"
    ),
    re.compile(r"(?P<year>[12]\d{3})(?P<sign>[-/.])(?P<month>\d{2})(?P=sign)(?P<day>\d{2})"),
]
_WEEKDAY = re.compile(r"(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+(?=\w)")
_SLASHED = re.compile(r"\d{1,2}/\d{1,2}/\d{4}")
_TIME = re.compile(
    r"(?P<hour>\d{1,2})(?:\s*:\s*(?P<minute>(?P<padded>0\d)|[1-5]\d)(?:\s*:\s*(?P<second>[0-5]\d))?)?\s*"
    r"(?:(?P<half>[ap])\.?\s*m\.?|o'?clock|h(?:ou)?rs?|uhr)?(?:\s*(?:[a-z]{2,3}t|utc))?",
)
_PLAIN = re.compile(r"\\text\{ ordinal\}|\\(?:text|circ|,|;|!|\s)|[{}~]")


def same_moment(pred: str, gold: str) -> bool | None:
    """Whether two dates or two times of day are one; ``None`` if these are none.

    12:00 is no ratio, and 2024-03-05 no difference. Which half of the day may be left out, but not be wrong.
    """
    if not (any(map(str.isdigit, gold)) and any(map(str.isdigit, pred))) or len(pred) + len(gold) > 120:
        return None
    ours, theirs = (" ".join(_PLAIN.sub(" ", side).lower().split()).strip(" .,") for side in (pred, gold))
    dates = [_date(side) for side in (ours, theirs)]
    if dates[0] and dates[1]:
        return dates[0][:2] == dates[1][:2] and (
            dates[0][2] == dates[1][2] or (not dates[1][2] and dates[0][2] is not None)
        )
    if any(dates):
        return False if _SLASHED.fullmatch(ours) is None and _SLASHED.fullmatch(theirs) is None else None
    if _SLASHED.fullmatch(ours) and _SLASHED.fullmatch(theirs):
        return [int(part) for part in ours.split("/")] == [int(part) for part in theirs.split("/")]
    times = [_TIME.fullmatch(side) for side in (ours, theirs)]
    if any(_tells_time(time) for time in times if time):
        if times[0] and times[1]:
            return _same_time(times[0], times[1])
        return False if ":" in ours and ":" in theirs else None
    return None


def _date(text: str) -> tuple[int, int, int | None] | None:
    text = _WEEKDAY.sub("", text)
    for pattern in _DATES:
        if date := pattern.fullmatch(text):
            month = _MONTHS.get(date["month"]) or int(date["month"])
            day = int(date["day"])
            if 1 <= month <= 12 and 1 <= day <= 31:
                return month, day, int(date["year"]) if date["year"] else None
    return None


def _tells_time(time: re.Match[str]) -> bool:
    return bool(time["half"] or time["padded"] or time["second"])


def _same_time(pred: re.Match[str], gold: re.Match[str]) -> bool:
    if not (pred["minute"] or pred["half"]) or not (gold["minute"] or gold["half"]):
        return False
    minutes = [
        (int(time["hour"]) * 60 + int(time["minute"] or 0)) * 60 + int(time["second"] or 0)
        for time in (pred, gold)
    ]
    day = 24 * 3600
    readings = []
    for time, seconds in zip((pred, gold), minutes, strict=True):
        if time["half"] and int(time["hour"]) <= 12:
            readings.append({(seconds % (day // 2)) + (day // 2 if time["half"] == "p" else 0)})
        else:
            readings.append({seconds % day})
    if readings[0] & readings[1]:
        return True
    if bool(pred["half"]) != bool(gold["half"]):  # 3:30 stands for 3:30 p.m.
        plain = minutes[0] if not pred["half"] else minutes[1]
        marked = minutes[1] if not pred["half"] else minutes[0]
        return plain == marked
    return False


SCALES = {
    "dozen": Fraction(12),
    "hundred": Fraction(100),
    "thousand": Fraction(10**3),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
}
