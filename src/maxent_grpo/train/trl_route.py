"""The TRL route: GRPO in TRL's own trainer, with this package's data, rewards and records around it.

For runs that want TRL's trainer itself. Paired comparisons set ``force_custom_loop`` and train both arms with
`maxent_grpo.train.step.step`.
"""

import logging
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from maxent_grpo.config.environment import VARIABLES
from maxent_grpo.config.parts import TRLSettings
from maxent_grpo.errors import UsageError
from maxent_grpo.files import JsonlFile
from maxent_grpo.models.loading import load_policy, load_tokenizer
from maxent_grpo.train.build import (
    Given,
    check_answers,
    evaluation_prompts,
    training_prompts,
    training_rewards,
)
from maxent_grpo.train.checkpoint import refuse_no_checkpoint, settings_of_checkpoint
from maxent_grpo.train.integrity import unreadable
from maxent_grpo.train.records import RecordFiles
from maxent_grpo.train.stopping import (
    LOCAL_SIGNALS,
    forget_request,
    stop_asked,
    stopped,
    stopping_on_signal,
)
from maxent_grpo.train.trl import MaxEntGRPOTrainer
from maxent_grpo.types import Prompt

logger = logging.getLogger(__name__)

RENAMED = {"reward_std": "trl/reward_std"}
"""TRL's is the spread over the batch, ours the mean spread within a group."""
TIMINGS = ("step_time", "runtime", "samples_per_second", "steps_per_second", "total_flos")
"""Suffixes of metrics that are left out."""


def find_trl_checkpoint(output_dir: Path, resume: str) -> Path | None:
    """The checkpoint that ``resume_from_checkpoint`` asks for, in TRL's own format; None: there is none yet."""
    if resume.lower() == "true":
        newest = get_last_checkpoint(str(output_dir))
        if newest is None:
            logger.warning(
                "resume_from_checkpoint=true: %s holds no checkpoint, so the run starts at step 0", output_dir
            )
            return None
        path = Path(newest)
    else:
        path = Path(resume)
        refuse_no_checkpoint(path, output_dir)
    fault = unreadable(path)
    if fault is not None:
        raise UsageError(
            f"resume_from_checkpoint: {path} is damaged ({fault}); resume an earlier checkpoint of {path.parent}"
        )
    return path


def train_with_trl(settings: TRLSettings, given: Given, files: RecordFiles, checkpoint: Path | None) -> int:
    """Train with `MaxEntGRPOTrainer`, which for plain GRPO is TRL's own; returns the optimiser steps done.

    Checkpoints are TRL's, with its guarantees and not ours: exact resume is the native loop's. Raises `Stopped` after a
    checkpoint that was asked for (`train.stopping`).
    """
    output_dir, source = settings.output.directory, settings.model.source
    if settings.process_index == 0:
        if settings.changed_checkpoints:
            logger.warning(
                "TRL's trainer saves checkpoints in its own way and reads none of %s", ", ".join(VARIABLES)
            )
        step = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        files.start(settings.records, step, settings_of_checkpoint(checkpoint) if checkpoint else None)
    tokenizer = given.tokenizer or load_tokenizer(source)
    rewards = training_rewards(settings.rewards, given)
    prompts = training_prompts(settings.data, given, tokenizer)
    check_answers(rewards, prompts, settings.data.prompts)
    held_out = evaluation_prompts(settings.data, given, tokenizer)
    trainer = MaxEntGRPOTrainer(
        model=given.model or load_policy(source),
        reward_funcs=[reward.function for reward in rewards],
        args=settings.args,
        train_dataset=_dataset(prompts),
        eval_dataset=None if held_out is None else _dataset(held_out),
        processing_class=tokenizer,
        callbacks=[Recorder(files.metrics)],
    )
    stop = StopRequest(output_dir, trainer.accelerator)
    trainer.add_callback(stop)
    with stopping_on_signal(output_dir, *(LOCAL_SIGNALS if trainer.accelerator.num_processes == 1 else ())):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if stop.granted:
            raise stopped(output_dir, trainer.accelerator, int(trainer.state.global_step))
    forget_request(output_dir, trainer.accelerator)
    trainer.save_model(str(output_dir))
    return int(trainer.state.global_step)


class Recorder(TrainerCallback):
    """Writes what TRL logs to ``metrics.jsonl`` under this package's prefixes."""

    def __init__(self, log: JsonlFile) -> None:
        self._log = log

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """One record per call; a repeated step (TRL's closing summary) adds its own."""
        if state.is_world_process_zero and logs:
            self._log.append({"step": state.global_step} | canonical_names(logs))


class StopRequest(TrainerCallback):
    """Has TRL's trainer save and end after a step where the stop file is there."""

    def __init__(self, output_dir: Path, accelerator: Accelerator) -> None:
        self._output_dir = output_dir
        self._accelerator = accelerator
        self.granted = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Asked of every rank at the same step."""
        if state.global_step < state.max_steps and stop_asked(self._output_dir, self._accelerator):
            self.granted = control.should_save = control.should_training_stop = True


def canonical_names(logs: dict[str, Any]) -> dict[str, Any]:
    """TRL's metrics under this package's names: ``train/…`` or ``eval/…``, timings left out."""
    renamed = {}
    for name, value in logs.items():
        if name.endswith(TIMINGS):
            continue
        if name.startswith("eval_"):
            renamed[f"eval/{name.removeprefix('eval_')}"] = value
        else:
            renamed[f"train/{RENAMED.get(name, name)}"] = value
    return renamed


def _dataset(prompts: list[Prompt]) -> Dataset:
    """TRL's columns: the templated prompt as ``prompt``, and the row for the reward functions."""
    return Dataset.from_list([{**prompt.columns, "prompt": prompt.text} for prompt in prompts])
