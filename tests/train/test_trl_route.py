"""The TRL route: TRL trains, and the run directory reads like any other."""

import json

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.train.trl_route import canonical_names
from runs import train


def test_trl_trains_and_the_records_have_our_names(configure, tmp_path):
    config = configure(
        "train-baseline", force_custom_loop=False, max_steps=2, logging_steps=1, save_strategy="no"
    )
    assert config.route == "trl"
    result = train(config)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["run/command"] == "train-baseline"
    assert result.global_step == 2
    assert {"train/loss", "train/reward", "train/entropy", "train/grad_norm"} <= set(records[1])
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_timings_stay_out_of_the_metrics_and_prefixes_are_ours():
    logs = {"loss": 1.0, "eval_reward": 0.5, "eval_runtime": 3.0, "step_time": 2.0, "reward_std": 0.1}
    assert canonical_names(logs) == {"train/loss": 1.0, "eval/reward": 0.5, "train/trl/reward_std": 0.1}


def test_starting_over_removes_trls_checkpoints_and_only_when_asked(configure, tmp_path):
    settings = {"force_custom_loop": False, "max_steps": 1, "save_steps": 1}
    train(configure("train-baseline", **settings))
    stale = tmp_path / "run" / "checkpoint-9"
    stale.mkdir()
    with pytest.raises(UsageError, match="holds a run already"):
        train(configure("train-baseline", **settings))
    train(configure("train-baseline", **settings, overwrite_output_dir=True))
    assert not stale.exists()
    assert (tmp_path / "run" / "checkpoint-1").is_dir()
