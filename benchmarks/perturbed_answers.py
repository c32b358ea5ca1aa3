"""Wrong answers made from right ones: what a grader must reject.

Every perturbation changes the meaning of the answer, not only its spelling: the value of a number, a sign, the sides of
a fraction, a bracket, the number of answers, a letter. Which places change is drawn from the answer's own text, so that
the same answer always gives the same wrong ones.
"""

import random
import re
import zlib
from collections.abc import Callable, Iterator

_NUMBER = re.compile(r"(?<![\d.,])(?:\d{1,3}(?:,(?:\\!)?\s?\d{3})+(?![\d])|\d+\.?\d*|\.\d+)(?![\d])")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{(-?\w+)\}\s*\{(-?\w+)\}")
_WORD = re.compile(
    r"\\(?:text|mbox|mathrm)\s*\{\s*\(?([A-Za-z]+)\)?\s*\}|\b([A-Za-z]{4,})\b(?<!frac)(?<!sqrt)"
)
_VARIABLE = re.compile(r"(?<![\\A-Za-z{])([a-zA-Z])(?![A-Za-z])")
_NAMED = re.compile(r"\s*(?:\(\w\))?\s*(?:=|\\in)")
# What stands before a number that is part of a name, B_{1}; a base, 52_8, is not.
_LABEL = re.compile(r"(?<!\d)_\s*\{?\s*\Z")
_HEAD = re.compile(r"\$?\s*\\?[A-Za-z](?:_\{?\\?\w+\s*\}?)?(?:\(\w\))?\s*=")

_UNRELATED = ("7919", r"\frac{355}{113}", r"\text{none of them}", "(7919, 1)", "x_{7919}", r"\sqrt{7919}")


def perturbed(answer: str, count: int = 5) -> list[str]:
    """``count`` different wrong answers; unrelated ones where the answer has too little to change."""
    draw = random.Random(zlib.crc32(answer.encode()))
    found: list[str] = []
    makers = [
        _next_number,
        _other_sign,
        _fewer_digits,
        _ten_times,
        _upside_down,
        _fewer_answers,
        _prefix,
        _previous_number,
    ]
    for make in [
        *makers,
        _thousandfold,
        _one_more,
        _other_bracket,
        _other_word,
        _longer_word,
        _other_variable,
    ]:
        wrong = make(answer, draw)
        if wrong is not None and wrong not in found and wrong.strip() != answer.strip():
            found.append(wrong)
    draw.shuffle(found)
    return [*found, *(wrong for wrong in _UNRELATED if wrong not in found and wrong != answer.strip())][
        :count
    ]


def _numbers(answer: str) -> list[re.Match[str]]:
    return [m for m in _NUMBER.finditer(answer) if not _LABEL.search(answer[: m.start()])]


def _changed(answer: str, draw: random.Random, change: Callable[[str], str | None]) -> str | None:
    places = _numbers(answer)
    if not places:
        return None
    place = draw.choice(places)
    new = change(re.sub(r"[^\d.]", "", place[0]))
    return None if new is None else answer[: place.start()] + new + answer[place.end() :]


def _shifted(number: str, by: int) -> str:
    whole, point, fraction = number.partition(".")
    return str(int(whole or 0) + by) + point + fraction


def _next_number(answer: str, draw: random.Random) -> str | None:
    return _changed(answer, draw, lambda number: _shifted(number, 1))


def _previous_number(answer: str, draw: random.Random) -> str | None:
    return _changed(answer, draw, lambda number: _shifted(number, -1) if number[0] not in "0." else None)


def _fewer_digits(answer: str, draw: random.Random) -> str | None:
    def drop(number: str) -> str | None:
        digits = [i for i, digit in enumerate(number) if digit != "."]
        shorter = (number[:i] + number[i + 1 :] for i in draw.sample(digits, len(digits)))
        return next((s for s in shorter if s not in ("", ".") and float(s) != float(number)), None)

    return _changed(answer, draw, drop)


def _times(number: str, factor: int) -> str | None:
    whole, point, fraction = number.partition(".")
    zeros = len(str(factor)) - 1
    if not point:
        return None if int(number) == 0 else number + "0" * zeros
    moved = fraction.ljust(zeros, "0")
    return None if float(number) == 0 else f"{whole}{moved[:zeros]}.{moved[zeros:]}"


def _ten_times(answer: str, draw: random.Random) -> str | None:
    return _changed(answer, draw, lambda number: _times(number, 10))


def _thousandfold(answer: str, draw: random.Random) -> str | None:
    # Not hundredfold: a hundred times something is the same percentage under some policies.
    return _changed(answer, draw, lambda number: _times(number, 1000))


