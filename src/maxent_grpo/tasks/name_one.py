"""Name one …: a question with several right answers, all of them known, for a language model of any size.

"Name one US state.", "… month of the year that begins with J.", "… divisor of 36.": lists come from ``name_one.yaml``,
each with all its right answers. Two turns of another kind stand before the question, a fruit and an animal, without
which a small model talks instead of answering.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from maxent_grpo.tasks.answers import extract_answer, last_boxed
from maxent_grpo.tasks.task import (
    CONTROL,
    EVAL,
    TRAIN,
    WRONG,
    Facts,
    Problem,
    Verdict,
    draw,
    example_turns,
    region,
)

WORDINGS = (
    "Name one {thing}.",
    "Give me the name of one {thing}.",
    "Tell me one {thing}.",
    "What is one {thing}? Answer with its name alone.",
)
EXAMPLES = (("fruit", "Apple"), ("animal", "Dog"))
DIVIDED = range(6, 100)  # the numbers whose divisors are asked for

_ARTICLE = re.compile(r"^(?:the|an|a) ")
_BULLET = re.compile(r"^(?:[-*•–]|\d+[.)])\s*")


@dataclass(frozen=True)
class NameList:
    """One list of ``name_one.yaml``."""

    thing: str
    split: str  # train or eval; its control problems are those with one right answer
    answers: tuple[str, ...]
    aliases: Mapping[str, str]  # another spelling → the answer
    letters: bool  # whether questions may ask for those with a letter: each has one usual spelling


@dataclass(frozen=True)
class Asked:
    """What is asked for, and every right answer."""

    thing: str
    answers: tuple[str, ...]
    spellings: Mapping[str, str]  # normal form of a spelling → the answer that it means
    facts: Facts


class NameOne:
    name = "name_one"
    default_sizes: Mapping[str, int] = {TRAIN: 192, EVAL: 96, CONTROL: 96}
    choices: Mapping[str, tuple[Any, ...]] = {
        "kinds": ("all", "lists"),
        "wordings": (1, 4),
        "examples": (2, 0),
    }

    def problems(
        self, split: str, size: int, seed: int, kinds: str = "all", wordings: int = 1, examples: int = 2
    ) -> list[Problem]:
        """``kinds``: whole lists alone, or also those by letter and divisors; ``wordings`` of each question."""
        asked = [one for one, home in _everything(kinds) if home == split]
        candidates = [_problem(one, wording, examples) for one in asked for wording in WORDINGS[:wordings]]
        return draw(self.name, candidates, split, size, seed)

    def grade(self, response: str, facts: Facts) -> Verdict:
        """Right if the last box, else the first line that is not empty, is one right answer and nothing else.

        Words before it as in "The answer is" and an article may stand. An answer that names several is wrong, in one
        line or in more.
        """
        asked = _asked_by(facts.get("list"), facts.get("by"), facts.get("letter"), facts.get("divides"))
        lines = [line for line in response.splitlines() if line.strip()]
        first = (
            extract_answer(lines[0]) if lines and last_boxed(response) is None else extract_answer(response)
        )
        answer = asked.spellings.get(normal_form(first or ""))
        if answer is None:
            return WRONG
        others = {asked.spellings.get(normal_form(_BULLET.sub("", line.strip()))) for line in lines[1:]}
        if others - {answer, None}:
            return WRONG
        return Verdict(correct=True, mode=answer)

    def spell(self, mode: str, facts: Facts) -> str:
        return mode


def normal_form(text: str) -> str:
    """``text`` without case, diacritics, punctuation and a leading article; "&" is "and"."""
    plain = unicodedata.normalize("NFKD", text.casefold().replace("&", " and "))
    letters = "".join(sign for sign in plain if not unicodedata.combining(sign))
    words = "".join(sign if sign.isalnum() else "" if sign == "." else " " for sign in letters).split()
    return _ARTICLE.sub("", " ".join(words))


@cache
def name_lists() -> dict[str, NameList]:
    """The lists of ``name_one.yaml`` by name."""
    text = files("maxent_grpo.tasks").joinpath("name_one.yaml").read_text(encoding="utf-8")
    return {
        name: NameList(
            entry["thing"],
            entry["split"],
            tuple(entry["answers"]),
            entry.get("aliases", {}),
            entry.get("letters", False),
        )
        for name, entry in yaml.safe_load(text).items()
    }


def _everything(kinds: str) -> Iterator[tuple[Asked, str]]:
    """Every question without its wording, and its split; those with one right answer are the control's."""
    for name, one in name_lists().items():
        yield _asked_by(name, None, None, None), one.split
        if kinds == "lists" or not one.letters:
            continue
        for by in ("begins", "has"):
            for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
                asked = _asked_by(name, by, letter, None)
                if 0 < len(asked.answers) < len(one.answers):
                    yield asked, CONTROL if len(asked.answers) == 1 else one.split
    if kinds == "all":
        for number in DIVIDED:
            home = region(NameOne.name, f"divisor of {number}")
            if home in (TRAIN, EVAL):
                yield _asked_by(None, None, None, number), home


@cache
def _asked_by(name: str | None, by: str | None, letter: str | None, number: int | None) -> Asked:
    """A question from the facts of its row."""
    if number is not None:
        divisors = tuple(sorted(str(d) for d in range(1, number + 1) if number % d == 0))
        return Asked(f"divisor of {number}", divisors, {d: d for d in divisors}, {"divides": number})
    assert name is not None
    one = name_lists()[name]
    answers = one.answers if by is None else tuple(a for a in one.answers if _fits(a, by, str(letter)))
    spellings = {normal_form(answer): answer for answer in answers}
    spellings |= {normal_form(alias): answer for alias, answer in one.aliases.items() if answer in answers}
    told = {
        None: "",
        "begins": f" that begins with {letter}",
        "has": f" with the letter {letter} in its name",
    }
    facts = {"list": name} | ({} if by is None else {"by": by, "letter": letter})
    return Asked(one.thing + told[by], tuple(sorted(answers)), spellings, facts)


def _fits(answer: str, by: str, letter: str) -> bool:
    word = normal_form(answer)
    return word.startswith(letter.lower()) if by == "begins" else letter.lower() in word


def _problem(asked: Asked, wording: str, examples: int) -> Problem:
    shown = [(wording.format(thing=thing), answer) for thing, answer in EXAMPLES[:examples]]
    question = wording.format(thing=asked.thing)
    return Problem(question, asked.answers[0], asked.answers, asked.facts, example_turns(*shown))
