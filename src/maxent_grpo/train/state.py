"""The state of a run while it trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from maxent_grpo.config.environment import CheckpointSettings
from maxent_grpo.config.plan import BatchPlan
from maxent_grpo.controllers.controller import Controllers
from maxent_grpo.data.prompts import SeedPrompts
from maxent_grpo.data.stream import PromptStream
from maxent_grpo.evaluate.training import Evaluation
from maxent_grpo.models.loading import padding_id
from maxent_grpo.objectives.objective import Objective
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.rollout.sampler import Sampler, SamplingSettings
from maxent_grpo.stats import Meter
from maxent_grpo.train.bank import ReplayBank
from maxent_grpo.train.learner import Learner, Reference
from maxent_grpo.train.weight_sync import SamplerSync
from maxent_grpo.types import Group

Result = TypeVar("Result")


@dataclass(frozen=True)
class Cadence:
    """When things happen besides training, in optimiser steps; 0 is never."""

    total_steps: int
    logging_steps: int
    save_steps: int
    save_total_limit: int | None
    eval_steps: int
    eval_on_start: bool
    max_nonfinite_steps: int


@dataclass
class Run:
    """The parts of a run and its position. What changes while training is in checkpoints (`train.checkpoint`)."""

    seed: int
    output_dir: Path
    plan: BatchPlan
    cadence: Cadence
    objective: Objective
    sampling: SamplingSettings
    tokenizer: PreTrainedTokenizerBase
    learner: Learner
    reference: Reference | None
    sampler: Sampler
    scorer: Scorer
    stream: PromptStream
    meter: Meter
    evaluation: Evaluation | None
    controllers: Controllers
    seeds: SeedPrompts | None = None
    """InfoSeed's variants of a prompt."""
    bank: ReplayBank | None = None
    """Right answers found so far, where the objective replays or counts them."""
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    metadata_source: Path | None = None
    """The folder whose configuration and tokenizer shallow checkpoints copy; None: they write them themselves."""
    sampler_sync: SamplerSync | None = None
    """None: the sampler's model is the learner's."""
    sampled_by_engine: bool = False
    """Completions come from vLLM: their log-probs are compared with the learner's."""
    step: int = 0
    """Optimiser steps done; also the policy version."""
    skipped_in_a_row: int = 0
    """Updates refused for a non-finite loss or gradient since the last good one."""
    rollout: Sequence[Group] = ()
    """This rank's groups, which the current updates draw on."""
    updates_done: int = 0
    """Optimiser steps already made on `rollout`."""
    tokens_seen: int = 0
    """Completion tokens trained on, over all ranks."""
    buffer: Callable[[], Mapping[str, Any]] | None = None
    """A Ray driver's groups and prompts, as JSON values."""

    def close(self) -> None:
        """End what runs beside this process: the reward workers, and the sampler's connections."""
        for scorer in {self.scorer, self.evaluation.scorer if self.evaluation else self.scorer}:
            scorer.close()
        if self.sampler_sync is not None:
            self.sampler_sync.weight_sync.close()

    def sampled(self, sample: Callable[[], Result], *, newest: bool = False) -> Result:
        """The result of ``sample`` with the weights in the sampler; the current ones if ``newest``, else those due."""
        if self.sampler_sync is not None:
            return self.sampler_sync.sampled(
                sample, step=self.step, version=self.weights_step, meter=self.meter, newest=newest
            )
        with self.learner.strategy.full_weights():
            return sample()

    @property
    def weights_step(self) -> int:
        """The optimiser step that made the current weights: refused updates leave them as they were."""
        return self.step - self.skipped_in_a_row

    @property
    def sampler_version(self) -> int:
        """Optimiser steps behind the weights that sample now."""
        if self.sampler_sync is None or self.sampler_sync.version is None:
            return self.step
        return self.sampler_sync.version

    @property
    def is_first_pass(self) -> bool:
        """Whether the next step is the first on its part of the current rollout."""
        return self.updates_done < self.plan.updates_per_rollout

    @property
    def updates_left(self) -> int:
        """Optimiser steps that the current rollout still serves."""
        parts = len(self.rollout) // self.plan.prompts_per_rank
        return parts * self.plan.num_iterations - self.updates_done

    @property
    def pad_id(self) -> int:
        """The token at padding, which is masked."""
        return padding_id(self.learner.policy.model, self.tokenizer)
