"""Finished runs as two tables: what a study leaves in its directory, and what a later start takes up from others.

``runs.parquet`` holds the rows of the evaluations, and in its metadata per run what it is (the identities of training
and evaluation), the commit and version that made it, and the seconds it took; ``curves.parquet`` the learning curves
that figures need. A directory with both is a *part*: runs in the parts that a plan names are never made again.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxent_grpo.errors import UsageError
from maxent_grpo.observe.run_files import load_run
from maxent_grpo.study.plan import UNTRAINED, StudyPlan
from maxent_grpo.study.runs import (
    EVALUATION,
    IDENTITY,
    WHICH,
    Finished,
    Identity,
    StudyRun,
    changes,
    evaluation_identity_in,
)

if TYPE_CHECKING:
    import pandas as pd

RUNS, CURVES = "runs.parquet", "curves.parquet"
FACTS_KEY = b"maxent_grpo.runs"


def read_finished(run: StudyRun, metrics: Sequence[str]) -> Finished:
    """The finished ``run`` from its directory, with the curves of metrics that match one of ``metrics`` (patterns)."""
    import pandas as pd

    saved = json.loads((run.directory / IDENTITY).read_text())
    evaluation = evaluation_identity_in(run.directory / EVALUATION)
    assert evaluation is not None, "a finished run has been evaluated"
    files = load_run(run.directory) if run.trains else None
    curves = pd.DataFrame({"step": []}, dtype="int64")  # of the untrained policy there are none
    for series in [] if files is None else [s for pattern in metrics for s in files.matching(pattern)]:
        column = pd.DataFrame({"step": series.steps, series.name: series.values.astype("float32")})
        if series.name not in curves:
            curves = curves.merge(column, on="step", how="outer")
    whose = {"task": run.task.name, "arm": run.arm.name, "seed": run.seed}
    return Finished(
        run.name,
        saved["identity"],
        evaluation,
        "" if files is None else str(files.header.get("run/git_sha", "unknown")),
        run.durations,
        pd.read_parquet(run.directory / EVALUATION),
        curves.sort_values("step", ignore_index=True).assign(**whose),
        run.directory,
    )


def write_part(finished: Sequence[Finished], directory: Path) -> list[Path]:
    """Write both tables of ``finished`` to ``directory``; equal runs give equal files."""
    import pandas as pd
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    trained = [run for run in finished if not _is_start(run.name)]
    common = _common([run.identity for run in trained])
    facts = {
        "common": common,
        "runs": {
            run.name: {
                "commit": run.commit,
                "seconds": run.seconds,
                "identity": _without(run.identity, {} if _is_start(run.name) else common),
                "evaluation": run.evaluation,
            }
            for run in finished
        },
    }
    curves = pd.concat([run.curves for run in finished], ignore_index=True)
    metrics = sorted(curves.columns.difference([*WHICH, "step"]))
    curves = curves[[*WHICH, "step", *metrics]].astype(
        {"seed": "int64", "step": "int64"} | dict.fromkeys(metrics, "float32")
    )
    rows = pd.concat([run.rows for run in finished], ignore_index=True)
    for name, frame, metadata in ((RUNS, rows, {FACTS_KEY: json.dumps(facts)}), (CURVES, curves, {})):
        table = arrow.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(metadata)
        partial = directory / f".{name}.partial"
        parquet.write_table(table, partial, compression="zstd", compression_level=9)
        partial.replace(directory / name)
    return [directory / RUNS, directory / CURVES]


def _is_start(name: str) -> bool:
    return name.endswith(f"/{UNTRAINED}")


def _common(identities: Sequence[Identity]) -> Identity:
    """What all have alike: written once, it makes the tables of many runs small."""
    first, *others = identities or [{}]
    return {name: value for name, value in first.items() if all(_has(other, name, value) for other in others)}


def _without(identity: Identity, common: Identity) -> Identity:
    return {name: value for name, value in identity.items() if name not in common}


def _has(identity: Identity, name: str, value: Any) -> bool:
    return name in identity and json.dumps(identity[name]) == json.dumps(value)


def read_part(directory: Path) -> list[Finished]:
    """The runs in ``directory``. Raises `UsageError` where its tables are not those of a study."""
    import pandas as pd
    import pyarrow.parquet as parquet

    path = directory / RUNS
    metadata = parquet.read_schema(path).metadata or {}
    if FACTS_KEY not in metadata:
        raise UsageError(
            f"{path}: does not say how its runs were made, as tables of older versions do not; leave it out of the "
            "plan's parts"
        )
    if not (directory / CURVES).is_file():
        raise UsageError(f"{path}: {CURVES} is not beside it; copy it from the study that wrote the other")
    facts = json.loads(metadata[FACTS_KEY])
    rows, curves = (dict(_by_run(pd.read_parquet(directory / name))) for name in (RUNS, CURVES))
    return [
        Finished(
            name,
            own["identity"] if _is_start(name) else {**facts["common"], **own["identity"]},
            own["evaluation"],
            own["commit"],
            own["seconds"],
            rows[name],
            curves.get(name, pd.DataFrame({"step": []})),
            directory,
        )
        for name, own in facts["runs"].items()
    ]


def _by_run(table: "pd.DataFrame") -> Iterator[tuple[str, "pd.DataFrame"]]:
    for (task, arm, seed), own in table.groupby(list(WHICH), sort=False):
        yield f"{task}/{arm}" + f"/seed-{seed}" * (arm != UNTRAINED), own.reset_index(drop=True)


def parts_of(plan: StudyPlan) -> dict[Path, list[Finished]]:
    """Directory → its runs, of all parts that the plan names and that are there."""
    found = [
        Path(place)
        for pattern in plan.parts
        for place in sorted(glob(pattern))
        if (Path(place) / RUNS).is_file()
    ]
    return {directory: read_part(directory) for directory in dict.fromkeys(found)}


def taken_up(runs: Iterable[StudyRun], parts: Mapping[Path, Sequence[Finished]]) -> dict[str, Finished]:
    """Name → the run as a part has it, for those of ``runs`` that a part has; the first part that does.

    Raises `UsageError` where two parts have one run made with different settings.
    """
    wanted = {run.name for run in runs}
    taken: dict[str, Finished] = {}
    for finished in (run for part in parts.values() for run in part if run.name in wanted):
        other = taken.setdefault(finished.name, finished)
        changed = changes(other.identity, finished.identity, whatever_version=True)
        changed += changes(other.evaluation, finished.evaluation, whatever_version=True)
        if changed:
            raise UsageError(
                f"{other.source} and {finished.source} both have {finished.name}, made with different settings "
                f"({changed[0]}); name one of them in the plan's parts"
            )
    return taken
