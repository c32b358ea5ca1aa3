"""Real data through the ordinary recipe path: GSM8K's own columns and answers, a random policy, three steps."""

import json

import pytest
import yaml

from maxent_grpo.config.loading import resolve
from runs import train


@pytest.fixture
def recipe(tmp_path, policy_dir, shared_data):
    settings = {
        "model_name_or_path": str(policy_dir),
        "dataset_name": str(shared_data / "benchmarks" / "gsm8k_train.jsonl"),
        "dataset_prompt_column": "question",
        "dataset_solution_column": "answer",
        "reward_funcs": ["pure_accuracy_math"],
        "system_prompt": "Think inside <think></think>, then answer inside <answer></answer>.",
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 16,
        "stop_sequences": ["</answer>"],
        "max_steps": 3,
        "logging_steps": 1,
        "save_steps": 3,
        "train_grpo_objective": False,
        "maxent_tau": 0.05,
        "beta": 0.05,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    path = tmp_path / "maxent-grpo" / "config_gsm8k.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(settings))
    return path


def test_three_steps_on_gsm8k(recipe, tmp_path):
    train(resolve("train-maxent", recipe, environ={}))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["run/recipe_path"] == str(recipe)
    assert [r["step"] for r in records] == [0, 1, 2, 3]
    for record in records[1:]:
        assert record["train/reward"] == 0.0  # a random policy never fills the template
        assert record["train/reward/errors"] == 0.0
        assert 0.0 <= record["train/weight_entropy"] <= 1.387
        assert record["train/num_tokens"] > 0
    samples = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert all("<|im_start|>assistant" in s["prompt"] and "Think inside" in s["prompt"] for s in samples)
