"""The ``inference`` section of a command line or a preset file: models, benchmark, sampling, artifacts.

`read_request` makes an `EvaluationRequest` of it, checked before anything is loaded.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from maxent_grpo.config.records import convert, field_types
from maxent_grpo.errors import UsageError, did_you_mean
from maxent_grpo.evaluate.passk import ks_up_to
from maxent_grpo.named import find_named

DEFAULT_SEEDS = (0, 1, 2, 3, 4)
GENERATION_KEYS = ("top_k", "min_p")
"""Keys of ``generation_kwargs``; everything else about sampling has a field of its own."""


@cache
def trained_objective(directory: str) -> str | None:
    """The objective that a run of this package trained the model in ``directory`` with; None for any other model."""
    folder = Path(directory).expanduser()
    for place in (folder, folder.parent):
        path = place / "resolved_config.yaml"
        if path.is_file() and (place == folder or folder.name.startswith("checkpoint-")):
            try:
                objective = yaml.safe_load(path.read_text(encoding="utf-8"))["training"]["objective"]
            except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError):
                return None
            return str(objective) if objective else None
    return None


BACKENDS = {
    "local": "maxent_grpo.evaluate.local_backend:LocalBackend",
    "openai": "maxent_grpo.evaluate.endpoint:EndpointBackend",
}
"""Name → where an `evaluate.backends.Backend` is; another one is named as ``module:NAME``."""


@dataclass(frozen=True)
class InferenceModelSpec:
    """One model to evaluate, and how it is asked. A setting that is None follows the call or the benchmark."""

    model_name_or_path: str
    """Hub id, local directory, ``.gguf`` file, ``bundled:NAME``, or the name that an endpoint serves."""
    label: str | None = None  # how it is called in tables; by default "<name> (<style>)"
    style: str = "grpo"  # how it was trained: a word for tables, where a run's own folder does not say it
    revision: str | None = None  # branch, tag or commit of the hub; for an endpoint a note in the fingerprint
    system_prompt: str | None = None  # None: the benchmark's; "" for none
    system_prompt_file: str | None = None  # the same, read from a file
    chat_template: str | None = None  # Jinja; None: the tokenizer's own, or "ROLE: text" lines
    prompt_template: str | None = None
    """qwen_math, no, r1, or a text with {question}: replaces chat and system prompt."""
    stop_sequences: tuple[str, ...] = ()  # a completion ends with the first of these, and keeps it
    max_new_tokens: int = 768
    temperature: float | None = None  # in place of the call's temperatures; 0 is greedy
    top_p: float = 0.9
    grader_policy: Mapping[str, Any] = field(default_factory=dict)
    """Options of `math_answers.GraderPolicy`, over the benchmark's."""
    batch_size: int = 1  # prompts at a time, each with all its samples
    num_generations: int | None = None  # in place of the call's
    generation_kwargs: Mapping[str, Any] = field(default_factory=dict)  # top_k, min_p
    backend: str = "local"
    """local (in this process), openai (a server with OpenAI's protocol: vLLM and others), or ``module:NAME``."""
    # Local models.
    device: str | None = None  # None: the first accelerator, else the CPU
    device_map: str | None = "auto"
    """auto: over all accelerators where there are several and device is None; null: one."""
    torch_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: as saved; float32 on a CPU."""
    cache_dir: str | None = None  # of downloads
    trust_remote_code: bool = False
    tokenizer_kwargs: Mapping[str, Any] = field(default_factory=dict)
    # Endpoints.
    base_url: str | None = None  # up to and with /v1
    api_key_env: str = "OPENAI_API_KEY"  # environment variable that holds the key, if the server wants one
    concurrency: int = 16  # requests in flight
    request_timeout: float = 600.0  # seconds for one completion, all of it
    max_retries: int = 4  # of one request, after its first attempt

    @property
    def name(self) -> str:
        """The label, or the last part of the model's name with its style."""
        *_, tail = parts = [p for p in re.split(r"[/\\:]+", self.model_name_or_path) if p] or [""]
        if len(parts) > 1 and re.fullmatch(r"checkpoint-\d+", tail):
            tail = "/".join(parts[-2:])
        style = self.style if self.style != "grpo" else trained_objective(self.model_name_or_path) or "grpo"
        return self.label or f"{tail or self.model_name_or_path} ({style})"

    @property
    def folder(self) -> str:
        """The model's part of an artifact's path: ``<parent>-<tail>[--checkpoint-N][--rev-R]--<label or style>``."""
        parts = [
            part for part in re.split(r"[/\\:]+", self.model_name_or_path) if part not in ("", ".", "..", "~")
        ]
        checkpoint = ""
        if len(parts) > 1 and re.fullmatch(r"checkpoint-\d+", parts[-1]):
            checkpoint = f"--{parts.pop()}"
        revision = f"--rev-{self.revision}" if self.revision else ""
        name = f"{'-'.join(parts[-2:])}{checkpoint}{revision}--{self.label or self.style}"
        return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:200]

    def system_prompt_or(self, default: str | None) -> str | None:
        """The spec's own system prompt, its file read, else the benchmark's; None where a plain template rules."""
        if self.prompt_template is not None:
            return None
        own = self.system_prompt
        if self.system_prompt_file is not None:
            own = Path(self.system_prompt_file).expanduser().read_text(encoding="utf-8").strip()
        return default if own is None else own or None

    def check(self, where: str) -> None:
        """Raise `UsageError`, its message starting with ``where``, for a setting that cannot work."""
        system, file, url = self.system_prompt, self.system_prompt_file, self.base_url
        both_templates = self.prompt_template is not None and self.chat_template is not None
        missing_file = file is not None and not Path(file).expanduser().is_file()
        no_url = url is not None and not re.match(r"https?://[^/]", url)
        unread = [key for key in self.generation_kwargs if key not in GENERATION_KEYS]
        problems = {
            "model_name_or_path is empty": not self.model_name_or_path.strip(),
            f"max_new_tokens={self.max_new_tokens}: at least 1": self.max_new_tokens < 1,
            f"batch_size={self.batch_size}: at least 1": self.batch_size < 1,
            f"top_p={self.top_p}: above 0 and at most 1": not 0 < self.top_p <= 1,
            f"concurrency={self.concurrency}: at least 1": self.concurrency < 1,
            f"request_timeout={self.request_timeout}: above 0 seconds": self.request_timeout <= 0,
            f"max_retries={self.max_retries}: 0 or more": self.max_retries < 0,
            "system_prompt and system_prompt_file are both given: keep one": None not in (system, file),
            "prompt_template replaces the chat, so chat_template would not be read: keep one": both_templates,
            "backend=openai needs base_url (http://HOST:PORT/v1)": self.backend == "openai" and not url,
            "base_url is read by backend=openai only": self.backend == "local" and url is not None,
            f"base_url={url}: it starts with http:// or https://": no_url,
            f"generation_kwargs.{', '.join(unread)}: unknown; it takes {', '.join(GENERATION_KEYS)}": unread,
            f"system_prompt_file={file}: there is no such file": missing_file,
        }
        for message, wrong in problems.items():
            if wrong:
                raise UsageError(f"{where}: {message}")
        if self.backend not in BACKENDS:
            find_named(f"{where}: backend", self.backend, BACKENDS, "a class of backends", callable)


