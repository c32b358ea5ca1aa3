"""What an artifact's answers depend on. Answers are reused only where all of it is the same."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.settings import InferenceModelSpec
from maxent_grpo.models.saved_files import BESIDE_THE_WEIGHTS

FORMAT = 1
"""Raise it when equal settings give other answers than before, as a new sampler would."""

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def flatten(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """``{"sampling": {"seed": 0}}`` as ``{"sampling.seed": 0}``, deeper mappings included."""
    flat: dict[str, Any] = {}
    for name, section in sections.items():
        for key, value in section.items():
            if isinstance(value, Mapping):
                flat |= flatten({f"{name}.{key}": value})
            else:
                flat[f"{name}.{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def model_fingerprint(spec: InferenceModelSpec) -> dict[str, Any]:
    """What is being evaluated.

    A local model is the SHA-256 of its weights and of the files beside them that shape its answers; a hub model its
    commit, which is asked for now. What an endpoint serves cannot be seen: there it is the name that is asked for
    and ``revision`` as given.

    Raises:
        UsageError: a local directory without weights, or a hub model that is not there.
    """
    if spec.backend == "openai":
        return {"served_name": spec.model_name_or_path, "revision": spec.revision}
    from maxent_grpo.models.loading import ModelSource  # torch, which an endpoint's evaluation can do without

    location = ModelSource(spec.model_name_or_path, spec.revision).location
    directory = Path(location)
    if directory.is_dir():
        return {"weights": "sha256:" + directory_digest(directory), "revision": spec.revision}
    return {
        "weights": "commit:" + hub_commit(location, spec.revision, spec.cache_dir),
        "revision": spec.revision,
    }


def directory_digest(directory: Path) -> str:
    """SHA-256 over the names and contents of a model directory's weights, configuration and tokenizer.

    Raises `UsageError` where there are no weights.
    """
    if not any(path for pattern in _WEIGHTS for path in directory.glob(pattern)):
        raise UsageError(
            f"model_name_or_path: {directory} holds no weights ({' or '.join(_WEIGHTS)}): "
            "give the folder of a saved model"
        )
    names = sorted(
        {path.name for pattern in (*_WEIGHTS, *BESIDE_THE_WEIGHTS) for path in directory.glob(pattern)}
    )
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


def fingerprint_of(
    spec: InferenceModelSpec,
    model: Mapping[str, Any],
    dataset: Mapping[str, Any],
    prompt: Mapping[str, Any],
    grader: Mapping[str, Any],
    *,
    seed: int,
    temperature: float,
    num_generations: int,
) -> dict[str, Any]:
    """Everything that decides the answers in one artifact file, and their scores."""
    local = {"torch_dtype": spec.torch_dtype, "tokenizer_kwargs": spec.tokenizer_kwargs}
    return flatten(
        {
            "model": model,
            "dataset": dataset,
            "prompt": prompt,
            "sampling": {
                "seed": seed,
                "temperature": temperature,
                "num_generations": num_generations,
                "top_p": spec.top_p,
                "max_new_tokens": spec.max_new_tokens,
                "stop_sequences": spec.stop_sequences,
                **spec.generation_kwargs,
            },
            "grader": grader,
            "backend": {"kind": spec.backend, "format": FORMAT} | (local if spec.backend == "local" else {}),
        }
    )
