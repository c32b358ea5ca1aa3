"""Texts of completions: tags of an answer stay, whatever a tokenizer makes of them; ends and turn markers go."""

import copy

import pytest

from maxent_grpo.rollout.texts import completion_texts

TEXT = "<think>3 + 4</think><answer>7</answer>"


@pytest.mark.parametrize("special", [True, False])
def test_tags_stay_and_ends_and_markers_go(tokenizer, special):
    tagged = copy.deepcopy(tokenizer)
    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    tagged.add_tokens(tags, special_tokens=special)
    ids = tagged(TEXT + "<|im_end|>", add_special_tokens=False)["input_ids"]
    assert tagged.convert_tokens_to_ids("<think>") in ids
    padded = [*ids, tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids("<|im_start|>")]
    assert completion_texts(tagged, [ids, padded, []]) == [TEXT, TEXT, ""]


def test_without_special_tags_the_text_is_the_tokenizers(tokenizer):
    ids = [tokenizer(TEXT + "<|im_end|>")["input_ids"]]
    assert completion_texts(tokenizer, ids) == tokenizer.batch_decode(ids, skip_special_tokens=True) == [TEXT]


def test_a_tag_of_the_tokenizers_own_list_of_special_tokens_stays(tokenizer):
    tagged = copy.deepcopy(tokenizer)
    tagged.add_special_tokens({"additional_special_tokens": ["<think>", "<|turn|>"]})
    ids = tagged("<think>a<|turn|>b", add_special_tokens=False)["input_ids"]
    assert completion_texts(tagged, [ids]) == ["<think>ab"]
