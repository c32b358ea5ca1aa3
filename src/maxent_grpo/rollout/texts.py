"""Token ids → the text of a completion, as rewards, evaluation and artifacts get it: the one place of decoding."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

TAGS = frozenset({"<think>", "</think>", "<answer>", "</answer>"})
"""Parts of an answer: they stay where a tokenizer has them as special tokens."""


def completion_texts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[str]:
    """The rows' texts without special tokens (ends, padding, turn markers), `TAGS` excepted."""
    special = {place: str(token) for place, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    dropped = {place for place, token in special.items() if token not in TAGS}
    if len(dropped) == len(special):
        return tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True)
    kept = [[token for token in row if token not in dropped] for row in rows]
    return tokenizer.batch_decode(kept, skip_special_tokens=False)
