"""LoRA: the adapter is trained and saved, the base stays, and the policy without it is the reference."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import runs
from maxent_grpo.errors import UsageError
from maxent_grpo.models.policy import decoder_layers
from maxent_grpo.train import drivers
from maxent_grpo.train.build import Given
from maxent_grpo.train.step import step
from runs import train

peft = pytest.importorskip("peft")
LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "v_proj"]}


def test_only_the_adapter_moves_and_it_is_what_is_saved(configure, tmp_path, policy):
    train(configure(max_steps=3, **LORA))
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert all("lora_" in name for name in saved)
    assert any(tensor.abs().max() > 0 for name, tensor in saved.items() if "lora_B" in name)
    whole = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run")
    for name, parameter in policy.named_parameters():
        kept = dict(whole.base_model.model.named_parameters())
        found = (
            kept[name]
            if name in kept
            else kept[name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")]
        )
        assert torch.equal(found, parameter), name


def test_the_reference_is_the_policy_without_its_adapter(configure, tmp_path, policy_dir):
    """Against a run whose reference is the same weights as a model of its own."""

    def records(name, **settings):
        train(configure(output_dir=str(tmp_path / name), max_steps=3, **LORA, **settings))
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()][1:]

    off = records("off")
    named = records("named", reference_model_name_or_path=str(policy_dir))
    assert off[0]["train/kl"] == pytest.approx(0, abs=1e-9)
    assert off[2]["train/kl"] > 0
    for mine, theirs in zip(off, named, strict=True):
        assert mine["train/kl"] == pytest.approx(theirs["train/kl"], rel=1e-5, abs=1e-9)


def test_an_adapter_run_resumes_to_the_same_bytes(configure, tmp_path):
    settings = LORA | {"lora_dropout": 0.1, "save_steps": 2, "lr_scheduler_type": "constant"}
    train(configure(output_dir=str(tmp_path / "whole"), max_steps=4, **settings))
    train(configure(output_dir=str(tmp_path / "cut"), max_steps=2, **settings))
    train(configure(output_dir=str(tmp_path / "cut"), max_steps=4, resume_from_checkpoint=True, **settings))
    for name in ("adapter_model.safetensors", "metrics.jsonl", "checkpoint-4/optimizer.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_the_gradient_checkpointed_adapter_has_the_same_gradient(configure, tmp_path):
    moved = []
    for checkpointing in (False, True):
        config = configure(
            gradient_checkpointing=checkpointing, optim="sgd", learning_rate=1.0, max_grad_norm=0, **LORA
        )
        run = runs.build(config)
        drivers.collect(run)
        before = {n: p.detach().clone() for n, p in run.learner.model.named_parameters() if p.requires_grad}
        step(run, run.rollout)
        moved.append(
            {n: p.detach() - before[n] for n, p in run.learner.model.named_parameters() if n in before}
        )
    for name, expected in moved[0].items():
        assert torch.allclose(moved[1][name], expected, atol=1e-6), name
    assert max(float(m.norm()) for m in moved[0].values()) > 0


def test_an_adapter_hides_no_layer_from_sharding(configure, tmp_path, policy):
    config = configure(**LORA)
    adapted = runs.build(config).learner.model
    assert len(decoder_layers(adapted)) == len(decoder_layers(policy)) == policy.config.num_hidden_layers
    with pytest.raises(UsageError, match="Linear names no blocks to shard"):
        decoder_layers(torch.nn.Linear(2, 2))


def test_unknown_targets_are_refused_in_one_line(configure):
    with pytest.raises(UsageError, match=r"use_peft: .*nowhere.*; check lora_target_modules"):
        train(configure(**(LORA | {"lora_target_modules": ["nowhere"]})))


def test_an_optimiser_without_its_package_is_refused(configure):
    with pytest.raises(UsageError, match=r"optim: .*bitsandbytes"):
        train(configure(optim="adamw_bnb_8bit"))


def test_an_adapters_folder_is_trained_on_and_its_start_is_the_reference(configure, tmp_path):
    train(configure(output_dir=str(tmp_path / "first"), max_steps=3, **LORA))
    first = tmp_path / "first"
    train(configure(model_name_or_path=str(first), output_dir=str(tmp_path / "second"), max_steps=3))
    records = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    divergences = [record["train/kl"] for record in records if "train/kl" in record]
    assert divergences[0] == pytest.approx(0, abs=1e-9)
    assert divergences[2] > 0
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (first, tmp_path / "second")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert not (tmp_path / "second" / "model.safetensors").exists()


def test_an_adapters_folder_with_another_adapter_or_without_its_base_is_refused(
    configure, tmp_path, policy_dir
):
    first = tmp_path / "first"
    train(configure(output_dir=str(first), max_steps=1, **LORA))
    with pytest.raises(UsageError, match=r"use_peft: the model is an adapter .* already"):
        train(configure(model_name_or_path=str(first), **LORA))
    settings = json.loads((first / "adapter_config.json").read_text())
    (first / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": "/nowhere/base"})
    )
    with pytest.raises(UsageError, match=r"/nowhere/base.*it is the base of the adapter"):
        train(configure(model_name_or_path=str(first)))


def test_an_adapter_that_transformers_loaded_is_refused_as_it_is_frozen(configure, tmp_path):
    train(configure(output_dir=str(tmp_path / "first"), max_steps=1, **LORA))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    with pytest.raises(UsageError, match="its adapter was loaded by Transformers"):
        train(configure(output_dir=str(tmp_path / "second")), Given(model=model))
