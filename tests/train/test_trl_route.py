"""The TRL route: TRL trains, and the run directory reads like any other."""

import json

from maxent_grpo.train.run import train
from maxent_grpo.train.trl import canonical_names


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
