"""Evaluation while training: its own sampling, rewards and greedy pass, and that it does not touch the run."""

import json
from dataclasses import replace

import pytest
import torch

from maxent_grpo import GRPOConfig, GRPOTrainer
from maxent_grpo.config.loading import resolve
from maxent_grpo.config.run_settings import evaluation_settings, reward_settings
from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.training import Evaluation, summary
from maxent_grpo.rewards.registry import RewardFunction
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.train.build import evaluation_rewards
from maxent_grpo.types import Prompt

SETTINGS = SamplingSettings(num_generations=4, max_completion_length=6, temperature=0.6, top_p=0.95)


def first_letter(completions, **columns):
    return [float(ord(c[0]) % 2 if c else 0) for c in completions]


@pytest.fixture
def prompts(tokenizer):
    texts = ["What is 12 + 34?", "a", "Tell me about swans.", "b", "cc"]
    return [Prompt(i, t, tuple(tokenizer(t)["input_ids"]), {}) for i, t in enumerate(texts)]


@pytest.fixture
def sampler(policy, tokenizer):
    return LocalSampler(policy, tokenizer)


def run(sampler, prompts, **changes):
    scorer = Scorer([RewardFunction("first_letter", first_letter)])
    evaluation = Evaluation(prompts, SETTINGS, scorer, prompts_per_batch=2)
    seen = []
    evaluation = replace(evaluation, **changes)
    metrics = {}
    for prefix, sampling in evaluation.passes.items():
        scores = evaluation.scores(sampler, sampling, 0, 7, slice(None), seen.append)
        metrics |= summary(scores, prefix)
    return metrics, seen


def test_the_sampled_metrics_do_not_change_where_a_greedy_pass_is_added(sampler, prompts):
    sampled, progress = run(sampler, prompts)
    both, _ = run(sampler, prompts, greedy=True)
    assert sum(progress) == len(prompts)
    assert {name: value for name, value in both.items() if not name.startswith("eval/greedy/")} == sampled
    greedy = {
        name.removeprefix("eval/greedy/"): v for name, v in both.items() if name.startswith("eval/greedy/")
    }
    assert greedy["pass_at_1"] == greedy["mean_at_1"] == greedy["mean_reward"]
    assert sampled["eval/mean_reward"] == pytest.approx(sampled["eval/rewards/first_letter/mean"])


def test_the_greedy_pass_takes_the_likeliest_tokens(sampler, prompts, policy, tokenizer):
    seen = []

    def spy(completions, **columns):
        seen.extend(completions)
        return [0.0] * len(completions)

    run(sampler, prompts, greedy=True, scorer=Scorer([RewardFunction("spy", spy)]))
    ids = torch.tensor([prompts[0].token_ids])
    generated = policy.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    assert seen[-len(prompts)] == tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)


def test_evaluation_says_that_it_is_one(sampler, prompts):
    said = []

    def spy(completions, is_eval=False, **columns):
        said.append(is_eval)
        return [0.0] * len(completions)

    run(sampler, prompts, scorer=Scorer([RewardFunction("spy", spy)]))
    assert said == [True] * 3


def config_of(**settings):
    given = {
        "model_name_or_path": "bundled:tiny-policy",
        "dataset_name": "task:arithmetic",
        "output_dir": "x",
        "use_cpu": True,
        "force_custom_loop": True,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
    }
    return resolve("train-baseline", None, {"flat": given | settings}, environ={})


def test_evaluation_never_samples_as_training_does_unless_asked():
    config = config_of(temperature=1.3, top_p=0.5, top_k=7, min_p=0.2)
    sampling = evaluation_settings(config.training).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.6, 0.95, 0, None)
    asked = evaluation_settings(
        config_of(eval_temperature=1.3, eval_top_p=0.5, eval_top_k=7, eval_min_p=0.2).training
    ).sampling
    assert (asked.temperature, asked.top_p, asked.top_k, asked.min_p) == (1.3, 0.5, 7, 0.2)


def test_evaluation_has_rewards_of_its_own():
    training = [RewardFunction("first_letter", first_letter)]
    assert evaluation_rewards(reward_settings(config_of()), training) is training
    (reweighted,) = evaluation_rewards(reward_settings(config_of(eval_reward_weights=[2.0])), training)
    assert (reweighted.name, reweighted.weight) == ("first_letter", 2.0)
    own = evaluation_rewards(
        reward_settings(config_of(eval_reward_funcs=["format", "tag_count"], eval_reward_weights=[1.0, 0.5])),
        training,
    )
    assert [(reward.name, reward.weight) for reward in own] == [("format", 1.0), ("tag_count", 0.5)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eval_reward_weights": [1.0, 2.0]}, "eval_reward_weights: 2 weights for 1 reward functions"),
        ({"eval_temperature": -1}, "eval_temperature: -1.0 must be in \\[0, 100\\]"),
        ({"eval_top_p": 0}, r"eval_top_p: 0.0 must be in \(0, 1\]"),
        ({"eval_strategy": "epoch"}, "eval_strategy: the native loop counts steps; 'epoch'"),
        ({"reward_timeout": 0}, "reward_timeout: 0.0 must be > 0"),
        ({"reward_workers": 0}, "reward_workers: 0 must be > 0"),
        ({"cosine_max_len": 0}, "cosine_max_len: 0 must be ≥ 1"),
        ({"repetition_max_penalty": 1.0}, "repetition_max_penalty: 1.0 must be ≤ 0"),
        (
            {"force_custom_loop": False, "eval_reward_funcs": ["format"]},
            "eval_reward_funcs: TRL's trainer evaluates",
        ),
        (
            {"force_custom_loop": False, "greedy_eval_enabled": True},
            "greedy_eval_enabled: TRL's trainer does not read it",
        ),
    ],
)
def test_what_cannot_work_is_said(settings, said):
    with pytest.raises(UsageError, match=said):
        config_of(**settings)


def test_a_run_evaluates_before_training_and_while_it_trains(policy, tokenizer, tmp_path):
    assert config_of(eval_before_train=True).training.eval_on_start
    args = GRPOConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        num_generations=4,
        num_generations_eval=2,
        max_completion_length=4,
        eval_strategy="steps",
        eval_steps=1,
        eval_on_start=True,
        greedy_eval_enabled=True,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(policy, first_letter, args, ["a", "b"], ["c", "d", "e"], processing_class=tokenizer)
    trainer.train()
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    evaluated = [record["step"] for record in records if "eval/mean_reward" in record]
    assert evaluated == [0, 1, 2]
    assert all("eval/greedy/mean_at_1" in record for record in records if "eval/mean_reward" in record)
