"""Sampler and learner give the log-probs of the model's own forward, whatever its attention and its cache are."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from maxent_grpo.errors import UsageError
from maxent_grpo.models import decoding
from maxent_grpo.models.decoding import find_way
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.train.collate import collate
from maxent_grpo.types import Group, Prompt

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
LINEAR = {
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
KINDS = {
    "llama": ("shared", {}),
    "qwen2": ("shared", {}),
    "gpt2": ("shared", {}),
    "diffllama": ("repeated", {}),
    "nemotron": ("repeated", {}),
    "llama4_text": ("repeated", {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48}),
    "jetmoe": ("repeated", {"kv_channels": 8}),
    "minicpm3": ("any", LATENT),
    "deepseek_v2": ("any", LATENT | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 4}),
    "gemma2": ("repeated", {"head_dim": 8, "sliding_window": 4}),
    "qwen3_next": ("expanded", LINEAR | EXPERTS | {"shared_expert_intermediate_size": 16}),
    "qwen3_5_text": ("expanded", LINEAR),
    "lfm2": (
        "expanded",
        {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    ),
    "falcon_h1": (
        "expanded",
        {"head_dim": 8, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
         "mamba_n_groups": 1, "mamba_chunk_size": 16},
    ),
    "jamba": ("expanded", JAMBA | EXPERTS | {"use_mamba_kernels": False, "mamba_dt_rank": 4}),
    "mamba": ("expanded", {"state_size": 8, "time_step_rank": 4}),
    "mamba2": ("expanded", {"state_size": 8, "head_dim": 8, "num_heads": 8, "n_groups": 1, "chunk_size": 16}),
}  # fmt: skip
"""Way of decoding, and what a small configuration needs."""
PROMPTS = [Prompt(0, "", (50, 60, 70, 80, 90, 100, 110), {}), Prompt(1, "", (120, 130), {})]


def small(kind: str) -> PreTrainedModel:
    config_class = CONFIG_MAPPING[kind]
    known = {name for cls in config_class.__mro__ for name in getattr(cls, "__annotations__", {})}
    asked = {name: value for name, value in (SHAPE | KINDS[kind][1]).items() if name in known}
    asked |= {k: v for k, v in SHAPE.items() if k in config_class.attribute_map}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_class(**asked)).float().eval()
    with torch.no_grad():  # such distributions as a trained model has: a wrong formula shows
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1 if kind.startswith("mamba") else 3)  # Mamba's are large as they are
    return model


@torch.no_grad()
def own_logps(model, prompt, completion):
    logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
    logps = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return logps.gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_sampler_and_learner_give_the_models_own_log_probs(kind, tokenizer):
    model = small(kind)
    sampler = LocalSampler(model, tokenizer)
    rollouts = sampler.sample(PROMPTS, SamplingSettings(3, 9), (0, "test"), 0)
    assert KINDS[kind][0] in (sampler.way.way, "any"), sampler.way
    expected = []
    for rollout in rollouts:
        for ids, logps in zip(rollout.token_ids, rollout.logps, strict=True):
            expected.append(own_logps(model, rollout.prompt.token_ids, ids))
            torch.testing.assert_close(torch.tensor(logps), expected[-1], atol=1e-5, rtol=0)
    batch = collate([Group(rollout, {}, (0.0,) * 3) for rollout in rollouts], pad_id=0, on_policy=True)
    got = PolicyForward(model)(batch)[0].detach()
    torch.testing.assert_close(got[batch.completion_mask], torch.cat(expected), atol=1e-5, rtol=0)


def test_a_shortcut_that_fails_is_an_obstacle_with_its_reason(policy, tokenizer, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("no such layer")

    monkeypatch.setattr(decoding.SharedPromptDecoding, "__init__", broken)
    with pytest.warns(
        UserWarning, match=r"sampling is repeated \(.*\); not shared: KeyError: 'no such layer'"
    ):
        assert LocalSampler(policy, tokenizer).way.way == "repeated"
    monkeypatch.setattr("maxent_grpo.models.policy.pack", broken)
    with pytest.warns(UserWarning, match="no such layer"):
        forward = PolicyForward(policy)
    assert forward.shortcuts == {"head"}
    assert policy.config._attn_implementation == "sdpa"


def test_a_model_that_no_cache_continues_is_refused_in_one_line(policy, monkeypatch):
    step = decoding.ExpandedDecoding.step
    monkeypatch.setattr(decoding.ExpandedDecoding, "step", lambda self, tokens: 2 * step(self, tokens))
    monkeypatch.setattr(decoding, "start_decoding", _expanded)
    with pytest.raises(
        UsageError, match=r"cannot be sampled in this process .*differ by.*; sample with use_vllm"
    ) as e:
        find_way(policy)
    assert "\n" not in str(e.value)


def _expanded(model, ids, mask, group, room, way):
    state = decoding.ExpandedDecoding(model, mask.repeat_interleave(group, dim=0))
    return state.read(ids.repeat_interleave(group, dim=0)), state


def test_a_model_whose_own_forward_fails_is_refused_in_one_line(policy, monkeypatch):
    def broken(*args, **kwargs):
        raise IndexError("index out of range")

    policy.forward = broken
    for probe in (find_way, PolicyForward):
        with pytest.raises(
            UsageError, match="the forward of Qwen2ForCausalLM fails on two short prompts: IndexError"
        ):
            probe(policy)
