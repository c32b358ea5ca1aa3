"""The records of a run: files first, then the console and the trackers, which only repeat them."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from maxent_grpo.config.run_settings import RecordSettings
from maxent_grpo.controllers.state_file import write_state
from maxent_grpo.files import JsonlFile
from maxent_grpo.observe import names
from maxent_grpo.observe.console import Progress, Ticker
from maxent_grpo.observe.run_files import git_sha, sample_rows
from maxent_grpo.observe.trackers import Trackers
from maxent_grpo.train.state import Run
from maxent_grpo.train.step import StepResult
from maxent_grpo.types import Group

logger = logging.getLogger(__name__)

SAMPLED_GROUPS = 1
"""Groups of a step that go into the sample table."""


class RecordFiles:
    """The three append-only files of a run directory."""

    def __init__(self, output_dir: Path) -> None:
        self.metrics = JsonlFile(output_dir / names.METRICS_FILE)
        self.timings = JsonlFile(output_dir / names.TIMINGS_FILE)
        self.completions = JsonlFile(output_dir / names.COMPLETIONS_FILE)

    def cut_back(self, step: int) -> None:
        """Drop what was recorded after ``step``; −1 drops everything."""
        for log in (self.metrics, self.timings, self.completions):
            log.cut_back(step)


class RunRecorder:
    """Records steps and evaluations: every step to the files, every ``logging_steps``-th to console and trackers."""

    def __init__(
        self,
        files: RecordFiles,
        progress: Progress,
        trackers: Trackers,
        *,
        logging_steps: int,
        printed: int,
        main: bool,
    ) -> None:
        self._files = files
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
        self._files.metrics.append({"step": run.step} | metrics)
        self._files.timings.append({"step": run.step} | dict(timing))
        write_state(run.output_dir / "controller_state.json", run.controllers.state_dict())
        if run.step % self._logging_steps and run.step != run.cadence.total_steps:
            return
        rows = self._samples(run.step, groups, result)
        for row in rows:
            self._files.completions.append(row)
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
        self._files.metrics.append({"step": step} | dict(metrics))
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


def start_records(settings: RecordSettings, files: RecordFiles, step: int) -> None:
    """Write the resolved configuration, and cut the records back to ``step``; at step 0 they start with the header."""
    path = files.metrics.path.parent / names.CONFIG_FILE
    if step and path.is_file():
        for change in changed_settings(path.read_text(encoding="utf-8"), settings.resolved):
            logger.warning("resuming with a changed setting: %s", change)
    path.write_text(settings.resolved, encoding="utf-8")
    if step:
        files.cut_back(step)
    else:
        files.cut_back(-1)
        files.metrics.append({"step": 0} | run_header(settings))


def changed_settings(old: str, new: str) -> list[str]:
    """``name: old → new`` of each setting that differs between two resolved configurations."""
    before, after = yaml.safe_load(old), yaml.safe_load(new)
    return [
        f"{name}: {before[section].get(name)} → {value}"
        for section in ("script", "training", "model")
        for name, value in after[section].items()
        if before[section].get(name) != value
        and name not in ("resume_from_checkpoint", "overwrite_output_dir")
    ]


def last_metrics(files: RecordFiles) -> dict[str, float]:
    """The last recorded value of every metric."""
    last: dict[str, float] = {}
    for record in files.metrics.read(files.metrics.path)[1:]:
        last |= {name: value for name, value in record.items() if name != "step"}
    return last


def run_title(settings: RecordSettings, output_dir: Path) -> str:
    """The run's name on the console."""
    return f"{settings.title} → {output_dir}"


def open_recorder(
    run: Run, settings: RecordSettings, files: RecordFiles, progress: Progress
) -> tuple[RunRecorder, Trackers]:
    """The recorder of ``run``, and the trackers that it writes to, which finish as the run's last call."""
    accelerator = run.learner.accelerator
    trackers = Trackers(
        accelerator,
        settings.trackers,
        settings.run_name or run.output_dir.name,
        run.output_dir,
        run_header(settings) | dict(settings.tracked),
        project=settings.project,
        wandb_entity=settings.wandb_entity,
        wandb_group=settings.wandb_group,
    )
    recorder = RunRecorder(
        files,
        progress,
        trackers,
        logging_steps=run.cadence.logging_steps,
        printed=settings.printed,
        main=accelerator.is_main_process,
    )
    return recorder, trackers


def run_header(settings: RecordSettings) -> dict[str, Any]:
    """The identity of the run: the first line of metrics.jsonl, and part of every tracker's configuration."""
    return {"run/git_sha": git_sha(os.environ)} | dict(settings.header)
