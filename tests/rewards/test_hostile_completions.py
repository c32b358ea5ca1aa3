"""The benchmark of hostile completions, small: nothing hangs, nothing hostile is right, everything is accounted for."""

from pathlib import Path

from benchmarks.hostile_rewards import completions, grade

from maxent_grpo.rewards.registry import BUILTIN_REWARDS


def test_the_texts_are_as_many_and_as_different_as_said():
    texts = completions(200)
    assert len(set(texts)) == len(texts) == 200
    assert max(map(len, texts)) > 1_000_000
    assert any("10^{10^{10}}" in text for text in texts)
    assert any("\0" in text for text in texts)


def test_the_math_grader_gets_through_them_without_losing_one():
    result = grade(["accuracy"], 110, timeout=10.0, workers=2)
    assert (result["errors"], result["right"]) == (0, 0)
    assert result["seconds"] < 30


def test_code_that_hangs_costs_itself_alone():
    result = grade(["binary_code"], 10, timeout=1.5, workers=2)
    assert 0 < result["timeouts"] == result["errors"] < 6
    assert result["right"] == 0
    assert result["seconds"] < 30


def test_the_guide_lists_every_built_in_reward():
    guide = Path(__file__).parents[2].joinpath("docs/guides/rewards.md").read_text(encoding="utf-8")
    rows = [line for line in guide.splitlines() if line.startswith("| `")]
    listed = {
        name.strip("`")
        for row in rows
        for name in row.split("|")[1].replace("(isolated)", "").replace(" ", "").split(",")
    }
    assert listed >= set(BUILTIN_REWARDS)
    for row in rows:
        for name in set(BUILTIN_REWARDS) & {
            n.strip("`") for n in row.split("|")[1].replace("(isolated)", "").replace(" ", "").split(",")
        }:
            assert BUILTIN_REWARDS[name].isolated == ("(isolated)" in row)
