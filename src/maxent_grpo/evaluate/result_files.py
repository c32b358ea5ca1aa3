"""What an evaluation leaves to read: a table on the terminal; summary.json, summary.csv and report.html on disk."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from maxent_grpo.evaluate.artifacts import read_records
from maxent_grpo.evaluate.completions_page import completions_page
from maxent_grpo.evaluate.intervals import CONFIDENCE, Estimate, shown
from maxent_grpo.evaluate.passk import DEFINITIONS
from maxent_grpo.evaluate.results import MathEvalResult
from maxent_grpo.files import replace_file, strict_json

SUMMARY_JSON, SUMMARY_CSV, PAGE = "summary.json", "summary.csv", "report.html"
ESTIMATE_FIELDS = tuple(field.name for field in fields(Estimate))


def write_results(result: MathEvalResult) -> list[Path]:
    """Write the summary and the page of ``result`` beside its artifacts; returns their paths."""
    folder = result.artifacts[0].parent
    wanted = set(result.prompt_indices)
    records = {
        seed: [record for index, record in sorted(read_records(path).items()) if index in wanted]
        for seed, path in zip(result.seeds, result.artifacts, strict=True)
    }
    texts = {
        SUMMARY_JSON: json.dumps(strict_json(summary(result)), indent=1, ensure_ascii=False) + "\n",
        SUMMARY_CSV: summary_csv(result),
        PAGE: completions_page(result, records),
    }
    for name, text in texts.items():
        replace_file(folder / name, text.encode("utf-8", "backslashreplace"))
    return [folder / name for name in texts]


def summary(result: MathEvalResult) -> dict[str, Any]:
    """The figures of ``result`` with what they are figures of; equal answers give equal summaries."""
    return {
        "dataset": result.dataset,
        "model_id": result.model_id,
        "label": result.label,
        "style": result.style,
        "temperature": result.temperature,
        "seeds": list(result.seeds),
        "num_generations": result.num_generations,
        "prompts": len(result.prompt_indices),
        "total": result.total,
        "correct": result.correct,
        "accuracy": result.accuracy,
        "truncated": result.truncated,
        "confidence": CONFIDENCE,
        "metrics": {name: asdict(estimate) for name, estimate in result.metrics.items()},
        "per_seed": {str(seed): dict(values) for seed, values in result.per_seed.items()},
        "definitions": dict(DEFINITIONS),
    }


def summary_csv(result: MathEvalResult) -> str:
    """One line per metric: its estimate, then its value under each seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", *ESTIMATE_FIELDS, *(f"seed_{seed}" for seed in result.seeds)])
    for name, estimate in result.metrics.items():
        by_seed = [result.per_seed[seed][name] for seed in result.seeds]
        writer.writerow([name, *asdict(estimate).values(), *by_seed])
    return text.getvalue()


def results_table(results: Sequence[MathEvalResult]) -> str:
    """The main figures of all results as text: Pass@1, Pass@k, Avg@k, and distinct and coverage where there are any."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    first = results[0]
    table = Table(box=SIMPLE, pad_edge=False)
    for heading in ("model", "temp", "metric", f"mean [{CONFIDENCE:.0%} over prompts]", "seeds", "sd"):
        table.add_column(heading, no_wrap=True)
    for result in results:
        name, temperature = result.label, f"{result.temperature:g}"
        for metric in headline_metrics(result):
            estimate = result.metrics[metric]
            spread, sd = "", ""
            if estimate.seed_sd is not None:
                spread, sd = f"{estimate.seed_min:.3f}–{estimate.seed_max:.3f}", f"{estimate.seed_sd:.3f}"
            table.add_row(name, temperature, metric, shown(estimate), spread, sd)
            name = temperature = ""
        table.add_section()
    prompts = len(first.prompt_indices)
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(
        f"{first.dataset}: {prompts} prompts, {first.num_generations} samples each, seeds "
        f"{', '.join(map(str, first.seeds))}",
        highlight=False,
        markup=False,
    )
    console.print(table)
    for result in results:
        if result.truncated:
            console.print(
                f"{result.label}: {result.truncated:.1%} of the samples were cut off at max_new_tokens",
                highlight=False,
                markup=False,
            )
    return "\n".join(line.rstrip() for line in console.export_text().rstrip().splitlines())


def headline_metrics(result: MathEvalResult) -> list[str]:
    """Pass@1, then pass@n, avg@n and, where they exist, distinct@n and coverage@n for all n samples."""
    n = max(int(name.split("_")[2]) for name in result.metrics)
    wanted = ("pass_at_1", f"pass_at_{n}", f"avg_at_{n}", f"distinct_at_{n}", f"coverage_at_{n}")
    return list(dict.fromkeys(name for name in wanted if name in result.metrics))
