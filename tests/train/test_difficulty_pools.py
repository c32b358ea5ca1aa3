"""Difficulty pools in runs: what is told to the stream, exact resume, ranks, dynamic sampling, refusals."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

import runs
from maxent_grpo.data.stream import POOLS
from maxent_grpo.errors import UsageError
from maxent_grpo.train import drivers
from maxent_grpo.train.build import Given
from ranks import run_ranks
from runs import train

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs" / "recipes" / "tiny" / "grpo" / "config_graph_coloring.yaml"


def pools_of(row):
    return [row[f"train/difficulty_pools/{pool}"] for pool in POOLS]


def rows_of(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "train/difficulty_pools/hard" in row]


def test_the_stream_learns_the_share_of_right_completions_of_every_group(configure_tiny):
    run = runs.build(configure_tiny("pools", difficulty_pools=True, per_device_train_batch_size=64))
    drivers.collect(run)
    latest = {}
    for group in sorted(run.rollout, key=lambda group: group.rollout.prompt.epoch):
        scores = group.rewards["task_reward"]
        latest[group.rollout.prompt.index] = sum(score >= 1 for score in scores) / len(scores)
    assert dict(run.stream.state_dict()["latest"]) == latest
    assert len(set(latest.values())) > 1
    sizes = run.stream.sizes()
    assert sizes["unseen"] == 24 - len(latest)
    metrics = run.meter.reduced()
    assert {pool: metrics[f"difficulty_pools/{pool}"] for pool in POOLS} == sizes
    run.close()


def test_completions_without_a_utility_do_not_count(configure_tiny):
    run = runs.build(configure_tiny("pools", difficulty_pools=True))
    drivers.collect(run)
    group = run.rollout[0]
    prompt, nan = group.rollout.prompt, math.nan
    part = replace(group, right=(True, False, False) + (False,) * 5, utilities=(1.0, 0.0, nan) + (nan,) * 5)
    none = replace(group, utilities=(nan,) * 8)
    assert drivers.shares_right([part, none]) == [(prompt.index, prompt.epoch, 0.5)]
    run.close()


def test_without_pools_an_epoch_draws_each_prompt_once(configure_tiny):
    run = runs.build(configure_tiny("plain", per_device_train_batch_size=192))
    drivers.collect(run)
    assert sorted(group.rollout.prompt.index for group in run.rollout) == list(range(24))
    assert "difficulty_pools/hard" not in run.meter.reduced()
    run.close()


@pytest.mark.parametrize("settings", [{}, {"dynamic_sampling": True}, {"steps_per_generation": 2}], ids=str)
def test_a_resumed_run_with_pools_is_the_uninterrupted_one(configure_tiny, tmp_path, settings):
    settings = {
        "difficulty_pools": True, "dataset_config": "train_size=5", "save_steps": 1, "lr_scheduler_type": "constant",
    } | settings  # fmt: skip
    train(configure_tiny("whole", max_steps=5, **settings))
    train(configure_tiny("parts", max_steps=3, **settings))
    train(configure_tiny("parts", max_steps=5, resume_from_checkpoint=True, **settings))
    for file in ("metrics.jsonl", "model.safetensors", "checkpoint-5/trainer_state.json"):
        whole, parts = ((tmp_path / name / file).read_bytes() for name in ("whole", "parts"))
        assert whole == parts, file
    seen = rows_of(tmp_path / "whole")
    assert all(sum(pools_of(row)) == 5 for row in seen)
    assert pools_of(seen[-1])[3] < pools_of(seen[0])[3] or pools_of(seen[0])[3] == 0


@pytest.mark.slow
@pytest.mark.xdist_group("forked")
def test_two_ranks_draw_what_one_process_draws(tmp_path):
    from maxent_grpo.grpo import main

    def arguments(name, batch):
        flags = {"dataset_config": "train_size=12", "num_generations": 4, "max_steps": 5, "save_steps": 5,
                 "adam_epsilon": 1e-6, "disable_tqdm": True, "eval_strategy": "no", "eval_on_start": False,
                 "output_dir": str(tmp_path / name), "difficulty_pools": True,
                 "per_device_train_batch_size": batch}  # fmt: skip
        pairs = (part for key, value in flags.items() for part in (f"--{key}", str(value)))
        return ["--config", str(RECIPE), *pairs]

    assert main(arguments("one", 32)) == 0
    ended = run_ranks(tmp_path, arguments("two", 16))
    assert ended.codes == [0, 0], ended.errors
    one, two = (
        json.loads((tmp_path / run / "checkpoint-5" / "trainer_state.json").read_text())
        for run in ("one", "two")
    )
    assert one["stream"] == two["stream"]
    assert [pools_of(row) for row in rows_of(tmp_path / "one")] == [
        pools_of(row) for row in rows_of(tmp_path / "two")
    ]
    expected = load_file(tmp_path / "one" / "model.safetensors")
    for name, value in load_file(tmp_path / "two" / "model.safetensors").items():
        assert (value - expected[name]).abs().max() <= 1e-6, name


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"difficulty_hard_weight": 0.0, "difficulty_normal_weight": 0.0, "difficulty_easy_weight": 0.0},
            "difficulty_normal_weight: 0 like those of hard and easy prompts",
        ),
        ({"difficulty_unseen_weight": 0.0}, "difficulty_unseen_weight: 0.0 must be > 0"),
        ({"difficulty_hard_weight": -1.0}, "difficulty_hard_weight: -1.0 must be ≥ 0"),
        (
            {"difficulty_hard_threshold": 0.8},
            "difficulty_hard_threshold: 0.8 is not below difficulty_easy_threshold=0.75",
        ),
        ({"shuffle_dataset": False}, "difficulty_pools: draws prompts at random"),
        (
            {"driver": "async", "max_staleness": 2},
            "difficulty_pools: driver=async draws prompts before the groups of earlier ones are scored",
        ),
        ({"driver": "sync"}, "difficulty_pools: driver=sync draws"),
    ],
)
def test_pools_that_could_not_work_are_refused_at_start(configure_tiny, settings, message):
    with pytest.raises(UsageError, match=message):
        configure_tiny("refused", difficulty_pools=True, **settings)


def test_pools_need_a_reward_that_tells_what_is_right(configure_tiny):
    def short(completions, **_):
        return [1.0 / (1 + len(text)) for text in completions]

    def long(completions, **_):
        return [float(len(text)) for text in completions]

    config = configure_tiny("blind", difficulty_pools=True)
    with pytest.raises(
        UsageError, match=r"difficulty_pools: go by the share of right .* none of short, long is known"
    ):
        runs.build(config, Given(reward_funcs=[short, long]))


def test_a_run_does_not_resume_with_other_pools(configure_tiny):
    settings = {"difficulty_pools": True, "save_steps": 1, "dataset_config": "train_size=5"}
    train(configure_tiny("run", max_steps=1, **settings))
    with pytest.raises(UsageError, match="cannot resume the prompt stream: its difficulty_pools is"):
        train(
            configure_tiny(
                "run", max_steps=2, resume_from_checkpoint=True, difficulty_easy_weight=0.5, **settings
            )
        )
