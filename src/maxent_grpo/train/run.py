"""From a resolved configuration to a finished run: assemble the parts, train, save."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from maxent_grpo.config.checkpointing import VARIABLES, CheckpointSettings
from maxent_grpo.config.loading import RunConfig
from maxent_grpo.errors import UsageError
from maxent_grpo.observe.console import Progress
from maxent_grpo.train.assembly.assemble import assemble, start_accelerator
from maxent_grpo.train.assembly.inputs import Given
from maxent_grpo.train.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    refuse_buffered_groups,
    save_final,
)
from maxent_grpo.train.drivers import train_inline
from maxent_grpo.train.ranks import naming_lost_ranks, on_first_rank
from maxent_grpo.train.records import RecordFiles, last_metrics, open_recorder, run_title, start_records
from maxent_grpo.train.state import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run left its policy, and the last value of every metric."""

    output_dir: Path
    global_step: int
    metrics: dict[str, float]


def train(config: RunConfig, given: Given | None = None) -> TrainResult:
    """Train as ``config`` says and leave the policy, checkpoints and records in its ``output_dir``.

    Raises `UsageError` for what can be found wrong before training and `RunError` for what fails during it.
    """
    refuse_what_is_missing(config)
    with naming_lost_ranks():
        return _train(config, given or Given())


def _train(config: RunConfig, given: Given) -> TrainResult:
    first = config.training.process_index == 0  # asking starts the process group
    output_dir, checkpoint = on_first_rank(lambda: prepare_output_dir(config), is_first=first)
    files = RecordFiles(output_dir)
    if config.route == "trl":
        from maxent_grpo.train.trl_route import train_with_trl

        step = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        if first and config.checkpoints != CheckpointSettings():
            logger.warning(
                "TRL's trainer saves checkpoints in its own way and reads none of %s", ", ".join(VARIABLES)
            )
        if first:
            start_records(config, files, step)
        steps = train_with_trl(config, given, output_dir, checkpoint)
        return TrainResult(output_dir, steps, last_metrics(files))
    if config.training.driver != "inline":
        from maxent_grpo.train.ray.training import train_on_ray

        step = train_on_ray(config, given, output_dir, checkpoint)
        return TrainResult(output_dir, step, last_metrics(files))
    run = assemble(config, given, start_accelerator(config), output_dir)
    try:
        if checkpoint is not None:
            refuse_buffered_groups(checkpoint)
            load_checkpoint(run, checkpoint)
        if first:
            start_records(config, files, run.step)
        train_and_save(run, config, files)
    finally:
        run.close()
    return TrainResult(output_dir, run.step, last_metrics(files))


def train_and_save(run: Run, config: RunConfig, files: RecordFiles) -> None:
    """The training itself, with console and trackers around it, and the final policy."""
    shown = run.learner.accelerator.is_main_process and not config.training.disable_tqdm
    with Progress(
        run.cadence.total_steps, run_title(config, run.output_dir), shown, start_step=run.step
    ) as progress:
        if run.step:
            progress.note(f"resumed after step {run.step}")
        recorder, trackers = open_recorder(run, config, files, progress)
        train_inline(run, recorder)
    save_final(run)
    run.learner.accelerator.wait_for_everyone()  # the first rank's files are whole from here on
    trackers.finish()


def prepare_output_dir(config: RunConfig) -> tuple[Path, Path | None]:
    """The output directory, made and writable, and the checkpoint to resume from.

    Raises `UsageError` where the directory holds a run that was neither to be resumed nor to be overwritten.
    """
    training = config.training
    output_dir = Path(str(training.output_dir))
    resume = training.resume_from_checkpoint
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe = output_dir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"output_dir: cannot write to {output_dir} ({error.strerror}); choose another directory"
        ) from error
    if resume and str(resume).lower() != "false":
        if config.route == "trl":
            from maxent_grpo.train.trl_route import find_trl_checkpoint

            return output_dir, find_trl_checkpoint(output_dir, str(resume))
        return output_dir, find_checkpoint(output_dir, resume)
    left = kept_state(output_dir)
    if left and not training.overwrite_output_dir:
        raise UsageError(
            f"output_dir: {output_dir} holds a run already ({left[-1].name}); choose another directory, or set "
            "resume_from_checkpoint=true to go on with it or overwrite_output_dir=true to start over"
        )
    remove_run(output_dir)
    return output_dir, None


def kept_state(output_dir: Path) -> list[Path]:
    """What a run of either route leaves to go on from: its checkpoints and its final policy."""
    return [*output_dir.glob("checkpoint-*"), *output_dir.glob("*.safetensors")]


def remove_run(output_dir: Path) -> None:
    """Remove the checkpoints, final policy and controller state of an earlier run; its records are cut back later."""
    for path in kept_state(output_dir):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    (output_dir / "controller_state.json").unlink(missing_ok=True)


def refuse_what_is_missing(config: RunConfig) -> None:
    """Raise `UsageError` for what the configuration can say and this version cannot do yet."""
    if config.model.load_in_8bit or config.model.load_in_4bit:
        raise UsageError(
            "load_in_8bit, load_in_4bit: this version trains on weights in full precision; remove them"
        )
