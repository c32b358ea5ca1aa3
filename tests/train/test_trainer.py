"""Training from Python with one's own model object, prompts and reward."""

import json
import logging

import pytest

from maxent_grpo import GRPOConfig, GRPOTrainer
from maxent_grpo.errors import UsageError


def reward(completions, **_):
    return [sum(map(ord, c)) % 7 / 6 for c in completions]


@pytest.fixture
def args(tmp_path):
    return GRPOConfig(
        output_dir=str(tmp_path / "run"),
        objective="maxent",
        maxent_tau=0.05,
        beta=0.1,
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=5,
        use_cpu=True,
        disable_tqdm=True,
    )


def test_a_model_object_is_trained_in_place(args, policy, tokenizer):
    before = policy.lm_head.weight.detach().clone()
    result = GRPOTrainer(policy, reward, args, ["a", "b", "c"], processing_class=tokenizer).train()
    assert result.global_step == 2
    assert not policy.lm_head.weight.equal(before)
    assert 0.0 < result.metrics["train/reward"] < 1.0


def test_rewards_see_the_columns_of_the_rows_by_name(args, policy, tokenizer):
    seen = set()

    def by_column(completions, colour, **_):
        seen.update(colour)
        return [float(len(c)) for c in completions]

    rows = [{"prompt": "a", "colour": "red"}, {"prompt": "b", "colour": "blue"}]
    GRPOTrainer(policy, [by_column], args, rows, processing_class=tokenizer).train()
    assert seen == {"red", "blue"}


def test_training_goes_on_from_its_last_checkpoint(args, policy, tokenizer, tmp_path, caplog):
    GRPOTrainer(policy, reward, args, ["a", "b"], processing_class=tokenizer).train()
    args.max_steps = 3
    with caplog.at_level(logging.WARNING, logger="maxent_grpo.train.records"):
        result = GRPOTrainer(policy, reward, args, ["a", "b"], processing_class=tokenizer).train(True)
    assert result.global_step == 3
    assert "resuming with a changed setting: max_steps: 2 → 3" in caplog.text
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [0, 1, 2, 3]


def test_no_prompts_and_unsupported_settings_are_refused_at_construction(args, policy, tokenizer):
    with pytest.raises(UsageError, match="train_dataset is empty"):
        GRPOTrainer(policy, reward, args, [], processing_class=tokenizer)
    args.mask_truncated_completions = True
    with pytest.raises(UsageError, match="mask_truncated_completions"):
        GRPOTrainer(policy, reward, args, ["a"], processing_class=tokenizer)


def test_a_gold_that_no_completion_can_equal_is_refused_before_a_model_is_loaded(args):
    trainer = GRPOTrainer("bundled:tiny-policy", ["gsm8k"], args, [{"prompt": "a", "answer": True}])
    with pytest.raises(UsageError, match=r"^row 0, column 'answer': the gold answer is True, a truth value"):
        trainer.train()
