"""Dashed flags, as TRL and ``python -m maxent_grpo.generate`` take them.

``TrlParser`` itself turns the recipe into argument defaults, after which nobody can tell a flag from a
default, and checks values by its own rules. Here ``--config`` is read as every other recipe is, and the
remaining flags become explicit overrides on top of it, in the spelling that ``TrlParser`` takes: ``--flag
value``, ``--flag=value``, dashes for underscores, ``--flag`` and ``--no_flag`` for true and false, several
values for a list, JSON for a mapping.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, Union, get_args, get_origin

from maxent_grpo.errors import UsageError

Words = Mapping[str, tuple[str, ...]]
"""Flag, with underscores and without its dashes → the words that follow it."""

_HELP = """\
usage: python -m maxent_grpo.{module} --config FILE [--flag value ...] [--dry_run]

Runs {command} with a recipe and TRL-style flags: --learning_rate 1e-6, --bf16, --bf16=false, --no_bf16,
--reward_funcs a b, --lr_scheduler_kwargs '{{"a": 1}}'. A flag wins over the recipe. Without --config the
recipe is the file that GRPO_RECIPE names, if it is set; flags count all the same. --dry_run prints settings
and plan.

maxent-grpo --help lists the settings, the environment variables and the exit codes.
"""
_MODULES = {"train-baseline": "grpo", "train-maxent": "maxent_grpo", "train-infoseed": "infoseed"}

_GENERATION_HELP = """\
usage: python -m maxent_grpo.generate --hf-dataset NAME --model NAME [--flag value ...]
       maxent-grpo-generate generate.args.hf_dataset=NAME generate.args.model=NAME [generate.args.KEY=VALUE ...]

Completes every row of a data set at an OpenAI-compatible endpoint and writes <output_dir>/rows.jsonl, one line a row.
The same call again goes on where it was stopped and retries what failed.

flags and keys (generate.args.hf_dataset is --hf-dataset), with defaults
{settings}

exit codes
  0 every row is there   1 the run failed, or rows have no completion   2 the request is wrong   130 interrupted
"""


def split_flags(arguments: Sequence[str], stray: str) -> dict[str, tuple[str, ...]]:
    """Split arguments into flags and their words. The last of several equal flags wins.

    Raises `UsageError` with ``stray`` for a word that belongs to no flag.
    """
    flags: dict[str, tuple[str, ...]] = {}
    name = None
    for token in arguments:
        if token.startswith("--"):
            flag, equals, value = token[2:].partition("=")
            name = flag.replace("-", "_")
            flags[name] = (value,) if equals else ()
        elif name is None:
            raise UsageError(f"{token}: {stray}")
        else:
            flags[name] += (token,)
    return flags


def training_help(command: str) -> str:
    """Help for starting a training command by flags."""
    return _HELP.format(command=command, module=_MODULES[command])


def training_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """TRL-style flags as settings, shaped for their fields; names and types are checked where the recipe's are.

    Raises:
        UsageError: for a flag without a value, several values for what is no list, or a word that belongs to no flag.
    """
    flags = split_flags(
        arguments, "settings are flags here (--learning_rate 1e-6); key=value belongs to maxent-grpo"
    )
    settings: dict[str, Any] = {}
    config, dry_run = flags.pop("config", None), flags.pop("dry_run", ("false",))
    if config is not None:
        if len(config) != 1:
            raise UsageError("--config needs one recipe file")
        settings["config"] = config[0]
    if dry_run not in ((), ("true",), ("false",)):
        raise UsageError("--dry_run is true or false")
    if dry_run != ("false",):
        settings["dry_run"] = True
    for name, words in flags.items():
        positive = name.removeprefix("no_")
        if positive != name and not words and bool in _kinds(positive):
            settings[positive] = False
        else:
            settings[name] = _value(name, words)
    return settings


def _kinds(name: str) -> set[Any]:
    """The types that a setting accepts, ``list[str]`` as ``list``; empty where there is no such setting."""
    from maxent_grpo.config.records import ALIASES, RECORDS, section_of

    section = section_of(name)
    if section is None:
        return set()
    annotation = RECORDS[section][ALIASES.get(name, name)].type
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
        try:
            return json.loads(word)
        except json.JSONDecodeError as error:
            if str not in kinds:
                raise UsageError(f"--{name} {word}: not JSON ({error})") from error
            return word
    if bool in kinds and word.lower() in ("true", "false"):
        return word.lower() == "true"
    return [word] if list in kinds and str not in kinds else word


def is_generation(arguments: Sequence[str]) -> bool:
    """True if the arguments are dashed flags of a generation, and not settings or flags for Hydra."""
    from maxent_grpo.generate.settings import GenerateSettings

    names = {"help", *(field.name for field in fields(GenerateSettings))}
    flags = [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")]
    return "-h" in arguments or any(flag.replace("-", "_").removeprefix("no_") in names for flag in flags)


def generation_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Dashed flags of a generation as settings. Raises `UsageError`."""
    from maxent_grpo.generate.settings import GenerateSettings

    switches = {field.name for field in fields(GenerateSettings) if isinstance(field.default, bool)}
    stray = "a flag starts with --; generate.args.KEY=VALUE and flags do not mix"
    given: dict[str, Any] = {}
    for name, words in split_flags(arguments, stray).items():
        positive = name.removeprefix("no_")
        if words[1:]:
            raise UsageError(f"{words[1]}: {stray}")
        if words:
            given[name] = None if words[0] == "null" else words[0]
        elif positive in switches:
            given[positive] = positive == name
        else:
            raise UsageError(f"--{name.replace('_', '-')} needs a value")
    return given


def generation_help() -> str:
    """All settings of a generation with their defaults."""
    from maxent_grpo.generate.settings import GenerateSettings

    indent, lines = " " * 6, []
    for field in fields(GenerateSettings):
        default = "unset" if field.default is None else field.default
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        lines.append(f"  --{field.name.replace('_', '-')}" + (f" ({shown})" if shown else ""))
        text = str(field.metadata["help"])
        lines += textwrap.wrap(text, 104, initial_indent=indent, subsequent_indent=indent)
    return _GENERATION_HELP.format(settings="\n".join(lines))
