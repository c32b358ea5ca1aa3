"""A batch as one row of real tokens: every prompt once, every completion once, no padding.

A decoder's layers treat tokens one by one, save for attention. So the batch runs through the model as a single
sequence, and only attention (`models.prefix_attention`) has to know where a prompt or a completion starts, and which
prompt a completion continues. `Packing` says it.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from maxent_grpo.types import Batch

PAD_FREE_WIDTH = 40
"""Copying a token into a padded bucket costs as much as its attention to about this many others. Like the next, it
shapes only the choice of buckets, never a result: an estimate for one core."""
BUCKET_COST = 5000
"""The cost of one more attention call, in multiples of one token's attention to one other."""
MOST_CUTS = 48


@dataclass(frozen=True)
class Bucket:
    """Sequences of about the same length that attend causally among themselves, padded on the right to ``width``."""

    count: int
    width: int
    start: int | None
    """They lie side by side in the packed row from here on, without padding: a view will do."""
    index: Tensor | None
    """[count, width] places in the packed row; padding repeats its sequence's last token."""
    padding: Tensor | None
    """[count, width] bool"""
    inside: Tensor | None
    """The real tokens' places in the flattened bucket,"""
    outside: Tensor | None
    """and in the packed row."""


@dataclass(frozen=True)
class Prefix:
    """The packed tokens ``rows`` (all completions of one prompt row), and the tokens ``prompt`` that they continue."""

    rows: slice
    prompt: slice


@dataclass(frozen=True)
class Packing:
    """`Batch` → ``N`` packed tokens: the prompts, then the completions sorted by prompt and length."""

    ids: Tensor
    """[N]"""
    positions: Tensor
    """[N] position within prompt + completion."""
    prompts: tuple[Bucket, ...]
    completions: tuple[Bucket, ...]
    prefixes: tuple[Prefix, ...]
    predicting: Tensor
    """[M] for each token that the policy wrote, row by row: the packed token that predicts it."""


def pack(batch: Batch) -> Packing:
    """The packing of ``batch``. The last token of a completion predicts nothing and is left out."""
    device = batch.prompt_ids.device
    prompt_lengths = batch.prompt_mask.sum(dim=1)
    prompt_of = batch.prompt_rows
    lengths = (batch.read_mask.sum(dim=1) - 1).clamp(min=0)
    prompts, rows, owner = prompt_lengths.tolist(), lengths.tolist(), prompt_of.tolist()
    order = sorted(range(len(rows)), key=lambda row: (owner[row], rows[row]))

    prompt_starts = _starts(prompts)
    row_starts = [0] * len(rows)
    end = sum(prompts)
    prefixes = []
    first = 0
    while first < len(order):
        prompt, begin = owner[order[first]], end
        while first < len(order) and owner[order[first]] == prompt:
            row_starts[order[first]] = end
            end += rows[order[first]]
            first += 1
        if end > begin:
            span = slice(prompt_starts[prompt], prompt_starts[prompt] + prompts[prompt])
            prefixes.append(Prefix(slice(begin, end), span))

    sorted_rows = torch.tensor(order, device=device)
    steps = torch.arange(batch.completion_ids.shape[1], device=device)
    run = steps < lengths[sorted_rows, None]
    completion_positions = (prompt_lengths[prompt_of[sorted_rows], None] + steps)[run]
    prompt_positions = (batch.prompt_mask.long().cumsum(dim=1) - 1)[batch.prompt_mask]

    starts = torch.tensor(row_starts, device=device)
    predicting = starts[:, None] + steps - 1
    predicting[:, 0] = (torch.tensor(prompt_starts, device=device) + prompt_lengths - 1)[prompt_of]
    return Packing(
        ids=torch.cat([batch.prompt_ids[batch.prompt_mask], batch.completion_ids[sorted_rows][run]]),
        positions=torch.cat([prompt_positions, completion_positions]),
        prompts=_buckets(prompts, prompt_starts, device),
        completions=_buckets(rows, row_starts, device),
        prefixes=tuple(prefixes),
        predicting=predicting[batch.completion_mask],
    )


def left_padded(sequences: list[tuple[int, ...]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [N, longest], padded on the left."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.tensor([[pad_id] * (width - len(s)) + list(s) for s in sequences], dtype=torch.long)
    mask = torch.tensor([[False] * (width - len(s)) + [True] * len(s) for s in sequences])
    return ids, mask


def _starts(lengths: list[int]) -> list[int]:
    starts, end = [], 0
    for length in lengths:
        starts.append(end)
        end += length
    return starts


def _buckets(lengths: list[int], starts: list[int], device: torch.device) -> tuple[Bucket, ...]:
    """Sequences sorted by length and cut where padding would cost more than one more attention call."""
    order = sorted((i for i in range(len(lengths)) if lengths[i] > 0), key=lambda i: (lengths[i], starts[i]))
    sizes = cheapest_cuts(tuple(lengths[i] for i in order))
    buckets, first = [], 0
    for size in sizes:
        members = order[first : first + size]
        first += size
        width = lengths[members[-1]]
        beginnings = [starts[i] for i in members]
        side_by_side = beginnings == list(range(beginnings[0], beginnings[0] + size * width, width))
        if side_by_side and all(lengths[i] == width for i in members):
            buckets.append(Bucket(size, width, beginnings[0], None, None, None, None))
            continue
        steps = torch.arange(width)
        own = torch.tensor([lengths[i] for i in members])[:, None]
        index = torch.tensor(beginnings)[:, None] + torch.minimum(steps, own - 1)
        real = steps < own
        places = (index, ~real, real.flatten().nonzero().squeeze(1), index[real])
        buckets.append(Bucket(size, width, None, *(place.to(device) for place in places)))
    return tuple(buckets)


@lru_cache(maxsize=256)
def cheapest_cuts(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes of consecutive buckets over ascending ``lengths`` that cost least by the two constants above.

    Exact by dynamic programming over the places where the length changes (thinned to `MOST_CUTS` of them).
    """
    if not lengths:
        return ()
    ends = [i for i in range(1, len(lengths)) if lengths[i] != lengths[i - 1]]
    ends = [*ends[:: -(-len(ends) // MOST_CUTS)], len(lengths)] if ends else [len(lengths)]
    best: list[tuple[float, tuple[int, ...]]] = []
    for j, end in enumerate(ends):
        width = lengths[end - 1]
        options = []
        for i in range(-1, j):
            begin, (cost, sizes) = (0, (0.0, ())) if i < 0 else (ends[i], best[i])
            padded = (end - begin) * width * (width + PAD_FREE_WIDTH) + BUCKET_COST
            options.append((cost + padded, (*sizes, end - begin)))
        best.append(min(options))
    return best[-1][1]
