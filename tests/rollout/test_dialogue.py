"""Completions in several turns, by the bundled policy on Countdown with feedback."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from maxent_grpo.data.prompts import PromptSettings, build_prompts, next_turn
from maxent_grpo.errors import UsageError
from maxent_grpo.models.loading import ModelSource, load_policy, load_tokenizer
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.rollout.dialogue import DialogueSampler
from maxent_grpo.rollout.environment import load_environment
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.rollout.wrappers import SamplerInParts
from maxent_grpo.tasks.countdown import CountdownFeedback, what_is_wrong
from maxent_grpo.tasks.registry import load_rows
from maxent_grpo.train.collate import collate
from maxent_grpo.types import Group, Prompt, Rollout

SETTINGS = SamplingSettings(num_generations=4, max_completion_length=24)
KEY = (0, "completion", 3)
SOURCE = ModelSource("bundled:tiny-policy", None, torch.float32, None, False)


@pytest.fixture(scope="module")
def tiny_tokenizer():
    return load_tokenizer(SOURCE)


@pytest.fixture(scope="module")
def tiny_policy():
    return load_policy(SOURCE)


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer) -> list[Prompt]:
    rows = load_rows("countdown", "train", "numbers=3,train_size=3")
    return build_prompts(rows, tiny_tokenizer, PromptSettings())


@pytest.fixture(scope="module")
def single(tiny_policy, tiny_tokenizer) -> LocalSampler:
    return LocalSampler(tiny_policy, tiny_tokenizer)


@pytest.fixture(scope="module")
def sampler(single, tiny_tokenizer) -> DialogueSampler:
    return DialogueSampler(single, CountdownFeedback(), 3, tiny_tokenizer, PromptSettings())


@pytest.fixture(scope="module")
def rollouts(sampler, prompts) -> list[Rollout]:
    return sampler.sample(prompts, SETTINGS, KEY, 0)


def test_first_turns_are_the_completions_of_one_turn(rollouts, single, prompts) -> None:
    alone = single.sample(prompts, SETTINGS, KEY, 0)
    for whole, first in zip(rollouts, alone, strict=True):
        for ids, turn in zip(whole.token_ids, first.token_ids, strict=True):
            assert ids[: len(turn)] == turn


def test_tokens_of_turns_stand_one_after_the_other_with_the_feedback_between(
    rollouts, tiny_tokenizer
) -> None:
    several = 0
    for rollout in rollouts:
        for ids, mask, transcript in zip(
            rollout.token_ids, rollout.policy_masks, rollout.transcripts, strict=True
        ):
            told = tiny_tokenizer.decode([i for i, own in zip(ids, mask, strict=True) if not own])
            turns = told.count("Try again")
            assert transcript.count("Try again<|im_end|><|im_start|>a\n") == turns
            assert told.count("<|im_start|>u\n") == told.count("<|im_start|>a\n") == turns
            assert sum(mask) <= SETTINGS.max_completion_length
            several += turns > 0
    assert several >= 3  # the policy is far from perfect


def test_the_last_turn_is_what_is_rewarded(rollouts, tiny_tokenizer) -> None:
    for rollout in rollouts:
        for ids, mask, text in zip(rollout.token_ids, rollout.policy_masks, rollout.texts, strict=True):
            last = len(mask) - mask[::-1].index(False) if False in mask else 0
            assert text == tiny_tokenizer.decode(ids[last:], skip_special_tokens=True)


def test_episodes_end_as_they_should(rollouts) -> None:
    environment = CountdownFeedback()
    for rollout in rollouts:
        for place, text in enumerate(rollout.texts):
            turns = rollout.transcripts[place].count("Try again") + 1
            budget = SETTINGS.max_completion_length - rollout.lengths[place]
            open_ended = environment.reply(rollout.prompt, [text]) is not None
            if rollout.finish_reasons[place] == "length":
                assert budget == 0
            else:
                assert not open_ended or turns == 3


def test_an_episode_does_not_depend_on_who_shares_the_batch(sampler, prompts, rollouts) -> None:
    backwards = sampler.sample(prompts[::-1], SETTINGS, KEY, 0)[::-1]
    alone = [sampler.sample([prompt], SETTINGS, KEY, 0)[0] for prompt in prompts]
    parts = replace(sampler, sampler=SamplerInParts(sampler.sampler, 5)).sample(prompts, SETTINGS, KEY, 0)
    ids = [rollout.token_ids for rollout in rollouts]
    for others in (backwards, alone, parts):
        assert [rollout.token_ids for rollout in others] == ids
    assert [r.token_ids[:2] for r in rollouts] == [
        r.token_ids for r in sampler.sample(prompts, replace(SETTINGS, num_generations=2), KEY, 0)
    ]


@pytest.mark.parametrize("shortcuts", [{"packed", "head"}, set()], ids=["packed", "padded"])
def test_behaviour_logps_are_the_learners_and_only_at_the_policys_tokens(
    rollouts, tiny_policy, tiny_tokenizer, shortcuts: set
) -> None:
    groups = [Group(rollout, {}, (0.0,) * 4) for rollout in rollouts]
    batch = collate(groups, pad_id=tiny_tokenizer.pad_token_id, on_policy=True)
    forward = PolicyForward(tiny_policy)
    forward.shortcuts = frozenset(forward.shortcuts & shortcuts)
    logps, entropy = forward(batch, "measure")[:2]
    torch.testing.assert_close(logps, batch.behaviour_logps, atol=2e-5, rtol=0)
    assert not logps[~batch.completion_mask].any()
    assert not entropy[~batch.completion_mask].any()
    assert batch.lengths.tolist() == [length for rollout in rollouts for length in rollout.lengths]
    assert int(batch.read_mask.sum()) == sum(len(ids) for rollout in rollouts for ids in rollout.token_ids)


def test_in_parts_nothing_changes(single, prompts) -> None:
    whole = single.sample(prompts, SETTINGS, KEY, 0)
    for size in (1, 4, 9, 100):
        parts = SamplerInParts(single, size).sample(prompts, SETTINGS, KEY, 0)
        assert [r.token_ids for r in parts] == [r.token_ids for r in whole]


class Tool:
    """Asks once with a message of another role, whatever is said."""

    def reply(self, prompt: Prompt, turns: Sequence[str]) -> Mapping[str, str] | None:
        return {"role": "tool", "content": f"{len(turns)} so far"} if len(turns) < 2 else None


def test_a_tool_may_answer(single, prompts, tiny_tokenizer) -> None:
    sampler = DialogueSampler(single, Tool(), 9, tiny_tokenizer, PromptSettings())
    (rollout,) = sampler.sample(prompts[:1], replace(SETTINGS, max_completion_length=64), KEY, 0)
    assert all(
        text.count("<|im_start|>t\n1 so far<|im_end|><|im_start|>a\n") == 1 for text in rollout.transcripts
    )
    assert all(text.count("so far") == 1 for text in rollout.transcripts)


@pytest.mark.parametrize(
    ("response", "words"),
    [
        ("2+3", "That makes 5, not 24."),
        ("2*3*4", "Use each of 2 3 once."),
        ("I give up", "That is no expression."),
        ("", "That is no expression."),
        ("2/0", "That is no expression."),
        ("3-2=24", "That makes 1, not 24."),
    ],
)
def test_feedback_says_what_is_wrong(response: str, words: str) -> None:
    assert what_is_wrong(response, {"numbers": [2, 3], "target": 24, "modes": "flat"}) == words


def test_a_template_that_rewrites_answers_is_refused(tiny_tokenizer) -> None:
    template = "{% for m in messages %}{{ m['content'][:3] }}{% endfor %}"
    with pytest.raises(UsageError, match="does not write an answer once and as it is"):
        next_turn({"role": "user", "content": "x"}, tiny_tokenizer, PromptSettings(chat_template=template), 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "countdown_feedbak",
            r"^environment: there is no 'countdown_feedbak' \(did you mean countdown_feedback\?\)",
        ),
        ("no.such:Thing", r"^environment: module 'no.such' of .* cannot be imported \(ModuleNotFoundError"),
        ("collections:OrderedDict", "^environment: collections:OrderedDict has no method reply"),
    ],
)
def test_an_environment_that_cannot_be_had_is_named(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_environment(name)


def test_rows_of_another_task_are_refused() -> None:
    with pytest.raises(UsageError, match="row 7 is none"):
        CountdownFeedback().reply(Prompt(7, "", (), {"task": "arithmetic"}), ["1"])
