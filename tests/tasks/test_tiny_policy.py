"""The bundled policy: its files, its tokenizer, how well it starts, and that its training is reproducible."""

import dataclasses
import json
import subprocess
import sys
import unicodedata

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from maxent_grpo.tasks import tiny_policy, warm_start
from maxent_grpo.tasks.registry import load_rows
from maxent_grpo.tasks.tiny_policy import bundled_policy_path
from maxent_grpo.tasks.warm_start import build_model, build_tokenizer, measure

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1=?"}]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(bundled_policy_path())


@pytest.fixture(scope="module")
def policy():
    return AutoModelForCausalLM.from_pretrained(bundled_policy_path(), dtype=torch.float32).eval()


def test_the_files_are_small_flat_and_float16():
    files = list(bundled_policy_path().iterdir())
    assert all(file.is_file() for file in files)
    assert sum(file.stat().st_size for file in files) < 4_000_000
    assert json.loads((bundled_policy_path() / "config.json").read_text())["dtype"] == "float16"


def test_the_policy_is_a_qwen2_of_a_million_parameters_with_head_size_32(policy):
    assert policy.config.model_type == "qwen2"
    assert policy.config.hidden_size // policy.config.num_attention_heads == 32
    assert policy.config.tie_word_embeddings
    assert 0.9e6 < policy.num_parameters() < 1.2e6


def test_the_bundled_tokenizer_is_the_built_one(tokenizer):
    built = build_tokenizer()
    assert tokenizer.get_vocab() == built.get_vocab()
    assert tokenizer.chat_template == built.chat_template
    assert type(tokenizer) is type(built)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert len(tokenizer) == 259


def test_printable_ascii_has_one_token_per_character(tokenizer):
    text = "".join(map(chr, range(32, 127))) + "\n"
    assert len(tokenizer.encode(text)) == len(text) == len(set(tokenizer.encode(text)))


@settings(max_examples=100)
@given(st.text(max_size=40))
def test_every_text_survives_encoding_in_normal_form_and_has_no_unknown_token(text):
    tokenizer = build_tokenizer()
    ids = tokenizer.encode(text, split_special_tokens=True)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert tokenizer.unk_token_id not in ids


def test_chat_template_of_a_prompt_and_of_a_whole_conversation(tokenizer):
    prompt = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>s\nBe brief.<|im_end|><|im_start|>u\n1+1=?<|im_end|><|im_start|>a\n"
    whole = tokenizer.apply_chat_template([*CHAT, {"role": "assistant", "content": "2"}], tokenize=False)
    assert whole == prompt + "2<|im_end|>"


@pytest.mark.parametrize("split", ["train", "eval"])
def test_graph_colouring_starts_above_chance_imperfect_and_diverse(policy, tokenizer, split):
    found = measure(policy, tokenizer, load_rows("graph_coloring", split)[:96])
    assert 0.28 < found.mean < 0.45
    assert 0.82 < found.passed < 0.98
    assert 0.26 < found.coverage < 0.42


def test_arithmetic_starts_nearly_solved(policy, tokenizer):
    assert measure(policy, tokenizer, load_rows("arithmetic", "eval")).mean > 0.75


def test_countdown_starts_with_some_right_answers(policy, tokenizer):
    assert measure(policy, tokenizer, load_rows("countdown", "eval", "numbers=3")).mean > 0.08


@pytest.mark.parametrize("task", ["divisors", "equations", "lattice_paths"])
def test_the_other_tasks_start_with_right_answers_and_room_above_them(policy, tokenizer, task):
    found = measure(policy, tokenizer, load_rows(task, "eval"))
    assert 0.04 < found.mean < 0.4
    assert found.mean + 0.2 < found.passed < 0.95
    assert 0.1 < found.coverage < 0.5


def test_an_infoseed_suffix_does_not_confuse_the_policy(policy, tokenizer):
    rows = [
        {**row, "problem": row["problem"] + "\n[seed=3]"} for row in load_rows("graph_coloring", "eval")[:48]
    ]
    assert measure(policy, tokenizer, rows).mean > 0.25


def test_quality_is_reproducible(policy, tokenizer):
    rows = load_rows("graph_coloring", "eval", "eval_size=8")
    assert measure(policy, tokenizer, rows, seed=1) == measure(policy, tokenizer, rows, seed=1)


def test_targets_are_the_shares_of_right_answers_that_go_on_with_each_token():
    answers = [[1, 2, 0], [1, 3, 0], [2, 2, 0]]
    targets = warm_start.next_token_targets(answers, [1, 3, 0], vocabulary=4)
    expected = torch.tensor([[0, 2 / 3, 1 / 3, 0], [0, 0, 0.5, 0.5], [1, 0, 0, 0]])
    torch.testing.assert_close(targets, expected)


@pytest.fixture
def few_problems(monkeypatch):
    shares = tuple(dataclasses.replace(share, problems=40, rows=4) for share in warm_start.SHARES)
    shares = tuple(share for share in shares if ("numbers", 4) not in share.options)
    monkeypatch.setattr(warm_start, "SHARES", shares)


@pytest.mark.usefixtures("few_problems")
def test_training_is_deterministic_by_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_policy, "REPORTED", {})
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        tiny_policy.build_policy(tmp_path / name, seed=seed, steps=3)
    first, again, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again", "other")
    )
    assert first == again
    assert first != other


@pytest.mark.usefixtures("few_problems")
def test_training_lowers_the_loss():
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    losses: list[float] = []
    warm_start.train(build_model(tokenizer), tokenizer, 20, 0, lambda step, loss: losses.append(loss))
    assert len(losses) == 20
    assert losses[-1] < losses[0] / 2


def test_help_explains_the_options(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["maxent-grpo-tiny-policy", "--help"])
    with pytest.raises(SystemExit) as ended:
        tiny_policy.main()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--output-dir", "--seed", "--steps"))


def test_the_command_starts_without_loading_torch():
    code = "import sys, maxent_grpo.tasks.tiny_policy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_zero_steps_are_refused(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["maxent-grpo-tiny-policy", "--steps", "0"])
    with pytest.raises(SystemExit) as ended:
        tiny_policy.main()
    assert ended.value.code == 2
    assert "--steps 0: at least one step is needed" in capsys.readouterr().err
