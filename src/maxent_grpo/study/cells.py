"""The runs of a plan: one cell per seed, task and arm, each with its configuration and its directory."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maxent_grpo.config.loading import RunConfig, resolve
from maxent_grpo.errors import UsageError, did_you_mean
from maxent_grpo.study.plan import Arm, Plan, StudyTask

CHECKOUT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    index: int  # position in the plan, for job arrays
    task: StudyTask
    arm: Arm
    seed: int  # of the pair: what runs of different arms share
    directory: Path

    @property
    def run_seed(self) -> int:
        """What the run is trained with; differs from ``seed`` in the A/A arm."""
        return self.seed + self.arm.seed_offset

    @property
    def name(self) -> str:
        return f"{self.task.name}/{self.arm.name}/seed-{self.seed}"


def cells_of(plan: Plan) -> list[Cell]:
    """Every run, seeds outermost: a study that stops early has whole pairs."""
    cells: list[Cell] = []
    for seed in plan.seeds:
        for task in plan.tasks:
            for arm in plan.arms:
                directory = plan.output_dir / "runs" / task.name / arm.name / f"seed-{seed}"
                cells.append(Cell(len(cells), task, arm, seed, directory))
    return cells


def config_of(plan: Plan, cell: Cell) -> RunConfig:
    """The run's checked configuration: recipe < budget < task < arm < what the study decides.

    Raises `UsageError`, its line opening with the arm, where this version cannot do what the arm asks for.
    """
    decided: dict[str, Any] = {
        "output_dir": str(cell.directory),
        "run_name": cell.name,
        "seed": cell.run_seed,
        "max_steps": plan.budget.steps,
        "resume_from_checkpoint": True,
        "save_strategy": "steps",
        "save_steps": plan.budget.save_steps,
        "save_total_limit": 1,
        "disable_tqdm": True,
        "report_to": [],
        "eval_on_start": True,  # the curves start where training starts
    }
    given = {**plan.budget.overrides, **cell.task.overrides, **cell.arm.overrides, **decided}
    environ = {name: value for name, value in os.environ.items() if name != "GRPO_RECIPE"}
    try:
        config = resolve(cell.arm.command, recipe_of(cell), {"flat": given}, environ)
    except UsageError as error:
        raise UsageError(f"arms.{cell.arm.name} on {cell.task.name}: {error}") from error
    if config.route != "native":
        raise UsageError(
            f"arms.{cell.arm.name} on {cell.task.name}: would train with TRL's trainer, whose records differ from the "
            "other arms'; add force_custom_loop: true to its overrides"
        )
    return config


def recipe_of(cell: Cell) -> Path:
    """The recipe's path, from the working directory or else from the checkout that this package runs from."""
    path = Path(cell.arm.recipe.replace("{task}", cell.task.name)).expanduser()
    return path if path.is_file() or not (CHECKOUT / path).is_file() else CHECKOUT / path


def refused_arms(plan: Plan) -> dict[str, str]:
    """Arm → why this version cannot run it, for the arms whose settings it refuses."""
    refused: dict[str, str] = {}
    for cell in cells_of(plan)[: len(plan.tasks) * len(plan.arms)]:  # one seed is enough
        try:
            config_of(plan, cell)
        except UsageError as error:
            refused.setdefault(cell.arm.name, str(error))
    return refused


def only_arms(plan: Plan, names: Sequence[str]) -> list[Cell]:
    """The cells of the named arms and of the baseline; all where ``names`` is empty."""
    known = [arm.name for arm in plan.arms]
    for name in names:
        if name not in known:
            raise UsageError(f"study.arms: no arm is called {name!r}{did_you_mean(name, known)}")
    wanted = {plan.baseline, *names} if names else set(known)
    return [cell for cell in cells_of(plan) if cell.arm.name in wanted]
