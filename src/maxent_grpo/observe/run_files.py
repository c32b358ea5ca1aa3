"""Read a run directory back: header, records, timings, sample table, configuration."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maxent_grpo.errors import UsageError
from maxent_grpo.observe import names
from maxent_grpo.observe.metrics_log import JsonlLog

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Series:
    """One metric over steps; NaN where a value was not finite."""

    name: str
    steps: npt.NDArray[np.int64]  # [N]
    values: npt.NDArray[np.float64]  # [N]
    errors: npt.NDArray[np.float64] | None = None  # [N] standard errors, where ``<name>_se`` was logged


@dataclass(frozen=True)
class RunFiles:
    """The files of one run directory, parsed."""

    directory: Path
    header: Record
    records: Sequence[Record]
    timings: Sequence[Record]
    completions: Sequence[Record]
    config: Mapping[str, Any] | None  # None where the directory has no resolved_config.yaml

    @property
    def last_step(self) -> int:
        return max((record["step"] for record in self.records), default=0)

    def metric_names(self) -> list[str]:
        """Numeric metrics of the records, then of the timings, in order of first appearance."""
        seen: dict[str, None] = {}
        for record in (*self.records, *self.timings):
            seen.update(dict.fromkeys(k for k, v in record.items() if k != "step" and not isinstance(v, str)))
        return list(seen)

    def matching(self, pattern: str) -> Iterator[Series]:
        """The series whose whole name matches the regular expression ``pattern``."""
        for name in self.metric_names():
            if re.fullmatch(pattern, name):
                yield self.series(name)

    def series(self, name: str) -> Series:
        """The metric called ``name``; empty where it was never logged."""
        found = [record for record in (*self.records, *self.timings) if name in record]
        steps = np.array([record["step"] for record in found], dtype=np.int64)
        values = _floats(found, name)
        errors = _floats(found, f"{name}_se") if any(f"{name}_se" in record for record in found) else None
        return Series(name, steps, values, errors)


def _floats(records: Sequence[Record], name: str) -> npt.NDArray[np.float64]:
    values = [record.get(name) for record in records]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def load_run(directory: Path) -> RunFiles:
    """Parse ``directory``. Raises `UsageError` where it is not the directory of a run."""
    if not directory.is_dir():
        raise UsageError(f"run={directory}: no such directory; give the output_dir of a run")
    path = directory / names.METRICS_FILE
    if not path.is_file():
        raise UsageError(
            f"run={directory}: no {names.METRICS_FILE} in it; give the output_dir of a run that logged a step"
        )
    lines = JsonlLog.read(path)
    if not lines or not any(key.startswith("run/") for key in lines[0]):
        raise UsageError(f"{path}: line 1 is not a run header with run/… keys; give the output_dir of a run")
    return RunFiles(
        directory=directory,
        header=lines[0],
        records=lines[1:],
        timings=_read_if_present(directory / names.TIMINGS_FILE),
        completions=_read_if_present(directory / names.COMPLETIONS_FILE),
        config=_read_config(directory / names.CONFIG_FILE),
    )


def _read_if_present(path: Path) -> list[dict[str, Any]]:
    return JsonlLog.read(path) if path.is_file() else []


def _read_config(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    import yaml

    config = yaml.safe_load(path.read_text())
    if not isinstance(config, dict):
        raise UsageError(f"{path}: not a mapping of settings; restore the file that the run wrote")
    return config
