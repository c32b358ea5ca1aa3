"""The root tree of a command, checked: which command, which recipe, which overrides; then as a configuration.

The tree: ``command``; ``dry_run``; one section per training command (``baseline``, ``maxent``,
``infoseed``), each with ``recipe``, ``script``, ``training`` and ``model``; the last three also bare, for
the section of the running command, as is ``recipe`` for ``train``, which has no section; any setting by its name
alone, as in a recipe; the names of TorchRL's scripts (`config.torchrl_names`); ``run`` for report, ``demo.*`` for demo,
``model=NAME`` for fetch-model,
``inference.*`` for an evaluation, ``study.*`` for study and ``generate.args.*`` for generate. A key that the command
would not read is refused.
"""

import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxent_grpo.cli.compose import TRAIN, Composed
from maxent_grpo.config import torchrl_names
from maxent_grpo.config.shipped import shipped
from maxent_grpo.config.torchrl_names import Claim, translated
from maxent_grpo.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from maxent_grpo.config.loading import RunConfig

SECTIONS = {"train-baseline": "baseline", "train-maxent": "maxent", "train-infoseed": "infoseed"}
"""Training command → its section of the tree."""

EVALUATIONS = ("math-eval", "inference", "math_eval")
"""Three names of one command."""

GROUPS = ("script", "training", "model")
_READ_BY = {
    "run": ("report",),
    "demo": ("demo", "demo-llm"),
    "inference": EVALUATIONS,
    "study": ("study",),
    "generate": ("generate",),
    "model": ("fetch-model",),
}
"""Key → the commands that read it, and no other key; ``model`` is a group of settings to the others."""

_PLAIN = {"run": "the run directory: run=DIR", "model": "the name of a model: model=smollm2-135m-instruct"}
"""Keys of these whose value is a text → what it is."""

COMMANDS = (*SECTIONS, TRAIN, *EVALUATIONS, "generate", "report", "demo", "demo-llm", "study", "fetch-model")
TEMPLATES = {
    command: f"configs/recipes/Qwen2.5-1.5B-Instruct/{folder}/config_math.yaml"
    for command, folder in zip(SECTIONS, ("grpo", "maxent-grpo", "infoseed"), strict=True)
}
"""Command → the recipe that it starts from when neither a recipe nor a model is named."""


@dataclass(frozen=True)
class Request:
    """The work of one job."""

    command: str
    section: Mapping[str, Any] = field(default_factory=dict)
    """Settings of a command that does not train: ``run`` of report, those under ``demo``, ``generate.args`` …"""
    recipe: str | None = None
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Group, or "flat" → name → value."""
    dialect: Mapping[str, Any] = field(default_factory=dict)
    """Settings by TorchRL's names, dotted."""
    dry_run: bool = False


def read_request(composed: Composed, default_command: str | None) -> Request:
    """Check a composed tree.

    Args:
        default_command: the command of a wrapper script, used where the tree names none.

    Raises:
        UsageError: for a missing or unknown command, a key that nothing reads, or a setting given twice.
    """
    tree, command = composed.tree, _command(composed, default_command)
    key = next((key for key, commands in _READ_BY.items() if command in commands), None)
    if key is None:
        return _training_request(composed, command)
    unread = sorted(tree.keys() - {"command", key})
    if unread:
        wanted = _PLAIN.get(key, f"{key}.KEY=VALUE")
        raise UsageError(f"{unread[0]} is not read by {command}, which takes {wanted}")
    if key in _PLAIN:
        if not isinstance(tree.get(key), str):
            raise UsageError(f"{command} needs {_PLAIN[key]}")
        return Request(command, {key: tree[key]})
    section = _mapping(tree.get(key), key)
    if key == "generate":
        for other in section.keys() - {"args"}:
            raise UsageError(f"generate.{other}: unknown key; write generate.args.{other}")
        section = _mapping(section.get("args"), "generate.args")
    return Request(command, section)


def _training_request(composed: Composed, command: str) -> Request:
    tree, translatable = torchrl_names.split(composed.tree)
    for key, commands in _READ_BY.items():
        if key in tree and key not in GROUPS:
            raise UsageError(f"{key} is not read by {command}; it belongs to command={commands[0]}")
    _refuse_other_sections(composed, command)
    if command == TRAIN:
        name, section = TRAIN, {"recipe": tree.pop("recipe", None)}
    else:
        name = SECTIONS[command]
        section = _mapping(tree.get(name), name)
    for key in section:
        if key not in ("recipe", *GROUPS):
            raise UsageError(
                f"{name}.{key}: unknown key{did_you_mean(key, ('recipe', *GROUPS))}; write {name}.training.KEY"
            )
    dry_run, recipe = tree.get("dry_run", False), section.get("recipe")
    if not isinstance(dry_run, bool):
        raise UsageError(f"dry_run={dry_run}: true or false")
    if recipe is not None and not isinstance(recipe, str):
        raise UsageError(f"{name}.recipe={recipe}: a path is needed")
    overrides = _overrides(composed, tree, name, section)
    return Request(command, {}, recipe, overrides, translatable, dry_run)


def _command(composed: Composed, default_command: str | None) -> str:
    named = composed.tree.get("command")
    command = named if named is not None else default_command
    if command is None:
        raise UsageError(f"no command: add command=… with one of {', '.join(COMMANDS)} (see --help)")
    if command not in COMMANDS:
        near = did_you_mean(str(command), COMMANDS)
        raise UsageError(f"Unsupported command: {command}{near}; commands: {', '.join(COMMANDS)}")
    if default_command not in (None, command) and "command" not in composed.given:
        raise UsageError(
            f"the preset is for {command} and this script runs {default_command}: "
            f"use maxent-grpo, or add command={command}"
        )
    return str(command)


