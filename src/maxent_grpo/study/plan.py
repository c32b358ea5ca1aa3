"""What a study compares: arms, tasks, seeds, a budget, and how final policies are evaluated and judged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Settings = Mapping[str, Any]

OUTCOMES: Mapping[str, str] = {
    "mean": "mean@k: share of right answers among the k samples of a prompt",
    "pass": "pass@k: share of prompts with at least one right answer among k",
    "distinct": "distinct@k: different right answers among the k samples of a prompt",
    "coverage": "coverage@k: different right answers among k, over all right answers that the prompt has",
}
"""Outcome → definition; each is an average over prompts and evaluation seeds, one number per run."""


@dataclass(frozen=True)
class Arm:
    """One method of the comparison."""

    name: str
    label: str
    command: str
    recipe: str  # path; {task} stands for the task's name
    overrides: Settings = field(default_factory=dict)
    seed_offset: int = 0  # added to the seed of every run; not 0 for the A/A arm alone

    @property
    def is_aa(self) -> bool:
        return self.seed_offset != 0


@dataclass(frozen=True)
class StudyTask:
    """A data set that every arm is trained and evaluated on."""

    name: str
    label: str
    overrides: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """What every run may spend, whatever its arm."""

    steps: int  # optimiser steps
    save_steps: int = 25  # optimiser steps between checkpoints: what a kill can cost
    overrides: Settings = field(default_factory=dict)  # for every run; an arm's own win


@dataclass(frozen=True)
class EvaluationPlan:
    """How a final policy is asked: ``k`` samples per held-out prompt, for every temperature and evaluation seed."""

    k: int = 8
    temperatures: tuple[float, ...] = (1.0,)  # the first is what is judged; the others are reported beside it
    seeds: tuple[int, ...] = (1001, 1002, 1003)  # the same draws for every run


@dataclass(frozen=True)
class Judgement:
    """Which outcomes are judged, and what counts as no difference that matters."""

    primary: str = "coverage"
    outcomes: tuple[str, ...] = tuple(OUTCOMES)
    margin: Mapping[str, float] = field(
        default_factory=lambda: {"mean": 0.03, "pass": 0.03, "distinct": 0.15, "coverage": 0.03}
    )  # half-width of the region of equivalence, in the outcome's own unit
    alpha: float = 0.05  # two-sided level of tests; intervals have level 1 − alpha
    power: float = 0.8  # for the minimum detectable effect
    resamples: int = 9999  # of bootstraps, and of permutations where enumerating all is too much


@dataclass(frozen=True)
class Plan:
    """A whole study."""

    question: str
    baseline: str  # name of an arm
    arms: tuple[Arm, ...]  # the baseline first, then the A/A arm where there is one
    tasks: tuple[StudyTask, ...]
    seeds: tuple[int, ...]
    budget: Budget
    output_dir: Path
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
    judgement: Judgement = field(default_factory=Judgement)
    processes: int = 2

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def aa(self) -> Arm | None:
        """The arm that repeats the baseline with other seeds; None where the plan has none."""
        return next((arm for arm in self.arms if arm.is_aa), None)
