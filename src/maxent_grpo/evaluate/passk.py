"""pass@k, avg@k, distinct@k, coverage@k and their relatives: what samples of one prompt say, one number per prompt.

Benchmarks, studies and the evaluation during training count with these; their figures are means over the prompts for
which a number is defined: an undefined one is NaN here and missing in every record, never 0.
Shapes: ``P`` prompts, ``n`` samples of each, 1 ≤ k ≤ n. "First k" means the first k in the order of sampling, which
says nothing about their quality: samples are independent. What "k of the n" says is the average over all choices of k
samples without replacement, in closed form.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from maxent_grpo.types import Group

Floats = npt.NDArray[np.float64]

RIGHT = 1.0
"""A sample is right from this score on."""

THRESHOLDS = (0.2, 0.5, 0.8)
"""Shares of right samples from which on `cover_at` calls a prompt covered."""

ENOUGH_PROMPTS = 20
"""Prompts with a defined PCMD, from which on the averages of two policies are compared."""


@dataclass(frozen=True)
class ScoredSamples:
    """The samples of P prompts under one seed, scored."""

    scores: Floats
    """[P, n]"""
    modes: tuple[tuple[str | None, ...], ...] | None = None
    """P × n, the answer mode of a right sample, if it has one; None: answers have no keys."""
    mode_counts: tuple[int | None, ...] | None = None
    """P, right answers that a prompt has; None: they are not enumerated, for one prompt or for all."""
    answers: tuple[tuple[str | None, ...], ...] | None = None
    """P × n, each sample's final answer, if one was found; None: nobody read them."""

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """True where a sample is right, [P, n]."""
        return self.scores >= RIGHT

    @property
    def mode_sizes(self) -> list[list[int]]:
        """The right samples of each mode, prompt by prompt. A right sample without a key is a mode of its own."""
        assert self.modes is not None
        found = [
            Counter(mode for mode, right in zip(modes, row, strict=True) if right)
            for modes, row in zip(self.modes, self.right, strict=True)
        ]
        return [[1] * sizes.pop(None, 0) + list(sizes.values()) for sizes in found]

    def beside(self, other: "ScoredSamples") -> "ScoredSamples":
        """The samples of both, of the same prompts in the same order."""
        modes = None
        if self.modes is not None and other.modes is not None:
            modes = tuple(mine + more for mine, more in zip(self.modes, other.modes, strict=True))
        answers = None
        if self.answers is not None and other.answers is not None:
            answers = tuple(mine + more for mine, more in zip(self.answers, other.answers, strict=True))
        return ScoredSamples(np.hstack([self.scores, other.scores]), modes, self.mode_counts, answers)


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


def majority_at(samples: ScoredSamples, k: int) -> Floats:
    """The chance that a vote of the first k samples elects a right answer, a tie being broken by lot: [P].

    maj@k, or self-consistency (Wang et al. 2022, arXiv:2203.11171). Right samples vote for one answer (for their mode,
    where right answers have keys), wrong ones for the text of theirs; one in which no answer was found does not vote,
    and where nobody votes nothing is elected. Wrong answers of equal value and other spelling are different candidates,
    which can only help the right one.
    """
    assert samples.answers is not None
    elected = np.zeros(len(samples.scores))
    for prompt, (answers, right) in enumerate(zip(samples.answers, samples.right, strict=True)):
        modes = (None,) * k if samples.modes is None else samples.modes[prompt]
        votes = Counter(
            (ok, modes[i] if ok else answers[i])
            for i, ok in enumerate(right[:k])
            if ok or answers[i] is not None
        )
        most = max(votes.values(), default=0)
        first = [ok for (ok, _), count in votes.items() if count == most]
        elected[prompt] = sum(first) / len(first) if first else 0.0
    return elected


def distinct_at(samples: ScoredSamples, k: int) -> Floats:
    """Different right answers in k of the n samples, on average over all choices of k without replacement: [P].

    Σ over the modes of 1 − C(n−c, k)/C(n, k), c being the right samples of a mode: rarefaction (Hurlbert 1971,
    doi:10.2307/1934145), unbiased for the number in k samples. For k = n it is the plain count. A right sample
    without a key is a mode of its own; a prompt counts at most as many as it has, where that is known.
    """
    met = _met(samples.scores.shape[1], k)
    found = np.array([sum(met[c] for c in sizes) for sizes in samples.mode_sizes], dtype=np.float64)
    return found if samples.mode_counts is None else np.fmin(found, _counts(samples))


