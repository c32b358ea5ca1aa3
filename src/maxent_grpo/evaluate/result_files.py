"""Results to read: a table on the terminal; summary.json, summary.csv and report.html on disk.

The report is a page to read completions by prompt, right and wrong: one HTML file that needs nothing else.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from maxent_grpo.evaluate.passk import DEFINITIONS, RIGHT
from maxent_grpo.evaluate.records import Record, read_records
from maxent_grpo.evaluate.results import CONFIDENCE, Estimate, MathEvalResult, shown
from maxent_grpo.files import replace_file, strict_json
from maxent_grpo.observe.report import render_page

SUMMARY_JSON, SUMMARY_CSV, PAGE = "summary.json", "summary.csv", "report.html"
ESTIMATE_FIELDS = tuple(field.name for field in fields(Estimate))
TEMPLATE: Final = Path(__file__).with_name("completions.html")
PAGE_CHARACTERS: Final = 20_000_000
"""Prompts are shown until their texts reach this length: a browser still scrolls, and the rest is in the artifacts."""


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
    asked = ("dataset", "model_id", "label", "style", "temperature", "seeds", "num_generations")
    found = ("total", "correct", "accuracy", "truncated")
    return {
        **{name: getattr(result, name) for name in asked},
        "prompts": len(result.prompt_indices),
        "prompts_without_answer": {str(index): error for index, error in result.errors.items()},
        **{name: getattr(result, name) for name in found},
        "confidence": CONFIDENCE,
        "metrics": {name: asdict(estimate) for name, estimate in result.metrics.items()},
        "per_seed": {str(seed): dict(values) for seed, values in result.per_seed.items()},
        "definitions": dict(DEFINITIONS),
    }


def summary_csv(result: MathEvalResult) -> str:
    """One line per metric: its estimate, then its value under each seed; nothing where one is undefined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", *ESTIMATE_FIELDS, *(f"seed_{seed}" for seed in result.seeds)])
    for name, estimate in result.metrics.items():
        by_seed = [result.per_seed[seed][name] for seed in result.seeds]
        writer.writerow([name, *strict_json([*asdict(estimate).values(), *by_seed])])
    return text.getvalue()


def results_table(results: Sequence[MathEvalResult]) -> str:
    """The figures of all results as text, see `headline_metrics`, and what they leave out.

    A figure that some prompts do not have stands with the number of those that do.
    """
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
            partly = estimate.support < len(result.prompt_indices)
            text = shown(estimate) + f" of {estimate.support}" * partly
            table.add_row(name, temperature, metric, text, spread, sd)
            name = temperature = ""
        table.add_section()
    prompts, seeds = len(first.prompt_indices), ", ".join(map(str, first.seeds))
    console = Console(width=120, file=io.StringIO(), record=True, highlight=False, markup=False)
    console.print(f"{first.dataset}: {prompts} prompts, {first.num_generations} samples each, seeds {seeds}")
    console.print(table)
    for result in results:
        if result.truncated:
            cut = f"{result.truncated:.1%} of the samples were cut off at max_new_tokens"
            console.print(f"{result.label}: {cut}")
        if result.errors:
            index, error = next(iter(result.errors.items()))
            console.print(
                f"{result.label}: {len(result.errors)} prompts have no answer and count in no figure; the same command "
                f"asks them again. Prompt {index}: {error}",
                soft_wrap=True,
            )
    return "\n".join(line.rstrip() for line in console.export_text().rstrip().splitlines())


def headline_metrics(result: MathEvalResult) -> list[str]:
    """Pass@1; unbiased pass@k for each k that was asked for; pass@n, avg@n, maj@n, Cover@τ; measures of diversity.

    For k = n the plain and the unbiased pass@k are the same number, and stand once.
    """
    ks = sorted({_split_metric(name)[1] for name in result.metrics if name.startswith("avg_")})
    n = result.num_generations
    wanted = [
        "pass_at_1",
        *(f"pass_at_{k}_unbiased" for k in ks if k < n),
        *(f"pass_at_{k}" for k in ks if k == n),
        *(f"{kind}_at_{k}" for kind in ("avg", "maj") for k in ks if k == max(ks)),
        *(name for name in result.metrics if name.startswith("cover_")),
        *(f"{kind}_at_{k}" for kind in ("distinct", "coverage", "breadth") for k in ks),
        f"pcmd_at_{n}",
        f"n_eff_at_{n}",
    ]
    return list(dict.fromkeys(name for name in wanted if name in result.metrics))


def completions_page(
    result: MathEvalResult, records: Mapping[int, Sequence[Record]], limit: int = PAGE_CHARACTERS
) -> str:
    """The page of ``result``; ``records``: seed → its records, the same prompts in the same order for each.

    Completions are hostile text: everything is escaped, directions and control signs are fenced in, and the page's
    policy forbids it to load or run anything but its own script.
    """
    prompts = [_prompt(rows) for rows in zip(*records.values(), strict=True)]
    return render_page(
        TEMPLATE,
        result=result,
        kinds=list(dict.fromkeys(kind for kind, _ in map(_split_metric, result.metrics))),
        metrics=_by_k(result.metrics),
        definitions=DEFINITIONS,
        prompts=prompts[: _fitting(prompts, limit)],
        total=len(prompts),
    )


def _split_metric(name: str) -> tuple[str, int]:
    """``pass_at_8_unbiased`` as ("pass@k unbiased", 8)."""
    kind, _, rest = name.partition("_at_")
    k, _, variant = rest.partition("_")
    return f"{kind}@k {variant}".rstrip(), int(k)


def _by_k(metrics: Mapping[str, Estimate]) -> dict[int, dict[str, tuple[str, Estimate]]]:
    """k → kind → its figure as text, and the estimate."""
    table: dict[int, dict[str, tuple[str, Estimate]]] = {}
    for name, estimate in metrics.items():
        kind, k = _split_metric(name)
        table.setdefault(k, {})[kind] = (shown(estimate), estimate)
    return table


def _prompt(rows: Sequence[Record]) -> dict[str, Any]:
    """One prompt for the template, from its records under every seed."""
    samples = [
        {
            "seed": row["seed"],
            "number": number,
            "right": row["scores"][number] >= RIGHT,
            "extracted": _printable(row["answer_extracted"][number]),
            "text": printable(text),
            "truncated": row["finish_reasons"][number] == "length",
        }
        for row in rows
        for number, text in enumerate(row["generations"])
    ]
    right = sum(sample["right"] for sample in samples)
    gold = rows[0]["answer"]
    return {
        "index": rows[0]["prompt_index"],
        "text": _printable(rows[0]["prompt"]),
        "gold": printable(gold if isinstance(gold, str) else json.dumps(gold, ensure_ascii=False)),
        "samples": samples,
        "right": right,
        "outcome": "none" if not right else "all" if right == len(samples) else "some",
    }


_MADE_VISIBLE = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"},
    0x7F: "␡",
    **dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000)), "�"),
}


def printable(text: str) -> str:
    """``text`` with control signs made visible: null bytes, escapes and lone surrogates have no place in HTML."""
    return text.translate(_MADE_VISIBLE)


def _printable(text: str | None) -> str | None:
    return None if text is None else printable(text)


def _fitting(prompts: Sequence[dict[str, Any]], limit: int) -> int:
    """The number of ``prompts``, at least one, that have no more than ``limit`` characters together."""
    used = 0
    for count, prompt in enumerate(prompts):
        used += len(prompt["text"] or "") + sum(len(sample["text"]) for sample in prompt["samples"])
        if used > limit and count:
            return count
    return len(prompts)
