"""Reads a recipe, and sorts settings into the three sections: names first, values later.

A recipe is a flat YAML mapping whose keys are routed by name, or a mapping of ``script``, ``training`` and ``model``
(as `resolved_config.yaml` is written). Nothing is ignored in silence: a key that no section takes is an error, unless
it is known to change nothing (`config.reference_keys`) or ``unknown_keys: ignore`` is asked for; both end in a notice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from maxent_grpo.config.records import ALIASES, RECORDS, SECTIONS, section_of
from maxent_grpo.config.reference_keys import instead, without_effect
from maxent_grpo.errors import UsageError, did_you_mean
from maxent_grpo.objectives.catalog import CATALOG, find_objective

Layer = dict[str, dict[str, Any]]
"""Section → key → value, from one source; None unsets the key."""

LOG_LEVELS = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}
"""The numbers of Python's logging."""

OBJECTIVE_NAMES = {"maxent_listwise": "maxent", "maxent_entropy": "grpo"}
"""Names of the reference implementation → those here; its maxent_entropy is GRPO with entropy_coef."""

KIND_WORDS = {"infoseed": "infoseed", "maxent-grpo": "maxent"}
"""Word in a recipe's file name, or name of its folder → what it is for."""


@dataclass
class Unread:
    """Keys of recipes and overrides that have no effect, for one notice."""

    inert: dict[str, str] = field(default_factory=dict)
    """Key → why it changes nothing."""
    ignored: list[str] = field(default_factory=list)
    """Unknown ones, which ``unknown_keys: ignore`` lets pass."""

    def notice(self) -> str:
        """One line; "" where every key has an effect."""
        reasons: dict[str, list[str]] = {}
        for key, reason in self.inert.items():
            reasons.setdefault(reason, []).append(key)
        parts = [f"{', '.join(keys)} ({reason})" for reason, keys in reasons.items()]
        if self.ignored:
            parts.append(f"{', '.join(self.ignored)} (ignored, as unknown_keys says)")
        return f"without effect: {'; '.join(parts)}" if parts else ""


def read_recipe(path: Path, place: str, unread: Unread, *, ignore: bool = False) -> tuple[Layer, str | None]:
    """The settings of the file at ``path``, and the command that it names (a resolved configuration does).

    Args:
        place: in front of an error.
        unread: gets the keys that have no effect.
        ignore: let unknown keys pass, as the recipe itself may say by ``unknown_keys: ignore``.

    Raises:
        UsageError: for a file that is missing, not YAML or not a mapping and for unknown or misplaced keys; and for a
            broken rule of flat recipes.
    """
    tree = _read_yaml(path, place)
    if not tree.keys() & SECTIONS.keys():
        layer = route(tree, place, unread, ignore=ignore)
        problems = flat_problems(layer, path)
        if problems:
            raise UsageError(f"Recipe {path} failed validation: {'; '.join(problems)}")
        return layer, None
    command = tree.pop("command", None)
    for key, value in tree.items():
        if key not in SECTIONS:
            owner = section_of(key) or "one of them"
            raise UsageError(f"{place}: {key} stands beside the sections; move it into {owner}")
        if not isinstance(value, dict):
            raise UsageError(f"{place}: {key} must be a mapping of settings, not {value!r}")
    return sectioned(tree, place, unread, ignore=ignore), command


def _read_yaml(path: Path, place: str) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"{place}: there is no such recipe; give the path of a YAML file")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{place}: not YAML{line} ({error.problem})") from error
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{place}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UsageError(f"{place}: a recipe is a mapping of settings (key: value)")
    return {str(key): value for key, value in tree.items()}


def route(values: Mapping[str, Any], source: str, unread: Unread, *, ignore: bool = False) -> Layer:
    """Settings given by name alone, in their sections. Raises `UsageError` for all names that none knows."""
    strangers = {key: value for key, value in values.items() if section_of(key) is None}
    _pass_over(strangers, source, unread, _known_keys(), ignore or _ignores(values))
    layer: Layer = {section: {} for section in SECTIONS}
    for key, value in values.items():
        if key not in strangers:
            layer[str(section_of(key))][key] = value
    return _canonical(layer, source)


def sectioned(
    values: Mapping[str, Mapping[str, Any]], source: str, unread: Unread, *, ignore: bool = False
) -> Layer:
    """Settings given under their sections. Raises `UsageError` for all unknown keys, or for a misplaced one."""
    layer: Layer = {section: dict(values.get(section) or {}) for section in SECTIONS}
    ignore = ignore or _ignores(layer["training"])
    strangers: dict[str, Any] = {}
    for section, settings in layer.items():
        for key in [key for key in settings if ALIASES.get(key, key) not in RECORDS[section]]:
            owner = section_of(key)
            if owner is not None:
                raise UsageError(f"{source}: {section}.{key} is misplaced; write {owner}.{key}")
            strangers[f"{section}.{key}"] = settings.pop(key)
    _pass_over(strangers, source, unread, _known_keys(), ignore)
    return _canonical(layer, source)


