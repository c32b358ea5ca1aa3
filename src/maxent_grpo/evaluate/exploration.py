"""mean@k, pass@k, distinct@k and coverage@k of scored groups.

All four are averages over prompts of a per-prompt number, from k = G samples each:

- ``mean_at_k``: fraction of right samples.
- ``pass_at_k``: 1 if any sample is right.
- ``distinct_at_k``: number of different answer modes among the right samples.
- ``coverage_at_k``: distinct_at_k over the number of answer modes that the prompt has.

The last two exist for tasks whose modes are enumerated (dataset columns ``task``, ``facts`` and ``modes``). A right
sample whose mode has no key counts as a mode of its own, and distinct_at_k never exceeds the number of modes.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from maxent_grpo.evaluate.passk import distinct_modes
from maxent_grpo.tasks.registry import grade_response
from maxent_grpo.types import Group, Metrics, mean_stat

RIGHT = 1.0
"""A completion counts as right from this utility on."""


def exploration_scores(groups: Sequence[Group]) -> dict[str, list[float]]:
    """Metric name (with its k, such as ``pass_at_8``) → one number per prompt."""
    k = len(groups[0].utilities)
    scores: dict[str, list[float]] = {f"mean_at_{k}": [], f"pass_at_{k}": []}
    enumerated = "modes" in groups[0].rollout.prompt.columns
    if enumerated:
        scores |= {f"distinct_at_{k}": [], f"coverage_at_{k}": []}
    for group in groups:
        right = [utility >= RIGHT for utility in group.utilities]
        scores[f"mean_at_{k}"].append(sum(right) / k)
        scores[f"pass_at_{k}"].append(float(any(right)))
        if enumerated:
            modes = len(group.rollout.prompt.columns["modes"])
            distinct = _distinct_right(group.rollout.texts, group.rollout.prompt.columns, modes)
            scores[f"distinct_at_{k}"].append(float(distinct))
            scores[f"coverage_at_{k}"].append(distinct / modes)
    return scores


def exploration_metrics(groups: Sequence[Group]) -> Metrics:
    """``pass``, ``distinct`` and ``coverage`` of training groups (k = G), as statistics that add up over ranks."""
    k = len(groups[0].utilities)
    scores = {name.removesuffix(f"_at_{k}"): values for name, values in exploration_scores(groups).items()}
    del scores["mean"]  # the reward says it
    return {name: mean_stat(torch.tensor(values, dtype=torch.float64)) for name, values in scores.items()}


def with_standard_errors(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Each metric's average over prompts, and under ``<name>_se`` its standard error over prompts."""
    summary: dict[str, float] = {}
    for name, values in scores.items():
        n, mean = len(values), sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / (n - 1) if n > 1 else 0.0
        summary |= {name: mean, f"{name}_se": math.sqrt(variance / n)}
    return summary


def _distinct_right(texts: Sequence[str], columns: Mapping[str, str], modes: int) -> int:
    verdicts = [grade_response(columns["task"], text, columns["facts"]) for text in texts]
    return distinct_modes((verdict.mode for verdict in verdicts if verdict.correct), modes)
