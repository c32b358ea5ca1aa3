"""A run whose reward function hangs and dies on some completions goes on, and leaves no process."""

import json
from pathlib import Path

from maxent_grpo.train import records as run_records
from runs import train


def children():
    mine = Path("/proc/self/task").glob("*/children")
    return {pid for path in mine for pid in path.read_text().split()}


def test_hangs_and_crashes_cost_completions_and_not_the_run(configure, tmp_path, monkeypatch):
    monkeypatch.setattr(run_records, "SAMPLED_GROUPS", 4)  # all of a step
    before = children()
    config = configure(
        reward_funcs=["hostile_reward:fragile"],
        max_steps=2,
        save_strategy="no",
        reward_timeout=0.5,
        reward_workers=2,
    )
    result = train(config)
    assert result.global_step == 2
    rows = [json.loads(line) for line in (tmp_path / "run/completions.jsonl").read_text().splitlines()]
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()][1:]
    lost = {"errors": 0, "timeouts": 0}
    for row in rows:
        checksum = sum(map(ord, row["completion"])) % 7
        score = row["rewards"]["fragile"]
        assert score is None if checksum < 2 else score == checksum / 6
        if score is None:
            assert row["utility"] is None
            assert (row["advantage"], row["weight"] or 0.0) == (0.0, 0.0)
        lost["errors"] += checksum < 2
        lost["timeouts"] += checksum == 0
    assert lost["errors"] > lost["timeouts"] > 0
    assert sum(record["train/reward/unscored"] for record in records) == lost["errors"]
    for name, count in lost.items():
        assert sum(record[f"train/reward/{name}"] for record in records) == count
    assert children() == before
