"""The TRL route: TRL trains, and the run directory reads like any other."""

import json
import os
import re
import time
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from maxent_grpo.config.loading import resolve
from maxent_grpo.config.run_settings import run_settings
from maxent_grpo.data.prompts import PromptSettings, build_prompts
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.train import trl_route
from maxent_grpo.train.build import Given
from maxent_grpo.train.trl_route import RouteTrainer, canonical_names
from runs import train


def test_trl_trains_and_the_records_have_our_names(configure, tmp_path):
    config = configure(
        "train-baseline", force_custom_loop=False, max_steps=2, logging_steps=1, save_strategy="no"
    )
    assert config.route == "trl"
    result = train(config)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["run/command"] == "train-baseline"
    assert result.global_step == 2
    assert {"train/loss", "train/reward", "train/entropy", "train/grad_norm"} <= set(records[1])
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_timings_stay_out_of_the_metrics_and_prefixes_are_ours():
    logs = {"loss": 1.0, "eval_reward": 0.5, "eval_runtime": 3.0, "step_time": 2.0, "reward_std": 0.1}
    assert canonical_names(logs) == {"train/loss": 1.0, "eval/reward": 0.5, "train/trl/reward_std": 0.1}


def test_starting_over_removes_trls_checkpoints_and_only_when_asked(configure, tmp_path):
    settings = {"force_custom_loop": False, "max_steps": 1, "save_steps": 1}
    train(configure("train-baseline", **settings))
    stale = tmp_path / "run" / "checkpoint-9"
    stale.mkdir()
    with pytest.raises(UsageError, match="holds a run already"):
        train(configure("train-baseline", **settings))
    train(configure("train-baseline", **settings, overwrite_output_dir=True))
    assert not stale.exists()
    assert (tmp_path / "run" / "checkpoint-1").is_dir()


SPELLINGS = {
    "llama-3": (
        "<|begin_of_text|>",
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    ),
    "gemma": (
        "<bos>",
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    ),
    "mistral": (
        "<s>",
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}",
    ),
    "base": ("<s>", None),
}


@pytest.fixture(params=SPELLINGS)
def bos_policy(request, tmp_path):
    """A random policy whose tokenizer adds a BOS, as those of Llama-3, Gemma and Mistral do; one has no template."""
    bos, template = SPELLINGS[request.param]
    special = ["<pad>", bos, "</s>"]
    special += sorted(set(re.findall(r"<[^>{%]+>|\\[/?INST\\]", template or "")) - set(special))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=special[3:],
    )
    tokenizer.chat_template = template
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    directory = tmp_path / "bos-policy"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory, tokenizer


@pytest.fixture
def drawn(monkeypatch):
    """What TRL reads and hands to the loss, call by call."""
    seen = []
    original = RouteTrainer._generate_and_score_completions

    def watched(self, inputs):
        output = original(self, inputs)
        ids = [
            row[mask.bool()].tolist()
            for row, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True)
        ]
        seen.append(SimpleNamespace(inputs=inputs, ids=ids, prompts=self._drawn))
        return output

    monkeypatch.setattr(RouteTrainer, "_generate_and_score_completions", watched)
    return seen


