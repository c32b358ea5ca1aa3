"""From a recipe and overrides to one checked configuration, and back to a file.

Precedence: defaults < recipe < overrides < the log level of the environment. Everything that can be found
wrong without a model or data is found here, as a one-line `UsageError`.
"""

import math
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from trl.trainer.model_config import ModelConfig

from maxent_grpo.config import plan
from maxent_grpo.config.checkpointing import CheckpointSettings, read_checkpoint_settings
from maxent_grpo.config.conversion import convert, describe, field_types
from maxent_grpo.config.recipe import Layer, read_recipe, route, sectioned, with_vllm_address
from maxent_grpo.config.schema import SECTIONS, GRPOConfig, GRPOScriptArguments
from maxent_grpo.config.shipped import shipped
from maxent_grpo.config.unsupported import REFUSED, refuse_unsupported
from maxent_grpo.config.vllm import server_settings
from maxent_grpo.data.sources import RetryPolicy
from maxent_grpo.errors import UsageError
from maxent_grpo.objectives.catalog import CATALOG, find_objective
from maxent_grpo.rollout.environment import load_environment

Command = Literal["train-baseline", "train-maxent", "train-infoseed"]
ANY_OBJECTIVE = "train"
"""Stands for the one of these commands that the objective is for."""
Route = Literal["native", "trl"]

LOG_LEVEL_VARIABLES = ("MAXENT_LOG_LEVEL", "MAXENT_GRPO_LOGLEVEL")
DEFAULT_PROMPT_CHARS = 2048

RETRY_VARIABLES = {
    "retries": "MAXENT_HF_DATASET_RETRIES",
    "sleep": "MAXENT_HF_DATASET_RETRY_SLEEP",
    "max_sleep": "MAXENT_HF_DATASET_RETRY_MAX_SLEEP",
}
"""`RetryPolicy` field → environment variable."""

SECRET = re.compile(r"(^|_)(token|api_key|password|secret)$")
DERIVED = frozenset({"generation_batch_size", "local_rank"})
"""Settings that construction computes from others; written back they would contradict them."""

SHARED_WITH_GRPO = frozenset({"maxent_reference_logprobs_source"})
"""``maxent_*`` settings that a paired GRPO recipe may set: they say how the reference is scored."""


@dataclass(frozen=True)
class RunConfig:
    """All that a run is told, checked."""

    command: Command
    route: Route  # who trains: this package's loop or TRL's trainer
    script: GRPOScriptArguments
    training: GRPOConfig
    model: ModelConfig
    recipe_path: Path | None  # absolute
    max_prompt_chars: int = DEFAULT_PROMPT_CHARS  # characters of a user message, from MAX_PROMPT_CHARS
    # Patience with the hub, from MAXENT_HF_DATASET_…
    dataset_retry: RetryPolicy = field(default_factory=RetryPolicy)
    # How checkpoints are written, from MAXENT_…STATE_SAVE and MAXENT_CHECKPOINT_METADATA_…
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)


def resolve(
    command: str,
    recipe: str | Path | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    environ: MutableMapping[str, str] = os.environ,
) -> RunConfig:
    """The checked configuration of a training command.

    Args:
        recipe: YAML file; None: the one that GRPO_RECIPE names, or none at all.
        overrides: settings under ``script``, ``training`` and ``model``, and under ``flat`` those given by
            name alone. A null override leaves the recipe's value.
        environ: read for GRPO_RECIPE, log levels and MAX_PROMPT_CHARS; GRPO_RECIPE_USED is set in it.

    Raises:
        UsageError: one line that names the key, the value and where it came from.
    """
    if command not in (*get_args(Command), ANY_OBJECTIVE):
        raise UsageError(f"Unsupported command: {command}")
    path = _recipe_path(recipe, environ)
    place = f"{command} | {path}" if path else command
    layer: Layer = {section: {} for section in SECTIONS}
    if path is not None:
        layer, recorded = read_recipe(path, place)
        if recorded not in (None, command) and command != ANY_OBJECTIVE:
            raise UsageError(f"{place}: was resolved for {recorded}; run it with that command")
        layer = _converted(layer, f"Recipe {path} failed validation")
        environ["GRPO_RECIPE_USED"] = str(path.resolve())
    merged = _merged(
        layer, _converted(_override_layer(overrides or {}, f"{place}: override"), f"{place}: override")
    )
    level = _log_level(environ)
    if level is not None:
        merged["training"]["log_level"] = level
    merged["training"] = with_vllm_address(merged["training"])
    if command == ANY_OBJECTIVE:
        command = command_of(merged["training"])
    _settle_command(command, merged, place)
    failed = f"Recipe {path} failed validation" if path else f"{command}: settings failed validation"
    try:
        return _checked_config(command, merged, path, environ)
    except UsageError as error:
        raise UsageError(f"{failed}: {error}") from error


