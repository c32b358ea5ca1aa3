"""Sampling by a vLLM engine inside this process: no server, and weights that never leave the device.

One request per completion, seeded by (key, prompt, number in the group), as `VLLMServerSampler` has it: a completion
does not depend on the others of its call, but for rounding in larger or smaller batches. Left out: several
ranks, and tensor parallelism over them.
"""

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.models.loading import stop_token_ids
from maxent_grpo.randomness import KeyPart, integer_seed
from maxent_grpo.rollout.sampler import Finished, Sampler, SamplingSettings
from maxent_grpo.rollout.samplers import SamplerParts
from maxent_grpo.rollout.settings import EngineSettings
from maxent_grpo.rollout.texts import completion_texts
from maxent_grpo.rollout.weight_sync.control import SyncFailed
from maxent_grpo.rollout.weight_sync.sync import WeightSync
from maxent_grpo.rollout.weight_sync.weights import Weights
from maxent_grpo.types import Prompt, Rollout

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput


def start_engine(settings: EngineSettings) -> "LLM":
    """An engine in this process.

    Raises:
        UsageError: vLLM is not installed, or cannot do what is asked.
    """
    if settings.tensor_parallel != 1:
        raise UsageError(
            "vllm_tensor_parallel_size: a colocated engine belongs to one rank; use 1, or vllm_mode=server"
        )
    # Read when vLLM is imported: an engine in a process of its own could not be handed tensors.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # vLLM would report to its makers
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the learner computes on the same threads
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ImportError as error:
        raise UsageError(
            "vllm_mode: colocate needs vLLM in this environment: pip install 'maxent-grpo[vllm]' (GPU), or make "
            "vllm-env (CPU)"
        ) from error
    if settings.sleep and not current_platform.is_sleep_mode_available():
        raise UsageError("vllm_enable_sleep_mode: vLLM cannot sleep on this platform; remove it")
    return LLM(
        model=settings.model,
        dtype=settings.dtype,
        gpu_memory_utilization=settings.memory_fraction,
        max_model_len=settings.max_model_len,
        enable_sleep_mode=settings.sleep,
        trust_remote_code=settings.trust_remote_code,
        logprobs_mode="raw_logprobs" if settings.temperature == 1 else "processed_logprobs",
        seed=0,  # every request has a seed of its own
        disable_log_stats=True,
        enforce_eager=current_platform.is_cpu(),  # compiling for a CPU takes minutes
        # On a CPU vLLM 0.30 dies of a seeded request whose prompt it reads in parts ("Generator does not use offset").
        enable_chunked_prefill=not current_platform.is_cpu(),
    )


@dataclass
class VLLMEngineSampler(Sampler):
    """Samples with an engine of this process."""

    engine: "LLM"
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: Sequence[int]
    sleeps: bool = False

    def sample(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        key: tuple[KeyPart, ...],
        policy_version: int,
        finished: Finished | None = None,  # told of nothing: the engine returns when all are done
    ) -> list[Rollout]:
        """See `Sampler.sample`. Raises `RunError` where the engine leaves a completion unfinished."""
        group = range(settings.num_generations)
        if self.sleeps:
            self.engine.wake_up()
        outputs = self.engine.generate(
            [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts for _ in group],
            [self._parameters(settings, (*key, *prompt.key, g)) for prompt in prompts for g in group],
            use_tqdm=False,
        )
        if self.sleeps:
            self.engine.sleep(level=1)
        size = settings.num_generations
        return [
            self._rollout(prompt, outputs[p * size : (p + 1) * size], policy_version)
            for p, prompt in enumerate(prompts)
        ]

    def _parameters(self, settings: SamplingSettings, key: tuple[KeyPart, ...]) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=1,
            seed=integer_seed(*key),
            max_tokens=settings.max_completion_length,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            min_p=settings.min_p or 0.0,
            stop=list(settings.stop) or None,
            include_stop_str_in_output=True,
            stop_token_ids=list(self.stop_token_ids),
            ignore_eos=True,  # all that end a completion are named
            logprobs=0,  # of the sampled token
            detokenize=bool(settings.stop),
            skip_special_tokens=False,
        )

    def _rollout(self, prompt: Prompt, outputs: Sequence["RequestOutput"], policy_version: int) -> Rollout:
        completions = [output.outputs[0] for output in outputs]
        reasons: list[Literal["stop", "length"]] = []
        for completion in completions:
            if completion.finish_reason not in ("stop", "length"):
                raise RunError(
                    f"prompt {prompt.index}: vLLM ended a completion with {completion.finish_reason!r}; look at its log"
                )
            reasons.append("stop" if completion.finish_reason == "stop" else "length")
        ids = [tuple(completion.token_ids) for completion in completions]
        return Rollout(
            prompt=prompt,
            token_ids=tuple(ids),
            logps=tuple(
                tuple(at[token].logprob for at, token in zip(completion.logprobs, tokens, strict=True))
                for completion, tokens in zip(completions, ids, strict=True)
            ),
            texts=tuple(completion_texts(self.tokenizer, ids)),
            finish_reasons=tuple(reasons),
            policy_version=policy_version,
        )


class EngineWeightSync:
    """See `WeightSync`: every rank loads the weights into its own engine as they are gathered, one at a time."""

    def __init__(self, engine: "LLM", *, sleeps: bool = False, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self._engine = engine
        self._sleeps = sleeps
        self._version: str | None = None

    def sync(self, weights: Weights, version: str) -> None:
        """Nothing generates meanwhile: the engine runs only inside `VLLMEngineSampler.sample`."""
        self._version = None
        if self._sleeps:
            self._engine.wake_up()
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if not self._engine.reset_prefix_cache():
            raise SyncFailed("the engine could not reset its prefix cache: requests are still running")
        self._version = version

    def holds(self, version: str) -> bool:
        return self._version == version

    def close(self) -> None:
        """Give the engine's memory back."""
        self._engine.llm_engine.engine_core.shutdown()
        del self._engine
        gc.collect()


def engine_sampler(parts: SamplerParts) -> tuple[Sampler, WeightSync]:
    """The factory of ``sampler: vllm_engine``. Completions end as those of the policy do.

    Raises:
        UsageError: there are several ranks, vLLM is not installed, or it cannot do what is asked.
    """
    if parts.ranks > 1:
        raise UsageError("vllm_mode: colocate works in one process; use vllm_mode=server for several ranks")
    settings = parts.settings.engine
    assert settings is not None, "an engine's settings come with its name"
    engine = start_engine(settings)
    stops = stop_token_ids(parts.whole, parts.tokenizer)
    sampler = VLLMEngineSampler(engine, parts.tokenizer, stops, settings.sleep)
    return sampler, EngineWeightSync(engine, sleeps=settings.sleep, dtype=getattr(torch, settings.dtype))
