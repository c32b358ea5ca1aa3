"""The files of a saved policy."""

BESIDE_THE_WEIGHTS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)
"""Patterns of what `save_pretrained` writes beside the weights, and what answers depend on besides them."""
