"""The parts of a run as plain, frozen, picklable values: what each builder in `train` is told.

`config.run_settings` makes them. Settings of other packages' own parts (samplers, rewards, controllers …) are theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch.optim import Optimizer

from maxent_grpo.config.environment import CheckpointSettings
from maxent_grpo.config.loading import Command
from maxent_grpo.config.plan import BatchPlan, warmup_steps
from maxent_grpo.controllers.settings import ControllerSettings
from maxent_grpo.data.prompts import PromptSettings
from maxent_grpo.data.sources import RetryPolicy
from maxent_grpo.data.stream import DifficultyPools
from maxent_grpo.models.loading import ModelSource
from maxent_grpo.objectives.catalog import ObjectiveSpec
from maxent_grpo.rewards.isolation import IsolationSettings
from maxent_grpo.rewards.registry import RewardOptions
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.rollout.settings import SamplerSettings

if TYPE_CHECKING:
    from peft import PeftConfig
    from trl.trainer.model_config import ModelConfig

    from maxent_grpo.config.schema import GRPOConfig


@dataclass(frozen=True)
class OutputSettings:
    """The directory that receives policy, checkpoints and records."""

    directory: Path
    resume: str | None
    """``true`` for the newest checkpoint of the directory, a checkpoint's path, or nothing."""
    overwrite: bool


@dataclass(frozen=True)
class RecordSettings:
    """Console, trackers, and what the records begin with."""

    title: str
    header: Mapping[str, Any]
    """The run's identity: the first line of metrics.jsonl."""
    resolved: str
    """The resolved configuration, as a recipe."""
    tracked: Mapping[str, Any]
    """Facts that trackers are told besides the header."""
    trackers: Sequence[str]
    run_name: str | None
    project: str | None
    wandb_entity: str | None
    wandb_group: str | None
    progress: bool
    printed: int
    """Completions shown on the console at each logged step."""


@dataclass(frozen=True)
class ModelSettings:
    """The policy, and what is put around it."""

    source: ModelSource
    reference: ModelSource | None
    """The named reference; None: the policy as it is before the first step."""
    adapter: "ModelConfig | PeftConfig | None"
    """TRL's LoRA settings, or PEFT's own; None: the whole policy is trained."""
    disable_dropout: bool
    activation_checkpointing: bool
    checkpointing_options: Mapping[str, Any] | None


@dataclass(frozen=True)
class DataSource:
    """One split of a data set, or one side of a mixture."""

    name: str | None = None
    config: str | None = None
    split: str = "train"
    mixture: Any = None
    """`maxent_grpo.data.mixture.load_mixture`'s; ``split`` is then ``train`` or ``test``."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True)
class DataSettings:
    """Prompts to train and to evaluate on."""

    train: DataSource
    evaluation: DataSource | None
    """The data set to evaluate on, if one is named, or the mixture's held-out side."""
    test_split: DataSource | None
    """The training data set's own, in place of it; not where rows are given from Python."""
    prompts: PromptSettings
    evaluation_prompts: PromptSettings
    evaluates: bool


@dataclass(frozen=True)
class RewardSettings:
    """Reward functions by name, and how they run."""

    functions: Sequence[str]
    weights: Sequence[float] | None
    evaluation_functions: Sequence[str] | None
    """None: those of training."""
    evaluation_weights: Sequence[float] | None
    options: RewardOptions
    isolation: IsolationSettings
    zero_truncated: bool
    mode_key: str | None = None
    """``module:function`` that names right answers; None: `rewards.modes` does."""


@dataclass(frozen=True)
class RunSettings:
    """The parts that both routes read: this package's loop and TRL's trainer."""

    command: Command
    process_index: int
    output: OutputSettings
    records: RecordSettings
    model: ModelSettings
    data: DataSettings
    rewards: RewardSettings


@dataclass(frozen=True)
class TRLSettings(RunSettings):
    """A run in TRL's trainer."""

    args: "GRPOConfig"
    """TRL's arguments, which its trainer reads by itself."""
    changed_checkpoints: bool
    """The environment asks for checkpoints that only the native loop writes."""


@dataclass(frozen=True)
class DeviceSettings:
    """The device and the precision of every rank."""

    use_cpu: bool
    bf16: bool


@dataclass(frozen=True)
class CadenceSettings:
    """Intervals in optimiser steps, or below 1 as a share of all; 0 is never."""

    max_steps: int
    num_train_epochs: float
    """Passes over the prompts, where ``max_steps`` is not positive."""
    logging_steps: float
    save_steps: float
    save_total_limit: int | None
    eval_steps: float
    eval_on_start: bool
    max_nonfinite_steps: int


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimiser, its learning rate, and how the policy lies on the ranks."""

    kind: type[Optimizer]
    options: Mapping[str, Any]
    weight_decay: float
    learning_rate: float
    schedule: str
    schedule_options: Mapping[str, Any]
    warmup_steps: float
    """Optimiser steps; below 1 a share of all."""
    max_grad_norm: float
    distributed: str | None

    def warmup(self, total_steps: int) -> int:
        """Optimiser steps of learning-rate warm-up."""
        return warmup_steps(self.warmup_steps, total_steps)


@dataclass(frozen=True)
class SeedSettings:
    """InfoSeed's seeded variants of a prompt."""

    template: str
    count: int
    pooling: Literal["none", "mean", "last"]
    classifier: bool
    """A classifier of the pooled states is trained."""


@dataclass(frozen=True)
class DialogueSettings:
    """An environment that answers the policy."""

    environment: str
    max_turns: int
    prompts: PromptSettings


@dataclass(frozen=True)
class EvaluationSettings:
    """Evaluation while training."""

    sampling: SamplingSettings
    prompts_per_batch: int
    greedy: bool


@dataclass(frozen=True)
class WorkerSettings:
    """The Ray drivers' workers, and how far samples may be behind the learner."""

    driver: Literal["sync", "async"]
    learner: int
    rollout: int
    reference: int
    timeout: float
    address: str | None
    update_frequency: int
    overlap: bool
    max_staleness: int
    groups_per_rollout: int
    steps_per_rollout: int
    buffer_groups: int
    """Groups that the buffer may hold."""


@dataclass(frozen=True)
class NativeSettings(RunSettings):
    """A run in this package's loop."""

    seed: int
    shuffle: bool
    pools: DifficultyPools | None
    """None: each epoch draws every prompt once."""
    device: DeviceSettings
    plan: BatchPlan
    cadence: CadenceSettings
    objective: ObjectiveSpec
    controllers: ControllerSettings
    """As at the first step; warm-up counts for ``max_steps``."""
    needs_reference: bool
    """Something reads the reference policy, now or after a controller has moved β."""
    controller_state: Path | None
    """File or directory of another run's controller state, to start from."""
    optimizer: OptimizerSettings
    seeds: SeedSettings | None
    sampling: SamplingSettings
    sampler: SamplerSettings
    sampling_batch_size: int | None
    """Prompts sampled at once; None: all of a rollout."""
    dialogue: DialogueSettings | None
    evaluation: EvaluationSettings
    checkpoints: CheckpointSettings
    workers: WorkerSettings | None
    """None: everything in this process, and the others that were launched with it."""
