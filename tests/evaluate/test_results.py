"""The bootstrap interval covers what it says, and is the same for the same data."""

import math
import statistics

import numpy as np
import pytest

from maxent_grpo.evaluate.results import bootstrap_interval, estimates, expanded_tail, shown
from maxent_grpo.randomness import generator


@pytest.mark.parametrize("prompts", [30, 100])
def test_interval_covers_the_truth_in_95_of_100_benchmarks(prompts):
    rng = generator(0, "interval test", prompts)
    # 600 benchmarks of prompts with difficulties of their own, 8 samples each; the truth is the mean difficulty.
    difficulty = rng.beta(0.8, 1.2, size=(prompts, 600))
    values = rng.binomial(8, difficulty) / 8
    low, high = bootstrap_interval(values)
    covered = ((low <= 0.4) & (high >= 0.4)).mean()
    assert 0.93 <= covered <= 0.975


def test_interval_has_the_width_of_a_t_interval():
    values = generator(1, "interval test").normal(size=(30, 1))
    low, high = bootstrap_interval(values, resamples=40_000)
    half = 2.0452 * values.std(ddof=1) / math.sqrt(30)
    assert (high - low)[0] / 2 == pytest.approx(half, rel=0.04)


@pytest.mark.parametrize(("prompts", "t"), [(10, 2.26216), (30, 2.04523), (1000, 1.96234)])
def test_tail_comes_from_the_t_quantile(prompts, t):
    expected = statistics.NormalDist().cdf(-math.sqrt(prompts / (prompts - 1)) * t)
    assert expanded_tail(prompts, 0.95) == pytest.approx(expected, rel=0.015)


def test_interval_stays_in_the_range_of_the_data_and_repeats():
    values = np.array([[0.0], [1.0], [1.0], [1.0]])
    low, high = bootstrap_interval(values)
    assert 0 <= low[0] < 0.75 < high[0] <= 1
    assert bootstrap_interval(values) == (low, high)
    alike = bootstrap_interval(np.ones((5, 1)))
    assert (alike[0][0], alike[1][0]) == (1, 1)


def test_estimate_keeps_prompts_and_seeds_apart():
    values = np.array([[[0.0], [1.0]], [[1.0], [1.0]]])  # two seeds, two prompts, one metric
    (estimate,) = estimates(values)
    assert estimate.mean == 0.75
    assert (estimate.seed_min, estimate.seed_max) == (0.5, 1.0)
    assert estimate.seed_sd == pytest.approx(math.sqrt(0.125))


def test_one_seed_has_no_spread_and_one_prompt_no_interval():
    (estimate,) = estimates(np.array([[[0.5]]]))
    assert estimate.seed_sd is None
    assert math.isnan(estimate.low)
    assert shown(estimate) == "0.500"


def test_an_undefined_figure_is_a_mean_over_the_prompts_that_have_it():
    nan = math.nan
    values = np.array([[[0.0, 1.0], [nan, 1.0], [nan, 0.0]], [[0.5, 1.0], [1.0, 1.0], [nan, 0.0]]])
    partial, whole = estimates(values)  # two seeds, three prompts, two metrics
    assert (partial.mean, partial.seed_min, partial.seed_max) == (0.375, 0.0, 0.75)
    assert (partial.support, whole.support) == (2, 3)
    assert whole == estimates(values[:, :, 1:])[0]
    assert 0.25 <= partial.low <= partial.high <= 1.0
