"""Every metric that a run can record: its name, its unit, what it says, and what a bad value looks like.

Each room defines the metrics that it measures; here they stand together, with how to read them. The report's glossary
and the page *Metrics* of the documentation are made from `definitions`.
"""

import re
from dataclasses import dataclass

from maxent_grpo.controllers.controller import CONTROLLER_METRICS
from maxent_grpo.objectives.metrics import METRIC_DEFINITIONS
from maxent_grpo.observe import names
from maxent_grpo.observe.readings import READINGS
from maxent_grpo.rewards.scoring import REWARD_METRICS


@dataclass(frozen=True)
class Definition:
    """One metric. ``<…>`` in the name stands for a part that varies."""

    name: str
    meaning: str
    unit: str  # "share" is a number from 0 to 1; "" where the number only counts or labels
    trouble: str  # what a bad value looks like; "" where no value is bad by itself

    @property
    def pattern(self) -> re.Pattern[str]:
        """What the recorded names of this metric look like."""
        varying = re.escape(self.name).replace("<k>", r"\d+")
        return re.compile(re.sub(r"<[^<>]*>", ".+", varying))


def definitions() -> list[Definition]:
    """All metrics: rewards, objectives, controllers, then the learner's, evaluation and timing."""
    trained = {**REWARD_METRICS, **METRIC_DEFINITIONS, **CONTROLLER_METRICS}
    meanings = {f"train/{name}": meaning for name, meaning in trained.items()}
    meanings.update(names.DEFINITIONS)
    return [Definition(name, meaning, *READINGS[name]) for name, meaning in meanings.items()]


def definition_of(recorded: str) -> Definition | None:
    """The definition of a recorded name; None where there is none. A name without variable parts goes first."""
    fitting = [found for found in definitions() if found.pattern.fullmatch(recorded)]
    return min(fitting, key=lambda found: found.name.count("<"), default=None)
