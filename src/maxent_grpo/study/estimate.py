"""How long the rest of a study takes: from its finished runs, else from a probe of two steps."""

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from maxent_grpo.config.loading import write_resolved
from maxent_grpo.errors import RunError
from maxent_grpo.files import JsonlFile
from maxent_grpo.observe import names
from maxent_grpo.study.cells import Cell, config_of
from maxent_grpo.study.identity import held_out_size
from maxent_grpo.study.plan import Plan
from maxent_grpo.study.store import State, durations, state_of


class Forecast:
    """Seconds of runs that are still to do, from the medians of those that ran through in one go."""

    def __init__(self, plan: Plan, cells: Sequence[Cell]) -> None:
        self.plan = plan
        self.cells = cells

    def seconds_left(self, processes: int) -> float | None:
        """Wall-clock seconds until all cells are done; None before the first one is."""
        known: dict[tuple[str, str], list[float]] = {}
        left = []
        for cell in self.cells:
            if state_of(cell.directory) is not State.DONE:
                left.append(cell)
            else:
                seconds = durations(cell.directory)
                if {"train", "evaluate"} <= seconds.keys():
                    known.setdefault((cell.task.name, cell.arm.name), []).append(sum(seconds.values()))
        if not known:
            return None
        everything = statistics.median(s for values in known.values() for s in values)
        by_task = {
            task.name: statistics.median(found)
            for task in self.plan.tasks
            if (found := [s for (name, _), values in known.items() if name == task.name for s in values])
        }
        total = sum(
            statistics.median(values)
            if (values := known.get((cell.task.name, cell.arm.name)))
            else by_task.get(cell.task.name, everything)
            for cell in left
        )
        return total / min(processes, max(1, len(left)))


def probe_seconds(plan: Plan, cells: Sequence[Cell], processes: int) -> float:
    """An estimate before anything ran: two steps of the baseline on every task, for real, in a folder thrown away.

    A run is its start-up, its steps (the second step's time each), and its evaluations, whose samples cost what the
    samples of a step cost. Other arms are taken to cost what the baseline costs.
    Raises `RunError` where the probe fails.
    """
    total = 0.0
    left = [cell for cell in cells if state_of(cell.directory) is not State.DONE]
    for task in plan.tasks:
        here = [cell for cell in left if cell.task.name == task.name]
        if here:
            total += len(here) * _seconds_of_one(plan, task.name)
    return total / min(processes, max(1, len(left)))


def _seconds_of_one(plan: Plan, task: str) -> float:
    from maxent_grpo.study.cells import cells_of
    from maxent_grpo.study.schedule import one_thread, train_command

    cell = next(c for c in cells_of(plan) if c.task.name == task and c.arm.name == plan.baseline)
    with tempfile.TemporaryDirectory() as folder:
        trial = Cell(cell.index, cell.task, cell.arm, cell.seed, Path(folder))
        config = config_of(plan, trial)
        prompts = held_out_size(config)
        training = config.training
        evaluations = 2 + (
            plan.budget.steps // int(training.eval_steps)
            if training.eval_strategy == "steps" and training.eval_steps and training.eval_steps >= 1
            else 0
        )
        samples = prompts * (
            evaluations * (training.num_generations_eval or training.num_generations)
            + plan.evaluation.k * len(plan.evaluation.seeds) * len(plan.evaluation.temperatures)
        )
        training.max_steps, training.eval_on_start = 2, False
        training.eval_strategy = "no"
        write_resolved(config, trial.directory / "recipe.yaml")
        started = time.monotonic()
        done = subprocess.run(
            train_command(trial),
            env=os.environ | one_thread(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        whole = time.monotonic() - started
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            raise RunError(
                f"the probe of {cell.arm.name} on {task} failed: {lines[-1] if lines else 'no output'}"
            )
        timings = JsonlFile.read(trial.directory / names.TIMINGS_FILE)
    step = timings[-1]
    per_sample = step["time/sample"] / (
        training.per_device_train_batch_size * training.gradient_accumulation_steps
    )
    start_up = whole - sum(record["time/step"] for record in timings)
    return 2 * start_up + plan.budget.steps * step["time/step"] + samples * per_sample
