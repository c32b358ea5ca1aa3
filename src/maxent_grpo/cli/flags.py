"""TRL's way of starting a run: ``python -m maxent_grpo.grpo --config FILE --flag value``.

``TrlParser`` itself turns the recipe into argument defaults, after which nobody can tell a flag from a
default, and checks values by its own rules. Here ``--config`` is read as every other recipe is, and the
remaining flags become explicit overrides on top of it, in the spelling that ``TrlParser`` takes: ``--flag
value``, ``--flag=value``, dashes for underscores, ``--flag`` and ``--no_flag`` for true and false, several
values for a list, JSON for a mapping.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from maxent_grpo.cli.boundary import INTERRUPTED, Place, exit_code_of
from maxent_grpo.errors import UsageError

_HELP = """\
usage: python -m maxent_grpo.{module} --config FILE [--flag value ...] [--dry_run]

Runs {command} with a recipe and TRL-style flags: --learning_rate 1e-6, --bf16, --bf16=false, --no_bf16,
--reward_funcs a b, --lr_scheduler_kwargs '{{"a": 1}}'. A flag wins over the recipe. Without --config the
recipe is the file that GRPO_RECIPE names, if it is set; flags count all the same. --dry_run prints settings
and plan.

maxent-grpo --help lists the settings, the environment variables and the exit codes.
"""
_MODULES = {"train-baseline": "grpo", "train-maxent": "maxent_grpo", "train-infoseed": "infoseed"}


@dataclass(frozen=True)
class Flags:
    """A parsed command line, values still words."""

    config: str | None
    settings: Mapping[str, tuple[str, ...]]
    dry_run: bool = False


def run_flags(command: str, argv: Sequence[str] | None = None) -> int:
    """Run a training command from TRL-style flags (``argv``, or the process's); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        print(_HELP.format(command=command, module=_MODULES[command]))
        return 0
    place = Place(command)
    try:
        return exit_code_of(lambda: _start(command, arguments, place), place)
    except KeyboardInterrupt:
        print(place.line("interrupted"), file=sys.stderr)
        return INTERRUPTED


def _start(command: str, arguments: list[str], place: Place) -> None:
    from maxent_grpo.cli.start import start_training
    from maxent_grpo.config.loading import resolve

    flags = parse_flags(arguments)
    place.recipe = flags.config or os.environ.get("GRPO_RECIPE", "")
    overrides = {"flat": flag_overrides(flags.settings)}
    start_training(resolve(command, flags.config, overrides, os.environ), dry_run=flags.dry_run)


def parse_flags(arguments: Sequence[str]) -> Flags:
    """Split arguments into flags and their words. The last of several equal flags wins.

    Raises:
        UsageError: for a word that belongs to no flag, or ``--config`` without a file.
    """
    settings: dict[str, tuple[str, ...]] = {}
    name = None
    for token in arguments:
        if token.startswith("--"):
            flag, equals, value = token[2:].partition("=")
            name = flag.replace("-", "_")
            settings[name] = (value,) if equals else ()
        elif name is None:
            raise UsageError(
                f"{token}: settings are flags here (--learning_rate 1e-6); key=value belongs to maxent-grpo"
            )
        else:
            settings[name] += (token,)
    config = settings.pop("config", None)
    if config is not None and len(config) != 1:
        raise UsageError("--config needs one recipe file")
    dry_run = settings.pop("dry_run", ("false",))
    if len(dry_run) > 1 or dry_run not in ((), ("true",), ("false",)):
        raise UsageError("--dry_run is true or false")
    return Flags(config[0] if config else None, settings, dry_run != ("false",))


def flag_overrides(settings: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Setting → value, shaped for its field; names and types are checked where the recipe's are.

    Raises:
        UsageError: for a flag without a value, or several values for what is no list.
    """
    overrides: dict[str, Any] = {}
    for name, words in settings.items():
        positive = name.removeprefix("no_")
        if positive != name and not words and bool in _kinds(positive):
            overrides[positive] = False
        else:
            overrides[name] = _value(name, words)
    return overrides


def _kinds(name: str) -> set[Any]:
    """The types that a setting accepts, ``list[str]`` as ``list``; empty where there is no such setting."""
    from maxent_grpo.config.conversion import field_types
    from maxent_grpo.config.recipe import ALIASES, section_of
    from maxent_grpo.config.schema import SECTIONS

    section = section_of(name)
    if section is None:
        return set()
    annotation = field_types(SECTIONS[section])[ALIASES.get(name, name)]
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return {get_origin(member) or member for member in members}


def _value(name: str, words: tuple[str, ...]) -> Any:
    """``words`` as the field wants them: a bool, a list, a mapping, or the word itself (converted later)."""
    kinds = _kinds(name)
    if not words:
        if kinds and bool not in kinds:
            raise UsageError(f"--{name} needs a value")
        return True
    if len(words) > 1:
        if kinds and list not in kinds:
            raise UsageError(f"--{name} takes one value and got {len(words)}: {' '.join(words)}")
        return list(words)
    word = words[0]
    if word[:1] in "[{" and kinds & {dict, list}:
        return _json(name, word, required=str not in kinds)
    if bool in kinds and word.lower() in ("true", "false"):
        return word.lower() == "true"
    return [word] if list in kinds and str not in kinds else word


def _json(name: str, word: str, *, required: bool) -> Any:
    try:
        return json.loads(word)
    except json.JSONDecodeError as error:
        if required:
            raise UsageError(f"--{name} {word}: not JSON ({error})") from error
        return word
