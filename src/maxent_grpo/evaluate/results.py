"""From answers to figures: one model at one temperature, with an interval over prompts and the spread between seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from maxent_grpo.evaluate.passk import effective_modes, per_prompt
from maxent_grpo.evaluate.records import Record, scored_samples
from maxent_grpo.randomness import generator

CONFIDENCE = 0.95
RESAMPLES = 4000
_CHUNK = 4_000_000  # multinomial counts held at once


@dataclass(frozen=True)
class Estimate:
    """A figure with its two uncertainties: other prompts (the interval), other seeds (the spread)."""

    mean: float  # over prompts, then over seeds
    low: float  # interval over prompts, 95 %
    high: float
    seed_min: float
    seed_max: float
    seed_sd: float | None  # n − 1; None for one seed
    support: int = 0  # prompts for which it is defined, under one seed at least


@dataclass(frozen=True)
class MathEvalResult:
    """One model at one temperature on one benchmark. Figures are means over prompts, then over seeds.

    A metric that is undefined for some prompts is a mean over the others; one that no prompt has is left out.
    """

    model_id: str
    label: str
    style: str
    dataset: str
    temperature: float
    seeds: tuple[int, ...]
    num_generations: int
    total: int  # prompts × seeds
    correct: int  # of these, how many are right at the first sample
    accuracy: float  # Pass@1: correct / total
    pass_at_1: float
    pass_at_k: float  # with k = num_generations
    avg_pass_at_1: float  # Pass@1 over all samples in place of the first: fraction of right samples
    avg_at_k: float  # mean score, k = num_generations; the same where scores are 0 or 1
    metrics: Mapping[str, Estimate]  # every one of `passk.DEFINITIONS`, with interval and seed spread
    per_seed: Mapping[int, Mapping[str, float]]  # seed → metric → mean over prompts
    truncated: float  # fraction of samples that were cut off at max_new_tokens
    errors: Mapping[int, str] = field(default_factory=dict)
    """Prompts without an answer, which no figure counts, and why."""
    generations: Mapping[int, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    """seed → prompt → samples"""
    artifacts: tuple[Path, ...] = ()  # one file per seed
    prompt_indices: tuple[int, ...] = ()  # the prompts that count, which may be fewer than the files hold


def result_of(
    answers: Mapping[int, Sequence[Record]],
    ks: Sequence[int],
    *,
    collect_generations: bool = False,
    artifacts: Sequence[Path] = (),
    errors: Mapping[int, str] | None = None,
) -> MathEvalResult:
    """The figures of ``answers``: seed → records, one per prompt, the same prompts in the same order for each seed."""
    first = next(iter(answers.values()))[0]
    samples = {seed: scored_samples(records) for seed, records in answers.items()}
    columns = {seed: per_prompt(scored, ks) for seed, scored in samples.items()}
    names = [
        name
        for name in next(iter(columns.values()))
        if not all(np.isnan(column[name]).all() for column in columns.values())
    ]
    values = np.stack([np.stack([column[name] for name in names], axis=1) for column in columns.values()])
    metrics = dict(zip(names, estimates(values), strict=True))
    per_seed = {seed: {name: _mean(column[name]) for name in names} for seed, column in columns.items()}
    for name in names:
        if not name.startswith("pcmd_") or effective_modes(metrics[name].mean) is None:
            continue
        effective = name.replace("pcmd", "n_eff")
        for of_seed in per_seed.values():
            of_seed[effective] = _number(of_seed[name])
        metrics[effective] = _numbers(metrics[name], [of_seed[effective] for of_seed in per_seed.values()])
    n = first["num_generations"]
    right = np.stack([scored.right for scored in samples.values()])  # [seeds, P, n]
    scores = np.stack([scored.scores for scored in samples.values()])
    reasons = [r for records in answers.values() for record in records for r in record["finish_reasons"]]
    return MathEvalResult(
        model_id=first["model_id"],
        label=first["model_label"],
        style=first["style"],
        dataset=first["dataset_id"],
        temperature=first["temperature"],
        seeds=tuple(answers),
        num_generations=n,
        total=right.shape[0] * right.shape[1],
        correct=int(right[:, :, 0].sum()),
        accuracy=float(right[:, :, 0].mean()),
        pass_at_1=float(right[:, :, 0].mean()),
        pass_at_k=float(right.any(axis=2).mean()),
        avg_pass_at_1=float(right.mean()),
        avg_at_k=float(scores.mean()),
        metrics=metrics,
        per_seed=per_seed,
        errors=dict(sorted((errors or {}).items())),
        truncated=reasons.count("length") / len(reasons),
        generations={
            seed: tuple(tuple(record["generations"]) for record in records)
            for seed, records in answers.items()
        }
        if collect_generations
        else {},
        artifacts=tuple(artifacts),
        prompt_indices=tuple(record["prompt_index"] for record in next(iter(answers.values()))),
    )


def estimates(values: npt.NDArray[np.float64]) -> list[Estimate]:
    """One estimate per metric from ``values`` [seeds, P, metrics]; NaN where a metric is undefined for a prompt.

    The interval resamples prompts with all their seeds: samples of one prompt under different seeds say nothing
    about other prompts, so that more seeds alone do not narrow it to nothing.
    """
    whole = np.asarray(~np.isnan(values).any(axis=(0, 1)))
    intervals = np.full((2, values.shape[2]), math.nan)
    intervals[:, whole] = bootstrap_interval(values[:, :, whole].mean(axis=0))
    found = []
    for m, (low, high) in enumerate(intervals.T):
        given = values[
            :, ~np.isnan(values[:, :, m]).all(axis=0), m
        ]  # of the prompts that have it under some seed
        if not whole[m]:
            low, high = np.ravel(bootstrap_interval(np.nanmean(given, axis=0)[:, None]))
        found.append(_estimate(given, float(low), float(high)))
    return found


def _estimate(values: npt.NDArray[np.float64], low: float, high: float) -> Estimate:
    by_seed = [_mean(column) for column in values]
    given = [mean for mean in by_seed if not math.isnan(mean)]
    return Estimate(
        mean=statistics.fmean(given),
        low=low,
        high=high,
        seed_min=min(given),
        seed_max=max(given),
        seed_sd=statistics.stdev(given) if len(given) > 1 else None,
        support=values.shape[1],
    )


def _mean(values: npt.NDArray[np.float64]) -> float:
    """The mean of what is defined; NaN where nothing is."""
    given = values[~np.isnan(values)]
    return float(given.mean()) if len(given) else math.nan


def _number(mean_pcmd: float) -> float:
    """`effective_modes`, infinite where PCMD is 1 and NaN where it is."""
    return (effective_modes(mean_pcmd) or math.inf) if not math.isnan(mean_pcmd) else math.nan


def _numbers(diversity: Estimate, by_seed: Sequence[float]) -> Estimate:
    """The estimate of the effective number of modes: PCMD's, transformed, which keeps the order of its ends."""
    given = [number for number in by_seed if math.isfinite(number)]
    return Estimate(
        mean=_number(diversity.mean),
        low=_number(diversity.low),
        high=_number(diversity.high),
        seed_min=_number(diversity.seed_min),
        seed_max=_number(diversity.seed_max),
        seed_sd=statistics.stdev(given) if len(given) > 1 else None,
        support=diversity.support,
    )


