"""The TRL route: GRPO in TRL's own trainer, with this package's data, rewards and records around it.

For runs that want TRL's trainer itself. Paired comparisons set ``force_custom_loop`` and train both arms with
`maxent_grpo.train.step.step`.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather, gather_object
from datasets import Dataset
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from maxent_grpo.config.environment import VARIABLES
from maxent_grpo.config.parts import TRLSettings
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.files import JsonlFile
from maxent_grpo.models.loading import load_policy
from maxent_grpo.rewards.isolation import Isolation
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.stats import Metrics
from maxent_grpo.train.build import (
    Given,
    check_answers,
    evaluation_prompts,
    make_tokenizer,
    training_prompts,
    training_rewards,
)
from maxent_grpo.train.checkpoint import refuse_no_checkpoint, settings_of_checkpoint
from maxent_grpo.train.integrity import unreadable
from maxent_grpo.train.ranks import together
from maxent_grpo.train.records import RecordFiles
from maxent_grpo.train.stopping import (
    LOCAL_SIGNALS,
    forget_request,
    stop_asked,
    stopped,
    stopping_on_signal,
)
from maxent_grpo.train.trl import MaxEntGRPOTrainer, numbers_of
from maxent_grpo.types import Prompt, Rollout

logger = logging.getLogger(__name__)

RENAMED = {"reward_std": "trl/reward_std"}
"""TRL's is the spread over the batch, ours the mean spread within a group."""
TIMINGS = ("step_time", "runtime", "samples_per_second", "steps_per_second", "total_flos")
"""Suffixes of metrics that are left out."""
ROW = "maxent_grpo_row"
"""The column of TRL's data sets that says which prompt a row is."""
COUNTED = ("reward/errors", "reward/timeouts", "reward/unscored", "reward/logged/")
"""What scoring tells beyond TRL's own metrics of rewards; the last one is a prefix."""


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
    if settings.args.chat_template_kwargs:
        raise UsageError(
            "chat_template_kwargs: prompts are templated before TRL reads them; give the data set a column "
            "chat_template_kwargs"
        )
    tokenizer = make_tokenizer(source, given)
    rewards = training_rewards(settings.rewards, given)
    prompts = training_prompts(settings.data, given, tokenizer)
    check_answers(rewards, prompts, settings.data.prompts)
    refuse_too_few(prompts, settings)
    held_out = evaluation_prompts(settings.data, given, tokenizer) or []
    scorer = Scorer(rewards, isolation=Isolation(settings.rewards.isolation))
    try:
        trainer = RouteTrainer(
            [*prompts, *held_out],
            scorer,
            model=given.model or load_policy(source),
            args=settings.args,
            train_dataset=trl_rows(prompts),
            eval_dataset=trl_rows(held_out, first=len(prompts)) if held_out else None,
            processing_class=tokenizer,
            callbacks=[Recorder(files.metrics)],
        )
        stop = StopRequest(output_dir, trainer.accelerator)
        trainer.add_callback(stop)
        signals = LOCAL_SIGNALS if trainer.accelerator.num_processes == 1 else ()
        with stopping_on_signal(output_dir, *signals):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            step = int(trainer.state.global_step)
            if stop.granted:
                raise stopped(output_dir, trainer.accelerator, step)
    finally:
        scorer.close()
    if step == 0:
        raise RunError(
            "TRL's trainer made no optimiser step, and no policy is saved: check num_train_epochs, max_steps and "
            "the size of the data set"
        )
    forget_request(output_dir, trainer.accelerator)
    trainer.save_model(str(output_dir))
    return step


def refuse_too_few(prompts: Sequence[Prompt], settings: TRLSettings) -> None:
    """Raise `UsageError` where the prompts do not fill one rollout: TRL drops what is left over, here all."""
    args = settings.args
    assert args.generation_batch_size is not None, "TRL's arguments set it"
    assert args.num_generations is not None, "TRL's arguments set it"
    needed = args.generation_batch_size // args.num_generations
    if len(prompts) < needed:
        raise UsageError(
            f"the training data give {len(prompts)} prompts, and TRL's trainer needs {needed} for one step "
            f"({args.generation_batch_size} completions, num_generations={args.num_generations}): lower "
            "per_device_train_batch_size, gradient_accumulation_steps or steps_per_generation, or bring more rows"
        )


