"""Reward models: equal to the classifier called by hand, whatever the batch, and refused where they are none."""

import copy
import math
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

from maxent_grpo.errors import UsageError
from maxent_grpo.models.reward_model import RewardModel, load_reward_model
from maxent_grpo.rewards.registry import CallContext, Caller, RewardOptions, load_rewards

PROMPTS = ["What is 12 + 34?", "Hi", "Why?", "What is 1?", "And then what is 99 + 1?"]
COMPLETIONS = [" 46", " hello, and good day to you all", "", " 1", " 100."]


def classifier(outputs: int = 1) -> Qwen2ForSequenceClassification:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, num_labels=outputs, attention_dropout=0.3,
    )  # fmt: skip
    model = Qwen2ForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.mul_(50)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    path = tmp_path_factory.mktemp("models") / "my-rm"
    classifier().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def by_hand(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[float]:
    """The logit at each text's last token, one text at a time, from the backbone and the head."""
    model = classifier().eval()
    scores = []
    for text in texts:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            scores.append(float(model.score(model.model(input_ids=ids).last_hidden_state[0, -1])))
    return scores


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_scores_are_the_classifiers_and_do_not_depend_on_the_batch(folder, batch_size):
    reward = load_rewards([f"model:{folder}"], None, RewardOptions({"reward_model_batch_size": batch_size}))[
        0
    ]
    scores = reward.function(prompts=PROMPTS, completions=COMPLETIONS, answer=["x"] * 5)
    texts = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert scores == pytest.approx(by_hand(texts, AutoTokenizer.from_pretrained(folder)), abs=1e-4)
    assert len({round(score, 3) for score in scores}) == 5  # they tell completions apart
    assert reward.name == "my-rm"
    assert not reward.correctness  # a logit of 1 says nothing about what is right


def test_chats_are_rendered_by_the_reward_models_own_template(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    reward = RewardModel(classifier(), own)
    scores = reward([[{"role": "user", "content": "Hi"}]], [[{"role": "assistant", "content": "Hello"}]])
    assert scores == pytest.approx(by_hand(["[user]Hi[assistant]Hello"], own), abs=1e-4)


def test_nothing_of_it_learns_or_drops(tokenizer):
    model = classifier().train()
    reward = RewardModel(model, tokenizer)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert reward(PROMPTS, COMPLETIONS) == reward(PROMPTS, COMPLETIONS)


def test_dtype_and_hub_ids(folder, monkeypatch):
    reward = load_reward_model(str(folder), reward_model_dtype="bfloat16")
    expected = by_hand(["Hi you"], AutoTokenizer.from_pretrained(folder))
    assert reward(["Hi"], [" you"]) == pytest.approx(expected, abs=0.3)
    assert load_reward_model(str(folder), reward_model_dtype="bfloat16") is reward  # loaded once
    monkeypatch.chdir(folder.parent.parent)
    assert load_rewards([f"{folder.parent.name}/{folder.name}"])[0].name == "my-rm"  # as TRL takes a hub id


def test_a_sequence_beyond_its_positions_loses_its_score_alone(tokenizer):
    reward = load_rewards([RewardModel(classifier(), tokenizer)])[0]
    arguments = {"prompts": ["Hi", "Hi"], "completions": [" you", "x" * 200]}
    found = Caller().scores(reward, arguments, CallContext())
    assert not math.isnan(found.values[0])
    assert math.isnan(found.values[1])
    assert "the reward model has 128 positions" in str(found.errors[1])


def test_what_is_no_reward_model_is_refused(folder, tmp_path, tokenizer):
    with pytest.raises(UsageError, match="with 3 outputs"):
        RewardModel(classifier(outputs=3), tokenizer)
    with pytest.raises(UsageError, match="reward_funcs: cannot load the reward model '/nowhere/at-all'"):
        load_rewards(["model:/nowhere/at-all"])
    with pytest.raises(UsageError, match="names no model"):
        load_rewards(["model:"])
    with pytest.raises(UsageError, match="reward_model_device: 'cuda:77' is not there"):
        load_reward_model(str(folder), reward_model_device="cuda:77")
    config = Qwen2Config(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, num_labels=1,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"saved without score\.weight, so that its scores would be random"):
        load_rewards([f"model:{tmp_path}"])