def coverage_at(samples: ScoredSamples, k: int) -> Floats:
    """`distinct_at` as a fraction of the right answers that the prompt has: [P], NaN where they are not known."""
    return distinct_at(samples, k) / _counts(samples)


def _counts(samples: ScoredSamples) -> Floats:
    return np.array(samples.mode_counts, dtype=np.float64)


def breadth_at(samples: ScoredSamples, k: int) -> Floats:
    """Right answers in k samples beyond the first: `distinct_at` less `unbiased_pass_at`, [P].

    ModeBench's B_k = E[D_k − 1{D_k > 0}], D_k being the different right answers among k samples: what a policy finds
    besides being right at all. 0 where it has one answer however often it is right.
    """
    return distinct_at(samples, k) - unbiased_pass_at(samples, k)


def pcmd(samples: ScoredSamples) -> Floats:
    """The chance that two different right samples of a prompt have different modes: [P], NaN with fewer than two.

    Pairwise correct-mode diversity, 1 − Σ_c n_c(n_c−1) / (n₊(n₊−1)) with n_c right samples of mode c and n₊ in all:
    unbiased, among samples with n₊ ≥ 2, for 1 − Σ_c q_c², q being the policy's distribution over the modes of its
    right answers (Simpson 1949, doi:10.1038/163688a0). How often the policy is right does not enter.
    """
    return np.array([_pair_diversity(sizes) for sizes in samples.mode_sizes], dtype=np.float64)


def _pair_diversity(sizes: Sequence[int]) -> float:
    right = sum(sizes)
    if right < 2:
        return math.nan
    return 1.0 - sum(size * (size - 1) for size in sizes) / (right * (right - 1))


def effective_modes(mean_pcmd: float) -> float | None:
    """1/(1 − PCMD): as many equally likely answers would be as diverse. None at 1, where no two samples agreed.

    Of an average over prompts, never averaged itself: single prompts have a PCMD of 1 by chance.
    """
    return None if mean_pcmd >= 1.0 else 1.0 / (1.0 - mean_pcmd)


def cover_at(samples: ScoredSamples, threshold: float) -> Floats:
    """1 where at least a share ``threshold`` of the n samples is right, else 0: [P].

    Cover@τ (arXiv:2510.08325), how many prompts are solved reliably. Of the true shares p it determines pass@k, which
    is ∫₀¹ k(1−τ)^(k−1) Cover@τ dτ; n samples blur the shares, so that values of different n do not compare.
    """
    return np.asarray(samples.right.mean(axis=1) >= threshold, dtype=np.float64)


DEFINITIONS: Mapping[str, str] = {
    "pass_at_<k>": "fraction of prompts with a right answer among the first k samples",
    "pass_at_<k>_unbiased": "chance that k of the n samples, drawn without replacement, hold a right one; "
    "mean over prompts",
    "avg_at_<k>": "mean score of the first k samples; mean over prompts",
    "maj_at_<k>": "chance that a vote of the first k samples elects a right answer, ties broken by lot; mean over "
    "prompts",
    "distinct_at_<k>": "different right answers in k of the n samples, drawn without replacement: their expected "
    "number; mean over prompts",
    "coverage_at_<k>": "distinct_at_<k> over the number of right answers that a prompt has; mean over prompts",
    "breadth_at_<k>": "right answers beyond the first: distinct_at_<k> less pass_at_<k>_unbiased; mean over prompts",
    "cover_<t>_at_<n>": "fraction of prompts of whose n samples at least t % are right",
    "pcmd_at_<n>": "chance that two different right ones of the n samples are different answers; mean over the "
    "prompts with at least two right samples, the support",
    "n_eff_at_<n>": "1/(1 − pcmd_at_<n>): the number of equally likely right answers that would be as diverse",
}
"""Metric → what it says, in the order of `per_prompt`; ``n_eff`` follows from the mean alone."""


