"""Whether a run's ``metrics.jsonl`` can be trusted: whole, in order, finite, with the metrics that were asked for."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maxent_grpo.errors import RunError
from maxent_grpo.observe.metrics_log import JsonlLog
from maxent_grpo.observe.names import METRICS_FILE

HEADER_KEYS = ("run/git_sha", "run/recipe_path")
"""What line 1 must say, so that runs can be told apart."""


def find_records(patterns: Sequence[str], root: Path) -> list[Path]:
    """The files that ``patterns`` match under ``root``; of a folder its ``metrics.jsonl``."""
    found = set()
    for pattern in patterns:
        anchor = Path(pattern).anchor
        base = Path(anchor) if anchor else root
        for path in base.glob(str(Path(pattern).relative_to(anchor)) if anchor else pattern):
            found.add(path / METRICS_FILE if path.is_dir() else path)
    return sorted(found)


def record_problems(
    path: Path, required: Sequence[str], *, header: Sequence[str] = HEADER_KEYS, allowed: Sequence[str] = ()
) -> list[str]:
    """What is wrong with the records at ``path``, one line each; none: nothing.

    A metric that was NaN or infinite when it was logged is ``null`` in the file (`observe.metrics_log`).

    Args:
        required: metrics; ``train/…`` in every training record, any other one somewhere.
        header: keys of line 1.
        allowed: metrics that may be non-finite.
    """
    if not path.is_file():
        return ["there is no such file"]
    try:
        records = JsonlLog.read(path)
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
    """An evaluation's record may share its step with the training record before it."""
    for before, record in itertools.pairwise(records):
        if record["step"] < before["step"]:
            yield f"step {record['step']} comes after step {before['step']}"


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
