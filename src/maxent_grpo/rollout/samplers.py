"""Samplers by name, and what each is made of.

A sampler of one's own is a `SamplerFactory`, named by ``sampler: module:NAME``; nothing else changes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.named import find_named
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import Sampler, SamplingSettings
from maxent_grpo.rollout.settings import SAMPLERS, SamplerSettings
from maxent_grpo.rollout.weight_sync.sync import WeightSync


@dataclass(frozen=True)
class SamplerParts:
    """The parts that a factory may use: of this rank, all plain or whole."""

    model: PreTrainedModel
    """The policy. Ranks may hold shards of it."""
    tokenizer: PreTrainedTokenizerBase
    sampling: SamplingSettings
    """Of training."""
    settings: SamplerSettings = field(default_factory=SamplerSettings)
    sampling_model: PreTrainedModel | None = None
    """The module that can sample here; None: ``model``."""
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    """The learner's precision."""
    rank: int = 0
    ranks: int = 1

    @property
    def whole(self) -> PreTrainedModel:
        """The module that can sample here."""
        return self.sampling_model or self.model


SamplerFactory = Callable[[SamplerParts], tuple[Sampler, WeightSync | None]]
"""Makes a sampler, and what brings the learner's weights to it; None: it samples with the learner's model itself."""


def local_sampler(parts: SamplerParts) -> tuple[Sampler, None]:
    """The factory of ``sampler: local``. Raises `UsageError` for a model that cannot be sampled in this process."""
    sampler = LocalSampler(parts.whole, parts.tokenizer, parts.autocast)
    if parts.whole is parts.model:  # a copy for sampling has no weights yet, and is tried when it has
        _ = sampler.way
    return sampler, None


def make_sampler(parts: SamplerParts) -> tuple[Sampler, WeightSync | None]:
    """The sampler that ``parts.settings`` name. Ranks do not talk to each other in here.

    Raises:
        UsageError: there is none of that name, or it cannot do what is asked.
        RunError: a server is not there.
    """
    make: SamplerFactory = find_named("sampler", parts.settings.name, SAMPLERS, "a sampler factory", callable)
    return make(parts)
