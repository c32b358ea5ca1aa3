"""Every metric that a run can record: its name, its unit, its meaning, and what a bad value looks like.

They are defined in ``metrics.yaml``, each once. The report's glossary and the page *Metrics* of the documentation are
made from `definitions`.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Definition:
    """One metric. ``<…>`` in the name stands for a part that varies."""

    name: str
    meaning: str
    unit: str = ""  # "share" is a number from 0 to 1; "" where the number only counts or labels
    warning: str = ""  # what a bad value looks like; "" where no value is bad by itself
    part: str = ""  # what measures it: rewards, objectives, controllers, exploration, …

    @property
    def pattern(self) -> re.Pattern[str]:
        """A regular expression of the names under which this metric is recorded."""
        varying = re.escape(self.name).replace("<k>", r"\d+")
        return re.compile(re.sub(r"<[^<>]*>", ".+", varying))


@cache
def definitions() -> tuple[Definition, ...]:
    """All metrics: rewards, objectives, controllers, then the learner's, evaluation and timing."""
    import yaml

    parts = yaml.safe_load(Path(__file__).with_name("metrics.yaml").read_text(encoding="utf-8"))
    return tuple(
        Definition(name, part=part, **entry)
        for part, metrics in parts.items()
        for name, entry in metrics.items()
    )


def definition_of(recorded: str) -> Definition | None:
    """The definition of a recorded name; None where there is none. A name without variable parts goes first."""
    fitting = [found for found in definitions() if found.pattern.fullmatch(recorded)]
    return min(fitting, key=lambda found: found.name.count("<"), default=None)
