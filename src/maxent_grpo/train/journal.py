"""Where a run's records go: the files first, then the console and the trackers, which only repeat them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maxent_grpo.controllers.state_file import write_state
from maxent_grpo.observe import names
from maxent_grpo.observe.console import Progress, Ticker
from maxent_grpo.observe.metrics_log import JsonlLog
from maxent_grpo.observe.samples import sample_rows
from maxent_grpo.observe.trackers import Trackers
from maxent_grpo.train.state import Run
from maxent_grpo.train.step import StepResult
from maxent_grpo.types import Group

SAMPLED_GROUPS = 1  # groups of a step that go into the sample table


class RunLogs:
    """The three append-only files of a run directory."""

    def __init__(self, output_dir: Path) -> None:
        self.metrics = JsonlLog(output_dir / names.METRICS_FILE)
        self.timings = JsonlLog(output_dir / names.TIMINGS_FILE)
        self.completions = JsonlLog(output_dir / names.COMPLETIONS_FILE)

    def cut_back(self, step: int) -> None:
        """Drop what was recorded after ``step``; −1 drops everything."""
        for log in (self.metrics, self.timings, self.completions):
            log.cut_back(step)


class Journal:
    """Records steps and evaluations: every step to the files, every ``logging_steps``-th to console and trackers."""

    def __init__(
        self,
        logs: RunLogs,
        progress: Progress,
        trackers: Trackers,
        *,
        logging_steps: int,
        printed: int,
        main: bool,
    ) -> None:
        self._logs = logs
        self._progress = progress
        self._trackers = trackers
        self._logging_steps = logging_steps
        self._printed = printed  # completions shown on the console at each logged step
        self._main = main

    def step(
        self, run: Run, groups: Sequence[Group], result: StepResult, timing: Mapping[str, float]
    ) -> None:
        """Record optimiser step ``run.step``, which trained on ``groups``."""
        if not self._main:
            return
        position = {"epoch": run.stream.epoch, "num_tokens": float(run.tokens_seen)}
        metrics = {f"train/{name}": value for name, value in sorted((result.metrics | position).items())}
        self._logs.metrics.append({"step": run.step} | metrics)
        self._logs.timings.append({"step": run.step} | dict(timing))
        write_state(run.output_dir / "controller_state.json", run.controllers.state_dict())
        if run.step % self._logging_steps and run.step != run.cadence.total_steps:
            return
        rows = self._samples(run.step, groups, result)
        for row in rows:
            self._logs.completions.append(row)
        self._progress.update(run.step, metrics, timing)
        for row in rows[: self._printed]:
            # repr: a completion may hold control codes, which a terminal would obey.
            self._progress.note(f"  utility {row['utility']:.2f}  {row['completion']!r}")
        self._trackers.log(metrics | dict(timing), run.step)
        self._trackers.log_completions(rows, run.step)

    def loop(self, title: str, total: int) -> Ticker:
        """Progress of a loop inside the run."""
        return self._progress.loop(title, total)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record an evaluation of the weights after ``step`` optimiser steps."""
        if not self._main:
            return
        self._logs.metrics.append({"step": step} | dict(metrics))
        self._trackers.log(metrics, step)
        shown = ", ".join(
            f"{k.removeprefix('eval/')} {v:.3f}" for k, v in metrics.items() if not k.endswith("_se")
        )
        self._progress.note(f"evaluation after step {step}: {shown}")

    def _samples(self, step: int, groups: Sequence[Group], result: StepResult) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for i, group in enumerate(groups[:SAMPLED_GROUPS]):
            weights = None if result.signal.weights is None else result.signal.weights[i].tolist()
            rows += sample_rows(step, group, result.signal.advantages[i].tolist(), weights)
        return rows
