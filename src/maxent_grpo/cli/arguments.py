"""What was typed, sorted into Hydra's own flags and overrides. Strings only: Hydra is not imported here.

Hydra composes into a locked tree, where a new key needs a ``+`` in front. Whether a key exists is decided
by the typed configuration, with a better message, so every plain ``key=value`` becomes ``++key=value``
("set it, new or not") and the user never writes a prefix. Untouched: ``+key=``, ``~key``, ``hydra.key=``
and config groups (``hydra/launcher=…``).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maxent_grpo.config.shipped import HOMES, shipped
from maxent_grpo.errors import UsageError, did_you_mean

PRESET_DIRECTORY = Path("configs/recipes/hydra")
"""Where ``--config-name`` looks when no directory is given: below the working directory, then in the shipped files."""

SHIPPED_PRESETS = tuple(home.joinpath(*PRESET_DIRECTORY.parts[1:]) for home in HOMES)

TRAIN = "train"
"""The training command that takes any objective, and its settings bare."""

DEFAULT_PRESET = "grpo_gsm8k"
"""What it starts from where neither a preset nor a recipe is named."""

_PATH_FLAGS = {
    "--config-path": "--config-path",
    "-cp": "--config-path",
    "--config-dir": "--config-dir",
    "-cd": "--config-dir",
}
_NAME_FLAGS = ("--config-name", "-cn")
_VALUE_FLAGS = (*_PATH_FLAGS, *_NAME_FLAGS, "--cfg", "-c", "--package", "-p", "--experimental-rerun")
_SWITCHES = (
    "--multirun",
    "-m",
    "--run",
    "-r",
    "--resolve",
    "--hydra-help",
    "--shell-completion",
    "-sc",
    "--info",
    "-i",
)


@dataclass(frozen=True)
class CommandLine:
    """The sorted arguments, ready for Hydra."""

    flags: tuple[str, ...]  # directories made absolute
    overrides: tuple[str, ...]

    @property
    def hydra_arguments(self) -> list[str]:
        """Everything for Hydra's parser: overrides in one piece, before flags that could swallow one."""
        return [*self.overrides, *self.flags]


def training_arguments(
    argv: Sequence[str], default_command: str | None, mode: str | None, environ: Mapping[str, str]
) -> list[str]:
    """The arguments of ``command=train`` with what goes without saying: the script's mode, and a preset.

    `DEFAULT_PRESET` is named where neither a preset nor a recipe is. Other commands' arguments stay as they are.

    Args:
        default_command, mode: what the script stands for; None: it stands for none.
        environ: read for GRPO_RECIPE.

    Raises:
        UsageError: another mode than the script's.
    """
    given = dict(argument.partition("=")[::2] for argument in argv)
    if given.get("command", default_command) != TRAIN:
        return list(argv)
    completed = list(argv)
    if mode is not None and "mode" not in given:
        completed.append(f"mode={mode}")
    elif mode is not None and given["mode"] != mode:
        raise UsageError(f"mode={given['mode']}: this is maxent-grpo-{mode}; use maxent-grpo-{given['mode']}")
    named = {*_NAME_FLAGS, *_PATH_FLAGS, "recipe"} & given.keys()
    if not named and not environ.get("GRPO_RECIPE"):
        completed += ["--config-name", DEFAULT_PRESET]
    return completed


def sort_arguments(argv: Sequence[str]) -> CommandLine:
    """Sort ``argv`` (without the program's name).

    Raises:
        UsageError: for a flag that Hydra has not, a flag without its value, an argument that is not
            ``key=value``, or a preset or directory that is not there.
    """
    flags: list[str] = []
    overrides: list[str] = []
    tokens = iter(argv)
    for token in tokens:
        name, equals, attached = token.partition("=")
        if flags[-1:] in (["--info"], ["-i"]) and re.fullmatch(r"[a-z-]+", token):
            flags.append(token)  # what to show of Hydra: the flag's optional value
        elif not token.startswith("-"):
            overrides.append(_open_override(token))
        elif name in _VALUE_FLAGS:
            flags += [name, attached if equals else _value_of(name, tokens)]
        elif token in _SWITCHES:
            flags.append(token)
        else:
            raise UsageError(_flag_advice(name, attached))
    return CommandLine(tuple(_locate_preset(flags)), tuple(overrides))


def _value_of(name: str, tokens: Iterator[str]) -> str:
    value = next(tokens, None)
    if value is None:
        raise UsageError(f"{name} needs a value")
    return value


def _open_override(token: str) -> str:
    key, equals, _ = token.partition("=")
    if token.startswith("~"):
        return token
    if not equals or not key:
        raise UsageError(
            f"{token}: an argument is key=value (command=train-maxent, training.learning_rate=1e-6)"
        )
    if token.startswith("+") or key.startswith(("hydra.", "hydra/")) or "/" in key or "@" in key:
        return token
    return f"++{token}"


def _flag_advice(name: str, value: str) -> str:
    key = name.lstrip("-").replace("-", "_")
    return (
        f"unknown flag {name}: write settings as key=value (training.{key}={value or 'VALUE'}), or use "
        "the flag with python -m maxent_grpo.grpo or python -m maxent_grpo.maxent_grpo"
    )


def _locate_preset(flags: list[str]) -> list[str]:
    """Make directories absolute (Hydra reads them relative to this package) and check for the preset."""
    located = list(flags)
    directories: dict[str, Path] = {}
    name = None
    for position, flag in enumerate(flags[:-1]):
        value = flags[position + 1]
        if flag in _PATH_FLAGS and not value.startswith("pkg://"):
            directory = shipped(value).absolute()
            if not directory.is_dir():
                raise UsageError(f"{flag} {value}: there is no such directory in {Path.cwd()}")
            directories[_PATH_FLAGS[flag]] = directory
            located[position + 1] = str(directory)
        elif flag in _PATH_FLAGS:
            return located
        elif flag in _NAME_FLAGS:
            name = value
    if name is None:
        return located
    if directories:
        _preset_home(name, list(directories.values()))
        return located
    home = _preset_home(name, [PRESET_DIRECTORY.absolute(), *SHIPPED_PRESETS])
    return [*located, "--config-path", str(home)]


def _preset_home(name: str, directories: list[Path]) -> Path:
    """The first of ``directories`` that holds the preset. Raises `UsageError` where none does."""
    file_name = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    for directory in directories:
        if (directory / file_name).is_file():
            return directory
    there = sorted(path.stem for directory in directories for path in directory.glob("*.yaml"))
    where = " or ".join(str(directory) for directory in directories if directory.is_dir())
    hint = did_you_mean(name, there)
    raise UsageError(
        f"--config-name {name}: not in {where}{hint}, which holds {', '.join(there) or 'no preset'}"
    )
