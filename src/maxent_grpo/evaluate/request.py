"""From the ``inference`` section of a command line or a preset file to a checked `EvaluationRequest`."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from maxent_grpo.config.conversion import convert, field_types
from maxent_grpo.errors import UsageError, did_you_mean
from maxent_grpo.evaluate.settings import ArtifactSettings, EvaluationRequest, InferenceModelSpec

_TYPES: dict[str, Any] = {
    "models": list[Any] | str | dict,
    "dataset": str,
    "eval": dict,
    "seeds": list[int] | int,
    "num_generations": int,
    "temperature": list[float] | float,
    "temperatures": list[float] | float,
    "ks": list[int] | int | None,
    "limit": int | None,
    "collect_generations": bool,
    "artifacts": dict,
}
"""Key of the section → what it may hold. ``temperature`` and ``temperatures`` are one setting."""

_TUPLES = {"stop_sequences": list[str] | str}
_GONE = {
    "system_prompt_answer": "completions are sampled in one piece, with system_prompt",
}


def read_request(section: Mapping[str, Any]) -> EvaluationRequest:
    """The request in ``section``, checked.

    A model is a mapping of `InferenceModelSpec` fields, or its name alone; one model, seed or temperature needs no
    list.

    Raises:
        UsageError: an unknown key, a value of the wrong type, or a request that cannot be carried out.
    """
    given = {key: _converted(f"inference.{key}", key, value, _TYPES) for key, value in section.items()}
    if "temperature" in given and "temperatures" in given:
        raise UsageError("inference.temperature and inference.temperatures are both given: keep one")
    if "temperature" in given:
        given["temperatures"] = given.pop("temperature")
    for key in ("seeds", "temperatures", "ks"):
        if given.get(key) is not None:
            given[key] = tuple(given[key]) if isinstance(given[key], list) else (given[key],)
    models = given.pop("models", [])
    listed = models if isinstance(models, list) else [models]
    if "artifacts" in given:
        given["artifacts"] = _read(ArtifactSettings, given["artifacts"], "inference.artifacts")
    request = EvaluationRequest(
        models=tuple(read_model(model, f"inference.models[{i}]") for i, model in enumerate(listed)), **given
    )
    request.check()
    return request


def read_model(model: Any, where: str) -> InferenceModelSpec:
    """A model spec from a mapping of its fields or from a bare name. Raises `UsageError`."""
    settings = {"model_name_or_path": model} if isinstance(model, str) else model
    if not isinstance(settings, Mapping):
        raise UsageError(
            f"{where}={model}: a model is its name, or a mapping such as {{model_name_or_path: NAME}}"
        )
    if "model_name_or_path" not in settings:
        raise UsageError(f"{where}: model_name_or_path is missing")
    for key, reason in _GONE.items():
        if key in settings:
            raise UsageError(f"{where}.{key} is not read: {reason}; remove it")
    spec: InferenceModelSpec = _read(InferenceModelSpec, settings, where)
    return spec


def _read(cls: Any, settings: Mapping[str, Any], where: str) -> Any:
    types = {name: _TUPLES.get(name, kind) for name, kind in field_types(cls).items()}
    types = {field.name: types[field.name] for field in fields(cls)}
    # Mapping[str, Any] is declared for readers; YAML brings dictionaries.
    types = {
        name: dict if getattr(kind, "__origin__", None) is Mapping else kind for name, kind in types.items()
    }
    values = {key: _converted(f"{where}.{key}", str(key), value, types) for key, value in settings.items()}
    for name in _TUPLES.keys() & values.keys():
        values[name] = tuple(values[name]) if isinstance(values[name], list) else (values[name],)
    return cls(**values)


def _converted(where: str, key: str, value: Any, types: Mapping[str, Any]) -> Any:
    if key not in types:
        raise UsageError(f"{where}: unknown{did_you_mean(key, types)}; it takes {', '.join(types)}")
    try:
        return convert(value, types[key])
    except ValueError as error:
        raise UsageError(f"{where}={value}: {error}") from error
