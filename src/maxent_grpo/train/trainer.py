"""Training from Python: a model, reward functions, prompts → ``train()``, as in TRL."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import trl
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState

from maxent_grpo.config.loading import DERIVED, command_of, run_config
from maxent_grpo.config.parts import NativeSettings
from maxent_grpo.config.run_settings import run_settings
from maxent_grpo.config.schema import GRPOConfig, GRPOScriptArguments, ModelConfig
from maxent_grpo.config.settle import refuse_unsupported
from maxent_grpo.data.given import given_rows
from maxent_grpo.errors import UsageError
from maxent_grpo.models.loading import (
    ModelSource,
    is_adapted,
    load_policy,
    load_tokenizer,
    with_adapter,
    with_pad_token,
)
from maxent_grpo.models.reward_model import given_reward_model
from maxent_grpo.observe.console import Progress
from maxent_grpo.rewards.registry import TRAINING_OPTIONS, RewardOptions, load_rewards, reads_golds
from maxent_grpo.train.build import Given, build
from maxent_grpo.train.drivers import evaluation_metrics
from maxent_grpo.train.records import RecordFiles, RunRecorder
from maxent_grpo.train.run import TrainResult, train

Reward = str | Callable[..., Sequence[float | None]]

LOADED = {"dtype": "dtype", "attn_implementation": "attn_implementation", "revision": "model_revision"}
"""Keys of ``model_init_kwargs`` → the settings of the model section that say the same."""

COMPLETE = "maxent_grpo.train.trl.MaxEntGRPOTrainer, TRL's trainer with these objectives,"


class GRPOTrainer:
    """Trains ``model`` with this package's loop, whatever objective ``args`` names.

    It has what a script needs most of TRL's trainer: `train`, `evaluate`, `save_model`, ``model``, ``state``,
    ``processing_class``. Whatever else it has (callbacks, tools, uploads) is in
    `maxent_grpo.train.trl.MaxEntGRPOTrainer`, which is a subclass of it.

    Args:
        model: a loaded causal language model, or a directory, hub id or ``bundled:tiny-policy``, which is loaded with
            the ``dtype``, ``attn_implementation``, ``revision`` and ``trust_remote_code`` of
            ``args.model_init_kwargs``.
        reward_funcs: one or several: a registered name, an importable ``module:function``, or a callable with TRL's
            signature that gets ``completions``, ``prompts`` and every dataset column by name and returns one number
            per completion, or a reward model (a hub id, ``model:PATH``, or a loaded sequence classifier with one
            output). A callable and a model run in this process; a path runs in worker processes with a deadline.
        args: the configuration; its ``output_dir`` receives the policy, checkpoints and ``metrics.jsonl``. TRL's own
            is converted, if nothing in it would be ignored.
        train_dataset: texts, chats, rows, columns, a data frame or a ``datasets.Dataset``; see
            `maxent_grpo.data.given.given_rows`.
        eval_dataset: the same, for ``args.eval_strategy`` and `evaluate`.
        processing_class: the tokenizer; unset, the one saved with the model.
        reward_processing_classes: tokenizers of loaded reward models: a list with one entry per reward function, None
            where the one saved with the model is meant, or the only one; unset: all those saved.
        peft_config: of PEFT; the model gets this adapter, and only that is trained.
        prompt_column: holds the prompts; unset: ``prompt``, else ``problem``, else ``question``. May be a path, as
            ``data.problem``.
        solution_column: holds the gold answers, which rewards also receive as ``answer``.
        apply_chat_template: whether a text becomes a user's message; unset: one of the column ``prompt`` does not.

    Raises:
        UsageError: one of them cannot work.
        TypeError: an argument that TRL's trainer has and this one has not, or nobody has.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Reward | Sequence[Reward],
        args: GRPOConfig | trl.GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        reward_processing_classes: Any = None,
        peft_config: Any = None,
        prompt_column: str | None = None,
        solution_column: str = "answer",
        apply_chat_template: bool | None = None,
        **others: Any,
    ) -> None:
        _refuse_others(others)
        name = model if isinstance(model, str) else str(getattr(model, "name_or_path", ""))
        self.args: GRPOConfig = _own_config(args, name)
        options = {option: getattr(self.args, option) for option in sorted(TRAINING_OPTIONS)}
        rewards = _rewards(reward_funcs, reward_processing_classes, options)
        rows = given_rows(train_dataset, "train_dataset")
        eval_rows = None if eval_dataset is None else given_rows(eval_dataset, "eval_dataset")
        load_rewards(rewards, self.args.reward_weights or None, RewardOptions(options))
        self._source, trust = _model_config(self.args.model_init_kwargs, model, peft_config)
        self._source.model_name_or_path = name
        if trust:
            self.args.trust_remote_code = True
        self.model: str | PreTrainedModel = model
        if not isinstance(model, str) and processing_class is None:
            processing_class = _saved_tokenizer(name)
        self._adapter = peft_config
        self._given = Given(
            model=None if isinstance(model, str) else model,
            tokenizer=processing_class,
            reward_funcs=rewards,
            train_rows=rows,
            eval_rows=eval_rows,
        )
        self._script = GRPOScriptArguments(
            dataset_name="given from Python",
            dataset_prompt_column=prompt_column,
            dataset_solution_column=solution_column,
            apply_chat_template=apply_chat_template,
        )
        self._result: TrainResult | None = None
        refuse_unsupported(self._training, "native")
        _ = self.settings  # what cannot work, the environment's variables included, is said before `train`

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(trl.GRPOTrainer, name):
            raise AttributeError(f"GRPOTrainer has no {name}: {COMPLETE} has it")
        raise AttributeError(f"GRPOTrainer has no attribute {name!r}")

    @property
    def _training(self) -> GRPOConfig:
        """``args`` without what belongs to the model section."""
        training = copy.copy(self.args)
        training.model_init_kwargs = None
        return training

    @property
    def settings(self) -> NativeSettings:
        """The parts of the run as ``args`` and the environment have them."""
        training = self._training
        config = run_config(
            command=command_of(vars(training)),
            route="native",
            script=self._script,
            training=training,
            model=self._source,
        )
        settings = run_settings(config)
        assert isinstance(settings, NativeSettings), "the route is native"
        golds = any(
            reads_golds(reward, self._script.dataset_solution_column)
            for reward in self._given.reward_funcs or ()
        )
        data = replace(
            settings.data,
            prompts=replace(settings.data.prompts, needs_gold=golds),
            evaluation_prompts=replace(settings.data.evaluation_prompts, needs_gold=golds),
        )
        adapter = None if is_adapted(self._given.model) else self._adapter
        return replace(settings, data=data, model=replace(settings.model, adapter=adapter))

    @cached_property
    def processing_class(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with a padding token."""
        given = self._given.tokenizer
        return load_tokenizer(self.settings.model.source) if given is None else with_pad_token(given)

    @property
    def state(self) -> TrainerState:
        """Steps done and to do; ``log_history`` holds the records of ``metrics.jsonl``."""
        if self._result is None:
            return TrainerState(max_steps=self.args.max_steps)
        log = RecordFiles(Path(str(self.args.output_dir))).metrics
        history = log.read(log.path)[1:]
        step = self._result.global_step
        return TrainerState(global_step=step, max_steps=max(step, self.args.max_steps), log_history=history)

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainResult:
        """Train to the last step. ``resume_from_checkpoint``: true for the newest of ``output_dir``, or a path."""
        if resume_from_checkpoint is not None:
            self.args.resume_from_checkpoint = str(resume_from_checkpoint)
        settings = self.settings
        self._result = train(settings, self._given)
        trained = self._result.model
        # Ray's learners leave the policy in the directory alone.
        source = replace(settings.model.source, name_or_path=str(settings.output.directory))
        self.model = load_policy(source) if trained is None else trained
        if self._given.model is not None:
            self._given = replace(self._given, model=self.model)  # which may have its adapter now
        return self._result

    def evaluate(self, eval_dataset: Any = None) -> dict[str, float]:
        """The metrics of an evaluation during training (``eval/…``) for the policy as it is now; nothing is recorded.

        Raises:
            UsageError: there is nothing to evaluate on.
        """
        rows = self._given.eval_rows if eval_dataset is None else given_rows(eval_dataset, "eval_dataset")
        if rows is None:
            raise UsageError("evaluate: there is no eval_dataset; give one here or to GRPOTrainer")
        settings = self.settings
        settings = replace(
            settings,
            needs_reference=False,
            data=replace(settings.data, evaluates=True),
            model=replace(settings.model, adapter=None),
            records=replace(settings.records, trackers=[]),
            controller_state=None,
            workers=None,
        )
        run = build(settings, replace(self._given, model=self._module(), eval_rows=rows))
        try:
            with Progress(0, "evaluation", enabled=False) as progress:
                recorder = RunRecorder(run, settings.records, progress)
                return run.sampled(lambda: evaluation_metrics(run, recorder), newest=True)
        finally:
            run.close()

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the policy (an adapter alone, where there is one) and the tokenizer, as ``save_pretrained`` does."""
        directory = str(output_dir or self.args.output_dir)
        self._module().save_pretrained(directory)
        self.processing_class.save_pretrained(directory)

    def _module(self) -> PreTrainedModel:
        """The policy as it is now."""
        if isinstance(self.model, str):
            model = load_policy(self.settings.model.source)
            self.model = model if self._adapter is None else with_adapter(model, self._adapter)
            self._given = replace(self._given, model=self.model)
        elif self._adapter is not None and not is_adapted(self.model):
            self.model = with_adapter(self.model, self._adapter)
            self._given = replace(self._given, model=self.model)
        return self.model


def _refuse_others(others: Mapping[str, Any]) -> None:
    """Raise `TypeError` for keywords that say something."""
    said = [name for name, value in others.items() if value not in (None, [], (None, None))]
    known = [name for name in said if name in inspect.signature(trl.GRPOTrainer.__init__).parameters]
    if known:
        raise TypeError(f"GRPOTrainer does not take {', '.join(known)}: {COMPLETE} does")
    if unknown := [
        name for name in others if name not in inspect.signature(trl.GRPOTrainer.__init__).parameters
    ]:
        raise TypeError(f"GRPOTrainer got unknown arguments: {', '.join(unknown)}")


def _rewards(given: Any, tokenizers: Any, options: Mapping[str, Any]) -> list[Reward]:
    """The reward functions as a list, loaded reward models as such. Raises `UsageError` where that cannot be."""
    several = isinstance(given, Sequence | tuple) and not isinstance(given, str)
    rewards = list(given) if several else [given]
    if not rewards or given is None:
        raise UsageError("reward_funcs is empty: give at least one reward function")
    own = list(tokenizers) if isinstance(tokenizers, list | tuple) else [tokenizers] * len(rewards)
    if len(own) != len(rewards) or (
        tokenizers is not None and not isinstance(tokenizers, list | tuple) and several
    ):
        raise UsageError(
            f"reward_processing_classes: give a list with one entry for each of the {len(rewards)} reward functions, "
            "None where it is no loaded model"
        )
    found: list[Reward] = []
    for reward, tokenizer in zip(rewards, own, strict=True):
        if isinstance(reward, nn.Module):
            found.append(given_reward_model(reward, tokenizer, options))
        elif isinstance(reward, str) and tokenizer is not None:
            raise UsageError(
                f"reward_processing_classes: {reward!r} comes with its own tokenizer; load the model yourself and give "
                "both, or leave it out"
            )
        else:
            found.append(reward)
    return found


def _own_config(args: Any, model: str) -> GRPOConfig:
    """``args``, or TRL's converted. Raises `UsageError` where they cannot be."""
    if args is None:
        return GRPOConfig(output_dir=f"{Path(model).name.replace(':', '-') or 'model'}-GRPO")
    if isinstance(args, GRPOConfig):
        return args
    if not isinstance(args, trl.GRPOConfig):
        raise UsageError(f"args is a {type(args).__name__}; take maxent_grpo.GRPOConfig")
    pristine = type(args)(output_dir=args.output_dir, use_cpu=args.use_cpu)
    changed = {
        field.name: value
        for field in fields(trl.GRPOConfig)
        if (value := getattr(args, field.name)) != getattr(pristine, field.name) and field.name not in DERIVED
    }
    try:
        own = GRPOConfig(**changed | {"output_dir": args.output_dir, "use_cpu": args.use_cpu})
        checked = copy.copy(own)
        checked.model_init_kwargs = None
        refuse_unsupported(checked, "native")
    except UsageError as error:
        raise UsageError(f"args is trl.GRPOConfig; take maxent_grpo.GRPOConfig: {error}") from error
    return own


def _model_config(given: Any, model: Any, peft_config: Any) -> tuple[ModelConfig, bool]:
    """The model section that ``model_init_kwargs`` and ``peft_config`` stand for, and ``trust_remote_code``."""
    asked = {name: value for name, value in (given or {}).items() if value is not None}
    if asked and not isinstance(model, str):
        raise UsageError(
            "model_init_kwargs: the model is loaded already; load it with them, or give its name"
        )
    trust = bool(asked.pop("trust_remote_code", False))
    if "torch_dtype" in asked:
        asked["dtype"] = asked.pop("torch_dtype")
    if unknown := [name for name in asked if name not in LOADED]:
        raise UsageError(
            f"model_init_kwargs: {', '.join(unknown)}: of these only {', '.join(LOADED)} and trust_remote_code are "
            "taken; load the model yourself and give it as model"
        )
    if "dtype" in asked:
        asked["dtype"] = str(asked["dtype"]).removeprefix("torch.")
    if peft_config is None:
        adapter: dict[str, Any] = {}
    elif is_adapted(model):
        raise UsageError(
            "peft_config: the model has an adapter already; give it without, or leave peft_config out"
        )
    elif not hasattr(peft_config, "peft_type"):
        raise UsageError(
            f"peft_config is a {type(peft_config).__name__}; give one of PEFT, such as LoraConfig(r=16)"
        )
    else:
        named = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
        adapter = {
            key: getattr(peft_config, name) for key, name in named.items() if hasattr(peft_config, name)
        }
        targets = getattr(peft_config, "target_modules", None)
        adapter |= {
            "use_peft": True,
            "lora_target_modules": targets if isinstance(targets, str) else sorted(targets or ()),
        }
    return ModelConfig(**{LOADED[name]: value for name, value in asked.items()}, **adapter), trust


def _saved_tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(ModelSource(name))
    except (UsageError, ValueError, KeyError, ImportError) as error:
        raise UsageError(
            f"processing_class: no tokenizer is saved where the model is from ({name!r}); "
            "give it: processing_class=tokenizer"
        ) from error
