"""Log-probs of sampled completions under a policy: each prompt is read once, not once per completion.

The group's G completions share their prompt, so the prompt runs through the model once with a key/value cache, the
cache is expanded over the group, and only the completions run G times. Gradients flow through the cache, and the
result equals the plain forward (`plain_logits`) up to rounding. What was left out: nothing is approximated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from maxent_grpo.types import Batch, Forward

EntropyMode = Literal["none", "measure", "differentiate"]
Pooling = Literal["none", "mean", "last"]


def completion_logps(
    model: PreTrainedModel,
    batch: Batch,
    *,
    temperature: float,
    entropy: EntropyMode = "none",
    shared_prefix: bool = True,
    pool: Pooling = "none",
) -> Forward:
    """Log-probs of the completion tokens, and the entropy of each next-token distribution if asked.

    ``temperature`` divides the logits, as in sampling, so that a policy's log-probs are those it samples from.
    ``entropy`` "measure" computes it without gradient. Padding positions hold 0.

    ``pool`` asks for one vector per completion: of the last hidden states that predict its tokens (those before the
    LM head), the "mean" or the "last", with gradient.
    """
    with recorded_states(model) as states:
        logits = shared_prefix_logits(model, batch) if shared_prefix else plain_logits(model, batch)
    forward = from_logits(logits.float() / temperature, batch.completion_ids, batch.completion_mask, entropy)
    if pool == "none":
        return forward
    hidden = (
        torch.cat([states[0][batch.prompt_rows], *states[1:]], dim=1) if shared_prefix else states[0][:, :-1]
    )
    return replace(forward, pooled=pooled_states(hidden, batch.completion_mask, pool))


def pooled_states(hidden: Tensor, mask: Tensor, pool: Pooling) -> Tensor:
    """The mean or the last of each row's states where ``mask`` [B, T] is true: [B, T, D] → [B, D]."""
    if pool == "last":
        last = (mask.sum(dim=1) - 1).clamp(min=0)
        return hidden[torch.arange(len(last), device=last.device), last]
    kept = torch.where(mask.unsqueeze(2), hidden, 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


@contextmanager
def recorded_states(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collects what the LM head reads, [rows, tokens, D], one tensor per pass of the model."""
    states: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _module, inputs: states.append(inputs[0])
    )
    try:
        yield states
    finally:
        handle.remove()


def from_logits(logits: Tensor, ids: Tensor, mask: Tensor, entropy: EntropyMode) -> Forward:
    """Log-probs of ``ids`` [B, T] (and entropies) under ``logits`` [B, T, V]; 0 where ``mask`` is false."""
    normaliser = logits.logsumexp(dim=-1)
    chosen = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - normaliser
    zero = chosen.new_zeros(())
    logps = torch.where(mask, chosen, zero)
    if entropy == "none":
        return Forward(logps)
    with torch.set_grad_enabled(entropy == "differentiate"):
        probabilities = (logits - normaliser.unsqueeze(-1)).exp()
        entropies = normaliser - (probabilities * logits).sum(dim=-1)
        return Forward(logps, torch.where(mask, entropies, zero))


def shared_prefix_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Next-token logits at each completion token, [B, T, V], with one pass over each prompt."""
    first, cache = read_prompts(model, batch.prompt_ids, batch.prompt_mask)
    first = first[batch.prompt_rows].unsqueeze(1)
    width = batch.completion_ids.shape[1]
    if width == 1:
        return first
    cache.batch_select_indices(batch.prompt_rows)
    prompt_mask = batch.prompt_mask[batch.prompt_rows]
    rest = model(
        input_ids=batch.completion_ids[:, :-1],
        attention_mask=torch.cat([prompt_mask, batch.completion_mask[:, :-1]], dim=1).long(),
        position_ids=prompt_mask.sum(dim=1, keepdim=True)
        + torch.arange(width - 1, device=prompt_mask.device),
        past_key_values=cache,
        use_cache=True,
    ).logits
    return torch.cat([first, rest], dim=1)


def plain_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The same logits by reading every prompt G times: for gradient checkpointing and models without a usable cache."""
    width = batch.completion_ids.shape[1]
    mask = torch.cat([batch.prompt_mask[batch.prompt_rows], batch.completion_mask], dim=1)
    ids = torch.cat([batch.prompt_ids[batch.prompt_rows], batch.completion_ids], dim=1)
    logits = model(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=positions(mask),
        use_cache=False,
        logits_to_keep=width + 1,
    ).logits
    return logits[:, :-1]


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
