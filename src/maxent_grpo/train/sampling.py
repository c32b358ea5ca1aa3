"""What the configuration puts around a sampler."""

from transformers import PreTrainedTokenizerBase

from maxent_grpo.config.loading import RunConfig
from maxent_grpo.data.prompts import PromptSettings
from maxent_grpo.rollout.dialogue import DialogueSampler
from maxent_grpo.rollout.environment import load_environment
from maxent_grpo.rollout.parts import SamplerInParts
from maxent_grpo.rollout.sampler import Sampler


def configured_sampler(sampler: Sampler, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Sampler:
    """``sampler``, in parts where ``sampling_batch_size`` is set, in several turns where there is an environment."""
    training = config.training
    if training.sampling_batch_size is not None:
        sampler = SamplerInParts(sampler, training.sampling_batch_size)
    if training.environment is None:
        return sampler
    settings = PromptSettings(system_prompt=training.system_prompt, chat_template=training.chat_template)
    environment = load_environment(training.environment)
    return DialogueSampler(sampler, environment, training.max_turns, tokenizer, settings)
