"""What cannot be loaded, or does not fit, is refused in one line; padding is masked whatever its token is."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, CLIPVisionConfig, GPT2Config, GPT2LMHeadModel

from maxent_grpo.errors import UsageError
from maxent_grpo.models.loading import ModelSource, check_fit, load_policy, load_tokenizer, padding_id
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.train.learner import make_optimizer
from maxent_grpo.train.strategies.replicated import load_policy_weights
from maxent_grpo.types import Prompt


def refusal(call, *args) -> str:
    with pytest.raises(UsageError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def test_a_vision_model_is_named_without_a_list_of_classes(tmp_path):
    CLIPVisionConfig().save_pretrained(tmp_path)
    said = refusal(load_policy, ModelSource(str(tmp_path)))
    assert "CLIPVisionConfig is no text model" in said
    assert "Llama" not in said


def test_flash_attention_that_is_not_installed_names_the_setting(policy_dir):
    said = refusal(load_policy, ModelSource(str(policy_dir), attn_implementation="flash_attention_2"))
    assert "set attn_implementation to one that is installed" in said


def test_remote_code_names_its_setting(policy_dir, tmp_path):
    folder = tmp_path / "remote"
    shutil.copytree(policy_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    assert "trust_remote_code=true" in refusal(load_policy, ModelSource(str(folder)))


def test_a_folder_without_a_tokenizer_or_with_damaged_files_is_refused(policy_dir, tmp_path):
    AutoConfig.from_pretrained(policy_dir).save_pretrained(tmp_path)
    assert "model_name_or_path: cannot load" in refusal(load_tokenizer, ModelSource(str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    assert "model_name_or_path: cannot load" in refusal(load_policy, ModelSource(str(tmp_path)))


def test_a_resume_with_another_model_is_refused(policy, tokenizer, tmp_path):
    other = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=30))
    other.save_pretrained(tmp_path / "other")
    assert "resume_from_checkpoint" in refusal(load_policy_weights, policy, tmp_path / "other")
    fewer = {"num_hidden_layers": 1, "layer_types": policy.config.layer_types[:1]}
    config = type(policy.config)(**policy.config.to_dict() | fewer)
    type(policy)(config).save_pretrained(tmp_path / "smaller")
    assert "resume_from_checkpoint" in refusal(load_policy_weights, policy, tmp_path / "smaller")


def test_a_frozen_model_has_nothing_to_train(policy):
    policy.requires_grad_(False)
    assert "nothing would be trained" in refusal(
        make_optimizer, list(policy.parameters()), torch.optim.AdamW, {}, 0.0
    )


def test_a_padding_token_outside_the_embedding_changes_nothing(policy, tokenizer):
    prompts = [Prompt(0, "", (50, 60, 70, 80), {}), Prompt(1, "", (90, 100), {})]
    settings = SamplingSettings(2, 6)
    expected = LocalSampler(policy, tokenizer).sample(prompts, settings, (0,), 0)

    class Outside:
        pad_token_id = policy.config.vocab_size

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    assert padding_id(policy, Outside()) == 0
    assert LocalSampler(policy, Outside()).sample(prompts, settings, (0,), 0) == expected


def test_learned_positions_are_a_limit_and_rotary_ones_a_warning(policy, recwarn):
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=300, n_positions=48))
    prompts = [Prompt(0, "", (1,) * 20, {}), Prompt(1, "", (1,) * 30, {})]
    check_fit(model, prompts, 18, "max_completion_length")
    said = refusal(check_fit, model, prompts, 19, "max_completion_length")
    assert "30 tokens" in said
    assert "48 positions; set it to at most 18" in said
    policy.config.max_position_embeddings = 48
    check_fit(policy, prompts, 18, "max_completion_length")
    assert not recwarn.list
    with pytest.warns(UserWarning, match="48 positions: beyond them"):
        check_fit(policy, prompts, 19, "max_completion_length")


def test_a_prompt_outside_the_embedding_is_named(policy):
    prompts = [Prompt(3, "", (1, policy.config.vocab_size), {})]
    assert "row 3 has the token" in refusal(check_fit, policy, prompts, 1, "max_new_tokens")
