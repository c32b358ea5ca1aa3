"""From a recipe and overrides to one checked configuration, and back to a file.

Null unsets a setting, wherever it is given. Precedence: defaults < recipe < overrides < the environment's log level.
Everything that can be found wrong without a model, data or a device is found here, as a one-line `UsageError`.
"""

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import yaml

from maxent_grpo.config import plan
from maxent_grpo.config.environment import (
    CheckpointSettings,
    checkpoint_settings,
    launched_processes,
    log_level,
    machine_settings,
)
from maxent_grpo.config.recipe import Layer, Unread, read_recipe, route, sectioned
from maxent_grpo.config.records import (
    RECORDS,
    SECTIONS,
    ModelSettings,
    ScriptSettings,
    TrainingSettings,
    admits_null,
    parse,
)
from maxent_grpo.config.rules import reward_weight_problems
from maxent_grpo.config.settle import (
    Route,
    refuse,
    refuse_unsupported,
    settle_light,
    settle_model,
    settle_script,
)
from maxent_grpo.config.shipped import shipped
from maxent_grpo.config.vllm import server_settings
from maxent_grpo.data.sources import RetryPolicy
from maxent_grpo.errors import UsageError
from maxent_grpo.objectives.catalog import CATALOG, find_objective

Command = Literal["train-baseline", "train-maxent", "train-infoseed"]
ANY_OBJECTIVE = "train"
"""Stands for the one of these commands that the objective is for."""

SECRET = re.compile(r"(^|_)(token|api_key|password|secret)$")
DERIVED = frozenset({"generation_batch_size", "local_rank"})
"""Settings that construction computes from others; written back they would contradict them."""

SHARED_WITH_GRPO = frozenset({"maxent_reference_logprobs_source"})
"""``maxent_*`` settings that a paired GRPO recipe may set: they say how the reference is scored."""


@dataclass(frozen=True)
class RunConfig:
    """All that a run is told, checked. Plain and picklable until `built`."""

    command: Command
    route: Route
    """Who trains: this package's loop or TRL's trainer."""
    script: ScriptSettings
    training: TrainingSettings
    model: ModelSettings
    recipe_path: Path | None
    """Absolute."""
    max_prompt_chars: int | None = None
    """Characters kept of a user message, from MAX_PROMPT_CHARS."""
    dataset_retry: RetryPolicy = field(default_factory=RetryPolicy)
    """Patience with the hub, from MAXENT_HF_DATASET_…"""
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    """How checkpoints are written, from MAXENT_…STATE_SAVE and MAXENT_CHECKPOINT_METADATA_…"""
    notice: str = ""
    """Keys that have no effect, for one warning; "" for none."""

    def built(self) -> "RunConfig":
        """With TRL's dataclasses in place of the light ones, and what depends on the device settled.

        Raises `UsageError` where TRL or Transformers refuses a setting.
        """
        from maxent_grpo.config.schema import GRPOConfig, GRPOScriptArguments, ModelConfig

        if not isinstance(self.training, TrainingSettings):
            return self
        training = {name: value for name, value in vars(self.training).items() if name not in DERIVED}
        try:
            sections: dict[str, Any] = {
                "script": GRPOScriptArguments(**vars(self.script)),
                "training": GRPOConfig(**training),
                "model": ModelConfig(**vars(self.model)),
            }
            return replace(self, **sections)
        except UsageError as error:
            source = f"Recipe {self.recipe_path}" if self.recipe_path else f"{self.command}: settings"
            raise UsageError(f"{source} failed validation: {error}") from error