@dataclass(frozen=True)
class ArtifactSettings:
    """The place of answers, kept one line per prompt so that a stopped evaluation goes on where it was."""

    enabled: bool = True
    root_dir: str = "var/artifacts/inference"
    resume: bool = True  # false: start the files of this evaluation over
    write_prompts: bool = True  # false: the lines say null


@dataclass(frozen=True)
class EvaluationRequest:
    """One call: every model × temperature × seed on one benchmark."""

    models: tuple[InferenceModelSpec, ...]
    dataset: str = "math_500"
    eval: Mapping[str, Any] = field(default_factory=dict)  # overrides of the benchmark's fields
    seeds: tuple[int, ...] = DEFAULT_SEEDS
    num_generations: int = 8  # samples per prompt and seed
    temperatures: tuple[float, ...] = (0.6,)
    ks: tuple[int, ...] | None = None  # the k to report; None: 1, 2, 4, … and all samples
    limit: int | None = None  # the first prompts only
    collect_generations: bool = False  # return the texts with the results, too
    artifacts: ArtifactSettings = field(default_factory=ArtifactSettings)

    def check(self) -> None:
        """Raise `UsageError` for a request that cannot be carried out."""
        if not self.models:
            raise UsageError(
                "inference.models must contain at least one model spec: "
                "inference.models='[{model_name_or_path: NAME}]', or inference.models=[bundled:tiny-policy] to try it"
            )
        for name, values in (("seeds", self.seeds), ("temperatures", self.temperatures)):
            if not values:
                raise UsageError(f"inference.{name} is empty: give at least one")
            if len(set(values)) < len(values):
                raise UsageError(f"inference.{name}={list(values)}: one is there twice")
        if min(self.seeds) < 0:
            raise UsageError(f"inference.seeds={list(self.seeds)}: 0 or more")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"inference.limit={self.limit}: at least 1, or null for all prompts")
        folders: dict[str, InferenceModelSpec] = {}
        for position, model in enumerate(self.models):
            where = f"inference.models[{position}] ({model.model_name_or_path})"
            model.check(where)
            self._check_sampling(model, where)
            first = folders.setdefault(model.folder, model)
            if first is not model:
                raise UsageError(
                    f"inference.models: {first.model_name_or_path} and {model.model_name_or_path} would "
                    f"both write to {os.path.join(self.artifacts.root_dir, model.folder)}: give each a label"
                )

    def samples_of(self, model: InferenceModelSpec) -> int:
        """Samples per prompt and seed of one model."""
        return self.num_generations if model.num_generations is None else model.num_generations

    def temperatures_of(self, model: InferenceModelSpec) -> tuple[float, ...]:
        """The temperatures that one model is evaluated at."""
        return self.temperatures if model.temperature is None else (model.temperature,)

    def ks_of(self, model: InferenceModelSpec) -> tuple[int, ...]:
        """The k that one model's figures are reported for, ascending."""
        return ks_up_to(self.samples_of(model)) if self.ks is None else tuple(sorted({1, *self.ks}))

    def _check_sampling(self, model: InferenceModelSpec, where: str) -> None:
        samples = self.samples_of(model)
        if samples < 1:
            raise UsageError(f"{where}: num_generations={samples}: at least 1")
        if self.ks is not None and min(self.ks, default=0) < 1:
            raise UsageError(f"inference.ks={list(self.ks)}: whole numbers of at least 1")
        for k in self.ks or ():
            if k > samples:
                raise UsageError(
                    f"{where}: k={k} needs {k} samples per prompt and num_generations is {samples}: "
                    f"set inference.num_generations={k}, or leave {k} out of inference.ks"
                )
        for temperature in self.temperatures_of(model):
            if not (math.isfinite(temperature) and temperature >= 0):
                raise UsageError(f"{where}: temperature={temperature}: a number of at least 0")
            if temperature == 0 and samples > 1:
                raise UsageError(
                    f"{where}: temperature=0 is greedy, so all {samples} samples of a prompt would be the same: "
                    "set inference.num_generations=1 and one seed"
                )


