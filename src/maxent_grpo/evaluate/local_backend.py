"""Answers from a model in this process."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.prompting import prompts_of
from maxent_grpo.evaluate.questions import Question
from maxent_grpo.evaluate.records import Sampled
from maxent_grpo.evaluate.settings import InferenceModelSpec
from maxent_grpo.models.loading import ModelSource, load_policy, load_tokenizer
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import SamplingSettings

DRAWS = "math evaluation"  # the purpose in a sample's key: an evaluation shares no draws with training


class LocalBackend:
    """A Transformers model and the package's own sampler; one uniform per token, keyed by the sample.

    A completion is therefore the same whatever the batch size, and whatever was asked before.
    """

    def __init__(self, spec: InferenceModelSpec, system_prompt: str | None) -> None:
        self._spec = spec
        self._system_prompt = system_prompt

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the model, so that the next one has the memory."""
        for name in ("_model", "_tokenizer"):
            self.__dict__.pop(name, None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def sample(
        self, questions: Sequence[Question], *, seed: int, temperature: float, num_generations: int
    ) -> Iterator[Sampled]:
        sampler = LocalSampler(self._model, self._tokenizer)
        settings = sampling_settings(self._spec, temperature, num_generations)
        prompts = prompts_of(questions, self._spec, self._system_prompt, self._tokenizer)
        for start in range(0, len(prompts), self._spec.batch_size):
            batch = prompts[start : start + self._spec.batch_size]
            for rollout in sampler.sample(batch, settings, (seed, DRAWS), policy_version=0):
                yield Sampled(
                    rollout.prompt.index, rollout.prompt.text, rollout.texts, tuple(rollout.finish_reasons)
                )

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._source)

    @cached_property
    def _model(self) -> PreTrainedModel:
        model = load_policy(self._source).eval()
        spread = (
            self._spec.device is None and self._spec.device_map == "auto" and torch.cuda.device_count() > 1
        )
        if spread:
            from accelerate import dispatch_model, infer_auto_device_map

            blocks = getattr(model, "_no_split_modules", None) or []
            return dispatch_model(model, infer_auto_device_map(model, no_split_module_classes=list(blocks)))
        return model.to(self._device)

    @property
    def _device(self) -> torch.device:
        try:
            return torch.device(self._spec.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except RuntimeError as error:
            raise UsageError(f"device={self._spec.device}: not a device that torch knows") from error

    @cached_property
    def _source(self) -> ModelSource:
        source = ModelSource(
            self._spec.model_name_or_path,
            self._spec.revision,
            trust_remote_code=self._spec.trust_remote_code,
            cache_dir=self._spec.cache_dir,
            tokenizer_kwargs=self._spec.tokenizer_kwargs,
        )
        return replace(source, dtype=self._dtype(source))

    def _dtype(self, source: ModelSource) -> torch.dtype:
        if self._spec.torch_dtype != "auto":
            return getattr(torch, self._spec.torch_dtype)
        if self._device.type == "cpu":
            return torch.float32  # half precision is slow there and saves nothing that is scarce
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(
            source.location,
            revision=source.revision or "main",
            trust_remote_code=source.trust_remote_code,
            cache_dir=source.cache_dir,
        )
        return config.dtype or torch.float32


def sampling_settings(spec: InferenceModelSpec, temperature: float, num_generations: int) -> SamplingSettings:
    """The sampler's settings. Temperature 0 is greedy: the likeliest token alone is kept."""
    extra = dict(spec.generation_kwargs)
    if temperature == 0:
        temperature, extra = 1.0, {"top_k": 1}
    return SamplingSettings(
        num_generations=num_generations,
        max_completion_length=spec.max_new_tokens,
        temperature=temperature,
        top_p=spec.top_p,
        top_k=extra.get("top_k") or 0,
        min_p=extra.get("min_p"),
        stop=spec.stop_sequences,
    )
