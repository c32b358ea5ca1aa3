"""Tables of evaluations (Pass@1; Pass@k and Avg@k), averaged over all seeds that the artifacts hold.

A row per model, style, label where it takes one to tell two apart, and temperature; a column per benchmark. LightEval's
result files are read as well.

python tools/math_eval_table.py --artifact-root var/artifacts/inference --ks 4 16 --unbiased --intervals
"""

import argparse
import io
import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.benchmarks import ALIASES, PRESETS
from maxent_grpo.evaluate.passk import ScoredSamples, avg_at, pass_at, unbiased_pass_at
from maxent_grpo.evaluate.records import Record, read_records, scored_samples
from maxent_grpo.evaluate.results import bootstrap_interval

PASS_1 = "Pass@1"
USUAL_K = 8
FIRST_DATASETS = ("math_500", "aime24", "aime25", "amc", "minerva")
MISSING = "-"
UNKNOWN = -1.0  # a temperature that a result file does not tell
ACCURACIES = (
    "acc", "accuracy", "exact_match", "score",
    # LightEval 0.13: math_500 and aime24/25, gpqa, lcb; then its exact match, with and without reading the answer out.
    "pass@k", "gpqa_pass@k", "codegen_pass@1", "em", "extractive_match", "avg@n",
)  # fmt: skip
"""Names under which a task's accuracy may stand, the first found counts; variants such as ``acc_norm`` do not."""

_STEP = re.compile(r"(?:checkpoint|step)[-_](\d+)")


@dataclass(frozen=True, order=True)
class Row:
    """The subject of a line, in the order that lines are sorted by."""

    family: str  # the model's name without the step
    step: int  # of training, 0 where the name tells none
    checkpoint: str  # as shown: checkpoint or revision
    label: str
    style: str
    temperature: float


