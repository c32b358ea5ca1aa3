"""The files of a run directory: read back (header, records, timings, samples, configuration) and checked."""

import itertools
import math
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.files import JsonlFile
from maxent_grpo.observe import names

if TYPE_CHECKING:
    from maxent_grpo.types import Group

Record = Mapping[str, Any]

HEADER_KEYS = ("run/git_sha", "run/recipe_path")
"""Keys that line 1 must have, so that runs can be told apart."""


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
    lines = JsonlFile.read(path)
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
    return JsonlFile.read(path) if path.is_file() else []


def _read_config(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: cannot be read ({reason}); restore the file that the run wrote") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path}: not a mapping of settings; restore the file that the run wrote")
    return config


def find_records(patterns: Sequence[str], root: Path) -> list[Path]:
    """The files that ``patterns`` match under ``root``; of a folder its ``metrics.jsonl``."""
    found = set()
    for pattern in patterns:
        anchor = Path(pattern).anchor
        base = Path(anchor) if anchor else root
        for path in base.glob(str(Path(pattern).relative_to(anchor)) if anchor else pattern):
            found.add(path / names.METRICS_FILE if path.is_dir() else path)
    return sorted(found)


def record_problems(
    path: Path, required: Sequence[str], *, header: Sequence[str] = HEADER_KEYS, allowed: Sequence[str] = ()
) -> list[str]:
    """The faults of the records at ``path``, one line each.

    A metric that was NaN or infinite when it was logged is ``null`` in the file (`files.strict_json`).

    Args:
        required: metrics; ``train/…`` in every training record, any other one somewhere.
        header: keys of line 1.
        allowed: metrics that may be non-finite.
    """
    if not path.is_file():
        return ["there is no such file"]
    try:
        records = JsonlFile.read(path)
    except RunError as error:
        return [str(error).removeprefix(f"{path}: ")]
    if not records:
        return ["is empty"]
    first, *rest = records
    problems = [f"line 1 has no {key}" for key in header if first.get(key) in (None, "")]
    if not rest:
        problems.append("no step was logged")
    problems += _order(rest)
    problems += [f"step {s}: {key} was not finite" for s, key in _non_finite(rest) if key not in allowed]
    return [*problems, *_missing(rest, required)]


def _order(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """An evaluation's record may share its step with the training record before it; no step is trained twice."""
    for before, record in itertools.pairwise(records):
        if record["step"] < before["step"]:
            yield f"step {record['step']} comes after step {before['step']}"
    steps = [record["step"] for record in records if any(key.startswith("train/") for key in record)]
    for step, times in Counter(steps).items():
        if times > 1:
            yield f"step {step} was logged {times} times: did several processes write here?"


def _non_finite(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str]]:
    for record in records:
        for key, value in record.items():
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                yield record["step"], key


def _missing(records: Sequence[Mapping[str, Any]], required: Sequence[str]) -> Iterator[str]:
    training = [record for record in records if any(key.startswith("train/") for key in record)]
    for key in required:
        without = [record["step"] for record in training if key not in record]
        if not any(key in record for record in records):
            yield f"no record has {key}"
        elif key.startswith("train/") and without:
            yield f"{len(without)} training record(s) have no {key}, the first at step {without[0]}"


def git_sha(environ: Mapping[str, str]) -> str:
    """The commit that runs: ``MAXENT_GIT_SHA``, else that of the package's checkout, else of the directory.

    "unknown" where none of the three is known, for instance for a wheel outside any repository.
    """
    if environ.get("MAXENT_GIT_SHA"):
        return environ["MAXENT_GIT_SHA"]
    git = shutil.which("git")
    if git is None:
        return "unknown"
    for directory in (Path(__file__).parent, Path.cwd()):
        command = [git, "-C", str(directory), "rev-parse", "--verify", "--quiet", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return answer.stdout.strip()
    return "unknown"


def sample_rows(
    step: int,
    group: "Group",
    advantages: Sequence[float],
    weights: Sequence[float] | None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Rows of ``completions.jsonl`` for the first ``limit`` completions of ``group`` (all G if None).

    ``advantages`` and ``weights`` have G entries; ``weights`` is None where the objective has none, and the rows say
    null. With InfoSeed they say which seed each completion's prompt carried, −1 for none; of several turns, all.
    """
    rollout = group.rollout
    return [
        {
            "step": step,
            "prompt_index": rollout.prompt.index,
            "prompt": rollout.prompts[i].text,
            "completion": text,
            "rewards": {name: float(scores[i]) for name, scores in group.rewards.items()},
            "utility": float(group.utilities[i]),
            "advantage": float(advantages[i]),
            "weight": None if weights is None else float(weights[i]),
            "finish_reason": rollout.finish_reasons[i],
        }
        | ({"seed_id": rollout.prompts[i].seed_id} if rollout.seed_prompts else {})
        | ({"transcript": rollout.transcripts[i]} if rollout.transcripts else {})
        for i, text in enumerate(rollout.texts[:limit])
    ]
