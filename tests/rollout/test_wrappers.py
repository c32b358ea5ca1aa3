"""Seeded completions are drawn and scored under their own prompt, beside originals that they do not touch."""

import pytest
import torch

from maxent_grpo.data.prompts import PromptSettings, SeedPrompts, build_prompts
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.rollout.wrappers import with_seeded
from maxent_grpo.train.collate import collate
from maxent_grpo.types import Group

SETTINGS = SamplingSettings(num_generations=2, max_completion_length=12)
KEY, SEED_KEY = (0, "completion", 3), (0, "seeded completion", 3)
SEEDS = 3


@pytest.fixture
def prompts(tokenizer):
    return build_prompts(
        [{"problem": f"Say {w}.", "answer": "a"} for w in "abc"], tokenizer, PromptSettings()
    )


@pytest.fixture
def sample(policy, tokenizer):
    sampler = LocalSampler(policy, tokenizer)
    seeds = SeedPrompts("\n[seed={seed}]", SEEDS, tokenizer, PromptSettings())

    def draw(prompts):
        originals = sampler.sample(prompts, SETTINGS, KEY, 7)
        return originals, with_seeded(
            originals, [seeds.variants(p) for p in prompts], sampler, SETTINGS, SEED_KEY
        )

    return draw


def test_a_group_is_its_originals_followed_by_one_completion_per_seed(sample, prompts):
    originals, seeded = sample(prompts)
    for before, after in zip(originals, seeded, strict=True):
        assert after.token_ids[:2] == before.token_ids
        assert len(after.token_ids) == len(after.texts) == len(after.logps) == len(after.finish_reasons) == 5
        assert [prompt.seed_id for prompt in after.prompts] == [-1, -1, 0, 1, 2]
        assert after.prompt is before.prompt
        group = Group(after, {"r": (0.0, 1.0, 2.0, 3.0, 4.0)}, (0.0, 1.0, 2.0, 3.0, 4.0))
        assert group.originals() == Group(before, {"r": (0.0, 1.0)}, (0.0, 1.0))


def test_a_seeded_completion_depends_on_its_own_prompt_and_key_alone(sample, prompts):
    _, together = sample(prompts)
    _, alone = sample(prompts[1:2])
    assert alone[0].token_ids == together[1].token_ids
    assert len(set(together[0].token_ids)) == 5


def test_each_completion_is_scored_under_the_prompt_that_it_was_sampled_from(
    sample, prompts, policy, tokenizer
):
    _, rollouts = sample(prompts)
    batch = collate(
        [Group(r, {}, (0.0,) * 5) for r in rollouts], pad_id=tokenizer.pad_token_id, on_policy=True
    )
    assert batch.seed_ids.tolist() == [-1, -1, 0, 1, 2] * 3
    assert batch.prompt_of.tolist() == [0, 0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 11]
    rows = [(prompt, ids) for r in rollouts for prompt, ids in zip(r.prompts, r.token_ids, strict=True)]
    forward = PolicyForward(policy, pool="last")
    shortcuts = forward.shortcuts
    for taken in (shortcuts, frozenset()):
        forward.shortcuts = taken
        for part_size in (1, 3):
            numbers = range(len(rollouts))
            parts = [forward(batch.select(numbers[i : i + part_size])) for i in numbers[::part_size]]
            logps = [row for part in parts for row in part[0]]
            pooled = torch.cat([part[2] for part in parts])
            for (prompt, ids), got, state, behaviour in zip(
                rows, logps, pooled, batch.behaviour_logps, strict=True
            ):
                whole = torch.tensor([prompt.token_ids + ids])
                out = policy(whole, output_hidden_states=True)
                start = len(prompt.token_ids) - 1
                expected = out.logits[0, start:-1].log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
                torch.testing.assert_close(got[: len(ids)], expected, atol=2e-5, rtol=0)
                torch.testing.assert_close(behaviour[: len(ids)], expected, atol=2e-5, rtol=0)
                torch.testing.assert_close(state, out.hidden_states[-1][0, -2], atol=2e-5, rtol=0)


def test_the_mean_pooling_is_over_the_states_that_predict_the_completion(sample, prompts, policy, tokenizer):
    _, rollouts = sample(prompts[:1])
    batch = collate([Group(rollouts[0], {}, (0.0,) * 5)], pad_id=tokenizer.pad_token_id, on_policy=True)
    forward = PolicyForward(policy, temperature=0.7, pool="mean")
    shortcuts = forward.shortcuts
    for taken in (shortcuts, frozenset()):
        forward.shortcuts = taken
        pooled = forward(batch)[2]
        assert pooled.requires_grad
        for prompt, ids, got in zip(rollouts[0].prompts, rollouts[0].token_ids, pooled, strict=True):
            states = policy(torch.tensor([prompt.token_ids + ids]), output_hidden_states=True).hidden_states
            expected = states[-1][0, len(prompt.token_ids) - 1 : -1].mean(dim=0)
            torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
