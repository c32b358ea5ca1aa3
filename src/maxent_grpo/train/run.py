"""From settings to a finished run: build its parts, train, save."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel

from maxent_grpo.config.parts import NativeSettings, OutputSettings, TRLSettings
from maxent_grpo.errors import UsageError
from maxent_grpo.observe.console import Progress
from maxent_grpo.observe.names import BANK_FILE
from maxent_grpo.rewards.registry import said_of_correctness
from maxent_grpo.train.build import Given, build
from maxent_grpo.train.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    refuse_buffered_groups,
    remove,
    save_final,
    settings_of_checkpoint,
)
from maxent_grpo.train.drivers import train_inline
from maxent_grpo.train.integrity import SUMS, naming_failed_writes, way_on
from maxent_grpo.train.ranks import naming_lost_ranks, on_first_rank
from maxent_grpo.train.records import RecordFiles, RunRecorder
from maxent_grpo.train.run_lock import locked
from maxent_grpo.train.stopping import LOCAL_SIGNALS, stopping_on_signal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """The directory of a finished run's policy, and the last value of every metric."""

    output_dir: Path
    global_step: int
    metrics: dict[str, float]
    model: PreTrainedModel | None = field(default=None, repr=False, compare=False)
    """The trained policy, where this process held it."""


def train(settings: NativeSettings | TRLSettings, given: Given | None = None) -> TrainResult:
    """Train as ``settings`` say and leave the policy, checkpoints and records in the output directory.

    Raises:
        UsageError: what can be found wrong before training.
        RunError: what fails during it.
    """
    given, records, output_dir = given or Given(), settings.records, settings.output.directory
    first, files = settings.process_index == 0, RecordFiles(output_dir)
    in_trl, model = isinstance(settings, TRLSettings), None
    with naming_lost_ranks(), naming_failed_writes(output_dir), ExitStack() as held:

        def begin() -> Path | None:
            make_writable(output_dir)
            held.enter_context(locked(output_dir))
            return prepare(settings.output, in_trl=in_trl)

        checkpoint = on_first_rank(begin, is_first=first)
        held.enter_context(saying_the_way_on(output_dir))
        if isinstance(settings, TRLSettings):
            from maxent_grpo.train.trl_route import train_with_trl

            step = train_with_trl(settings, given, files, checkpoint)
        elif settings.workers is not None:
            from maxent_grpo.train.ray.driver import train_on_ray

            step = train_on_ray(settings, given, checkpoint)
        else:
            run = build(settings, given)
            try:
                if checkpoint is not None:
                    refuse_buffered_groups(checkpoint)
                    load_checkpoint(run, checkpoint)
                if first:
                    files.start(records, run.step, settings_of_checkpoint(checkpoint) if checkpoint else None)
                title, shown = f"{records.title} → {output_dir}", first and records.progress
                with Progress(run.cadence.total_steps, title, shown, start_step=run.step) as progress:
                    if (said := said_of_correctness(run.scorer.functions)) is not None:
                        progress.note(said)
                    if run.step:
                        progress.note(f"resumed after step {run.step}")
                    recorder = RunRecorder(run, records, progress)
                    with stopping_on_signal(output_dir, *(LOCAL_SIGNALS if run.plan.ranks == 1 else ())):
                        train_inline(run, recorder)
                save_final(run)
                run.learner.accelerator.wait_for_everyone()  # the first rank's files are whole from here on
                recorder.finish()
                model = run.learner.policy.model
            finally:
                run.close()
            step = run.step
        return TrainResult(output_dir, step, files.last_metrics(), model)


@contextmanager
def saying_the_way_on(output_dir: Path) -> Iterator[None]:
    """Give an interrupt (Ctrl-C) a text: how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"interrupted; {way_on(output_dir)}") from error


def make_writable(directory: Path) -> None:
    """Make the output directory. Raises `UsageError` where it cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"output_dir: cannot write to {directory} ({error.strerror}); choose another directory"
        ) from error


def prepare(output: OutputSettings, *, in_trl: bool) -> Path | None:
    """The checkpoint to resume from, of TRL's format if ``in_trl``; None: a new run, for which room was made.

    Raises:
        UsageError: the directory holds a run that was neither to be resumed nor overwritten.
    """
    directory, resume = output.directory, output.resume
    if resume and str(resume).lower() != "false":
        if in_trl:
            from maxent_grpo.train.trl_route import find_trl_checkpoint

            return find_trl_checkpoint(directory, str(resume))
        return find_checkpoint(directory, resume)
    left = kept_state(directory)
    if left and not output.overwrite:
        raise UsageError(
            f"output_dir: {directory} holds a run already ({left[-1].name}); choose another directory, or set "
            "resume_from_checkpoint=true to go on with it or overwrite_output_dir=true to start over"
        )
    remove_run(directory)
    return None


def kept_state(output_dir: Path) -> list[Path]:
    """The checkpoints and the final policy of a run of either route."""
    return [*output_dir.glob("checkpoint-*"), *output_dir.glob("*.safetensors")]


def remove_run(output_dir: Path) -> None:
    """Remove the checkpoints, final policy and controller state of an earlier run; its records are cut back later."""
    beside = (SUMS, BANK_FILE, "controller_state.json")
    for path in [*kept_state(output_dir), *(output_dir / name for name in beside)]:
        remove(path)
