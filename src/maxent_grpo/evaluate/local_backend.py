"""Answers from a model in this process."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.data.prompts import PromptSettings, build_prompts
from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.backends import FORMAT, messages_of, plain_prompt, plain_template, spells_bos
from maxent_grpo.evaluate.benchmarks import Question
from maxent_grpo.evaluate.records import Samples
from maxent_grpo.evaluate.settings import InferenceModelSpec
from maxent_grpo.models.loading import (
    BESIDE_THE_WEIGHTS,
    ModelSource,
    check_fit,
    load_policy,
    load_tokenizer,
)
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.types import Prompt

DRAWS = "math evaluation"  # the purpose in a sample's key: an evaluation shares no draws with training
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


class LocalBackend(AbstractContextManager["LocalBackend"]):
    """A Transformers model and the package's own sampler; one uniform per token, keyed by the sample.

    A completion is therefore the same whatever the batch size, and whatever was asked before.
    """

    def __init__(self, spec: InferenceModelSpec, system_prompt: str | None) -> None:
        self._spec = spec
        self._system_prompt = system_prompt

    def __exit__(self, *error: object) -> None:
        """Let go of the model, so that the next one has the memory."""
        for name in ("_sampler", "_model", "_tokenizer"):
            self.__dict__.pop(name, None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """A local model is the SHA-256 of its weights and of the files beside them that shape its answers.

        A hub model is its commit, which is asked for now.

        Raises:
            UsageError: a local directory without weights, or a hub model that is not there.
        """
        spec = self._spec
        location = ModelSource(spec.model_name_or_path, spec.revision).location
        if Path(location).is_dir():
            weights = "sha256:" + directory_digest(Path(location))
        else:
            weights = "commit:" + hub_commit(location, spec.revision, spec.cache_dir)
        shaping: dict[str, Any] = {
            "torch_dtype": spec.torch_dtype,
            "tokenizer_kwargs": spec.tokenizer_kwargs,
        }
        template = plain_template(spec)
        if template is not None and _has_bos(template, self._tokenizer) and self._tokenizer("")["input_ids"]:
            shaping["bos"] = "the template's"  # answers from before had read the tokenizer's as well
        return {
            "model": {"weights": weights, "revision": spec.revision},
            "backend": {"kind": spec.backend, "format": FORMAT} | shaping,
        }

    def sample(
        self, questions: Sequence[Question], *, seed: int, temperature: float, num_generations: int
    ) -> Iterator[Samples]:
        sampler = self._sampler
        settings = sampling_settings(self._spec, temperature, num_generations)
        prompts = prompts_of(questions, self._spec, self._system_prompt, self._tokenizer)
        check_fit(self._model, prompts, settings.max_completion_length, "max_new_tokens")
        for start in range(0, len(prompts), self._spec.batch_size):
            batch = prompts[start : start + self._spec.batch_size]
            for rollout in sampler.sample(batch, settings, (seed, DRAWS), policy_version=0):
                yield Samples(
                    rollout.prompt.index, rollout.prompt.text, rollout.texts, tuple(rollout.finish_reasons)
                )

    @cached_property
    def _sampler(self) -> LocalSampler:
        return LocalSampler(self._model, self._tokenizer)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._source)

    @cached_property
    def _model(self) -> PreTrainedModel:
        model = load_policy(self._source).eval()
        spread = self._spec.device is None and self._spec.device_map == "auto"
        if spread and torch.cuda.device_count() > 1:
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


def prompts_of(
    questions: Sequence[Question],
    spec: InferenceModelSpec,
    system_prompt: str | None,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Prompt]:
    """One prompt per question, in order; ``Prompt.index`` is the question's. Nothing is clipped or left out."""
    template = plain_template(spec)
    if template is not None:
        texts = [(q.index, plain_prompt(q, template)) for q in questions]
        return [Prompt(index, text, plain_ids(text, tokenizer), {}) for index, text in texts]
    settings = PromptSettings(system_prompt=system_prompt, chat_template=spec.chat_template)
    # build_prompts leaves out rows without a gold, which is the grader's business here.
    rows = [{"problem": messages_of(q, None), "answer": "graded elsewhere"} for q in questions]
    prompts = build_prompts(rows, tokenizer, settings)
    return [replace(prompt, index=q.index) for prompt, q in zip(prompts, questions, strict=True)]


def plain_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens of a plain prompt, with those that the tokenizer adds unless the text spells its first one."""
    return tuple(tokenizer(text, add_special_tokens=not _has_bos(text, tokenizer))["input_ids"])


def _has_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.bos_token is not None and spells_bos(text, (str(tokenizer.bos_token),))


def directory_digest(directory: Path) -> str:
    """SHA-256 over the names and contents of a model directory's weights, configuration and tokenizer.

    Raises `UsageError` where there are no weights.
    """
    if not any(any(directory.glob(pattern)) for pattern in _WEIGHTS):
        raise UsageError(
            f"model_name_or_path: {directory} holds no weights ({' or '.join(_WEIGHTS)}): "
            "give the folder of a saved model"
        )
    patterns = (*_WEIGHTS, *BESIDE_THE_WEIGHTS)
    names = sorted({path.name for pattern in patterns for path in directory.glob(pattern)})
    digest = hashlib.sha256()
    for name in names:
        stat = (directory / name).stat()
        digest.update(f"{name}\0{_file_digest(directory / name, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@cache
def _file_digest(path: Path, size: int, modified: int) -> str:
    """Read once per process while ``size`` and ``modified`` (nanoseconds) stay what they are."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def hub_commit(name: str, revision: str | None, cache_dir: str | None) -> str:
    """The commit behind a hub model's revision; from the cache where the hub is switched off."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        found = cached_file(name, "config.json", revision=revision or "main", cache_dir=cache_dir)
    except OSError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"model_name_or_path: cannot find {name!r} ({reason}); check the name and the revision, log in with "
            "HF_TOKEN for a gated model, or give a local directory"
        ) from error
    return extract_commit_hash(found, None) or f"unknown ({revision or 'main'})"