class RouteTrainer(MaxEntGRPOTrainer):
    """TRL's trainer on this package's prompts, token by token, with rewards as the native loop runs them.

    TRL would tokenize a templated text once more with special tokens, and call rewards without deadlines.

    Args:
        table: the prompts of all data sets; their column `ROW` counts in it.
        scorer: the reward functions.
        keywords: as for TRL's trainer.
    """

    def __init__(self, table: Sequence[Prompt], scorer: Scorer, **keywords: Any) -> None:
        super().__init__(reward_funcs=[_placeholder(reward.name) for reward in scorer.functions], **keywords)
        self._table = table
        self._scorer = scorer
        self._drawn: list[Prompt] = []

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._drawn = [self._table[row[ROW]] for row in inputs]
        return super()._generate_and_score_completions([_trl_row(prompt) for prompt in self._drawn])

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(prompt.token_ids) for prompt in self._drawn], None, {}

    def _scores(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """The scorer's rewards [B, functions] of all processes, NaN where a function gave none."""
        evaluates = not self._trains
        step = int(self.state.global_step)
        self._scorer.max_steps = int(self.state.max_steps)
        with together():
            rollouts = list(self._rollouts(completion_ids_list))
            groups, metrics = self._scorer.score(rollouts, step if evaluates else step + 1, is_eval=evaluates)
        told = [{name: stat for name, stat in metrics.items() if name.startswith(COUNTED)}]
        everywhere: list[Any] = gather_object(told)
        whole: Metrics = {}
        for name, stat in ((name, stat) for one in everywhere for name, stat in one.items()):
            whole[name] = whole[name].merged(stat) if name in whole else stat
        for name, value in numbers_of(whole).items():
            self._metrics["eval" if evaluates else "train"][name].append(value)
        names = [reward.name for reward in self._scorer.functions]
        scores = [[score for group in groups for score in group.rewards[name]] for name in names]
        rewards = torch.tensor(scores, dtype=torch.float32, device=self.accelerator.device).T.contiguous()
        # a completion that lost a score has no utility here either, whatever the other functions gave
        lost = torch.tensor([math.isnan(utility) for group in groups for utility in group.utilities])
        rewards[lost.to(rewards.device)] = math.nan
        gathered: Tensor = gather(rewards)
        return gathered

    @property
    def _trains(self) -> bool:
        """Whether the batch is of training, in TRL's way."""
        return self.model is not None and self.model.training

    def _rollouts(self, completion_ids: Sequence[Sequence[int]]) -> Iterator[Rollout]:
        """This process's completions, group by group; a group may lie on several processes."""
        size = self.num_generations if self._trains else self.num_generations_eval
        start = self.accelerator.process_index * len(self._drawn)
        tokenizer: PreTrainedTokenizerBase = self._tokenizer
        texts = tokenizer.batch_decode([list(ids) for ids in completion_ids], skip_special_tokens=True)
        ends = {*self.eos_token_ids, tokenizer.pad_token_id}
        numbered = range(len(self._drawn))
        for _, members in groupby(numbered, lambda row: ((start + row) // size, self._drawn[row].index)):
            rows = list(members)
            yield Rollout(
                prompt=self._drawn[rows[0]],
                token_ids=tuple(tuple(completion_ids[row]) for row in rows),
                logps=(),
                texts=tuple(texts[row] for row in rows),
                finish_reasons=tuple(
                    "stop" if completion_ids[row] and completion_ids[row][-1] in ends else "length"
                    for row in rows
                ),
                policy_version=int(self.state.global_step),
            )


def _placeholder(name: str) -> Callable[..., Any]:
    """What TRL is told in place of a reward function: its name."""

    def reward(**columns: Any) -> list[float]:
        raise AssertionError("`RouteTrainer._scores` scores")

    reward.__name__ = name
    return reward


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


def trl_rows(prompts: Sequence[Prompt], first: int = 0) -> Dataset:
    """TRL's data set of ``prompts``, whose first stands in row ``first`` of the trainer's table."""
    rows = enumerate(prompts, start=first)
    return Dataset.from_list([{"prompt": _trl_row(prompt)["prompt"], ROW: row} for row, prompt in rows])


def _trl_row(prompt: Prompt) -> dict[str, Any]:
    """What TRL reads: a chat where the data set has one, else the templated text; and the procedural task."""
    chat = None if prompt.messages is None else [dict(message) for message in prompt.messages]
    return {"prompt": prompt.text if chat is None else chat, "task": prompt.columns.get("task")}
