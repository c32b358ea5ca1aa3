"""Runs with a reward model: from Python as in TRL, by its path, and in Ray's rollout workers as in this process."""

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForSequenceClassification

from maxent_grpo import GRPOConfig, GRPOTrainer
from maxent_grpo.errors import UsageError
from runs import train


def classifier(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForSequenceClassification:
    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, num_labels=1,
    )  # fmt: skip
    return Qwen2ForSequenceClassification(config)


@pytest.fixture
def arguments(tmp_path: Path) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=4, num_generations=4,
        max_completion_length=5, reward_model_batch_size=3, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip


def test_a_loaded_model_and_its_tokenizer_reward_as_in_trl(arguments, policy, tokenizer):
    own = copy.deepcopy(tokenizer)
    model = classifier(own)
    before = [parameter.clone() for parameter in model.parameters()]

    def zero(completions, **_):
        return [0.0] * len(completions)

    with pytest.raises(UsageError, match="reward_processing_classes: no tokenizer is saved"):
        GRPOTrainer(policy, model, arguments, ["a"], processing_class=tokenizer)
    with pytest.raises(UsageError, match="one entry for each of the 2 reward functions"):
        GRPOTrainer(
            policy, [model, zero], arguments, ["a"], processing_class=tokenizer, reward_processing_classes=own
        )
    trainer = GRPOTrainer(
        policy,
        [zero, model],
        arguments,
        ["a"],
        processing_class=tokenizer,
        reward_processing_classes=[None, own],
    )
    metrics = trainer.train().metrics
    assert metrics["train/rewards/Qwen2ForSequenceClassification/std"] > 0
    assert metrics["train/reward"] == pytest.approx(
        metrics["train/rewards/Qwen2ForSequenceClassification/mean"]
    )
    assert "train/pass" not in metrics  # a logit says nothing about what is right
    assert all(
        torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True)
    )  # it judges, and does not learn


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_ray_workers_score_as_this_process_does(tmp_path, configure, tokenizer, request):
    pytest.importorskip("ray")
    request.getfixturevalue("ray_here")
    folder = tmp_path / "my-rm"
    classifier(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"reward_funcs": [f"model:{folder}"], "max_steps": 2, "objective": "dr_grpo"}
    for name, driver in (
        ("inline", {}),
        ("ray", {"driver": "async", "max_staleness": 0, "rollout_workers": 1}),
    ):
        train(configure("train-baseline", output_dir=str(tmp_path / name), **settings, **driver))
    lines = {
        name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()[1:]]
        for name in ("inline", "ray")
    }
    assert [r["train/rewards/my-rm/mean"] for r in lines["ray"]] == pytest.approx(
        [r["train/rewards/my-rm/mean"] for r in lines["inline"]], abs=1e-6
    )
    assert lines["ray"][0]["train/rewards/my-rm/std"] > 0
