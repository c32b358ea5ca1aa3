import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from maxent_grpo.models.decoding import RepeatedDecoding, SharedPromptDecoding, find_way, start_decoding
from maxent_grpo.models.packing import left_padded

PROMPTS = [(5, 6, 7, 8, 9, 10, 11), (12, 13), (20, 21, 22, 23)]
GROUP, ROOM = 3, 4
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": False,
}


def tiny(kind):
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHAPE)).double().eval()
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**SHAPE)).double().eval()
    config = Gemma2Config(**SHAPE, sliding_window=4, query_pre_attn_scalar=16)
    config._attn_implementation = "eager"
    return Gemma2ForCausalLM(config).eval()  # its eager attention computes in float32 in any case


def written(rows: int) -> torch.Tensor:
    return torch.randint(24, 97, (rows, ROOM), generator=torch.Generator().manual_seed(1))


def one_by_one(model, tokens):
    """Logits [B, ROOM + 1, V] of an unpadded forward per row: the oracle."""
    rows = []
    for row, ids in enumerate(tokens):
        prompt = PROMPTS[row // GROUP]
        logits = model(torch.tensor([[*prompt, *ids.tolist()]])).logits[0]
        rows.append(logits[len(prompt) - 1 :])
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("kind", "decoding_class"),
    [("llama", SharedPromptDecoding), ("qwen3", SharedPromptDecoding), ("gemma2", RepeatedDecoding)],
)
@torch.no_grad()
def test_decoding_equals_one_unpadded_forward_per_row(kind, decoding_class):
    model = tiny(kind)
    ids, mask = left_padded(PROMPTS, pad_id=0)
    tokens = written(len(PROMPTS) * GROUP)
    expected = one_by_one(model, tokens)
    logits, decoding = start_decoding(model, ids, mask, GROUP, ROOM, find_way(model).way)
    assert type(decoding) is decoding_class
    tolerance = {"rtol": 0, "atol": 1e-10 if model.dtype == torch.float64 else 1e-5}
    torch.testing.assert_close(logits, expected[:, 0], **tolerance)
    # The middle prompt loses a row, then all; the others become ragged.
    live = torch.arange(len(tokens))
    for t, keep in enumerate([None, [0, 1, 2, 3, 5, 6, 8], [0, 2, 5, 6], None]):
        if keep is not None:
            rows = torch.isin(live, torch.tensor(keep)).nonzero().squeeze(1)
            live = live[rows]
            decoding.keep(rows)
        logits = decoding.step(tokens[live, t])
        torch.testing.assert_close(logits, expected[live, t + 1], **tolerance)
    assert model.config._attn_implementation in ("sdpa", "eager")


@torch.no_grad()
def test_a_prompt_whose_rows_are_all_finished_is_forgotten():
    model = tiny("llama")
    ids, mask = left_padded(PROMPTS, pad_id=0)
    tokens = written(9)
    _, decoding = start_decoding(model, ids, mask, GROUP, ROOM, "shared")
    decoding.step(tokens[:, 0])
    rows = torch.tensor([0, 7, 8])
    decoding.keep(rows)
    assert decoding.layers[0].prompt_keys.shape[0] == 2
    logits = decoding.step(tokens[rows, 1])
    torch.testing.assert_close(logits, one_by_one(model, tokens)[rows, 2], rtol=0, atol=1e-10)


@torch.no_grad()
def test_no_memory_is_allocated_per_token():
    model = tiny("llama")
    ids, mask = left_padded(PROMPTS, pad_id=0)
    tokens = written(9)
    _, decoding = start_decoding(model, ids, mask, GROUP, ROOM, "shared")
    places = [layer.row_keys.data_ptr() for layer in decoding.layers]
    for t in range(ROOM):
        decoding.step(tokens[:, t])
    assert places == [layer.row_keys.data_ptr() for layer in decoding.layers]
    assert decoding.layers[0].row_keys.shape == (9, 2, ROOM, 16)


@pytest.mark.parametrize("way", ["shared", "repeated", "expanded"])
@torch.no_grad()
def test_eager_attention_in_float64_reads_padded_prompts(way):
    model = tiny("llama")
    model.set_attn_implementation("eager")
    ids, mask = left_padded(PROMPTS, pad_id=0)
    tokens = written(len(PROMPTS) * GROUP)
    expected = one_by_one(model, tokens)
    assert find_way(model).way == "shared"
    logits, decoding = start_decoding(model, ids, mask, GROUP, ROOM, way)
    torch.testing.assert_close(logits, expected[:, 0], rtol=0, atol=1e-6)  # eager's softmax is in float32
    for t in range(ROOM):
        torch.testing.assert_close(decoding.step(tokens[:, t]), expected[:, t + 1], rtol=0, atol=1e-6)
    assert model.config._attn_implementation == "eager"
