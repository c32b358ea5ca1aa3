"""What a procedural task is: problems by split and seed, and a verifier that also says which right answer it saw."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from maxent_grpo.randomness import permutation

Facts = Mapping[str, Any]
"""Everything that the verifier needs about a problem; JSON values only."""

TRAIN, EVAL, CONTROL, WARM_START = "train", "eval", "control", "warm_start"

FORMS = ("bare", "chat")
"""How some tasks ask: in the few characters that the bundled policy knows, or in a chat with examples."""

_REGIONS = (WARM_START,) * 4 + (TRAIN,) * 3 + (EVAL,) * 2 + (CONTROL,)


@dataclass(frozen=True)
class Problem:
    question: str  # the user message
    answer: str  # one right answer, in the form that the question asks for
    modes: tuple[str, ...]  # the keys of all distinct right answers, sorted
    facts: Facts
    turns: tuple[Mapping[str, str], ...] = ()  # chat messages before the question: examples, a system message


@dataclass(frozen=True)
class Verdict:
    correct: bool
    mode: str | None = None  # the key of the right answer that was given; None where it is wrong


WRONG = Verdict(correct=False)


class Task(Protocol):
    """A family of problems whose right answers are all known.

    The splits are ``train``, ``eval``, ``control`` (problems with exactly one right answer: what a method does where
    there is nothing to explore) and ``warm_start`` (what the bundled policy was trained on). Which of them a problem
    may be drawn for is decided by `region`, so that no two splits share a problem, whatever their sizes and seeds.
    """

    name: str
    default_sizes: Mapping[str, int]  # split → problems, where the task has that many
    choices: Mapping[str, tuple[Any, ...]]  # option → its values, the default first

    def problems(self, split: str, size: int, seed: int, *args: Any, **options: Any) -> list[Problem]:
        """``size`` different problems of a split, or all of them where it has fewer; the same for equal arguments."""
        ...

    def grade(self, response: str, facts: Facts) -> Verdict:
        """Verify a completion. Anything that cannot be read as an answer is wrong; never raises on ``response``."""
        ...

    def spell(self, mode: str, facts: Facts) -> str:
        """The plain short answer that a mode's key stands for: ``grade(spell(mode, facts), facts).mode == mode``."""
        ...


def example_turns(*examples: tuple[str, str]) -> tuple[Mapping[str, str], ...]:
    """Chat messages from (question, answer) pairs: what a language model is shown before its own question."""
    return tuple(
        {"role": role, "content": content}
        for pair in examples
        for role, content in zip(("user", "assistant"), pair, strict=True)
    )


def region(task: str, identity: str) -> str:
    """The one split that a problem belongs to: 40% warm_start, 30% train, 20% eval, 10% control, by digest."""
    digest = hashlib.blake2b(f"{task}\x1f{identity}".encode(), digest_size=8).digest()
    return _REGIONS[int.from_bytes(digest, "little") % len(_REGIONS)]


def draw(task: str, candidates: Sequence[Problem], split: str, size: int, seed: int) -> list[Problem]:
    """The first ``size`` of ``candidates`` in an order keyed by task, split and seed."""
    order = permutation(len(candidates), seed, "task", task, split)
    return [candidates[index] for index in order[:size]]
