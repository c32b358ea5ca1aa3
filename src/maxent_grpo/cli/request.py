"""The root tree of a command, checked: which command, which recipe, which overrides.

The tree: ``command``; ``dry_run``; one section per training command (``baseline``, ``maxent``,
``infoseed``), each with ``recipe``, ``script``, ``training`` and ``model``; the last three also bare, for
the section of the running command, as is ``recipe`` for ``train``, which has no section; any setting by its name
alone, as in a recipe; the names of TorchRL's scripts (`config.torchrl_names`); ``run`` for report, ``demo.*`` for demo,
``inference.*`` for an evaluation, ``study.*`` for study and ``generate.args.*`` for generate. A key that the command
would not read is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maxent_grpo.cli.arguments import TRAIN
from maxent_grpo.cli.compose import Composed
from maxent_grpo.config import torchrl_names
from maxent_grpo.errors import UsageError, did_you_mean

SECTIONS = {"train-baseline": "baseline", "train-maxent": "maxent", "train-infoseed": "infoseed"}
"""Training command → its section of the tree."""

EVALUATIONS = ("math-eval", "inference", "math_eval")
"""Three names of one command."""

COMMANDS = (*SECTIONS, TRAIN, *EVALUATIONS, "generate", "report", "demo", "study")
GROUPS = ("script", "training", "model")
_OWNERS = {
    "run": "report",
    "demo": "demo",
    "inference": "math-eval",
    "study": "study",
    "generate": "generate",
}
_OTHER_KEYS = ("command", "dry_run", *_OWNERS)


@dataclass(frozen=True)
class Request:
    """What one job is asked to do."""

    command: str
    recipe: str | None = None
    overrides: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # group, or "flat" → name → value
    dialect: Mapping[str, Any] = field(default_factory=dict)  # settings by TorchRL's names, dotted
    dry_run: bool = False
    run: str = ""  # run directory that report reads
    demo: Mapping[str, Any] = field(default_factory=dict)
    inference: Mapping[str, Any] = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)
    generate: Mapping[str, Any] = field(default_factory=dict)  # what stands under generate.args


def read_request(composed: Composed, default_command: str | None) -> Request:
    """Check a composed tree.

    Args:
        default_command: the command of a wrapper script, used where the tree names none.

    Raises:
        UsageError: for a missing or unknown command, a key that nothing reads, or a setting given twice.
    """
    tree = composed.tree
    command = _command(composed, default_command)
    if command == "report":
        _refuse_others(tree, command, {"command", "run"})
        if not isinstance(tree.get("run"), str):
            raise UsageError("report needs the run directory: run=DIR")
        return Request(command, run=tree["run"])
    if command == "demo":
        _refuse_others(tree, command, {"command", "demo"})
        return Request(command, demo=_mapping(tree.get("demo"), "demo"))
    if command in EVALUATIONS:
        _refuse_others(tree, command, {"command", "inference"})
        return Request(command, inference=_mapping(tree.get("inference"), "inference"))
    if command == "study":
        _refuse_others(tree, command, {"command", "study"})
        return Request(command, study=_mapping(tree.get("study"), "study"))
    if command == "generate":
        _refuse_others(tree, command, {"command", "generate"})
        section = _mapping(tree.get("generate"), "generate")
        for key in section.keys() - {"args"}:
            raise UsageError(f"generate.{key}: unknown key; write generate.args.{key}")
        return Request(command, generate=_mapping(section.get("args"), "generate.args"))
    return _training_request(composed, command)


def _training_request(composed: Composed, command: str) -> Request:
    tree, translatable = torchrl_names.split(composed.tree)
    for key, owner in _OWNERS.items():
        if key in tree:
            raise UsageError(f"{key} is not read by {command}; it belongs to command={owner}")
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
    return Request(command, recipe, overrides, translatable, dry_run)


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
    known = {*_OTHER_KEYS, *SECTIONS.values(), *GROUPS}
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


def _refuse_others(tree: Mapping[str, Any], command: str, read: set[str]) -> None:
    unread = sorted(tree.keys() - read)
    if unread:
        wanted = "run=DIR" if "run" in read else f"{(read - {'command'}).pop()}.KEY=VALUE"
        raise UsageError(f"{unread[0]} is not read by {command}, which takes {wanted}")


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{name}={value}: settings are needed ({name}.KEY=VALUE)")
    return dict(value)
