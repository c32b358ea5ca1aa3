"""What a study keeps of its runs, and how it knows what is left to do.

A run's directory is an ordinary run directory with four more files: ``cell.json`` (its identity, written before the run
starts), ``recipe.yaml`` (its resolved configuration), ``study.log``, and at the end ``evaluation.parquet``, which
appears whole and carries its own identity. A run is done when that file is there: nothing else is a sign of it, so a
kill at any moment leaves either a finished run or one to go on with.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from maxent_grpo.config.loading import RunConfig, write_resolved
from maxent_grpo.errors import UsageError
from maxent_grpo.files import replace_file
from maxent_grpo.observe import names
from maxent_grpo.study.cells import Cell, config_of
from maxent_grpo.study.identity import Identity, changes, evaluation_identity, identity_of
from maxent_grpo.study.plan import Plan

CELL, RECIPE, LOG, LOCK = "cell.json", "recipe.yaml", "study.log", ".study.lock"
EVALUATION, DURATIONS = "evaluation.parquet", "durations.json"
IDENTITY_KEY = b"maxent_grpo.evaluation"


class State(Enum):
    """How far a run has come."""

    MISSING = "missing"
    STARTED = "started"
    TRAINED = "trained"
    DONE = "done"


def state_of(directory: Path) -> State:
    """How far the run in ``directory`` has come, from its files."""
    if (directory / EVALUATION).is_file():
        return State.DONE
    if is_trained(directory):
        return State.TRAINED
    return State.STARTED if (directory / CELL).is_file() else State.MISSING


def is_trained(directory: Path) -> bool:
    """Whether the final policy is there, whole: it is moved into place file by file, its folder going last."""
    return any(directory.glob("*.safetensors")) and not (directory / ".final.partial").exists()


def refuse_changes(plan: Plan, cells: Sequence[Cell]) -> dict[int, RunConfig]:
    """The configuration of every cell by its index, once none of the runs that exist was made with another one.

    Raises `UsageError` that names what changed, and what to do.
    """
    configs: dict[int, RunConfig] = {}
    for cell in cells:
        config = configs[cell.index] = config_of(plan, cell)
        path = cell.directory / CELL
        if not path.is_file():
            if (cell.directory / names.METRICS_FILE).exists():
                raise UsageError(
                    f"{cell.directory}: holds a run that is not of a study; choose another study.output_dir"
                )
            continue
        changed = changes(json.loads(path.read_text())["identity"], _plain(identity_of(config)))
        if changed:
            raise UsageError(
                f"{cell.directory}: was run with other settings than the plan now says ({_first(changed)}); choose "
                "another study.output_dir, take the change back, or delete that run to repeat it"
            )
        evaluated = read_evaluation_identity(cell.directory)
        changed = (
            []
            if evaluated is None
            else changes(evaluated, _plain(evaluation_identity(config, plan.evaluation)))
        )
        if changed:
            raise UsageError(
                f"{cell.directory / EVALUATION}: was evaluated otherwise than the plan now says ({_first(changed)}); "
                f"delete the study's {EVALUATION} files to evaluate its policies again, or take the change back"
            )
    return configs


def open_cell(cell: Cell, config: RunConfig) -> None:
    """Write the run's recipe and then its identity, unless that is there. The caller holds the run's lock."""
    cell.directory.mkdir(parents=True, exist_ok=True)
    if not (cell.directory / CELL).is_file():
        write_resolved(config, cell.directory / RECIPE)
        facts = {"task": cell.task.name, "arm": cell.arm.name, "seed": cell.seed, "run_seed": cell.run_seed}
        replace_file(
            cell.directory / CELL,
            json.dumps({**facts, "identity": identity_of(config)}, indent=1),
            shared=True,
        )


def read_evaluation_identity(directory: Path) -> Identity | None:
    """What the run's evaluation says of itself; None where there is none."""
    import pyarrow.parquet as parquet

    path = directory / EVALUATION
    if not path.is_file():
        return None
    metadata = parquet.read_schema(path).metadata or {}
    return dict(json.loads(metadata[IDENTITY_KEY]))


def drop_checkpoints(directory: Path) -> None:
    """Remove the checkpoints of a finished run; its final policy stays."""
    for path in directory.glob("checkpoint-*"):
        shutil.rmtree(path)


def record_duration(directory: Path, stage: str, seconds: float) -> None:
    """Keep how long an uninterrupted stage took."""
    path = directory / DURATIONS
    kept = json.loads(path.read_text()) if path.is_file() else {}
    replace_file(path, json.dumps({**kept, stage: round(seconds, 2)}), shared=True)


def durations(directory: Path) -> dict[str, float]:
    """Stage → seconds, for the stages that ran through in one go."""
    path = directory / DURATIONS
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def try_lock(directory: Path) -> int | None:
    """A descriptor that holds the run's lock; None while another process trains it.

    The lock belongs to the open file, which the run's own processes inherit: it outlives a study that is killed while
    its runs go on, and ends with the last of them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _plain(identity: Identity) -> dict[str, Any]:
    """``identity`` as it reads back from its file."""
    return dict(json.loads(json.dumps(identity)))


def _first(changed: Sequence[str], shown: int = 4) -> str:
    more = f"; and {len(changed) - shown} more" if len(changed) > shown else ""
    return "; ".join(changed[:shown]) + more