def _other_sign(answer: str, draw: random.Random) -> str | None:
    """The negative of a single value; of anything else it might be the same (±1, a line, a symmetric set)."""
    if re.search(r"[,;=<>]|\\(?:pm|in|cup|le|ge|begin|text|mbox)|[A-Za-z]{4,}(?<!frac)(?<!sqrt)|:", answer):
        return None
    inner = answer.strip().strip("$").strip()
    if (
        not re.search(r"[1-9A-Za-z]", inner)
        or re.match(r"[(\[]", inner)
        or re.fullmatch(r"\(?[A-Z]\)?", inner)
    ):
        return None
    return inner[1:] if re.fullmatch(r"-[\w.]+", inner) else f"-({inner})"


def _upside_down(answer: str, draw: random.Random) -> str | None:
    fractions = [m for m in _FRACTION.finditer(answer) if m[1] != m[2] and m[1].strip("-") != m[2].strip("-")]
    if not fractions:
        return None
    place = draw.choice(fractions)
    return f"{answer[: place.start()]}\\frac{{{place[2]}}}{{{place[1]}}}{answer[place.end() :]}"


def _top_level(answer: str) -> Iterator[int]:
    depth = 0
    for i, character in enumerate(answer):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0 and not re.match(r",(\\!)?\s?\d{3}(?!\d)", answer[i:]):
            yield i


def _fewer_answers(answer: str, draw: random.Random) -> str | None:
    commas = list(_top_level(answer))
    if not commas or r"\text" in answer or "where" in answer:
        return None
    wrong = answer[: commas[-1]]
    return wrong + "$" if wrong.count("$") % 2 else wrong


def _prefix(answer: str, draw: random.Random) -> str | None:
    """What stands before the first operator: the mantissa of a power of ten, the first factor or term."""
    body = answer.strip().strip("$").strip()
    head = _HEAD.match(body)
    start = head.end() if head else 0
    cut = re.search(
        r"(?<=[\w}])\s*(?:\\times|\\cdot|\\sqrt|\\pi|[eE](?=[-+]?\d)|[-+*/]|\^(?!\{?\s*\\(?:circ|prime)))",
        body[start:],
    )
    if (
        cut is None
        or "," in body
        or body[start : start + cut.start()].count("{") != body[start : start + cut.start()].count("}")
    ):
        return None
    wrong = body[: start + cut.start()]
    if wrong.count("(") != wrong.count(")") or wrong.count("[") != wrong.count("]"):
        return None
    return None if wrong.strip() in ("", "1") else wrong


def _other_bracket(answer: str, draw: random.Random) -> str | None:
    if (
        re.fullmatch(r"\s*\$?\\?(?:left)?\s*\(.*(?:\]|\))\$?", answer)
        and "infty" not in answer
        and answer.count("(") == 1
    ):
        return re.sub(r"\(", "[", answer, count=1)
    return None


def _other_word(answer: str, draw: random.Random) -> str | None:
    word = _WORD.search(answer)
    if word is None or _numbers(answer) or r"\frac" in answer or "=" in answer:
        return None
    span = word.span(1) if word[1] else word.span(2)
    old = answer[slice(*span)]
    new = chr((ord(old.upper()) - 64) % 26 + 65) if len(old) == 1 else old[::-1] + "x"
    return answer[: span[0]] + new + answer[span[1] :]


def _longer_word(answer: str, draw: random.Random) -> str | None:
    word = _WORD.search(answer)
    if word is None or _numbers(answer) or r"\frac" in answer or "=" in answer:
        return None
    end = word.end(1) if word[1] else word.end(2)
    return answer[:end] + "s" + answer[end:]


def _other_variable(answer: str, draw: random.Random) -> str | None:
    """Another letter in one place, behind a head that could only be renamed as a whole."""
    body = _HEAD.match(answer)
    places = [
        m
        for m in _VARIABLE.finditer(answer, body.end() if body else 0)
        if m[1] not in "ei" and not _NAMED.match(answer, m.end())
    ]
    if not places or re.search(r"\\(?:text|mbox|angle|in)(?![A-Za-z])", answer) or answer.count("=") > 1:
        return None
    place = draw.choice(places)
    return answer[: place.start()] + ("q" if place[1] != "q" else "v") + answer[place.end() :]


def _one_more(answer: str, draw: random.Random) -> str | None:
    """One added to what stands last; one more answer at the end of a list."""
    inner = answer.strip().strip("$").strip().rstrip(".")
    if (
        re.search(r"\\(?:text|mbox|begin|in|cup|infty)(?![A-Za-z])|[<>%]|\\[gl]eq?|where|_\{?\d+\}?\Z", inner)
        or inner.isalpha()
    ):
        return None
    if list(_top_level(inner)):
        return inner + ", 7919"
    if inner.endswith((")", "]")) and inner[:1] in "([":
        return None
    return inner + "+1"
