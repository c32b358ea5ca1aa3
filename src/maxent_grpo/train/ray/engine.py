"""A rollout worker's own vLLM engine: filled from the worker's copy of the policy, and compared with it."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.config.run_settings import NativeSettings
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.train.published_weights import PolicyWeights
from maxent_grpo.train.publishing import Publishing, make_probe
from maxent_grpo.train.samplers import coarser, engine_here
from maxent_grpo.types import Batch, Prompt


class HostCopy:
    """The worker's copy of the policy, which leaves the device to the engine. See `Source`."""

    def __init__(self, model: PreTrainedModel, temperature: float, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._policy = PolicyForward(model, temperature=temperature).eval()

    @property
    def device(self) -> torch.device:
        return self._policy.model.device

    @torch.no_grad()
    def logps(self, batch: Batch) -> Tensor:
        logps: Tensor = self._policy(batch)[0]
        return logps


def publishing_to_engine(
    settings: NativeSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    accelerator: Accelerator,
) -> Publishing:
    """An engine in this process, and what keeps it on the weights of ``model``, compared on ``prompts``.

    Raises `UsageError` where vLLM is not installed or cannot do what is asked.
    """
    # What can be refused is refused before the engine starts.
    weights = PolicyWeights(model, model.named_parameters)
    copy = HostCopy(model, settings.sampling.temperature, accelerator)
    sampler, publisher, dtype = engine_here(settings, model, tokenizer)
    precision = coarser(dtype, settings.model.source.dtype)
    return Publishing(
        sampler=sampler,
        publisher=publisher,
        weights=weights,
        probe=make_probe(prompts, settings.sampling, precision, int(tokenizer.pad_token_id), rank=0),
        source=copy,
        seed=settings.seed,
        every=1,
    )