def _ignores(settings: Mapping[str, Any]) -> bool:
    return settings.get("unknown_keys") == "ignore"


def _pass_over(
    strangers: Mapping[str, Any], source: str, unread: Unread, known: Iterable[str], ignore: bool
) -> None:
    """Note keys that no setting takes. Raises `UsageError` with all that are not known to change nothing."""
    unknown = []
    for key, value in strangers.items():
        name = key.rpartition(".")[2]
        reason, remedy = without_effect(name, value), instead(name)
        if reason is not None:
            unread.inert[name] = reason
        elif ignore:
            unread.ignored.append(name)
        else:
            shown = key if "." in key else repr(key)
            near = did_you_mean(name, SECTIONS if isinstance(value, Mapping) else known)
            unknown.append(shown + (f" ({remedy})" if remedy else near))
    if unknown:
        many = "s" if unknown[1:] else ""
        aside = "; unknown_keys=ignore passes them over" if unknown[3:] else ""
        raise UsageError(f"{source}: unknown key{many} {', '.join(unknown)}{aside}")


def _known_keys() -> set[str]:
    return set().union(*RECORDS.values(), ALIASES)


def _canonical(layer: Layer, source: str) -> Layer:
    """The layer with present names only, reward weights under ``training``.

    Raises `UsageError` for a setting that is given under two names with different values.
    """
    weights = layer["script"].pop("reward_weights", [])
    if weights != []:
        if layer["training"].get("reward_weights"):
            raise UsageError(f"{source}: reward_weights is both a script and a training setting; keep one")
        layer["training"]["reward_weights"] = weights
    training = layer["training"]
    for key, names in (("objective", OBJECTIVE_NAMES), ("log_level", LOG_LEVELS)):
        value = training.get(key)
        if isinstance(value, (int, str)) and value in names:
            training[key] = names[value]  # type: ignore[index]
    for settings in layer.values():
        for alias in [key for key in settings if key in ALIASES]:
            name, value = ALIASES[alias], settings.pop(alias)
            if alias == "warmup_ratio" and _number(value) >= 1:
                raise UsageError(
                    f"{source}: warmup_ratio: {value} must be in [0, 1), a share of the run; warmup_steps takes steps"
                )
            known = settings.setdefault(name, value)
            if None not in (known, value) and known != value:
                raise UsageError(
                    f"{source}: {alias} and {name} are the same setting with different values; keep one"
                )
            settings[name] = value if known is None else known
    return layer


def _number(value: Any) -> float:
    """0 for what is no number; its setting says so."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def recipe_kind(layer: Layer, path: Path) -> str:
    """What a flat recipe is for: by the name of its file or the folder that it lies in, else by its flags."""
    training = layer["training"]
    objective = training.get("objective")
    for word, kind in KIND_WORDS.items():
        if word in path.stem.lower() or word == path.absolute().parent.name.lower():
            if kind == "maxent" and objective in CATALOG and not find_objective(str(objective)).is_maxent:
                return "baseline"
            return kind
    if training.get("info_seed_enabled") is True:
        return "infoseed"
    return "maxent" if training.get("train_grpo_objective") is False else "baseline"


def flat_problems(layer: Layer, path: Path) -> list[str]:
    """What a flat recipe lacks: model, data, output directory, and what its kind must say."""
    script, training, model = layer["script"], layer["training"], layer["model"]
    problems = [
        f"{key}: a recipe must set it"
        for key, settings in (("model_name_or_path", model), ("output_dir", training))
        if settings.get(key) is None
    ]
    if script.get("dataset_name") is None and script.get("dataset_mixture") is None:
        problems.append("dataset_name: Either `dataset_name` or `dataset_mixture` must be provided")
    kind = recipe_kind(layer, path)
    if kind == "baseline" and training.get("beta") is None:
        problems.append(
            f"beta: a baseline recipe must set it (or {', '.join(RECORDS['training']['beta'].aliases)}); "
            "0 drops the reference"
        )
    if kind == "maxent":
        named = training.get("objective") in CATALOG
        if training.get("train_grpo_objective") is not False and not named:
            problems.append("train_grpo_objective: a MaxEnt recipe must set it to false")
        if training.get("maxent_tau") is None:
            problems.append("maxent_tau: a MaxEnt recipe must set it")
    if kind == "infoseed" and training.get("info_seed_enabled") is not True:
        problems.append("info_seed_enabled: an InfoSeed recipe must set it to true")
    return problems
