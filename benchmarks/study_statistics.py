"""Does the study's analysis keep its promises? Type-I error and coverage on simulated studies whose truth is known.

    python -m benchmarks.study_statistics --studies 2000 --row-studies 500

Simulated runs have what real ones have: an effect of the seed that both runs of a pair share, and variance of their own
between runs. Pairs are 8, as in a study. The prompt-clustered regression is measured as well: it takes the runs as
given, so its error rate for claims about a *method* is not its nominal one, and how far off it is can be read here.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from maxent_grpo.study.paired import (
    bootstrap_interval,
    equivalence_p,
    holm,
    no_worse_p,
    paired_t_p,
    sign_flip_p,
)
from maxent_grpo.study.regression import regress

SEED_SD, RUN_SD = 0.02, 0.02  # between seeds, shared by a pair; between runs of one seed
MARGIN = 0.03
ALPHA = 0.05


@dataclass(frozen=True)
class Rate:
    """A share of simulated studies with its 99% interval (Clopper and Pearson 1934)."""

    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.share:.3f} ({self.low:.3f}–{self.high:.3f})"


def rate(events: int, studies: int) -> Rate:
    interval = stats.binomtest(events, studies).proportion_ci(0.99, method="exact")
    return Rate(events / studies, float(interval.low), float(interval.high))


def run_level(
    studies: int, pairs: int = 8, heavy_tails: bool = False, resamples: int = 999
) -> Mapping[str, Rate]:
    """Rates of the paired analysis: no effect (type I, coverage), and an effect as large as the margin (TOST)."""
    rng = np.random.default_rng(20)
    found = dict.fromkeys(
        (
            "type I error, sign-flip p",
            "coverage of the interval",
            "coverage without its correction",
            "type I error, TOST",
            "type I error, paired t",
            "type I error, no worse",
        ),
        0,
    )
    for study in range(studies):
        shared = SEED_SD * rng.standard_normal(pairs)
        own = rng.standard_t(3, (2, pairs)) / np.sqrt(3) if heavy_tails else rng.standard_normal((2, pairs))
        arm, baseline = 0.4 + shared + RUN_SD * own
        low, high = bootstrap_interval(arm - baseline, ALPHA, resamples, seed=study)
        found["type I error, sign-flip p"] += sign_flip_p(arm, baseline, resamples, seed=study) < ALPHA
        found["coverage of the interval"] += low <= 0 <= high
        plain = stats.bootstrap(
            (arm - baseline,),
            np.mean,
            n_resamples=resamples,
            method="percentile",
            rng=np.random.default_rng(study),
        ).confidence_interval
        found["coverage without its correction"] += plain.low <= 0 <= plain.high
        found["type I error, TOST"] += equivalence_p(arm + MARGIN, baseline, MARGIN) < ALPHA
        found["type I error, paired t"] += paired_t_p(arm, baseline) < ALPHA
        found["type I error, no worse"] += no_worse_p(arm - MARGIN - baseline, MARGIN) < ALPHA
    return {name: rate(int(events), studies) for name, events in found.items()}


def family_level(
    studies: int, arms: int = 19, pairs: int = 8, heavy_tails: bool = False
) -> Mapping[str, Rate]:
    """Many arms against one baseline under Holm: studies that claim anything where nothing differs, and, where one arm
    is better by three standard deviations of a run, studies that find it."""
    rng = np.random.default_rng(22)
    tests = {
        "paired t": paired_t_p,
        "sign flips": lambda arm, baseline: sign_flip_p(arm, baseline, 99, seed=0),
    }
    found = {f"{what}, {name}": 0 for what in ("any false claim", "the better arm found") for name in tests}
    for _ in range(studies):
        own = (
            rng.standard_t(3, (arms + 1, pairs)) / np.sqrt(3)
            if heavy_tails
            else rng.standard_normal((arms + 1, pairs))
        )
        baseline, *others = 0.4 + SEED_SD * rng.standard_normal(pairs) + RUN_SD * own
        for name, test in tests.items():
            p = [test(arm, baseline) for arm in others]
            better = [test(others[0] + 3 * RUN_SD, baseline), *p[1:]]
            found[f"any false claim, {name}"] += bool(holm(np.array(p)).min() < ALPHA)
            found[f"the better arm found, {name}"] += bool(holm(np.array(better))[0] < ALPHA)
    return {name: rate(events, studies) for name, events in found.items()}


def row_level(studies: int, pairs: int = 8, prompts: int = 24, resamples: int = 399) -> Mapping[str, Rate]:
    """Type-I errors of the two analyses of rows, where the arms do not differ but runs do."""
    rng = np.random.default_rng(21)
    found = dict.fromkeys(
        ("type I error, wild cluster bootstrap", "type I error, prompt-clustered regression"), 0
    )
    for study in range(studies):
        result = regress(null_rows(rng, pairs, prompts), "mean", "arm", resamples=resamples, seed=study)
        found["type I error, wild cluster bootstrap"] += result.p_wild < ALPHA
        found["type I error, prompt-clustered regression"] += result.p < ALPHA
    return {name: rate(int(events), studies) for name, events in found.items()}


def null_rows(rng: np.random.Generator, pairs: int, prompts: int, k: int = 8) -> pd.DataFrame:
    """mean@k per prompt of two arms that do not differ: prompts differ, seeds differ, runs differ, samples are few."""
    difficulty = 0.25 * rng.standard_normal(prompts)
    rows = []
    for seed in range(pairs):
        shared = SEED_SD * rng.standard_normal()
        for arm in ("baseline", "arm"):
            chance = np.clip(0.4 + difficulty + shared + RUN_SD * 2 * rng.standard_normal(), 0.02, 0.98)
            means = rng.binomial(k, chance) / k
            rows.append(
                pd.DataFrame(
                    {"arm": arm, "seed": seed, "eval_seed": 1001, "prompt": range(prompts), "mean": means}
                )
            )
    return pd.concat(rows, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies of the paired analysis")
    parser.add_argument(
        "--row-studies", type=int, default=500, help="simulated studies of rows, and of many arms"
    )
    options = parser.parse_args()
    tables = {
        "8 pairs, normal runs": run_level(options.studies),
        "8 pairs, heavy-tailed runs (t, 3 degrees of freedom)": run_level(options.studies, heavy_tails=True),
        "16 pairs, normal runs": run_level(options.studies, pairs=16),
        "8 pairs, 19 arms, normal runs": family_level(options.row_studies),
        "8 pairs, 19 arms, heavy-tailed runs": family_level(options.row_studies, heavy_tails=True),
        "8 pairs, 24 prompts, rows": row_level(options.row_studies),
    }
    for title, rates in tables.items():
        print(f"\n{title}: share of studies (99% interval); nominal {ALPHA} and {1 - ALPHA}")
        for name, value in rates.items():
            print(f"  {name:44} {value}")


if __name__ == "__main__":
    main()