def bootstrap_interval(
    values: npt.NDArray[np.float64], confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Lower and upper ends, [metrics] each, for the means over P of ``values`` [P, metrics].

    The expanded percentile interval (Hesterberg 2015, doi:10.1080/00031305.2015.1089789, section 5.3): percentiles
    of the resampled means, moved outwards so that the interval has a t interval's width where the means are normal.
    The plain percentile interval is too narrow for the 30 prompts of AIME. It never leaves the range of the data. The
    draws depend on (``seed``, P) alone, so that equal values give equal intervals. Where all prompts agree the width
    is 0, which says that the prompts do not differ and not that the figure is exact; with one prompt there is no
    interval and both ends are NaN.
    """
    prompts = values.shape[0]
    if prompts == 1:
        missing = np.full(values.shape[1], math.nan)
        return missing, missing.copy()
    rng = generator(seed, "bootstrap over prompts", prompts)
    chunk = max(1, _CHUNK // prompts)
    chances = np.full(prompts, 1 / prompts)
    means = np.concatenate(
        [
            rng.multinomial(prompts, chances, size=min(chunk, resamples - start)) @ values / prompts
            for start in range(0, resamples, chunk)
        ]
    )
    tail = expanded_tail(prompts, confidence)
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def expanded_tail(prompts: int, confidence: float) -> float:
    """Probability to cut from each end: that of a normal beyond √(n/(n−1)) times the t quantile with n − 1 degrees."""
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    df = prompts - 1
    # The t quantile by its Cornish–Fisher expansion: to 0.2 % from nine degrees of freedom on.
    t = z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    return statistics.NormalDist().cdf(-math.sqrt(prompts / (prompts - 1)) * t)


def shown(estimate: Estimate) -> str:
    """``0.412 [0.380, 0.446]``; without the interval where there is none."""
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.mean:.3f}{interval}"
