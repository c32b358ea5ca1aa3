"""Token ids as padded tensors, and the pass over the prompts that sampling starts from."""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


def read_prompts(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, DynamicCache]:
    """Run left-padded prompts ``ids`` [P, L]: the logits after each prompt [P, V], and the cache."""
    out = model(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=positions(mask),
        past_key_values=DynamicCache(config=model.config),
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1], out.past_key_values


def positions(mask: Tensor) -> Tensor:
    """Position ids [B, L] that count real tokens only, so that left padding changes nothing."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def left_padded(sequences: list[tuple[int, ...]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [N, longest], padded on the left."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.tensor([[pad_id] * (width - len(s)) + list(s) for s in sequences], dtype=torch.long)
    mask = torch.tensor([[False] * (width - len(s)) + [True] * len(s) for s in sequences])
    return ids, mask
