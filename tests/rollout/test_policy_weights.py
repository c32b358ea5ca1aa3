"""What is published: every parameter, whole, under its checkpoint name, with the adapter in it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2ForCausalLM

from maxent_grpo.errors import UsageError
from maxent_grpo.rollout.weight_sync.weights import PolicyWeights
from ranks import run_ranks, running

pytestmark = pytest.mark.xdist_group("forked")  # one worker: ranks fork from one process, runs are shared


def weights_of(model: Any) -> PolicyWeights:
    """The weights of a policy that one process holds whole."""
    return PolicyWeights(model, model.named_parameters)


def adapted(policy: Qwen2ForCausalLM, **options: Any) -> Any:
    """The policy with an adapter whose change is not zero, as that of a fresh one is."""
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"]} | options
    model = get_peft_model(policy, LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    return model


def test_a_plain_policy_is_published_as_it_is(policy: Qwen2ForCausalLM) -> None:
    found = dict(weights_of(policy))
    assert found.keys() == dict(policy.named_parameters()).keys()
    assert all(torch.equal(found[name], value) for name, value in policy.named_parameters())


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_is_published_merged(policy: Qwen2ForCausalLM, options: dict[str, Any]) -> None:
    model = adapted(policy, **options)
    found = {name: value.detach().clone() for name, value in weights_of(model)}
    merged = dict(model.merge_and_unload().named_parameters())
    assert found.keys() == merged.keys()
    for name, value in merged.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-7)


def test_merging_leaves_the_learner_alone(policy: Qwen2ForCausalLM) -> None:
    model = adapted(policy)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    list(weights_of(model))
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())


def test_the_description_is_that_of_what_follows(policy: Qwen2ForCausalLM) -> None:
    weights = weights_of(adapted(policy, modules_to_save=["lm_head"]))
    described = [(info.name, info.dtype, info.shape) for info in weights.description()]
    assert described == [(name, value.dtype, tuple(value.shape)) for name, value in weights]


def test_another_pass_gives_the_weights_of_now(policy: Qwen2ForCausalLM) -> None:
    weights = weights_of(policy)
    first = dict(weights)["model.norm.weight"].detach().clone()
    with torch.no_grad():
        policy.model.norm.weight.add_(1.0)
    assert torch.equal(dict(weights)["model.norm.weight"], first + 1.0)


def test_dora_is_refused(policy: Qwen2ForCausalLM) -> None:
    with pytest.raises(UsageError, match="use_dora=false"):
        weights_of(adapted(policy, use_dora=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp2", "zero3"])
def test_shards_are_published_whole_and_one_at_a_time(policy_dir: Path, tmp_path: Path, kind: str) -> None:
    if kind == "zero3":
        pytest.importorskip("deepspeed")
    program = Path(__file__).with_name("two_ranks_weights.py")
    ended = run_ranks(tmp_path, [str(policy_dir), kind, str(tmp_path)], call=running(program))
    assert ended.codes == [0, 0], ended.errors
    assert len(list(tmp_path.glob("rank-*"))) == 2
