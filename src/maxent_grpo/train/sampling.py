"""What the configuration puts around a sampler."""

from transformers import PreTrainedTokenizerBase

from maxent_grpo.config.loading import RunConfig
from maxent_grpo.rollout.parts import SamplerInParts
from maxent_grpo.rollout.sampler import Sampler


def configured_sampler(sampler: Sampler, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Sampler:
    """``sampler``, in parts of ``sampling_batch_size`` completions where that is set."""
    size = config.training.sampling_batch_size
    return sampler if size is None else SamplerInParts(sampler, size)