def per_prompt(samples: ScoredSamples, ks: Sequence[int]) -> dict[str, Floats]:
    """Metric (``pass_at_8``) → its value for each prompt, [P]; NaN where it is undefined.

    Those that compare answers need their keys, and ``coverage`` the number of right answers besides.
    """
    n = samples.scores.shape[1]
    columns: dict[str, Floats] = {}
    for k in ks:
        columns[f"pass_at_{k}"] = pass_at(samples, k)
        columns[f"pass_at_{k}_unbiased"] = unbiased_pass_at(samples, k)
        columns[f"avg_at_{k}"] = avg_at(samples, k)
        if samples.answers is not None:
            columns[f"maj_at_{k}"] = majority_at(samples, k)
        if samples.modes is not None:
            columns[f"distinct_at_{k}"] = distinct_at(samples, k)
            if samples.mode_counts is not None:
                columns[f"coverage_at_{k}"] = coverage_at(samples, k)
            columns[f"breadth_at_{k}"] = breadth_at(samples, k)
    if n > 1:
        columns |= of_all(samples)
    return columns


def of_all(samples: ScoredSamples) -> dict[str, Floats]:
    """What all n samples say: Cover@τ, and PCMD where answers have keys."""
    n = samples.scores.shape[1]
    columns = {f"cover_{round(100 * share)}_at_{n}": cover_at(samples, share) for share in THRESHOLDS}
    if samples.modes is not None:
        columns[f"pcmd_at_{n}"] = pcmd(samples)
    return columns


def exploration_scores(groups: "Sequence[Group]") -> dict[str, list[float]]:
    """Metric with its k, such as ``pass_at_8`` → one number per prompt, from the k = G samples of scored groups.

    None without a correctness reward. ``mean`` (the fraction of right samples), ``pass`` and ``cover_<t>`` need no
    more; ``distinct``, ``breadth`` and ``pcmd`` (NaN with fewer than two right samples) compare the answers' modes,
    and ``coverage`` counts against the column ``modes``, in which a prompt lists its right answers.
    """
    k = len(groups[0].utilities)
    samples = samples_of(groups)
    if samples is None:
        return {}
    scores = {f"mean_at_{k}": samples.right.mean(axis=1), f"pass_at_{k}": pass_at(samples, k)}
    if samples.modes is not None:
        scores[f"distinct_at_{k}"] = distinct_at(samples, k)
        if samples.mode_counts is not None:
            scores[f"coverage_at_{k}"] = coverage_at(samples, k)
        if k > 1:
            scores[f"breadth_at_{k}"] = breadth_at(samples, k)
    scores |= of_all(samples) if k > 1 else {}
    return {name: values.tolist() for name, values in scores.items()}


def samples_of(groups: "Sequence[Group]") -> ScoredSamples | None:
    """The G completions of each group; None where no reward tells what is right."""
    rights = [group.right for group in groups if group.right is not None]
    modes = tuple(group.modes for group in groups if group.modes is not None)
    columns = [group.rollout.prompt.columns for group in groups]
    if len(rights) < len(groups):
        return None
    counts = None
    if "modes" in columns[0]:
        counts = tuple(None if row["modes"] is None else len(row["modes"]) for row in columns)
    return ScoredSamples(
        np.array(rights, dtype=np.float64), modes if len(modes) == len(groups) else None, counts
    )


def with_standard_errors(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Each metric's average over the prompts that have it, and under ``<name>_se`` its standard error over them.

    For ``pcmd`` also ``<name>_support``, the number of these prompts, and ``n_eff`` (`effective_modes` of the
    average). A metric that no prompt has is left out.
    """
    summary: dict[str, float] = {}
    for name, values in scores.items():
        given = [value for value in values if not math.isnan(value)]
        kind, _, at = name.partition("_at_")
        if kind == "pcmd":
            summary[f"{name}_support"] = len(given)
        if not given:
            continue
        n, mean = len(given), sum(given) / len(given)
        variance = sum((v - mean) ** 2 for v in given) / (n - 1) if n > 1 else 0.0
        summary |= {name: mean, f"{name}_se": math.sqrt(variance / n)}
        if kind == "pcmd" and (number := effective_modes(mean)) is not None:
            summary[f"n_eff_at_{at}"] = number
    return summary
