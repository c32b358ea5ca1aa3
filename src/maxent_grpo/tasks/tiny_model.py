"""The architecture and the tokenizer of the bundled tiny policy."""

from tokenizers import pre_tokenizers
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

MAX_POSITIONS = 512
INITIALIZER_RANGE = (
    0.08  # about 1/√hidden: from the usual 0.02, graph colouring stays at chance for 900 steps and more
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'][0] }}\n{{ message['content'] }}<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a\n{% endif %}"
)
"""ChatML with one-letter roles (s, u, a) and nothing between turns: seven tokens around a question, not nineteen."""


def build_tokenizer() -> Qwen2Tokenizer:
    """One token per byte, so one per character of ASCII, and three special tokens: 259 in all.

    A Qwen2 tokenizer without merges, which is what `AutoTokenizer` makes of any tokenizer beside a Qwen2 model.
    Characters beyond ASCII become the two to four tokens of their UTF-8 bytes: every text has an encoding that decodes
    back to it (in Unicode's normal form C), and the unknown token that the class insists on is never used.
    """
    symbols = [PAD, TURN_START, TURN_END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return Qwen2Tokenizer(
        vocab={symbol: index for index, symbol in enumerate(symbols)},
        merges=[],
        unk_token=PAD,
        eos_token=TURN_END,
        pad_token=PAD,
        additional_special_tokens=[TURN_START],
        model_max_length=MAX_POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """An untrained Qwen2 of a million parameters, from torch's global generator. Head size 32 is vLLM's smallest."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model
