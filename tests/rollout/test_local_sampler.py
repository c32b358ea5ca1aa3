from dataclasses import replace

import pytest
import torch

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.train.collate import collate
from maxent_grpo.types import Group, Prompt

SETTINGS = SamplingSettings(num_generations=4, max_completion_length=12)
KEY = (0, "completion", 3)


@pytest.fixture
def prompts(tokenizer):
    texts = ["What is 12 + 34?", "a", "Tell me about seven swans a-swimming."]
    return [Prompt(i, t, tuple(tokenizer(t)["input_ids"]), {}) for i, t in enumerate(texts)]


@pytest.fixture
def sampler(policy, tokenizer):
    return LocalSampler(policy, tokenizer)


def test_a_completion_does_not_depend_on_who_shares_the_batch(sampler, prompts):
    together = sampler.sample(prompts, SETTINGS, KEY, 0)
    reversed_order = sampler.sample(prompts[::-1], SETTINGS, KEY, 0)[::-1]
    alone = [sampler.sample([prompt], SETTINGS, KEY, 0)[0] for prompt in prompts]
    ids = [r.token_ids for r in together]
    assert ids == [r.token_ids for r in reversed_order] == [r.token_ids for r in alone]


def test_what_is_handed_over_early_is_what_is_returned(sampler, prompts):
    settings = replace(
        SETTINGS, num_generations=16, max_completion_length=24, temperature=2.0, stop=("1", "e")
    )
    early = []
    rollouts = sampler.sample(prompts, settings, KEY, 5, finished=early.append)
    whole = [row for rollout in rollouts for row in rows_of(rollout)]
    assert 0 < len(early) <= sum(reason == "stop" for *_, reason in whole)
    assert all(rows_of(one)[0] in whole and len(one.texts) == 1 and one.policy_version == 5 for one in early)


def rows_of(rollout):
    rows = zip(rollout.token_ids, rollout.logps, rollout.texts, rollout.finish_reasons, strict=True)
    return [(rollout.prompt.index, *row) for row in rows]


def test_fewer_samples_of_a_group_are_the_first_of_more(sampler, prompts):
    more = sampler.sample(prompts, SETTINGS, KEY, 0)
    fewer = sampler.sample(prompts, replace(SETTINGS, num_generations=2), KEY, 0)
    assert [r.token_ids[:2] for r in more] == [r.token_ids for r in fewer]


@pytest.mark.parametrize("key", [(1, "completion", 3), (0, "completion", 4), (0, "evaluation", 3)])
def test_another_seed_step_or_purpose_gives_other_completions(sampler, prompts, key):
    assert (
        sampler.sample(prompts, SETTINGS, KEY, 0)[0].token_ids
        != sampler.sample(prompts, SETTINGS, key, 0)[0].token_ids
    )


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_behaviour_logps_are_the_learners(sampler, prompts, policy, tokenizer, temperature):
    settings = replace(SETTINGS, temperature=temperature, top_p=0.9)
    rollouts = sampler.sample(prompts, settings, KEY, 7)
    batch = collate(
        [Group(r, {}, (0.0,) * 4) for r in rollouts], pad_id=tokenizer.pad_token_id, on_policy=True
    )
    learned = PolicyForward(policy, temperature=temperature)(batch)[0]
    torch.testing.assert_close(batch.behaviour_logps, learned, atol=2e-5, rtol=0)
    assert {r.policy_version for r in rollouts} == {7}


def test_sampler_and_learner_agree_in_mixed_precision(prompts, policy, tokenizer):
    def autocast():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    rollouts = LocalSampler(policy, tokenizer, autocast).sample(prompts, SETTINGS, KEY, 0)
    batch = collate(
        [Group(r, {}, (0.0,) * 4) for r in rollouts], pad_id=tokenizer.pad_token_id, on_policy=True
    )
    learner = PolicyForward(policy)
    exact = learner(batch)[0]
    with autocast():
        learned = learner(batch)[0]
    gap = (batch.behaviour_logps - learned).abs().mean()
    # bfloat16 rounds differently with the shape of the product; float32 would be further away still.
    assert gap < 0.9 * (batch.behaviour_logps - exact).abs().mean()


def test_completions_end_with_the_end_token_or_the_length(sampler, prompts, tokenizer):
    for rollout in sampler.sample(prompts, replace(SETTINGS, num_generations=16), KEY, 0):
        for ids, reason in zip(rollout.token_ids, rollout.finish_reasons, strict=True):
            assert tokenizer.eos_token_id not in ids[:-1]
            ended = ids[-1] == tokenizer.eos_token_id
            assert (reason == "stop") == ended
            assert ended or len(ids) == 12


def test_a_stop_string_ends_the_completion_and_stays_in_it(sampler, prompts):
    free = sampler.sample(prompts, SETTINGS, KEY, 0)[0]
    text = next(t for t in free.texts if len(t) > 4)
    stop = text[1:3]
    stopped = sampler.sample(prompts, replace(SETTINGS, stop=(stop,)), KEY, 0)[0]
    row = free.texts.index(text)
    assert stopped.texts[row].endswith(stop)
    assert stopped.texts[row] == text[: text.index(stop) + len(stop)]
    assert stopped.finish_reasons[row] == "stop"
    assert stopped.token_ids[row] == free.token_ids[row][: len(stopped.token_ids[row])]


def test_a_damaged_policy_is_reported_with_the_prompt(sampler, prompts, policy):
    with torch.no_grad():
        policy.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="non-finite probabilities on prompt 0"):
        sampler.sample(prompts, SETTINGS, KEY, 0)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_when_finished_rows_are_dropped_changes_nothing(sampler, prompts, monkeypatch, share):
    settings = replace(SETTINGS, num_generations=8)
    expected = sampler.sample(prompts, settings, KEY, 0)
    monkeypatch.setattr("maxent_grpo.rollout.local.FINISHED_SHARE", share)
    got = sampler.sample(prompts, settings, KEY, 0)
    assert [r.token_ids for r in got] == [r.token_ids for r in expected]
    assert [r.finish_reasons for r in got] == [r.finish_reasons for r in expected]
    for a, b in zip(got, expected, strict=True):
        for x, y in zip(a.logps, b.logps, strict=True):
            assert x == pytest.approx(y, abs=2e-5)


def test_sampling_leaves_the_model_in_training_mode(sampler, prompts, policy):
    policy.train()
    sampler.sample(prompts, SETTINGS, KEY, 0)
    assert policy.training


def test_more_memory_than_there_is_is_refused_before_it_is_taken(sampler, prompts):
    settings = replace(SETTINGS, max_completion_length=10**10)
    with pytest.raises(
        UsageError, match=r"max_completion_length: 10000000000 tokens take \d+\.\d GiB at once"
    ):
        sampler.sample(prompts, settings, KEY, 0)
