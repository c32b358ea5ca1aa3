"""The records of a run: files first, then the console and the trackers, which only repeat them."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from maxent_grpo.config.parts import RecordSettings
from maxent_grpo.controllers.state import write_state
from maxent_grpo.files import JsonlFile, replace_file
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
        self._config = output_dir / names.CONFIG_FILE

    def start(self, settings: RecordSettings, step: int, kept: Mapping[str, str] | None = None) -> None:
        """Write the resolved configuration and drop what was recorded after ``step``; at step 0 the header is first.

        ``kept``: settings that come from the checkpoint whatever the configuration says, with their values.
        """
        if step and self._config.is_file():
            for warning in self._changes(settings, kept or {}):
                logger.warning("%s", warning)
        replace_file(self._config, settings.resolved)
        for log in (self.metrics, self.timings, self.completions):
            log.cut_back(step or -1)  # −1 drops everything
        if not step:
            self.metrics.append({"step": 0} | run_header(settings))

    def _changes(self, settings: RecordSettings, kept: Mapping[str, str]) -> list[str]:
        try:
            changes = changed_settings(self._config.read_text(encoding="utf-8"), settings.resolved)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
            return [
                f"{self._config} is damaged ({type(error).__name__}): this run's settings cannot be compared with it, "
                "and it is written anew"
            ]
        return [
            f"resuming with a changed setting that has no effect: {name}: {change}; it comes from the checkpoint and "
            f"goes on at {kept[name]}"
            if name in kept
            else f"resuming with a changed setting: {name}: {change}"
            for name, change in changes.items()
        ]

    def last_metrics(self) -> dict[str, float]:
        """The last recorded value of every metric."""
        last: dict[str, float] = {}
        for record in self.metrics.read(self.metrics.path)[1:]:
            last |= {name: value for name, value in record.items() if name != "step"}
        return last


class RunRecorder:
    """Records steps and evaluations: every step to the files, every ``logging_steps``-th to console and trackers."""

    def __init__(self, run: Run, settings: RecordSettings, progress: Progress) -> None:
        accelerator = run.learner.accelerator
        self._run = run
        self._files = RecordFiles(run.output_dir)
        self._progress = progress
        self._printed = settings.printed
        self._main = accelerator.is_main_process
        self._trackers = Trackers(
            accelerator,
            settings.trackers,
            settings.run_name or run.output_dir.name,
            run.output_dir,
            run_header(settings) | dict(settings.tracked),
            project=settings.project,
            wandb_entity=settings.wandb_entity,
            wandb_group=settings.wandb_group,
        )

    def step(self, groups: Sequence[Group], result: StepResult, timing: Mapping[str, float]) -> None:
        """Record the run's last optimiser step, which trained on ``groups``."""
        if not self._main:
            return
        run, step = self._run, {"step": self._run.step}
        position = {"epoch": run.stream.epoch, "num_tokens": float(run.tokens_seen)}
        metrics = {f"train/{name}": value for name, value in sorted((result.metrics | position).items())}
        self._files.metrics.append(step | metrics)
        self._files.timings.append(step | dict(timing))
        write_state(run.output_dir / "controller_state.json", run.controllers.state_dict())
        if run.step % run.cadence.logging_steps and run.step != run.cadence.total_steps:
            return
        rows: list[dict[str, Any]] = []
        for i, group in enumerate(groups[:SAMPLED_GROUPS]):
            weights = None if result.signal.weights is None else result.signal.weights[i].tolist()
            rows += sample_rows(run.step, group, result.signal.advantages[i].tolist(), weights)
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

    def evaluation(self, metrics: Mapping[str, float]) -> None:
        """Record an evaluation of the run's current weights."""
        if not self._main:
            return
        step = self._run.step
        self._files.metrics.append({"step": step} | dict(metrics))
        self._trackers.log(metrics, step)
        means = {name.removeprefix("eval/"): v for name, v in metrics.items() if not name.endswith("_se")}
        shown = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        self._progress.note(f"evaluation after step {step}: {shown}")

    def finish(self) -> None:
        """Close the trackers: the last call of a run."""
        self._trackers.finish()


def changed_settings(old: str, new: str) -> dict[str, str]:
    """``old → new`` of each setting that differs between two resolved configurations, by name."""
    before, after = yaml.safe_load(old), yaml.safe_load(new)
    return {
        name: f"{before[section].get(name)} → {value}"
        for section in ("script", "training", "model")
        for name, value in after[section].items()
        if before[section].get(name) != value
        and name not in ("resume_from_checkpoint", "overwrite_output_dir")
    }


def run_header(settings: RecordSettings) -> dict[str, Any]:
    """The identity of the run: the first line of metrics.jsonl, and part of every tracker's configuration."""
    return {"run/git_sha": git_sha(os.environ)} | dict(settings.header)