_WRITTEN: Mapping[Any, Any] = {
    tuple[InferenceModelSpec, ...]: list[Any] | str | dict,
    tuple[int, ...]: list[int] | int,
    tuple[int, ...] | None: list[int] | int | None,
    tuple[float, ...]: list[float] | float,
    tuple[str, ...]: list[str] | str,
    Mapping[str, Any]: dict,
    ArtifactSettings: dict,
}
"""A field's type → how it is written, where the two differ: one of several needs no list."""


def read_request(section: Mapping[str, Any]) -> EvaluationRequest:
    """The request in ``section``, checked. A model is a mapping of `InferenceModelSpec` fields, or its name alone.

    Raises:
        UsageError: an unknown key, a value of the wrong type, or a request that cannot be carried out.
    """
    given = read_fields(EvaluationRequest, section, "inference", {"temperature": "temperatures"})
    listed = given.pop("models", ())
    models = tuple(_read_model(model, f"inference.models[{i}]") for i, model in enumerate(listed))
    if "artifacts" in given:
        given["artifacts"] = ArtifactSettings(
            **read_fields(ArtifactSettings, given["artifacts"], "inference.artifacts")
        )
    request = EvaluationRequest(models, **given)
    request.check()
    return request


def _read_model(model: Any, where: str) -> InferenceModelSpec:
    settings = {"model_name_or_path": model} if isinstance(model, str) else model
    if not isinstance(settings, Mapping):
        raise UsageError(
            f"{where}={model}: a model is its name, or a mapping such as {{model_name_or_path: NAME}}"
        )
    if "model_name_or_path" not in settings:
        raise UsageError(f"{where}: model_name_or_path is missing")
    if "system_prompt_answer" in settings:
        raise UsageError(
            f"{where}.system_prompt_answer is not read: completions are sampled in one piece, with system_prompt; "
            "remove it"
        )
    return InferenceModelSpec(**read_fields(InferenceModelSpec, settings, where))


def read_fields(
    cls: type,
    section: Mapping[str, Any],
    where: str,
    aliases: Mapping[str, str] | None = None,
    known: Sequence[str] = (),
) -> dict[str, Any]:
    """The fields of ``cls``, of ``known`` if given, that ``section`` sets, converted; ``aliases`` are further names.

    Raises:
        UsageError: an unknown key, a value of the wrong type, or two names of one field.
    """
    declared, aliases = field_types(cls), aliases or {}
    known = known or [item.name for item in fields(cls)]
    values: dict[str, Any] = {}
    for key, value in section.items():
        name = aliases.get(key, key)
        if name not in known:
            hint = did_you_mean(str(key), [*known, *aliases])
            raise UsageError(f"{where}.{key}: unknown{hint}; it takes {', '.join(known)}")
        if name in values:
            both = [f"{where}.{other}" for other in section if aliases.get(other, other) == name]
            raise UsageError(f"{' and '.join(both)} are both given: keep one")
        kind = declared[name]
        try:
            values[name] = convert(value, _WRITTEN.get(kind, kind))
        except ValueError as error:
            raise UsageError(f"{where}.{key}={value}: {error}") from error
        if "tuple" in str(kind) and values[name] is not None:
            values[name] = tuple(values[name]) if isinstance(values[name], list) else (values[name],)
    return values
