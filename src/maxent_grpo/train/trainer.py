"""Training from Python: a model, reward functions, prompts → ``train()``, as in TRL."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.config.loading import command_of, run_config
from maxent_grpo.config.parts import NativeSettings
from maxent_grpo.config.run_settings import run_settings
from maxent_grpo.config.schema import GRPOConfig, GRPOScriptArguments, ModelConfig
from maxent_grpo.config.settle import refuse_unsupported
from maxent_grpo.errors import UsageError
from maxent_grpo.models.loading import ModelSource, load_tokenizer
from maxent_grpo.train.build import Given
from maxent_grpo.train.run import TrainResult, train

Rows = Sequence[str] | Sequence[Mapping[str, Any]]
Reward = str | Callable[..., Sequence[float | None]]


class GRPOTrainer:
    """Trains ``model`` with this package's loop, whatever objective ``args`` names.

    Args:
        model: a loaded causal language model, or a directory, hub id or ``bundled:tiny-policy``.
        reward_funcs: one or several: a registered name, an importable ``module:function``, or a callable with TRL's
            signature that gets ``completions``, ``prompts`` and every dataset column by name and returns one number
            per completion. A callable runs in this process; a path runs in worker processes with a deadline.
        args: the configuration; its ``output_dir`` receives the policy, checkpoints and ``metrics.jsonl``.
        train_dataset: prompts as plain strings, or rows (a list of mappings, or a ``datasets.Dataset``) with the
            question in a column ``problem``, ``prompt`` or ``question``.
        eval_dataset: the same, for ``args.eval_strategy``.
        processing_class: the tokenizer; unset, the one saved with the model.

    Raises `UsageError` where one of them cannot work.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Reward | Sequence[Reward],
        args: GRPOConfig,
        train_dataset: Rows,
        eval_dataset: Rows | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
    ) -> None:
        if len(train_dataset) == 0:
            raise UsageError("train_dataset is empty: give at least one prompt")
        name = model if isinstance(model, str) else str(model.name_or_path)
        if not isinstance(model, str) and processing_class is None:
            processing_class = load_tokenizer(ModelSource(name))
        refuse_unsupported(args, "native")
        self.args = args
        self.model = model
        self._given = Given(
            model=None if isinstance(model, str) else model,
            tokenizer=processing_class,
            reward_funcs=[reward_funcs]
            if isinstance(reward_funcs, str) or callable(reward_funcs)
            else reward_funcs,
            train_rows=_rows(train_dataset),
            eval_rows=None if eval_dataset is None else _rows(eval_dataset),
        )
        self._config = run_config(
            command=command_of(vars(args)),
            route="native",
            script=GRPOScriptArguments(dataset_name="given from Python"),
            training=args,
            model=ModelConfig(model_name_or_path=name),
        )

    @property
    def settings(self) -> NativeSettings:
        """The parts of the run as ``args`` and the environment have them."""
        settings = run_settings(self._config)
        assert isinstance(settings, NativeSettings), "the route is native"
        return settings

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainResult:
        """Train to the last step. ``resume_from_checkpoint``: true for the newest of ``output_dir``, or a path."""
        if resume_from_checkpoint is not None:
            self.args.resume_from_checkpoint = str(resume_from_checkpoint)
        return train(self.settings, self._given)


def _rows(dataset: Rows) -> Sequence[Mapping[str, Any]]:
    if isinstance(dataset[0], str):
        return [{"prompt": text} for text in dataset]
    return dataset  # type: ignore[return-value]  # a sequence of mappings, as the annotation of the caller says
