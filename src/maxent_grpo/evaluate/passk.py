"""pass@k, avg@k, distinct@k and coverage@k: what k samples of one prompt say, each one number per prompt.

Benchmarks, studies and the evaluation during training count with these; their figures are means over prompts.
Shapes: ``P`` prompts, ``n`` samples of each, 1 ≤ k ≤ n. "First k" means the first k in the order of sampling, which
says nothing about their quality: samples are independent. What "k of the n" says is the average over all choices of k
samples without replacement, in closed form.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from maxent_grpo.tasks.registry import grade_response

if TYPE_CHECKING:
    from maxent_grpo.types import Group

Floats = npt.NDArray[np.float64]

RIGHT = 1.0
"""A sample is right from this score on."""


@dataclass(frozen=True)
class ScoredSamples:
    """The samples of P prompts under one seed, scored."""

    scores: Floats
    """[P, n]"""
    modes: tuple[tuple[str | None, ...], ...] | None = None
    """P × n, the answer mode of a right sample, if it has one."""
    mode_counts: tuple[int, ...] | None = None
    """P, right answers that a prompt has; None: they are not enumerated."""

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """True where a sample is right, [P, n]."""
        return self.scores >= RIGHT


def ks_up_to(n: int) -> tuple[int, ...]:
    """1, 2, 4, … below ``n``, and ``n``: the k that are reported where none are asked for."""
    return (*(2**i for i in range(n.bit_length()) if 2**i < n), n)


def pass_at(samples: ScoredSamples, k: int) -> Floats:
    """1 if any of the first k samples is right, else 0: [P]."""
    return np.asarray(samples.right[:, :k].any(axis=1), dtype=np.float64)


def unbiased_pass_at(samples: ScoredSamples, k: int) -> Floats:
    """The chance that k of the n samples, drawn without replacement, hold a right one: 1 − C(n−c, k)/C(n, k), [P].

    c is the number of right samples. Its expectation is pass@k, as that of `pass_at` is, and its variance is smaller
    because it reads all n samples (Chen et al. 2021, arXiv:2107.03374, eq. 1). For k = n the two are equal.
    """
    return _met(samples.scores.shape[1], k)[samples.right.sum(axis=1)]


def _met(n: int, k: int) -> Floats:
    """The chance that k of n samples, drawn without replacement, hold one of c given ones, for c = 0 … n: [n + 1]."""
    # C(n−c, k)/C(n, k) = Π over j < k of (n−c−j)/(n−j): no factorial, no overflow; 0 once fewer than k are others.
    others = np.arange(n, -1, -1, dtype=np.float64)[:, None]  # n − c for c = 0 … n
    drawn = np.arange(k, dtype=np.float64)
    return np.asarray(1.0 - np.prod(np.clip(others - drawn, 0, None) / (n - drawn), axis=1))


def avg_at(samples: ScoredSamples, k: int) -> Floats:
    """The mean score of the first k samples, [P]."""
    return samples.scores[:, :k].mean(axis=1)


def distinct_at(samples: ScoredSamples, k: int) -> Floats:
    """Different right answers in k of the n samples, on average over all choices of k without replacement: [P].

    Σ over the modes of 1 − C(n−c, k)/C(n, k), c being the right samples of a mode: rarefaction (Hurlbert 1971,
    doi:10.2307/1934145), unbiased for the number in k samples. For k = n it is the plain count. A right sample
    without a key is a mode of its own; a prompt counts at most as many as it has.
    """
    assert samples.modes is not None
    assert samples.mode_counts is not None
    met = _met(samples.scores.shape[1], k)
    return np.array(
        [
            min(sum(met[c] for c in _mode_sizes(modes, row)), count)
            for modes, row, count in zip(samples.modes, samples.right, samples.mode_counts, strict=True)
        ],
        dtype=np.float64,
    )


def _mode_sizes(modes: Sequence[str | None], right: Iterable[bool]) -> list[int]:
    """Right samples of each mode."""
    found = Counter(mode for mode, ok in zip(modes, right, strict=True) if ok)
    return [1] * found.pop(None, 0) + list(found.values())


def coverage_at(samples: ScoredSamples, k: int) -> Floats:
    """`distinct_at` as a fraction of the right answers that the prompt has, [P]."""
    return distinct_at(samples, k) / np.array(samples.mode_counts, dtype=np.float64)


DEFINITIONS: Mapping[str, str] = {
    "pass_at_<k>": "fraction of prompts with a right answer among the first k samples",
    "pass_at_<k>_unbiased": "chance that k of the n samples, drawn without replacement, hold a right one; "
    "mean over prompts",
    "avg_at_<k>": "mean score of the first k samples; mean over prompts",
    "distinct_at_<k>": "different right answers in k of the n samples, drawn without replacement: their expected "
    "number; mean over prompts",
    "coverage_at_<k>": "distinct_at_<k> over the number of right answers that a prompt has; mean over prompts",
}
"""Metric → what it says, in the order of `per_prompt`."""


def per_prompt(samples: ScoredSamples, ks: Sequence[int]) -> dict[str, Floats]:
    """Metric (``pass_at_8``) → its value for each prompt, [P]. Distinct and coverage only where modes are known."""
    columns: dict[str, Floats] = {}
    for k in ks:
        columns[f"pass_at_{k}"] = pass_at(samples, k)
        columns[f"pass_at_{k}_unbiased"] = unbiased_pass_at(samples, k)
        columns[f"avg_at_{k}"] = avg_at(samples, k)
        if samples.mode_counts is not None:
            columns[f"distinct_at_{k}"] = distinct_at(samples, k)
            columns[f"coverage_at_{k}"] = coverage_at(samples, k)
    return columns


def exploration_scores(groups: "Sequence[Group]") -> dict[str, list[float]]:
    """Metric with its k, such as ``pass_at_8`` → one number per prompt, from the k = G samples of scored groups.

    ``mean_at_k`` (the fraction of right samples) and ``pass_at_k`` go by the correctness reward and exist where there
    is one; ``distinct_at_k`` and ``coverage_at_k`` go by the verdict of the task's verifier and exist for tasks whose
    modes are enumerated (dataset columns ``task``, ``facts`` and ``modes``).
    """
    k = len(groups[0].utilities)
    scores: dict[str, Floats] = {}
    rights = [group.right for group in groups if group.right is not None]
    if len(rights) == len(groups):
        samples = ScoredSamples(np.array(rights, dtype=np.float64))
        scores = {f"mean_at_{k}": samples.right.mean(axis=1), f"pass_at_{k}": pass_at(samples, k)}
    if "modes" in groups[0].rollout.prompt.columns:
        judged = _judged_by_task(groups)
        scores |= {f"distinct_at_{k}": distinct_at(judged, k), f"coverage_at_{k}": coverage_at(judged, k)}
    return {name: values.tolist() for name, values in scores.items()}


def _judged_by_task(groups: "Sequence[Group]") -> ScoredSamples:
    columns = [group.rollout.prompt.columns for group in groups]
    verdicts = [
        [grade_response(facts["task"], text, facts["facts"]) for text in group.rollout.texts]
        for group, facts in zip(groups, columns, strict=True)
    ]
    return ScoredSamples(
        scores=np.array([[float(verdict.correct) for verdict in row] for row in verdicts]),
        modes=tuple(tuple(verdict.mode for verdict in row) for row in verdicts),
        mode_counts=tuple(len(facts["modes"]) for facts in columns),
    )


def with_standard_errors(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Each metric's average over prompts, and under ``<name>_se`` its standard error over prompts."""
    summary: dict[str, float] = {}
    for name, values in scores.items():
        n, mean = len(values), sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / (n - 1) if n > 1 else 0.0
        summary |= {name: mean, f"{name}_se": math.sqrt(variance / n)}
    return summary