@dataclass
class Scores:
    """Row → data set → table → one mapping per seed: prompt → value."""

    tables: list[str] = field(default_factory=list)
    values: dict[Row, dict[str, dict[str, list[Mapping[int, float]]]]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # figures that no table shows, and why

    def add(self, row: Row, dataset: str, table: str, values: Mapping[int, float]) -> None:
        self.values.setdefault(row, {}).setdefault(dataset, {}).setdefault(table, []).append(values)

    def mean(self, row: Row, dataset: str, table: str) -> float | None:
        """Over prompts, then over seeds; None where there is nothing."""
        found = self.values[row].get(dataset, {}).get(table)
        return statistics.fmean(statistics.fmean(values.values()) for values in found) if found else None

    def interval(self, row: Row, dataset: str, table: str) -> tuple[float, float] | None:
        """95 % over the prompts that every seed has, see `bootstrap_interval`; None for fewer than two."""
        found = self.values[row].get(dataset, {}).get(table, [])
        prompts = sorted(set.intersection(*(set(values) for values in found))) if found else []
        if len(prompts) < 2:
            return None
        by_prompt = np.array([[statistics.fmean(values[p] for values in found)] for p in prompts])
        low, high = bootstrap_interval(by_prompt)
        return float(low[0]), float(high[0])

    @property
    def datasets(self) -> list[str]:
        """The known benchmarks first, then the others by name."""
        present = {dataset for row in self.values.values() for dataset in row}
        known = [dataset for dataset in FIRST_DATASETS if dataset in present]
        return known + sorted(present - set(known))


def read_scores(root: Path, ks: Sequence[int] | None = None, *, unbiased: bool = False) -> Scores:
    """Everything under ``root``: artifacts (``seed_*.jsonl``) and LightEval's ``results*.json``.

    Args:
        ks: the k of Pass@k and Avg@k; by default 8, or all samples where no artifact has as many.
        unbiased: Pass@k over all choices of k samples in place of the first k.

    Raises:
        UsageError: there is nothing, a file cannot be read, or no artifact has enough samples for a k.
    """
    artifacts = [
        (path, [record for _, record in sorted(read_records(path).items())])
        for path in sorted(root.rglob("seed_*.jsonl"))
    ]
    most = max((records[0]["num_generations"] for _, records in artifacts if records), default=USUAL_K)
    asked = sorted({*ks} if ks else {min(USUAL_K, most)})
    if not 1 <= asked[0] <= asked[-1] <= most:
        raise UsageError(f"--ks {' '.join(map(str, asked))}: from 1 to {most}, the samples that there are")
    passes = {k: f"Pass@{k}{' unbiased' if unbiased else ''}" for k in (1, *asked)}
    scores = Scores([PASS_1 if not unbiased else passes[1]])
    for k in asked:
        scores.tables += [name for name in (passes[k], f"Avg@{k}") if name not in scores.tables]
    seen: set[tuple[Row, str, int]] = set()
    for path, records in artifacts:
        if records:
            _add_artifact(scores, path, records, passes, seen)
    for path in sorted(root.rglob("results*.json")):
        results = read_lighteval(path)
        for dataset, value in results.accuracies:
            scores.add(
                row_of(results.model, "lighteval", "", UNKNOWN, None), dataset, scores.tables[0], {0: value}
            )
        if results.unknown:
            scores.left_out.append(f"{path}: not known as an accuracy: {', '.join(results.unknown)}")
    if not scores.values:
        raise UsageError(
            f"{root}: no artifacts (seed_*.jsonl) and no LightEval results (results*.json) below it"
        )
    return scores


def row_of(model_id: str, label: str, style: str, temperature: float, revision: str | None) -> Row:
    """The row of a model: family and step are read from its name."""
    parts = [part for part in re.split(r"[/\\:]+", model_id) if part]
    checkpoint = parts.pop() if len(parts) > 1 and _STEP.fullmatch(parts[-1]) else ""
    step = _STEP.search(checkpoint or revision or model_id)
    shown = "@".join(part for part in (checkpoint, revision) if part)
    return Row(
        parts[-1] if parts else model_id, int(step[1]) if step else 0, shown, label, style, temperature
    )


def _add_artifact(
    scores: Scores,
    path: Path,
    records: Sequence[Record],
    passes: Mapping[int, str],
    seen: set[tuple[Row, str, int]],
) -> None:
    first, samples = records[0], scored_samples(records)
    named = (first[key] for key in ("model_id", "model_label", "style", "temperature"))
    row, dataset = row_of(*named, first.get("revision")), first["dataset_id"]
    if (
        row,
        dataset,
        first["seed"],
    ) in seen:  # another evaluation of the same name: no second seed of this one
        row = replace(row, label=f"{row.label} in {path.parents[2]}")
    seen.add((row, dataset, first["seed"]))
    n = samples.scores.shape[1]
    for k, name in passes.items():
        if k > n:
            scores.left_out.append(f"{path}: {n} samples per prompt, so no figure for k={k}")
            continue
        scores.add(row, dataset, name, _by_prompt(records, _passed(samples, k, name)))
        if f"Avg@{k}" in scores.tables:
            scores.add(row, dataset, f"Avg@{k}", _by_prompt(records, avg_at(samples, k)))


def _passed(samples: ScoredSamples, k: int, table: str) -> Any:
    return unbiased_pass_at(samples, k) if table.endswith("unbiased") else pass_at(samples, k)


def _by_prompt(records: Sequence[Record], values: Any) -> dict[int, float]:
    return {record["prompt_index"]: float(v) for record, v in zip(records, values, strict=True)}


def table_cells(
    scores: Scores, table: str, precision: int, min_datasets: int, *, intervals: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Heading and lines of one table, figures in per cent; rows with fewer data sets than asked for are left out.

    Rows that differ in nothing but their label show it beside their style.

    ``avg`` is the mean over the data sets that the row has.
    """
    datasets = scores.datasets
    lines = []
    styles = _styles(scores)
    for row in sorted(scores.values):
        found = {dataset: scores.mean(row, dataset, table) for dataset in datasets}
        values = [value for value in found.values() if value is not None]
        if len(values) < max(1, min_datasets):
            continue
        cells = [
            _percent(found[dataset], precision)
            + (_interval(scores.interval(row, dataset, table), precision) if intervals else "")
            for dataset in datasets
        ]
        average = _percent(statistics.fmean(values), precision)
        named = [row.family, row.checkpoint or MISSING, styles[row], _temperature(row)]
        lines.append([*named, *cells, average])
    return ["family", "ckpt", "style", "temp", *datasets, "avg"], lines


def _styles(scores: Scores) -> dict[Row, str]:
    """Row → its style, with the label where rows would else look the same."""
    alike = Counter(replace(row, label="") for row in scores.values)
    return {
        row: f"{row.style} {row.label}".strip()
        if alike[replace(row, label="")] > 1
        else row.style or row.label
        for row in scores.values
    }


def tables_text(scores: Scores, precision: int, min_datasets: int, *, intervals: bool = False) -> str:
    """The tables, one below the other."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console(width=400, record=True, file=io.StringIO())
    for title in scores.tables:
        heading, lines = table_cells(scores, title, precision, min_datasets, intervals=intervals)
        table = Table(title=title, box=SIMPLE, pad_edge=False, title_justify="left")
        for position, name in enumerate(heading):
            table.add_column(name, justify="left" if position < 3 else "right", no_wrap=True)
        for line in lines:
            table.add_row(*line)
        console.print(table)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def plot_tables(scores: Scores, path: Path, min_datasets: int) -> None:
    """Bars of the averages per row, as a picture at ``path``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in sorted(scores.values) if len(scores.values[row]) >= max(1, min_datasets)]
    figure, axes = plt.subplots(
        1, len(scores.tables), figsize=(4 * len(scores.tables), 0.9 + 0.35 * len(rows)), sharey=True
    )
    styles = _styles(scores)
    names = [
        f"{row.family} {row.checkpoint} {styles[row]} T={_temperature(row)}".replace("  ", " ")
        for row in rows
    ]
    for axis, title in zip(axes, scores.tables, strict=True):
        found = ([scores.mean(row, dataset, title) for dataset in scores.datasets] for row in rows)
        there = ([value for value in values if value is not None] for values in found)
        axis.barh(names, [100 * statistics.fmean(values or [0.0]) for values in there], color="#0072b2")
        axis.set(title=title, xlim=(0, 100), xlabel="% (mean over benchmarks)")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def _temperature(row: Row) -> str:
    return MISSING if row.temperature == UNKNOWN else f"{row.temperature:g}"


def _percent(value: float | None, precision: int) -> str:
    return MISSING if value is None else f"{100 * value:.{precision}f}"


def _interval(ends: tuple[float, float] | None, precision: int) -> str:
    return "" if ends is None else f" [{_percent(ends[0], precision)}, {_percent(ends[1], precision)}]"


@dataclass(frozen=True)
class LightEvalResults:
    """One result file."""

    model: str
    accuracies: tuple[tuple[str, float], ...]  # (data set, accuracy in 0…1) of every task that has one
    unknown: tuple[str, ...]  # "task: figure" of every figure whose name is none of `ACCURACIES`


def read_lighteval(path: Path) -> LightEvalResults:
    """The figures of a LightEval ``results_*.json``.

    Tasks are called ``suite|task|shots`` or ``task|shots``; the average over tasks (``all``) is left out.
    Raises `UsageError` where the file is not one of LightEval's, or has no figure of a known name.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        results: dict[str, dict[str, Any]] = content["results"]
        tasks = list(results.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f'{path}: not a result file of LightEval (a JSON object with "results")') from error
    general = content.get("config_general") or {}
    model = (
        general.get("model_name") or (general.get("model_config") or {}).get("model_name") or path.parent.name
    )
    found = [(task, value) for task, figures in tasks if (value := _accuracy(figures)) is not None]
    named = [(task, name) for task, figures in tasks for name in figures if not name.endswith("_stderr")]
    if not found:
        names = sorted({name for _, name in named})
        raise UsageError(
            f"{path}: no accuracy among its figures ({', '.join(names) or 'none'}); read are {', '.join(ACCURACIES)}"
        )
    return LightEvalResults(
        model=str(model),
        accuracies=tuple((dataset_of(task), value) for task, value in found if task != "all"),
        unknown=tuple(
            f"{task}: {name}"
            for task, name in named
            if task != "all" and name.partition(":")[0] not in ACCURACIES
        ),
    )


def dataset_of(task: str) -> str:
    """``lighteval|aime24|0|0`` as ``aime24``: the first part that names a preset, else the task's own name."""
    parts = task.split("|")
    for part in parts:
        name = ALIASES.get(part.replace("-", "_"), part.replace("-", "_"))
        if name in PRESETS:
            return name
    return parts[1] if len(parts) > 2 else parts[0]


def _accuracy(figures: dict[str, Any]) -> float | None:
    for metric in ACCURACIES:
        for name, value in figures.items():
            # "em", or with its settings behind it: "avg@n:n=64", "pass@k:k=1&n=1". Of pass@k only k = 1 is an accuracy.
            known, _, parameters = name.partition(":")
            wanted = known == metric and ("k=" not in parameters or "k=1" in parameters.split("&"))
            if wanted and isinstance(value, int | float):
                return float(value)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifact-root", type=Path, default=Path("var/artifacts/inference"))
    parser.add_argument("--precision", type=int, default=1, help="digits behind the point, in per cent (1)")
    parser.add_argument(
        "--min-datasets", type=int, default=1, help="leave out rows with fewer benchmarks (1)"
    )
    parser.add_argument("--ks", type=int, nargs="+", help="the k of Pass@k and Avg@k (8)")
    parser.add_argument(
        "--unbiased", action="store_true", help="Pass@k over all choices of k samples, not the first k"
    )
    parser.add_argument("--intervals", action="store_true", help="95 %% over prompts behind each figure")
    parser.add_argument("--plot-name", type=Path, help="also draw the averages into this file")
    options = parser.parse_args(arguments)
    try:
        scores = read_scores(options.artifact_root, options.ks, unbiased=options.unbiased)
    except UsageError as error:
        print(f"math_eval_table: {error}", file=sys.stderr)
        return error.exit_code
    print(tables_text(scores, options.precision, options.min_datasets, intervals=options.intervals))
    for line in scores.left_out:
        print(f"left out  {line}")
    if options.plot_name is not None:
        plot_tables(scores, options.plot_name, options.min_datasets)
        print(f"plot  {options.plot_name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
