"""From arguments to plain dictionaries, by Hydra.

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from maxent_grpo.cli.arguments import CommandLine
from maxent_grpo.errors import UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig


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
    """Hydra's message without its links, its tree dumps and the prefix that `cli.arguments` added."""
    from hydra.errors import OverrideParseException

    lines = [text.strip() for text in str(error).splitlines()]
    kept = [
        text for text in lines if text and not text.startswith(("See https", "full_key:", "object_type="))
    ]
    message = " ".join(kept).replace("++", "")
    if isinstance(error, OverrideParseException):
        return f"{_plain_key(error.override)}: {message}; quote a text with signs in it, as in key='\"a=b\"'"
    return message
