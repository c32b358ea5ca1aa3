"""The conventions of grading, as one frozen object."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

GRADER_VERSION = 2
"""Goes up with every change that may change a verdict."""

EXTRACTORS = ("answer_tag", "boxed", "phrase", "math", "last_number", "last_line", "whole")

_CHOICES: dict[str, tuple[str, ...]] = {
    "multiple_boxed": ("join", "last"),
    "gold_list": ("any", "all"),
    "list_order": ("free", "strict"),
    "tuple_order": ("strict", "free"),
    "percent": ("either", "sign_optional", "value"),
    "units": ("optional", "ignored", "required"),
    "degrees": ("optional", "required"),
    "base": ("required", "optional"),
}


class PolicyError(ValueError):
    """A policy has an option that does not exist, or a value that the option cannot have; the message says which."""


@dataclass(frozen=True)
class GraderPolicy:
    """How an answer is taken from a text, and which differences between two answers do not matter.

    Mathematics is no convention: 1/2 is 0.5 under every policy. These are the choices on which people and
    published graders differ.

    Raises:
        PolicyError: an option has a value that does not exist.
    """

    extraction: tuple[str, ...] = ("answer_tag", "boxed")
    """Where to look behind the thought, in this order; the first place that holds an answer decides. ``answer_tag``:
    the last ``<answer>…</answer>``; ``boxed``: the last ``\\boxed{…}``; ``phrase``: after the last "answer is" or
    "answer:"; ``math``: the last formula between dollars or brackets; ``last_number``; ``last_line``;
    ``whole``: the text."""

    multiple_boxed: str = "join"
    """``join``: boxes separated by nothing but "and", commas or names ("x = ") form one list; ``last``: only
    the last box counts."""

    gold_list: str = "any"
    """A gold given as a list offers alternatives (``any``), or is a list of answers to be given (``all``)."""

    list_order: str = "free"
    """The order of a list of answers, "1, 2" against "2, 1"; sets have none under every policy."""

    tuple_order: str = "strict"
    """The order of coordinates, "(1, 2)" against "(2, 1)"."""

    percent: str = "either"
    """"28%" equals 28 and 0.28 (``either``), 28 only (``sign_optional``), or 0.28 only (``value``)."""

    units: str = "optional"
    """``optional``: a missing unit is forgiven, two different known ones are not; ``ignored``; ``required``:
    both sides must name the same."""

    degrees: str = "optional"
    """Whether "36" may stand for "36°"."""

    base: str = "required"
    """Whether "52" may stand for "52_8"."""

    significant_digits: int = 6
    """A decimal stands for a number with no exact decimal form (1/3, √2) if it is that number rounded, and
    shows at least this many significant digits."""

    relative_tolerance: float = 0.0
    """Two numbers, at least one written as a decimal, are also equal within this share of the gold."""

    vectors: str = "as_tuples"
    """``as_tuples``: a row or column vector equals the tuple of its entries; ``distinct``."""

    def __post_init__(self) -> None:
        if not isinstance(self.extraction, tuple):
            object.__setattr__(self, "extraction", tuple(self.extraction))
        unknown = [name for name in self.extraction if name not in EXTRACTORS]
        if unknown or not self.extraction:
            raise PolicyError(
                f"grader policy: extraction is {list(self.extraction)}; name one or more of {', '.join(EXTRACTORS)}"
            )
        for option, values in _CHOICES.items() | {("vectors", ("as_tuples", "distinct"))}:
            if getattr(self, option) not in values:
                raise PolicyError(
                    f"grader policy: {option} is '{getattr(self, option)}'; it must be one of {', '.join(values)}"
                )
        if not self.significant_digits >= 1:
            raise PolicyError(
                f"grader policy: significant_digits is {self.significant_digits}; it must be 1 or more"
            )
        if not 0 <= self.relative_tolerance < 1:
            raise PolicyError(
                f"grader policy: relative_tolerance is {self.relative_tolerance}; it must be in [0, 1)"
            )

    def as_dict(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        return dataclasses.asdict(self) | {"extraction": list(self.extraction)}

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Self:
        """The policy with these options, and defaults for the rest.

        Raises:
            PolicyError: an option that does not exist, or a value that it cannot have.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise PolicyError(f"grader policy: unknown option '{name}'; known are {', '.join(known)}")
        return cls(**options)

    def fingerprint(self) -> str:
        """16 hex digits that change with any option and with `GRADER_VERSION`."""
        content = json.dumps({"version": GRADER_VERSION, **self.as_dict()}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]