def _recipe_path(recipe: str | Path | None, environ: Mapping[str, str]) -> Path | None:
    named = recipe or environ.get("GRPO_RECIPE")
    return shipped(named) if named else None


def _override_layer(overrides: Mapping[str, Mapping[str, Any]], source: str) -> Layer:
    """Overrides by section, those given by name alone on top."""
    given = {
        section: {key: value for key, value in (settings or {}).items() if value is not None}
        for section, settings in overrides.items()
    }
    flat = route(given.pop("flat", {}), source)
    unknown = given.keys() - SECTIONS.keys()
    if unknown:
        raise UsageError(f"{source}: unknown section {min(unknown)!r}; sections: {', '.join(SECTIONS)}")
    return _merged(sectioned(given, source), flat)


def _merged(low: Layer, high: Layer) -> Layer:
    return {section: _merged_settings(low[section], high[section]) for section in SECTIONS}


def _merged_settings(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """``high`` on top of ``low``; a mapping inside both is merged key by key."""
    merged = dict(low)
    for key, value in high.items():
        inner = merged.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged_settings(inner, value) if both else value  # type: ignore[arg-type]
    return merged


def _converted(layer: Layer, failed: str) -> Layer:
    """The layer with every value as its field declares it. Raises `UsageError` with all that do not fit."""
    converted: Layer = {section: {} for section in SECTIONS}
    problems = []
    for section, settings in layer.items():
        cls = SECTIONS[section]
        types = field_types(cls)
        choices = {f.name: f.metadata["choices"] for f in fields(cls) if "choices" in f.metadata}
        for key, value in settings.items():
            try:
                converted[section][key] = convert(value, types[key])
            except ValueError:
                problems.append(_type_problem(key, value, describe(types[key])))
                continue
            if value is not None and key in choices and converted[section][key] not in choices[key]:
                problems.append(_type_problem(key, value, f"one of {', '.join(choices[key])}"))
    if problems:
        raise UsageError(f"{failed}: {'; '.join(problems)}")
    return converted


def _type_problem(key: str, value: Any, expected: str) -> str:
    hint = ""
    if isinstance(value, bool) and "true" not in expected:
        hint = " (YAML reads a bare yes, no, on or off as true or false: quote it)"
    return f"{key}: {value!r} is not {expected}{hint}"


def _log_level(environ: Mapping[str, str]) -> str | None:
    """The level that the environment asks for; it wins over every setting."""
    for variable in LOG_LEVEL_VARIABLES:
        if environ.get(variable):
            level = environ[variable].lower()
            choices = next(f.metadata["choices"] for f in fields(GRPOConfig) if f.name == "log_level")
            if level not in choices:
                raise UsageError(f"{variable}: {environ[variable]!r} is not one of {', '.join(choices)}")
            return level
    return None


def command_of(training: Mapping[str, Any]) -> Command:
    """The command that trains the objective of these settings."""
    if training.get("info_seed_enabled"):
        return "train-infoseed"
    objective, train_grpo = training.get("objective") or "", training.get("train_grpo_objective")
    if train_grpo is None and (objective in CATALOG or ":" in objective):
        train_grpo = not find_objective(objective).has_weights
    return "train-maxent" if train_grpo is False else "train-baseline"


def _settle_command(command: str, merged: Layer, place: str) -> None:
    """Fill ``train_grpo_objective`` as the command implies; refuse settings that contradict the command."""
    training = merged["training"]
    train_grpo, objective = training.get("train_grpo_objective"), training.get("objective") or ""
    seeded = training.get("info_seed_enabled", False)
    if command == "train-infoseed" and not seeded:
        raise UsageError(f"{place}: train-infoseed requires info_seed_enabled=true")
    if command != "train-infoseed" and seeded:
        raise UsageError(f"{place}: InfoSeed is not supported for this command; use train-infoseed")
    if not seeded:
        _refuse_set(training, "info_seed_", "InfoSeed", "info_seed_enabled=true", place)
    named = objective in CATALOG or ":" in objective
    if named and train_grpo is None:
        train_grpo = not find_objective(objective).has_weights
    elif train_grpo is None:
        train_grpo = command != "train-maxent"
    if command != "train-maxent" and not train_grpo:
        asked = f"objective={objective}" if named else "train_grpo_objective=false"
        raise UsageError(f"{place}: {asked} trains a MaxEnt objective; use train-maxent")
    if train_grpo:
        _refuse_set(training, "maxent_", "MaxEnt", "train_grpo_objective=false", place)
    training["train_grpo_objective"] = train_grpo


def _refuse_set(training: Mapping[str, Any], prefix: str, family: str, remedy: str, place: str) -> None:
    """Refuse settings of a family that the run does not train, where they differ from their defaults."""
    defaults = {f.name: f.default for f in fields(GRPOConfig)}
    names = sorted(
        key
        for key, value in training.items()
        if key.startswith(prefix) and key not in SHARED_WITH_GRPO and value != defaults[key]
    )
    if names:
        raise UsageError(f"{place}: {family} overrides ({', '.join(names)}) require {remedy}")


def _checked_config(command: str, merged: Layer, path: Path | None, environ: Mapping[str, str]) -> RunConfig:
    training = GRPOConfig(**merged["training"])
    script = GRPOScriptArguments(**merged["script"])
    try:
        model = ModelConfig(**merged["model"])
    except ValueError as error:
        raise UsageError(f"model: {error}") from error
    if model.model_name_or_path is None:
        raise UsageError(
            "model_name_or_path: no model is named; give a hub id, a directory, or bundled:tiny-policy"
        )
    if merged["training"].get("output_dir") is None:
        raise UsageError("output_dir: no output directory is named; set output_dir")
    weights = training.reward_weights
    if weights is not None and len(weights) != len(script.reward_funcs):
        raise UsageError(
            f"reward_weights: {len(weights)} weights for {len(script.reward_funcs)} reward functions; "
            "give one each"
        )
    chosen = route_of(command, training)
    if chosen != "native" and (script.eval_reward_funcs or script.eval_reward_weights):
        raise UsageError(
            "eval_reward_funcs: TRL's trainer evaluates with reward_funcs; set force_custom_loop=true"
        )
    refuse_unsupported(training, chosen)
    if training.environment is not None:
        load_environment(training.environment)
    if chosen == "native":
        plan.batch_plan(training, training.world_size)
        plan.objective_spec(training)
        plan.controller_settings(training, total_steps=max(1, training.max_steps))
        if training.use_vllm and training.vllm_mode == "server":
            server_settings(training, ranks=training.world_size, rank=training.process_index, environ=environ)
    recipe_path = path.resolve() if path else None
    return run_config(command, chosen, script, training, model, recipe_path, environ)  # type: ignore[arg-type]


def run_config(
    command: Command,
    route: Route,
    script: GRPOScriptArguments,
    training: GRPOConfig,
    model: ModelConfig,
    recipe_path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> RunConfig:
    """The configuration with what the environment says beside its settings. Raises `UsageError` for a bad variable."""
    return RunConfig(
        command=command,
        route=route,
        script=script,
        training=training,
        model=model,
        recipe_path=recipe_path,
        max_prompt_chars=_prompt_chars(environ),
        dataset_retry=_retry_policy(environ),
        checkpoints=read_checkpoint_settings(environ),
    )


def _retry_policy(environ: Mapping[str, str]) -> RetryPolicy:
    """How often and how patiently a hub dataset is tried again."""
    numbers: dict[str, float] = {}
    for field_name, variable in RETRY_VARIABLES.items():
        text = environ.get(variable)
        if text:
            try:
                numbers[field_name] = float(text)
            except ValueError:
                raise UsageError(f"{variable}: {text!r} is not a number") from None
            if not 0 <= numbers[field_name] < math.inf:
                raise UsageError(f"{variable}: {text} is not a finite number of at least 0")
    retries = int(numbers.pop("retries", RetryPolicy().retries))
    return RetryPolicy(retries=retries, **numbers)


def _prompt_chars(environ: Mapping[str, str]) -> int:
    text = environ.get("MAX_PROMPT_CHARS") or str(DEFAULT_PROMPT_CHARS)
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"MAX_PROMPT_CHARS: {text!r} is not a positive integer")
    return int(text)


def route_of(command: str, training: GRPOConfig) -> Route:
    """Who trains. TRL's trainer takes GRPO objectives that nothing sends through this package's loop."""
    if command == "train-infoseed" or training.force_custom_loop or training.controller_meta_enabled:
        return "native"
    if training.driver != "inline":
        return "native"
    return "trl" if training.train_grpo_objective else "native"


def resolved(config: RunConfig) -> dict[str, Any]:
    """Every setting of the run as plain values, without secrets; `resolve` makes the same run of it."""
    left_out = DERIVED | (REFUSED.keys() if config.route == "native" else frozenset())
    sections: dict[str, Any] = {"script": config.script, "training": config.training, "model": config.model}
    tree: dict[str, Any] = {"command": config.command}
    for section, settings in sections.items():
        values = {
            f.name: getattr(settings, f.name) for f in fields(settings) if f.init and f.name not in left_out
        }
        tree[section] = _plain(values)
    return tree


def write_resolved(config: RunConfig, path: Path) -> None:
    """Write `resolved_text` to ``path``."""
    path.write_text(resolved_text(config), encoding="utf-8")


def resolved_text(config: RunConfig) -> str:
    """`resolved` as YAML, the recipe's path in a comment above it."""
    header = f"# Resolved from {config.recipe_path or 'overrides alone'}; a recipe itself.\n"
    return header + yaml.safe_dump(resolved(config), sort_keys=False, allow_unicode=True, width=110)


def _plain(value: Any) -> Any:
    """``value`` in terms of YAML; secrets in mappings are left out."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items() if not SECRET.search(str(key))}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return _plain(value.to_dict())  # Accelerate's configuration objects
