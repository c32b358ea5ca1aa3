"""InfoSeed's variants of a prompt: what they say, where, and in which tokens."""

from dataclasses import replace

import pytest
from test_prompts import byte_tokenizer, rows_of

from maxent_grpo.data.prompts import PromptSettings, SeedPrompts, build_prompts
from maxent_grpo.errors import UsageError

SUFFIX = "\n[seed={seed}]"


def variants_of(rows, template=SUFFIX, count=3, tokenizer=None, settings=None):
    tokenizer, settings = tokenizer or byte_tokenizer(), settings or PromptSettings()
    prompts = build_prompts(rows, tokenizer, settings)
    seeds = SeedPrompts(template, count, tokenizer, settings)
    return prompts[0], seeds.variants(prompts[0])


def test_the_seed_ends_the_user_message_and_the_assistants_header_stays_last():
    parent, variants = variants_of(rows_of("1+1?"), settings=PromptSettings(system_prompt="Be brief."))
    for seed, variant in enumerate(variants):
        assert variant.text == (
            f"<|bos|><|start|>system\nBe brief.<|end|><|start|>user\n1+1?\n[seed={seed}]<|end|><|start|>assistant\n"
        )
        assert variant.text.replace(f"\n[seed={seed}]", "") == parent.text
        assert variant.seed_id == seed
    assert parent.seed_id == -1


def test_token_ids_are_those_of_the_text_and_differ_by_seed():
    tokenizer = byte_tokenizer()
    _, variants = variants_of(rows_of("1+1?"), tokenizer=tokenizer, count=12)
    for variant in variants:
        assert list(variant.token_ids) == tokenizer(variant.text, add_special_tokens=False)["input_ids"]
    assert len({variant.token_ids for variant in variants}) == 12


def test_a_template_with_a_prompt_replaces_the_message():
    _, variants = variants_of(rows_of("1+1? {seed}"), template="Way {seed} of {{3}}: {prompt}!", count=2)
    assert "<|start|>user\nWay 1 of {3}: 1+1? {seed}!<|end|>" in variants[1].text


def test_clipping_never_cuts_the_seed():
    _, variants = variants_of(rows_of("x" * 50), settings=PromptSettings(max_prompt_chars=8))
    assert "user\nxxxxxxxx\n[seed=2]<|end|>" in variants[2].text


def test_a_chat_takes_the_seed_in_its_last_user_message():
    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    _, variants = variants_of(rows_of(chat))
    assert "user\na<|end|>" in variants[0].text
    assert variants[0].text.endswith("user\nc\n[seed=0]<|end|><|start|>assistant\n")


def test_without_a_chat_template_the_header_is_last_too():
    tokenizer = byte_tokenizer(template=None, adds_bos=True)
    parent, variants = variants_of(rows_of("1+1?"), tokenizer=tokenizer)
    assert variants[0].text == "<|bos|>USER: 1+1?\n[seed=0]\nASSISTANT:"
    assert parent.text == "<|bos|>USER: 1+1?\nASSISTANT:"


def test_draws_differ_by_seed_and_from_the_parents():
    parent, variants = variants_of(rows_of("1+1?"))
    assert len({parent.key, *(variant.key for variant in variants)}) == 4
    assert replace(variants[0], epoch=1).key != variants[0].key


def test_a_chat_without_a_user_message_is_refused_by_row():
    tokenizer, settings = byte_tokenizer(), PromptSettings()
    chats = [[{"role": "user", "content": "1+1?"}], [{"role": "assistant", "content": "b"}]]
    rows = [{"problem": chat, "answer": "1"} for chat in chats]
    prompts = build_prompts(rows, tokenizer, settings)
    with pytest.raises(UsageError, match="row 1, column 'problem': the chat has no user message"):
        SeedPrompts(SUFFIX, 2, tokenizer, settings).check(prompts)


def test_a_tokenizer_that_cannot_tell_two_seeds_apart_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"?": 0, "seed": 1, "0": 2}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?", eos_token="?", pad_token="?")
    settings = PromptSettings()
    prompts = build_prompts(rows_of("seed"), tokenizer, settings)
    with pytest.raises(UsageError, match="info_seed_prompt_template: seeds 1 and 2 are the same tokens"):
        SeedPrompts(" seed {seed}", 3, tokenizer, settings).check(prompts)
    SeedPrompts(" seed {seed}", 2, tokenizer, settings).check(prompts)