def _overrides(
    composed: Composed, tree: Mapping[str, Any], name: str, section: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """``SECTION.GROUP.KEY`` under ``GROUP.KEY`` under ``KEY``; hiding a typed one is an error."""
    known = {"command", "dry_run", *_READ_BY, *SECTIONS.values(), *GROUPS}
    flat = {key: value for key, value in tree.items() if key not in known}
    merged: dict[str, dict[str, Any]] = {"flat": flat}
    for group in GROUPS:
        specific = _mapping(section.get(group), f"{name}.{group}")
        bare = _mapping(tree.get(group), group)
        _refuse_hidden(composed, f"{name}.{group}", specific, group, bare)
        merged[group] = {**specific, **bare}
        for spelling, low in ((f"{name}.{group}", specific), (group, bare)):
            _refuse_hidden(composed, spelling, low, "", flat)
    return merged


def _refuse_hidden(
    composed: Composed, low_name: str, low: Mapping[str, Any], high_name: str, high: Mapping[str, Any]
) -> None:
    for key in sorted(low.keys() & high.keys()):
        typed = f"{low_name}.{key}"
        if low[key] != high[key] and typed in composed.given:
            other = f"{high_name}.{key}" if high_name else key
            raise UsageError(f"{typed} and {other} are both given, with different values: keep one")


def _refuse_other_sections(composed: Composed, command: str) -> None:
    """Typed settings of another command's section would be ignored. In a sweep over commands they are not."""
    if "command" in composed.swept:
        return
    own = SECTIONS.get(command)
    for key in sorted(composed.given):
        section, _, rest = key.partition(".")
        if section in SECTIONS.values() and section != own:
            meant = rest if own is None else f"{own}.{rest}"
            raise UsageError(
                f"{key} is not read by {command}; write {meant}"
                if rest
                else f"{key}: write {own or 'KEY=VALUE'}"
            )


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{name}={value}: settings are needed ({name}.KEY=VALUE)")
    return dict(value)


def resolve_job(request: Request, composed: Composed, environ: MutableMapping[str, str]) -> "RunConfig":
    """The typed configuration of one job. In a sweep each gets its own ``output_dir``, unless that varies."""
    from maxent_grpo.config.loading import resolve

    recipe = request.recipe or environ.get("GRPO_RECIPE") or template_of(request)
    request = with_own_names(request, composed)
    if request.command == TRAIN and recipe is None:
        request = with_output_dir(request, composed, environ)
        return resolve(request.command, recipe, request.overrides, environ)
    config = resolve(request.command, recipe, request.overrides, environ)
    if not composed.is_sweep or any(key.rpartition(".")[2] == "output_dir" for key in composed.swept):
        return config
    directory = str(Path(str(config.training.output_dir)) / composed.name)
    # A setting given by name alone wins over its other spellings.
    flat = {**request.overrides["flat"], "output_dir": directory}
    return resolve(request.command, recipe, {**request.overrides, "flat": flat}, environ)


def with_own_names(request: Request, composed: Composed) -> Request:
    """The request with the names of TorchRL's scripts translated, as settings given by name alone."""
    from maxent_grpo.config.records import ALIASES

    if not request.dialect:
        return request
    own: dict[str, Claim] = {}
    section = SECTIONS.get(request.command)
    for group in (*GROUPS, "flat"):  # the last one wins
        for key, value in request.overrides[group].items():
            written = key if group == "flat" else f"{group}.{key}"
            typed = not composed.given.isdisjoint({written, f"{section}.{written}"})
            if value is not None or typed:
                own[ALIASES.get(key, key)] = Claim(written, value, typed, value)
    settled = translated(request.dialect, own, composed.given)
    kept = {
        group: {key: value for key, value in settings.items() if ALIASES.get(key, key) not in settled}
        for group, settings in request.overrides.items()
    }
    return replace(request, overrides={**kept, "flat": kept["flat"] | settled}, dialect={})


def with_output_dir(request: Request, composed: Composed, environ: Mapping[str, str]) -> Request:
    """The request with the directory of its own that a run has where none is named.

    ``outputs/<date>/<time>``; in a sweep ``<the sweep's directory>/<what varies>``, or where one directory is named
    for all jobs, ``<that>/<what varies>``.
    """
    flat = request.overrides["flat"]
    named = {**request.overrides["training"], **flat}.get("output_dir")
    varies = any(key.rpartition(".")[2] == "output_dir" for key in composed.swept)
    if composed.is_sweep and not varies:
        directory = Path(str(named or composed.sweep_dir)) / composed.name
    elif named is not None:
        return request
    elif int(environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("output_dir: each process would name one after its own clock; set output_dir")
    else:
        directory = Path(datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S"))
    overrides = {**request.overrides, "flat": {**flat, "output_dir": str(directory)}}
    return replace(request, overrides=overrides)


def template_of(request: Request) -> str | None:
    """The recipe that a command starts from when nothing names a recipe or a model: the 1.5B mathematics recipe.

    None where a model is named (then the overrides are the whole configuration).
    """
    named = {key for settings in request.overrides.values() for key in settings}
    if request.command == TRAIN or "model_name_or_path" in named or "model.name" in request.dialect:
        return None
    template = shipped(TEMPLATES[request.command]).absolute()
    print(f"no recipe and no model is named: starting from {template}", file=sys.stderr, flush=True)
    return str(template)
