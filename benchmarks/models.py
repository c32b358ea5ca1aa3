"""Random Qwen2-shaped policies and the tokenizer that the benchmarks use: nothing is downloaded.

The policies are untrained and so nearly uniform over their vocabulary. That lets two properties of a rollout be set
without touching any system that samples it:

- *full* lengths: no token of the model ends a completion (the tokenizer's end-of-sequence id lies past the model's
  vocabulary), so every completion runs to its limit, in every system;
- *geometric* lengths: the last `stop_count` tokens of the vocabulary all end a completion (a list in the generation
  config, as chat models have). Each token then stops with a probability near 2 / completion length.
"""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM


@dataclass(frozen=True)
class Size:
    """The shape of a policy. All share embedding and LM head, as small Qwen2 models do."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int


SIZES = {
    "tiny": Size(128, 64, 128, 2, 2, 1),  # for the tests of these scripts
    "0.5m": Size(512, 128, 256, 3, 4, 2),
    "4m": Size(512, 256, 768, 5, 4, 2),
    "30m": Size(1024, 512, 1536, 10, 8, 2),
    "151k": Size(151_936, 128, 384, 4, 2, 2),  # Qwen2's vocabulary on a small body
    "0.5b": Size(151_936, 896, 4864, 24, 14, 2),  # Qwen2.5-0.5B
    "1.5b": Size(151_936, 1536, 8960, 28, 12, 2),  # Qwen2.5-1.5B
}

PAD = 0


def build_tokenizer(size: Size) -> PreTrainedTokenizerFast:
    """Token i is the word ``t<i>``; the end-of-sequence token is one past the model's vocabulary."""
    words = {"<pad>": PAD} | {f"t{i}": i for i in range(1, size.vocabulary)} | {"<eos>": size.vocabulary}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return fast


def stop_count(size: Size, completion: int, lengths: str) -> int:
    """How many tokens of the vocabulary end a completion."""
    return round(2 / completion * size.vocabulary) if lengths == "geometric" else 0


def build_model(size: Size, stops: int, positions: int, seed: int) -> Qwen2ForCausalLM:
    """A random policy in float32 on the CPU; equal arguments give equal weights."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD,
        attn_implementation="sdpa",
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=[size.vocabulary, *range(size.vocabulary - stops, size.vocabulary)],
        pad_token_id=PAD,
    )
    return model