def route(tmp_path, rows, **settings):
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    defaults = {
        "dataset_name": str(data),
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 4,
        "max_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return resolve("train-baseline", None, {"flat": defaults | settings}, environ={})


@pytest.mark.parametrize("form", ["text", "chat"])
def test_the_model_reads_the_native_loops_tokens_and_one_bos(bos_policy, drawn, tmp_path, form):
    directory, tokenizer = bos_policy
    asked = [f"{n}+4=" for n in range(4)]
    rows = [
        {"problem": text if form == "text" else [{"role": "user", "content": text}], "answer": "7"}
        for text in asked
    ]
    train(route(tmp_path, rows, model_name_or_path=str(directory), reward_funcs=["tag_count"]))
    native = build_prompts(rows, tokenizer, PromptSettings())
    for call in drawn:
        for prompt, ids, row in zip(call.prompts, call.ids, call.inputs, strict=True):
            assert tuple(ids) == native[prompt.index].token_ids
            assert ids.count(tokenizer.bos_token_id) == 1
            assert ids[0] == tokenizer.bos_token_id
            assert isinstance(row["prompt"], str if form == "text" else list)
    assert len(drawn) == 1


def test_chats_stay_chats_and_trls_own_reward_reads_them(policy_dir, drawn, tmp_path):
    rows = [
        {"problem": [{"role": "user", "content": f"{n}+4="}], "answer": str(n + 4), "solution": f"${n + 4}$"}
        for n in range(4)
    ]
    settings = {"model_name_or_path": str(policy_dir), "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"dataset_test_split": "train"}
    result = train(route(tmp_path, rows, reward_funcs=["trl.rewards:accuracy_reward"], **settings))
    assert result.global_step == 1
    assert len(drawn) == 2
    for call in drawn:
        assert all(row["prompt"][0]["role"] == "user" for row in call.inputs)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = {name for record in records for name in record}
    assert {
        "train/rewards/accuracy_reward/mean",
        "eval/rewards/accuracy_reward/mean",
        "train/reward/errors",
    } <= logged


REWARDS = """
import os, time

def hangs(completions, answer, **columns):
    if "0" in answer:
        time.sleep(60)
    return [float(os.getpid() != {pid}) for _ in completions]

def logs(completions, prompts, log_metric, trainer_state, **columns):
    log_metric("told", 2.0)
    assert all(isinstance(prompt, str) for prompt in prompts), prompts
    return [float(trainer_state.max_steps) for _ in completions]
"""


def test_rewards_run_in_workers_that_are_killed_at_their_deadline(policy_dir, tmp_path, monkeypatch):
    (tmp_path / "slow_rewards.py").write_text(REWARDS.format(pid=os.getpid()))
    monkeypatch.syspath_prepend(tmp_path)
    rows = [{"problem": f"{n}+4=", "answer": str(n)} for n in range(2)]
    began = time.monotonic()
    settings = {"model_name_or_path": str(policy_dir), "reward_timeout": 1.0, "logging_steps": 1}
    train(route(tmp_path, rows, reward_funcs=["slow_rewards:hangs", "slow_rewards:logs"], **settings))
    assert time.monotonic() - began < 40
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = {name: value for record in records for name, value in record.items()}
    assert found["train/rewards/hangs/mean"] == 1.0  # of those that were scored, all in another process
    assert found["train/reward/timeouts"] == 2.0
    assert found["train/rewards/logs/mean"] == 1.0
    assert found["train/reward/logged/told"] == 2.0


def test_too_few_rows_for_a_step_are_refused(policy_dir, tmp_path):
    rows = [{"problem": f"{n}+4=", "answer": "7"} for n in range(3)]
    settings = {"model_name_or_path": str(policy_dir), "reward_funcs": ["tag_count"]}
    config = route(tmp_path, rows, per_device_train_batch_size=64, num_generations=8, **settings)
    with pytest.raises(UsageError, match="give 3 prompts, and TRL's trainer needs 8 for one step"):
        train(config)
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_a_run_without_a_step_fails_and_saves_no_policy(policy_dir, tmp_path, monkeypatch):
    rows = [{"problem": f"{n}+4=", "answer": "7"} for n in range(4)]
    config = route(tmp_path, rows, model_name_or_path=str(policy_dir), reward_funcs=["tag_count"])
    monkeypatch.setattr(RouteTrainer, "train", lambda self, **settings: None)
    with pytest.raises(RunError, match="made no optimiser step"):
        train(config)
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_a_reward_from_python_runs_here_and_one_bound_to_options_keeps_its_name(policy_dir, tmp_path):
    calls = []

    def mine(completions, **columns):
        calls.append(columns)
        return [0.0 for _ in completions]

    rows = [{"problem": f"{n}+4=", "answer": "7", "level": n} for n in range(4)]
    config = route(tmp_path, rows, model_name_or_path=str(policy_dir))
    train(config, Given(reward_funcs=[mine, "repetition_penalty"]))
    assert len(calls) == 1
    assert {"prompts", "completion_ids", "answer", "level", "trainer_state"} <= set(calls[0])
    assert trl_route.ROW not in calls[0]


def test_arguments_for_a_template_that_nobody_would_read_are_refused(policy_dir, tmp_path):
    rows = [{"problem": "1", "answer": "7"}] * 4
    settings = {"model_name_or_path": str(policy_dir), "reward_funcs": ["tag_count"]}
    config = route(tmp_path, rows, chat_template_kwargs={"enable_thinking": False}, **settings)
    assert run_settings(config)
    with pytest.raises(UsageError, match="chat_template_kwargs"):
        train(config)
