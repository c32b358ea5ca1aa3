"""From what was typed to plain dictionaries, by Hydra.

Hydra composes into a locked tree, where a new key needs a ``+`` in front. Whether a key exists is decided
by the typed configuration, with a better message, so every plain ``key=value`` becomes ``++key=value``
("set it, new or not") and the user never writes a prefix. Untouched: ``+key=``, ``~key``, ``hydra.key=``
and config groups (``hydra/launcher=…``).

``hydra.main`` does the composing, not ``hydra.compose``: only the former runs sweeps through Hydra's
sweeper and launcher plug-ins (Slurm, joblib), and knows ``--cfg``, ``--info`` and shell completion. Three
of its habits are turned off:

* it prints its own stack and calls ``sys.exit(1)``: ``HYDRA_FULL_ERROR`` makes it raise instead, and the
  errors of composition become a one-line `UsageError`;
* it runs the task inside its own frames and announces a failure once more: a single run is only *composed*
  inside Hydra and starts after Hydra has returned; the jobs of a sweep run inside, where the launcher
  decides how;
* it writes ``outputs/``, ``.hydra/`` and log files, and takes over logging: it gets other defaults.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxent_grpo.config.shipped import HOMES, shipped
from maxent_grpo.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

PRESET_DIRECTORY = Path("configs/recipes/hydra")
"""Home of ``--config-name`` where no directory is given: below the working directory, then in the shipped files."""

SHIPPED_PRESETS = tuple(home.joinpath(*PRESET_DIRECTORY.parts[1:]) for home in HOMES)

TRAIN = "train"
"""The training command that takes any objective, and its settings bare."""

DEFAULT_PRESET = "grpo_gsm8k"
"""Its start where neither a preset nor a recipe is named."""

_PATH_FLAGS = {"-cp": "--config-path", "-cd": "--config-dir"}
_PATH_FLAGS |= {name: name for name in _PATH_FLAGS.values()}
_NAME_FLAGS = ("--config-name", "-cn")
_VALUE_FLAGS = (*_PATH_FLAGS, *_NAME_FLAGS, "--cfg", "-c", "--package", "-p", "--experimental-rerun")
_SWITCHES = "--multirun -m --run -r --resolve --hydra-help --shell-completion -sc --info -i".split()  # noqa: SIM905


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


@dataclass(frozen=True)
class Composed:
    """One job as Hydra composed it."""

    tree: Mapping[str, Any]  # interpolations resolved
    given: frozenset[str] = frozenset()  # dotted keys that were typed, as opposed to read from a preset
    swept: Mapping[str, str] = field(
        default_factory=dict
    )  # dotted key → this job's value; empty outside a sweep
    is_sweep: bool = False
    sweep_dir: str = ""  # where Hydra keeps the sweep's own file; empty outside a sweep

    @property
    def name(self) -> str:
        """The job's name in its sweep, from what varies: ``maxent_tau=0.1,seed=1``. Empty outside a sweep."""
        return ",".join(
            f"{key.rpartition('.')[2]}={_path_safe(value)}" for key, value in sorted(self.swept.items())
        )


def compose(line: CommandLine, run_job: Callable[[Composed], None]) -> Composed | None:
    """The job that ``line`` composes to; None for a sweep, where ``run_job`` has been called for each of its jobs.

    Raises:
        UsageError: if Hydra or OmegaConf refuses an override, a preset or an interpolation.
    """
    import hydra
    import yaml
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    single: list[Composed] = []
    refused: list[OmegaConfBaseException] = []

    def task(config: DictConfig) -> None:
        try:
            composed = _read(config, line)
        except OmegaConfBaseException as error:
            refused.append(error)
            return
        if composed.is_sweep:
            run_job(composed)
        else:
            single.append(composed)

    _register_quiet_defaults()
    try:
        with _hydra_process(line):
            hydra.main(version_base="1.3", config_path=None)(task)()
        if refused:
            raise refused[0]
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UsageError(_one_line(error)) from error
    return single[0] if single else None


def _read(config: "DictConfig", line: CommandLine) -> Composed:
    """The composed tree with what Hydra knows about it, as plain values."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    runtime = HydraConfig.get()
    values = _typed(list(runtime.overrides.task))
    tree = OmegaConf.to_container(config, resolve=True)
    assert isinstance(tree, dict)  # Hydra refuses a preset that is not a mapping
    plain = {str(key): value for key, value in tree.items()}
    if runtime.mode != RunMode.MULTIRUN:
        return Composed(plain, frozenset(values))
    keys = _swept_keys(line) | {_plain_key(str(key)) for key in runtime.sweeper.get("params") or {}}
    swept = {key: value for key, value in values.items() if key in keys}
    swept = swept or {"job": str(runtime.job.num)}
    return Composed(plain, frozenset(values), swept, is_sweep=True, sweep_dir=str(runtime.sweep.dir))


def _register_quiet_defaults() -> None:
    """Replace Hydra's own defaults by ones that write one file per sweep and none per run, and log nothing.

    They stay defaults: the ``hydra`` section of a preset and ``hydra.…`` on the command line win.
    """
    from hydra.conf import HydraConf
    from hydra.core.config_store import ConfigStore

    sweep_dir = "var/artifacts/multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}"
    output = {"run": {"dir": "."}, "sweep": {"dir": sweep_dir, "subdir": "."}}
    quiet = {"output": "maxent_grpo", "hydra_logging": "none", "job_logging": "none"}
    config = HydraConf(output_subdir=None)
    config.defaults = [
        {key: quiet.get(key, value) for key, value in entry.items()} for entry in config.defaults
    ]
    store = ConfigStore.instance()
    store.store(
        group="hydra/output", name="maxent_grpo", node=output, package="hydra", provider="maxent_grpo"
    )
    store.store(group="hydra", name="config", node=config, provider="maxent_grpo")


@contextmanager
def _hydra_process(line: CommandLine) -> Iterator[None]:
    """The arguments and the environment that ``hydra.main`` reads from the process, put back afterwards."""
    arguments, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [arguments[0], *line.hydra_arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = arguments
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _typed(overrides: list[str]) -> dict[str, str]:
    """Dotted key → value text of overrides without their prefixes."""
    pairs = (override.partition("=") for override in overrides)
    return {_plain_key(key): value for key, _, value in pairs}


def _swept_keys(line: CommandLine) -> set[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(line.overrides))
    return {_plain_key(override.get_key_element()) for override in parsed if override.is_sweep_override()}


def _plain_key(key: str) -> str:
    return key.lstrip("+~")


def _path_safe(value: str) -> str:
    """A value as part of a directory's name; an altered one gets a digest, so that names stay different."""
    safe = re.sub(r"[^\w.+-]+", "_", value).strip("_")[:60]
    return safe if safe == value else f"{safe}-{blake2b(value.encode(), digest_size=3).hexdigest()}"


def _one_line(error: Exception) -> str:
    """Hydra's message without its links, its tree dumps and the prefix that `sort_arguments` added."""
    from hydra.errors import OverrideParseException

    lines = [text.strip() for text in str(error).splitlines()]
    kept = [
        text for text in lines if text and not text.startswith(("See https", "full_key:", "object_type="))
    ]
    message = re.sub(r"\b\w+Exception\b", "cannot be read", " ".join(kept).replace("++", ""))
    if isinstance(error, OverrideParseException):
        return f"{_plain_key(error.override)}: {message}; quote a text with signs in it, as in key='\"a=b\"'"
    return message
