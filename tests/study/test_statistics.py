"""The analysis against oracles by hand, and its error rates on simulated studies whose truth is known."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from benchmarks.study_statistics import family_level, null_rows, row_level, run_level
from scipy import stats
from statsmodels.stats.multitest import multipletests

from maxent_grpo.study.paired import (
    bootstrap_interval,
    compare,
    detectable_effect,
    equivalence_p,
    holm,
    no_worse_p,
    paired_t_p,
    sign_flip_p,
)
from maxent_grpo.study.regression import regress, wild_cluster_p

ARM = np.array([0.43, 0.41, 0.46, 0.40, 0.45, 0.44, 0.39, 0.47])
BASELINE = np.array([0.40, 0.42, 0.41, 0.39, 0.41, 0.43, 0.40, 0.42])
SETTINGS = {"margin": 0.03, "alpha": 0.05, "power": 0.8, "resamples": 999}


def test_the_sign_flip_p_enumerates_every_pattern():
    differences = ARM - BASELINE
    signs = np.array(list(itertools.product((1, -1), repeat=8)))
    means = (signs * differences).mean(axis=1)
    as_extreme = np.mean(np.abs(means) >= abs(differences.mean()) - 1e-12)
    assert sign_flip_p(ARM, BASELINE, 99, seed=0) == pytest.approx(as_extreme, abs=1e-12)


@pytest.mark.parametrize(("seeds", "smallest"), [(4, 0.125), (5, 0.0625), (8, 2 / 256)])
def test_the_smallest_possible_p_is_two_patterns(seeds, smallest):
    arm = np.linspace(1, 2, seeds)
    assert sign_flip_p(arm, np.zeros(seeds), 99, seed=0) == pytest.approx(smallest)


def test_many_seeds_are_sampled_and_agree_with_the_t_test():
    rng = np.random.default_rng(3)
    arm, baseline = 0.02 + rng.standard_normal(40) * 0.05, np.zeros(40)
    sampled = sign_flip_p(arm, baseline, 9999, seed=0)
    assert sampled == pytest.approx(stats.ttest_rel(arm, baseline).pvalue, abs=0.02)


def test_the_interval_is_near_the_t_interval_for_normal_runs():
    low, high = bootstrap_interval(ARM - BASELINE, 0.05, 9999, seed=0)
    expected = stats.ttest_rel(ARM, BASELINE).confidence_interval(0.95)
    assert low == pytest.approx(expected.low, abs=0.005)
    assert high == pytest.approx(expected.high, abs=0.005)


def test_equivalence_is_two_one_sided_t_tests():
    differences = ARM - BASELINE
    se = differences.std(ddof=1) / math.sqrt(8)
    lower = stats.t.sf((differences.mean() + 0.05) / se, 7)
    upper = stats.t.cdf((differences.mean() - 0.05) / se, 7)
    assert equivalence_p(ARM, BASELINE, 0.05) == pytest.approx(max(lower, upper), rel=1e-9)


def test_the_one_sided_tests_are_the_t_distribution_s():
    d = ARM - BASELINE
    error = d.std(ddof=1) / math.sqrt(8)
    assert paired_t_p(ARM, BASELINE) == pytest.approx(2 * stats.t.sf(d.mean() / error, 7), rel=1e-9)
    assert no_worse_p(d, 0.03) == pytest.approx(stats.t.sf((d.mean() + 0.03) / error, 7), rel=1e-9)
    assert no_worse_p(-d, 0.001) > 0.9  # lower by more than .001
    constant = np.full(8, -0.02)
    assert (no_worse_p(constant, 0.03), no_worse_p(constant, 0.01)) == (0.0, 1.0)
    assert paired_t_p(ARM, ARM) == 1.0


def test_the_detectable_effect_is_3_3_standard_errors_with_8_seeds_and_2_8_with_many():
    differences = ARM - BASELINE
    se = differences.std(ddof=1) / math.sqrt(8)
    assert detectable_effect(differences, 0.05, 0.8) / se == pytest.approx(3.3, abs=0.1)
    many = np.tile(differences, 100)
    assert detectable_effect(many, 0.05, 0.8) / (many.std(ddof=1) / math.sqrt(800)) == pytest.approx(
        2.8, abs=0.02
    )


def test_equal_runs_are_no_difference_and_equivalent():
    result = compare(ARM, ARM, **SETTINGS)
    assert (result.effect, result.low, result.high, result.p) == (0, 0, 0, 1)
    assert (result.p_equivalence, result.detectable) == (0, 0)


def test_holm_adjusts_the_smallest_by_the_number_of_hypotheses():
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    many = np.random.default_rng(7).random(20) ** 3
    many[3] = many[4]
    assert holm(many) == pytest.approx(multipletests(many, method="holm")[1], abs=1e-15)


def test_the_regression_is_least_squares_with_cr1_errors_by_prompt():
    rows = null_rows(np.random.default_rng(5), pairs=4, prompts=12)
    result = regress(rows, "mean", "arm", resamples=99)
    treated = (rows["arm"] == "arm").astype(float).to_numpy()
    seeds = pd.get_dummies(rows["seed"], drop_first=True).to_numpy(float)
    x = np.column_stack([np.ones(len(rows)), seeds, treated])
    bread = np.linalg.inv(x.T @ x)
    beta = bread @ x.T @ rows["mean"].to_numpy()
    residuals = rows["mean"].to_numpy() - x @ beta
    meat = np.zeros((x.shape[1], x.shape[1]))
    for prompt in range(12):
        mine = (rows["prompt"] == prompt).to_numpy()
        score = x[mine].T @ residuals[mine]
        meat += np.outer(score, score)
    g, (n, p) = 12, x.shape
    variance = g / (g - 1) * (n - 1) / (n - p) * bread @ meat @ bread
    assert result.gamma == pytest.approx(beta[-1], abs=1e-12)
    assert result.se == pytest.approx(math.sqrt(variance[-1, -1]), rel=1e-9)
    assert result.p == pytest.approx(2 * stats.norm.sf(abs(result.gamma) / result.se), rel=1e-9)


def test_the_wild_bootstrap_equals_refitting_every_sample():
    rows = null_rows(np.random.default_rng(6), pairs=5, prompts=6)
    y = rows["mean"].to_numpy()
    treated = (rows["arm"] == "arm").astype(float).to_numpy()
    x = np.column_stack(
        [np.ones(len(y)), pd.get_dummies(rows["seed"], drop_first=True).to_numpy(float), treated]
    )
    clusters = rows["seed"].to_numpy()
    fast = wild_cluster_p(y, x, x.shape[1] - 1, clusters, resamples=60, seed=4)

    def t_of(outcome):
        kwds = {"groups": clusters, "use_correction": False}
        return abs(sm.OLS(outcome, x).fit(cov_type="cluster", cov_kwds=kwds).tvalues[-1])

    null = sm.OLS(y, x[:, :-1]).fit()
    points = [s * math.sqrt(v) for s in (-1, 1) for v in (0.5, 1.0, 1.5)]
    weights = np.random.default_rng(4).choice(points, size=(60, 5))
    drawn = [t_of(null.fittedvalues + null.resid * w[clusters]) for w in weights]
    assert fast == pytest.approx((1 + sum(t >= t_of(y) for t in drawn)) / 61)


def test_error_rates_and_coverage_of_the_paired_analysis_are_nominal():
    rates = run_level(studies=400, resamples=299)
    assert rates["type I error, sign-flip p"].low <= 0.05  # exact, and discrete: at most nominal
    assert 0.02 <= rates["type I error, sign-flip p"].share <= 0.075
    assert 0.92 <= rates["coverage of the interval"].share <= 0.98
    assert 0.02 <= rates["type I error, TOST"].share <= 0.075
    assert 0.02 <= rates["type I error, paired t"].share <= 0.085
    assert 0.02 <= rates["type I error, no worse"].share <= 0.085


def test_many_arms_are_judged_by_t_and_not_by_sign_flips():
    rates = family_level(studies=60, arms=12)
    assert rates["the better arm found, sign flips"].share == 0  # 12 · 2/256 > .05
    assert rates["the better arm found, paired t"].share > 0.5
    assert rates["any false claim, paired t"].low < 0.05


def test_error_rates_of_the_row_analyses():
    rates = row_level(studies=100, resamples=199)
    assert (
        rates["type I error, wild cluster bootstrap"].low
        <= 0.05
        <= rates["type I error, wild cluster bootstrap"].high
    )
    # What the warning in the documentation is about: prompts as the sample say little about a method.
    assert rates["type I error, prompt-clustered regression"].share > 0.15


def test_rows_without_any_variance_show_nothing():
    rows = null_rows(np.random.default_rng(7), pairs=3, prompts=4).assign(mean=1.0)
    result = regress(rows, "mean", "arm", resamples=99)
    assert (result.gamma, result.se, result.p, result.p_wild) == (0, 0, 1, 1)
