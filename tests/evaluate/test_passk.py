"""pass@k and its relatives, against the plainest possible counting."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from maxent_grpo.evaluate.passk import (
    ScoredSamples,
    avg_at,
    coverage_at,
    distinct_at,
    exploration_scores,
    ks_up_to,
    pass_at,
    per_prompt,
    unbiased_pass_at,
    with_standard_errors,
)
from maxent_grpo.evaluate.training import exploration_metrics
from maxent_grpo.randomness import generator
from maxent_grpo.tasks.registry import load_rows
from maxent_grpo.types import Group, Prompt, Rollout


def random_samples(prompts: int, n: int) -> ScoredSamples:
    scores = generator(0, "passk test", n).choice([0.0, 0.5, 1.0], size=(prompts, n), p=[0.5, 0.1, 0.4])
    return ScoredSamples(scores)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_unbiased_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n):
    samples = random_samples(40, n)
    for k in range(1, n + 1):
        subsets = list(combinations(range(n), k))
        expected = [
            sum(any(row[i] >= 1 for i in subset) for subset in subsets) / len(subsets)
            for row in samples.scores
        ]
        assert unbiased_pass_at(samples, k) == pytest.approx(expected, abs=1e-12)


def test_both_estimators_agree_on_average_and_the_unbiased_one_varies_less():
    right = generator(1, "passk test").random((4000, 16)) < 0.1
    samples = ScoredSamples(right.astype(float))
    truth = 1 - 0.9**4
    plain, unbiased = pass_at(samples, 4), unbiased_pass_at(samples, 4)
    assert plain.mean() == pytest.approx(truth, abs=0.03)
    assert unbiased.mean() == pytest.approx(truth, abs=0.02)
    assert unbiased.std() < 0.7 * plain.std()


def test_many_samples_do_not_overflow():
    samples = ScoredSamples(np.eye(1, 4096))  # one right sample of 4096
    assert unbiased_pass_at(samples, 1024)[0] == pytest.approx(0.25, rel=1e-9)
    assert unbiased_pass_at(samples, 4096)[0] == 1.0


def test_plain_metrics_read_the_first_k_samples():
    samples = ScoredSamples(np.array([[0, 0, 1, 0.5], [1, 1, 0, 0]]))
    assert pass_at(samples, 2).tolist() == [0, 1]
    assert pass_at(samples, 4).tolist() == [1, 1]
    assert avg_at(samples, 4).tolist() == [0.375, 0.5]
    assert avg_at(samples, 1).tolist() == [0, 1]


def test_distinct_and_coverage_count_right_modes_once():
    samples = ScoredSamples(
        np.array([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]),
        modes=(("a", "a", "b", "c"), (None, None, None, "a"), (None, "a", None, None)),
        mode_counts=(4, 2, 3),
    )
    # The wrong "c" does not count; answers without a key count one each, up to the two that there are.
    assert distinct_at(samples, 4).tolist() == [2, 2, 0]
    assert distinct_at(samples, 2) == pytest.approx([5 / 6 + 1 / 2, 2, 0])
    assert coverage_at(samples, 4).tolist() == [0.5, 1, 0]


@pytest.mark.parametrize("n", [1, 3, 6])
def test_distinct_at_k_is_the_mean_over_subsets(n):
    rng = generator(3, "passk test", n)
    modes = tuple(tuple("abcd"[i] for i in row) for row in rng.integers(0, 4, size=(20, n)))
    samples = ScoredSamples(
        (rng.random((20, n)) < 0.7).astype(float), modes=modes, mode_counts=(4,) * 10 + (5,) * 10
    )
    for k in range(1, n + 1):
        subsets = list(combinations(range(n), k))
        expected = [
            sum(len({row[i] for i in subset if ok[i]}) for subset in subsets) / len(subsets)
            for row, ok in zip(modes, samples.right, strict=True)
        ]
        assert distinct_at(samples, k) == pytest.approx(expected, abs=1e-12)
        assert coverage_at(samples, k) == pytest.approx(np.array(expected) / samples.mode_counts, abs=1e-12)
    assert distinct_at(samples, n).tolist() == expected  # k = n: the plain count, to the bit


@pytest.mark.parametrize(("n", "ks"), [(1, (1,)), (2, (1, 2)), (8, (1, 2, 4, 8)), (10, (1, 2, 4, 8, 10))])
def test_default_ks(n, ks):
    assert ks_up_to(n) == ks


def test_metrics_grow_with_k_as_they_must():
    columns = per_prompt(random_samples(50, 8), ks_up_to(8))
    for smaller, larger in [(1, 2), (2, 4), (4, 8)]:
        for name in ("pass_at_{}", "pass_at_{}_unbiased"):
            assert (columns[name.format(smaller)] <= columns[name.format(larger)] + 1e-12).all()
    assert columns["pass_at_8"] == pytest.approx(columns["pass_at_8_unbiased"])
    assert "distinct_at_8" not in columns


def test_counting_needs_no_torch():
    code = "import sys, maxent_grpo.evaluate.passk; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def group_of(row: dict, texts: list[str], utilities: list[float]) -> Group:
    prompt = Prompt(0, row["problem"], (1,), row)
    blank = tuple((1,) for _ in texts)
    rollout = Rollout(prompt, blank, tuple((0.0,) for _ in texts), tuple(texts), ("stop",) * len(texts), 0)
    return Group(rollout, {}, tuple(utilities), tuple(utility >= 1 for utility in utilities))


@pytest.fixture(scope="module")
def row():
    """A colouring problem with at least four right answers."""
    return next(r for r in load_rows("graph_coloring", "eval") if len(r["modes"]) >= 4)


def hidden(row: dict, mode: str) -> str:
    """The answer text of a mode: the colours of the hidden vertices."""
    facts = json.loads(row["facts"])
    partial = facts["partial"]
    return "".join(colour for colour, given in zip(mode, partial, strict=True) if given == "?")


def test_each_measure_is_what_its_name_says(row):
    first, second = (hidden(row, mode) for mode in row["modes"][:2])
    groups = [
        group_of(row, [first, first, second, "no"], [1.0, 1.0, 1.0, 0.0]),
        group_of(row, ["no", "no", "no", "no"], [0.0] * 4),
    ]
    scores = exploration_scores(groups)
    assert scores["mean_at_4"] == [0.75, 0.0]
    assert scores["pass_at_4"] == [1.0, 0.0]
    assert scores["distinct_at_4"] == [2.0, 0.0]
    assert scores["coverage_at_4"] == [2 / len(row["modes"]), 0.0]


def test_training_metrics_are_the_means_over_groups(row):
    first = hidden(row, row["modes"][0])
    metrics = exploration_metrics(
        [group_of(row, [first, "no"], [1.0, 0.0]), group_of(row, ["no"] * 2, [0.0, 0.0])]
    )
    values = {name: float(stat.value / stat.weight) for name, stat in metrics.items()}
    assert values == {"pass": 0.5, "distinct": 0.5, "coverage": 0.5 / len(row["modes"])}


def test_without_enumerated_modes_there_is_no_coverage():
    group = group_of({"problem": "2+2"}, ["4", "5"], [1.0, 0.0])
    assert exploration_scores([group]) == {"mean_at_2": [0.5], "pass_at_2": [1.0]}


def test_right_is_no_matter_of_the_utility():
    wrong = replace(group_of({"problem": "2+2"}, ["4", "5"], [1.0, 1.0]), right=(False, False))
    assert exploration_scores([wrong]) == {"mean_at_2": [0.0], "pass_at_2": [0.0]}
    untold = replace(wrong, right=None)
    assert exploration_scores([untold]) == {}
    assert exploration_metrics([untold]) == {}


def test_the_standard_error_is_over_prompts():
    summary = with_standard_errors({"x": [0.0, 1.0, 1.0, 0.0]})
    assert summary == {"x": 0.5, "x_se": pytest.approx(math.sqrt((4 * 0.25 / 3) / 4))}