def run_config(
    command: Command,
    route: Route,
    script: Any,
    training: Any,
    model: Any,
    recipe_path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> RunConfig:
    """The configuration of these sections, with the settings of the machine: every way to a run ends here."""
    machine = machine_settings(environ)
    return RunConfig(
        command=command,
        route=route,
        script=script,
        training=training,
        model=model,
        recipe_path=recipe_path,
        max_prompt_chars=machine.max_prompt_chars,
        dataset_retry=RetryPolicy(
            machine.dataset_retries, machine.dataset_retry_sleep, machine.dataset_retry_max_sleep
        ),
        checkpoints=checkpoint_settings(machine),
    )


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
            name alone. A null override unsets what the recipe sets.
        environ: read for GRPO_RECIPE, and for the variables of the records; GRPO_RECIPE_USED is set in it.

    Raises:
        UsageError: one line that names the key, the value and where it came from.
    """
    if command not in (*get_args(Command), ANY_OBJECTIVE):
        raise UsageError(f"Unsupported command: {command}")
    named = recipe or environ.get("GRPO_RECIPE")
    path = shipped(named) if named else None
    place = f"{command} | {path}" if path else command
    layer: Layer = {section: {} for section in SECTIONS}
    unread, source = Unread(), f"{place}: override"
    asked = _override_layer(overrides or {}, source, unread)
    if path is not None:
        ignore = asked["training"].get("unknown_keys") == "ignore"
        layer, recorded = read_recipe(path, place, unread, ignore=ignore)
        if recorded not in (None, command) and command != ANY_OBJECTIVE:
            raise UsageError(f"{place}: was resolved for {recorded}; run it with that command")
        layer = _converted(layer, f"Recipe {path} failed validation")
        environ["GRPO_RECIPE_USED"] = str(path.resolve())
    asked = _converted(asked, source)
    if asked["training"].get("eval_strategy") == "no" and "eval_on_start" not in asked["training"]:
        layer["training"].pop("eval_on_start", None)  # whoever types it wants no evaluation at all
    merged = _given(_merged(layer, asked))
    level = log_level(environ)
    if level is not None:
        merged["training"]["log_level"] = level
    merged["training"] = with_vllm_address(merged["training"])
    if command == ANY_OBJECTIVE:
        command = command_of(merged["training"])
    unread.ignored += _settle_command(command, merged, place)
    try:
        return _checked_config(command, merged, path, unread, environ)
    except UsageError as error:
        failed = f"Recipe {path} failed validation" if path else f"{command}: settings failed validation"
        raise UsageError(f"{failed}: {error}") from error


def _given(layer: Layer) -> Layer:
    """The layer without what null has unset; a setting that knows null keeps it."""
    return {
        section: {
            key: value
            for key, value in settings.items()
            if value is not None or admits_null(RECORDS[section][key])
        }
        for section, settings in layer.items()
    }


def _override_layer(overrides: Mapping[str, Mapping[str, Any]], source: str, unread: Unread) -> Layer:
    """Overrides by section, those given by name alone on top."""
    given = {section: dict(settings or {}) for section, settings in overrides.items()}
    flat = route(given.pop("flat", {}), source, unread)
    unknown = given.keys() - SECTIONS.keys()
    if unknown:
        raise UsageError(f"{source}: unknown section {min(unknown)!r}; sections: {', '.join(SECTIONS)}")
    return _merged(sectioned(given, source, unread), flat)


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
    """The layer with every value as its setting declares it. Raises `UsageError` with all that do not fit."""
    converted: Layer = {section: {} for section in SECTIONS}
    problems = []
    for section, settings in layer.items():
        for key, value in settings.items():
            try:
                converted[section][key] = None if value is None else parse(RECORDS[section][key], value)
            except ValueError as error:
                problems.append(str(error))
    if problems:
        raise UsageError(f"{failed}: {'; '.join(problems)}")
    return converted


def with_vllm_address(training: dict[str, Any]) -> dict[str, Any]:
    """``training`` with the server address that ``vllm_url`` implies, where no other setting gives it.

    Applies with ``use_vllm`` in server mode. A URL without a path gets ``/generate``.
    Raises `UsageError` for what is no URL.
    """
    url = training.get("vllm_url")
    if url is None or not training.get("use_vllm") or training.get("vllm_mode") != "server":
        return training
    parts = urlsplit(url if "//" in str(url) else f"http://{url}")
    if parts.hostname is None:
        raise UsageError(f"vllm_url: {url!r} is no address; write http://host:port/generate")
    base = f"{parts.scheme}://{parts.netloc}"
    implied = {
        "vllm_server_base_url": base,
        "vllm_server_host": parts.hostname,
        "vllm_server_port": parts.port or (443 if parts.scheme == "https" else 80),
    }
    path = parts.path if parts.path not in ("", "/") else "/generate"
    return {**implied, **training, "vllm_url": f"{base}{path}"}


def command_of(training: Mapping[str, Any]) -> Command:
    """The command that trains the objective of these settings."""
    if training.get("info_seed_enabled"):
        return "train-infoseed"
    objective, train_grpo = training.get("objective") or "", training.get("train_grpo_objective")
    if train_grpo is None and (objective in CATALOG or ":" in objective):
        train_grpo = not find_objective(objective).is_maxent
    return "train-maxent" if train_grpo is False else "train-baseline"


def _settle_command(command: str, merged: Layer, place: str) -> list[str]:
    """Fill ``train_grpo_objective`` as the command implies; refuse settings that contradict the command.

    Returns those of another family, which ``unknown_keys: ignore`` takes out instead.
    """
    training = merged["training"]
    train_grpo, objective = training.get("train_grpo_objective"), training.get("objective") or ""
    seeded = training.get("info_seed_enabled", False)
    if command == "train-infoseed" and not seeded:
        raise UsageError(f"{place}: train-infoseed requires info_seed_enabled=true")
    if command != "train-infoseed" and seeded:
        raise UsageError(f"{place}: InfoSeed is not supported for this command; use train-infoseed")
    ignored = []
    if not seeded:
        ignored += _refuse_set(training, "info_seed_", "InfoSeed", "info_seed_enabled=true", place)
    named = objective in CATALOG or ":" in objective
    if named and train_grpo is None:
        train_grpo = not find_objective(objective).is_maxent
    elif train_grpo is None:
        train_grpo = command != "train-maxent"
    if command != "train-maxent" and not train_grpo:
        asked = f"objective={objective}" if named else "train_grpo_objective=false"
        raise UsageError(f"{place}: {asked} trains a MaxEnt objective; use train-maxent")
    if train_grpo:
        ignored += _refuse_set(training, "maxent_", "MaxEnt", "train_grpo_objective=false", place)
    training["train_grpo_objective"] = train_grpo
    return ignored


def _refuse_set(training: dict[str, Any], prefix: str, family: str, remedy: str, place: str) -> list[str]:
    """Refuse settings of a family that the run does not train, where they differ from their defaults.

    With ``unknown_keys: ignore`` they are taken out instead, and returned.
    """
    names = sorted(
        key
        for key, value in training.items()
        if key.startswith(prefix)
        and key not in SHARED_WITH_GRPO
        and value != RECORDS["training"][key].default
    )
    if training.get("unknown_keys") == "ignore":
        for name in names:
            del training[name]
    elif names:
        raise UsageError(f"{place}: {family} overrides ({', '.join(names)}) require {remedy}")
    return names


def _checked_config(
    command: str, merged: Layer, path: Path | None, unread: Unread, environ: Mapping[str, str]
) -> RunConfig:
    training = settle_light(TrainingSettings(**merged["training"]), environ)
    script, model = ScriptSettings(**merged["script"]), ModelSettings(**merged["model"])
    settle_script(script)
    settle_model(model)
    if not (merged["training"].get("output_dir") or "").strip():
        raise UsageError("output_dir: no output directory is named; set output_dir")
    refuse(reward_weight_problems(training.reward_weights, script.reward_funcs))
    chosen = route_of(command, training)
    if chosen != "native" and (script.eval_reward_funcs or script.eval_reward_weights):
        raise UsageError(
            "eval_reward_funcs: TRL's trainer evaluates with reward_funcs; set force_custom_loop=true"
        )
    unread.ignored += refuse_unsupported(training, chosen)
    if training.environment is not None:
        from maxent_grpo.rollout.environment import load_environment

        load_environment(training.environment)
    if chosen == "native":
        ranks = launched_processes(environ)
        plan.batch_plan(training, ranks)
        plan.objective_spec(training)
        plan.controller_settings(training, total_steps=max(1, training.max_steps))
        if training.use_vllm and training.vllm_mode == "server":
            server_settings(training, ranks=ranks, rank=int(environ.get("RANK", "0")), environ=environ)
    recipe_path = path.resolve() if path else None
    config = run_config(command, chosen, script, training, model, recipe_path, environ)  # type: ignore[arg-type]
    return replace(config, notice=unread.notice())


def route_of(command: str, training: TrainingSettings) -> Route:
    """Who trains. TRL's trainer takes GRPO objectives that nothing sends through this package's loop."""
    if command == "train-infoseed" or training.force_custom_loop or training.controller_meta_enabled:
        return "native"
    if training.driver != "inline":
        return "native"
    return "trl" if training.train_grpo_objective else "native"


def resolved(config: RunConfig) -> dict[str, Any]:
    """Every setting of the run as plain values, without secrets; `resolve` makes the same run of it."""
    refused = {record.name for record in RECORDS["training"].values() if record.route == "trl"}
    left_out = DERIVED | (refused if config.route == "native" else frozenset())
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
