"""pass@k and its relatives, against the plainest possible counting."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from maxent_grpo.evaluate.passk import (
    ScoredSamples,
    avg_at,
    breadth_at,
    cover_at,
    coverage_at,
    distinct_at,
    effective_modes,
    exploration_scores,
    ks_up_to,
    majority_at,
    pass_at,
    pcmd,
    per_prompt,
    unbiased_pass_at,
    with_standard_errors,
)
from maxent_grpo.evaluate.training import exploration_metrics
from maxent_grpo.randomness import generator
from maxent_grpo.tasks.registry import grade_response, load_rows
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


WRONG = "wrong"
CHANCES = {"a": 0.3, "b": 0.25, "c": 0.05, WRONG: 0.4}


def every_sample(n: int) -> tuple[ScoredSamples, np.ndarray]:
    """All n samples of a policy with three right answers and a wrong one, and the chance of each: [4ⁿ]."""
    draws = list(product(CHANCES, repeat=n))
    scores = np.array([[float(one != WRONG) for one in draw] for draw in draws])
    modes = tuple(tuple(None if one == WRONG else one for one in draw) for draw in draws)
    return ScoredSamples(scores, modes, (3,) * len(draws)), np.array(
        [math.prod(CHANCES[one] for one in draw) for draw in draws]
    )


@pytest.mark.parametrize("n", [2, 3, 5])
def test_pcmd_is_unbiased_where_two_samples_are_right(n):
    samples, chance = every_sample(n)
    values = pcmd(samples)
    defined = ~np.isnan(values)
    assert (defined == (samples.right.sum(axis=1) >= 2)).all()
    shares = np.array([0.3, 0.25, 0.05]) / 0.6
    truth = 1 - (shares**2).sum()
    assert (values[defined] * chance[defined]).sum() / chance[defined].sum() == pytest.approx(
        truth, abs=1e-12
    )
    # Whatever the number of right ones: the share of right samples does not enter.
    for right in range(2, n + 1):
        here = samples.right.sum(axis=1) == right
        assert (values[here] * chance[here]).sum() / chance[here].sum() == pytest.approx(truth, abs=1e-12)


def test_pcmd_is_the_share_of_pairs_that_differ():
    samples, _ = every_sample(4)
    for row, right, value in zip(samples.modes, samples.right, pcmd(samples), strict=True):
        pairs = list(combinations([mode for mode, ok in zip(row, right, strict=True) if ok], 2))
        differ = sum(a != b for a, b in pairs) / len(pairs) if pairs else math.nan
        assert value == pytest.approx(differ, abs=1e-12, nan_ok=True)


def test_two_right_samples_say_what_rarefaction_to_two_says():
    samples, _ = every_sample(4)
    only_right = samples.right.all(axis=1)
    assert distinct_at(samples, 2)[only_right] == pytest.approx(1 + pcmd(samples)[only_right], abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_breadth_is_what_is_found_beyond_the_first(k):
    samples, chance = every_sample(3)
    subsets = list(combinations(range(3), k))
    expected = []
    for modes in samples.modes:
        found = [len({modes[i] for i in subset} - {None}) for subset in subsets]
        expected.append(sum(max(0, number - 1) for number in found) / len(found))
    assert breadth_at(samples, k) == pytest.approx(expected, abs=1e-12)
    truth = sum(1 - (1 - p) ** k for p in (0.3, 0.25, 0.05)) - (1 - 0.4**k)
    assert (breadth_at(samples, k) * chance).sum() == pytest.approx(truth, abs=1e-12)


def test_cover_of_the_true_shares_determines_pass_at_k():
    shares = np.array([0, 1, 3, 5, 8, 10]) / 10
    samples = ScoredSamples((np.arange(10) < 10 * shares[:, None]).astype(float))
    taus = (np.arange(20_000) + 0.5) / 20_000
    for k in (1, 2, 8):
        integral = np.mean([k * (1 - t) ** (k - 1) * cover_at(samples, t).mean() for t in taus])
        assert integral == pytest.approx((1 - (1 - shares) ** k).mean(), abs=1e-3)
    assert cover_at(samples, 0.3).tolist() == [0, 0, 1, 1, 1, 1]  # at the threshold is covered
    assert cover_at(samples, 0.8).tolist() == [0, 0, 0, 0, 1, 1]


def test_effective_modes_of_equally_likely_answers_is_their_number():
    assert effective_modes(1 - 1 / 7) == pytest.approx(7)
    assert effective_modes(0.0) == 1
    assert effective_modes(1.0) is None


def test_pooled_samples_are_those_of_all_seeds():
    samples, _ = every_sample(2)
    both = samples.beside(samples)
    assert both.scores.shape == (16, 4)
    assert pcmd(both)[1] == pytest.approx(1 - 4 / 12)  # a, b, a, b
    assert samples.beside(replace(samples, modes=None)).modes is None


def test_without_a_count_there_is_no_coverage_and_no_most():
    samples = ScoredSamples(np.ones((1, 3)), modes=(("a", "b", None),))
    assert distinct_at(samples, 3).tolist() == [3]
    columns = per_prompt(samples, [3])
    assert "coverage_at_3" not in columns
    assert columns["pcmd_at_3"].tolist() == [1]


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
    right = tuple(utility >= 1 for utility in utilities)
    modes = tuple(
        grade_response(row["task"], text, row["facts"]).mode if ok and "facts" in row else None
        for text, ok in zip(texts, right, strict=True)
    )
    return Group(rollout, {}, tuple(utilities), right, modes=modes if "facts" in row else None)


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
    assert scores["breadth_at_4"] == [1.0, 0.0]
    assert scores["cover_50_at_4"] == [1.0, 0.0]
    assert scores["cover_80_at_4"] == [0.0, 0.0]
    assert scores["pcmd_at_4"] == [pytest.approx(2 / 3), pytest.approx(math.nan, nan_ok=True)]
    means = with_standard_errors(scores)
    assert (means["pcmd_at_4"], means["pcmd_at_4_support"]) == (pytest.approx(2 / 3), 1)
    assert means["n_eff_at_4"] == pytest.approx(3)


def test_training_metrics_are_the_means_over_groups(row):
    first = hidden(row, row["modes"][0])
    metrics = exploration_metrics(
        [group_of(row, [first, "no"], [1.0, 0.0]), group_of(row, ["no"] * 2, [0.0, 0.0])]
    )
    assert metrics.pop("pcmd").weight == 0  # undefined in both: left out of the record
    values = {name: float(stat.value / stat.weight) for name, stat in metrics.items()}
    assert values == {"pass": 0.5, "distinct": 0.5, "coverage": 0.5 / len(row["modes"])}


def test_without_enumerated_modes_there_is_no_coverage():
    group = group_of({"problem": "2+2"}, ["4", "5"], [1.0, 0.0])
    assert exploration_scores([group]) == {
        "mean_at_2": [0.5],
        "pass_at_2": [1.0],
        "cover_20_at_2": [1.0],
        "cover_50_at_2": [1.0],
        "cover_80_at_2": [0.0],
    }


def test_keys_alone_give_diversity_and_no_coverage():
    group = replace(group_of({"problem": "a state"}, ["x", "y", "z"], [1.0, 1.0, 1.0]), modes=("x", "y", "x"))
    scores = exploration_scores([group])
    assert scores["distinct_at_3"] == [2.0]
    assert scores["pcmd_at_3"] == [pytest.approx(2 / 3)]
    assert "coverage_at_3" not in scores


def test_right_is_no_matter_of_the_utility():
    wrong = replace(group_of({"problem": "2+2"}, ["4", "5"], [1.0, 1.0]), right=(False, False))
    assert set(map(tuple, exploration_scores([wrong]).values())) == {(0.0,)}
    untold = replace(wrong, right=None)
    assert exploration_scores([untold]) == {}
    assert exploration_metrics([untold]) == {}


def test_the_standard_error_is_over_prompts():
    summary = with_standard_errors({"x": [0.0, 1.0, 1.0, 0.0]})
    assert summary == {"x": 0.5, "x_se": pytest.approx(math.sqrt((4 * 0.25 / 3) / 4))}


def test_undefined_is_missing_and_never_zero():
    nan = math.nan
    summary = with_standard_errors({"pcmd_at_8": [nan, 0.5, nan, 1.0], "x": [nan, 1.0]})
    assert summary == {
        "pcmd_at_8_support": 2,
        "pcmd_at_8": 0.75,
        "pcmd_at_8_se": pytest.approx(0.25),
        "n_eff_at_8": 4.0,
        "x": 1.0,
        "x_se": 0.0,
    }
    assert with_standard_errors({"pcmd_at_8": [nan, nan]}) == {"pcmd_at_8_support": 0}
    assert "n_eff_at_8" not in with_standard_errors({"pcmd_at_8": [1.0]})


def test_a_majority_is_elected_and_a_tie_is_broken_by_lot() -> None:
    answers = (
        ("7", "7", "8", None),  # the right one has most votes
        ("9", "9", "7", "8"),  # a wrong one has
        ("7", "8", "9", None),  # three with one vote each
        (None, None, None, None),  # nobody votes
        ("1", "5", "2", "2"),  # two right answers with a vote each against a wrong one with two
    )
    right = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=float)
    modes = tuple(
        tuple(a if r else None for a, r in zip(*row, strict=True)) for row in zip(answers, right, strict=True)
    )
    samples = ScoredSamples(right, modes, answers=answers)
    assert majority_at(samples, 4).tolist() == [1.0, 0.0, 1 / 3, 0.0, 0.0]
    assert majority_at(samples, 1).tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert majority_at(samples, 2).tolist() == [1.0, 0.0, 0.5, 0.0, 1.0]
    unkeyed = ScoredSamples(right, answers=answers)  # right ones are one candidate: two votes against two
    assert majority_at(unkeyed, 4).tolist() == [1.0, 0.0, 1 / 3, 0.0, 0.5]
    assert majority_at(samples.beside(samples), 8).tolist() == [1.0, 0.0, 1 / 3, 0.0, 0.0]
