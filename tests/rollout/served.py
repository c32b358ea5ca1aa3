"""A sampler of the scripted server, and what it is asked for."""

from typing import Any

from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.rollout.settings import ServerSettings
from maxent_grpo.rollout.vllm.server import VLLMServerSampler
from maxent_grpo.types import Prompt

SETTINGS = SamplingSettings(num_generations=4, max_completion_length=6)
KEY = (0, "completion", 3)
PATIENT = {"backoff": 0.01, "retry_sleep": 0.01, "startup_timeout": 0.3, "timeout": 5.0}
PROMPTS = [Prompt(i, "", (3, 4, 5 + i), {}) for i in range(5)]


def sampler_of(url: str, tokenizer: Any, **given: Any) -> VLLMServerSampler:
    own = {name: given.pop(name) for name in ("backfill", "restore", "stop_token_ids") if name in given}
    return VLLMServerSampler(ServerSettings(url, **(PATIENT | given)), tokenizer, vocabulary=16, **own)


def counts(sampler: VLLMServerSampler) -> dict[str, float]:
    """What the sampler counted, without zeros and times."""
    return {
        name.removeprefix("generation/"): float(stat.value)
        for name, stat in sampler.drain_stats().items()
        if stat.value and "latency" not in name
    }
