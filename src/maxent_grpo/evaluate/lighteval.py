"""Figures from LightEval's result files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.presets import ALIASES, PRESETS

METRICS = (
    "acc", "accuracy", "exact_match", "score",
    # LightEval 0.13: math_500 and aime24/25, gpqa, lcb; then its exact match, with and without reading the answer out.
    "pass@k", "gpqa_pass@k", "codegen_pass@1", "em", "extractive_match", "avg@n",
)  # fmt: skip
"""Names under which a task's accuracy may stand, the first found counts; variants such as ``acc_norm`` do not."""


@dataclass(frozen=True)
class LightEvalResults:
    """One result file."""

    model: str
    accuracies: tuple[tuple[str, float], ...]  # (data set, accuracy in 0…1) of every task that has one
    unknown: tuple[str, ...]  # "task: figure" of every figure whose name is none of `METRICS`


def read_lighteval(path: Path) -> LightEvalResults:
    """What a LightEval ``results_*.json`` says.

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
            f"{path}: no accuracy among its figures ({', '.join(names) or 'none'}); read are {', '.join(METRICS)}"
        )
    return LightEvalResults(
        model=str(model),
        accuracies=tuple((dataset_of(task), value) for task, value in found if task != "all"),
        unknown=tuple(
            f"{task}: {name}"
            for task, name in named
            if task != "all" and name.partition(":")[0] not in METRICS
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
    for metric in METRICS:
        for name, value in figures.items():
            # "em", or with its settings behind it: "avg@n:n=64", "pass@k:k=1&n=1". Of pass@k only k = 1 is an accuracy.
            known, _, parameters = name.partition(":")
            wanted = known == metric and ("k=" not in parameters or "k=1" in parameters.split("&"))
            if wanted and isinstance(value, int | float):
                return float(value)
    return None
