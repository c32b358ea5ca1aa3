"""Masks and denominators: where padding is dropped and per-token losses become one number.

Every reduction divides by a count over the *whole* optimiser batch (`Denominators`), so the losses of
micro-batches and of ranks add up to the loss of the batch, whatever the split. Values at padding are never
read, NaN included, neither by the loss nor by its gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from maxent_grpo.types import Denominators

Reduction = Callable[[Tensor, Tensor, Denominators], Tensor]
"""Per-token values [B, T] (or [B, 1]), mask [B, T] → scalar."""


def log_ratio(logps: Tensor, other_logps: Tensor, mask: Tensor) -> Tensor:
    """``logps − other_logps`` where ``mask`` is true and 0 at padding: [B, T], differentiable in both."""
    return torch.where(mask, logps - other_logps, 0.0)


def row_sums(values: Tensor, mask: Tensor) -> Tensor:
    """The sum of each row's unpadded values: [B, T] (or [B, 1], one value for every token) → [B]."""
    return torch.where(mask, values, 0.0).sum(dim=1)


def row_means(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of each row's unpadded values: [B, T] (or [B, 1]) → [B]; 0 for a row without tokens."""
    return row_sums(values, mask) / mask.sum(dim=1).clamp(min=1)


def sequence_scores(logps: Tensor, mask: Tensor, group_size: int, length_normalize: bool) -> Tensor:
    """Log-prob of each completion, summed over its tokens or averaged over them: [B, T] → [P, G].

    Args:
        logps: [B, T] per-token log-probs; padding may hold anything.
        mask: [B, T] bool.
        group_size: G; B must be a multiple of it.
        length_normalize: divide by the number of tokens (at least 1).
    """
    rows = row_means(logps, mask) if length_normalize else row_sums(logps, mask)
    return rows.view(-1, group_size)


def within_scored(
    function: Callable[..., Tensor], scored: Tensor | None, *values: Tensor | None, per_group: bool = False
) -> Tensor:
    """``function`` of each group without the completions that have no utility: as if the group were smaller.

    Args:
        function: of ``values``, tensors over groups of one size → [P, G], or [P] if ``per_group``. It must treat each
            group by itself.
        scored: [P, G] bool; None: all, and ``function`` is called as it is.
        values: [P, G], of which the first is floating point, or one entry per group ([P, 1] or [P]), or None.

    Returns:
        [P, G], 0 where not ``scored``, or [P], 0 for groups without a scored completion; differentiable as
        ``function`` is.
    """
    if scored is None or bool(scored.all()):
        return function(*values)
    assert values[0] is not None, "the first value gives the result its precision"
    result = values[0].masked_fill(torch.ones_like(scored), 0.0)  # 0, with a gradient of 0
    if per_group:
        result = result.sum(dim=1)
    counts = scored.sum(dim=1)
    for size in sorted(set(counts.tolist())):
        groups = (counts == size).nonzero().flatten()
        rows, columns = scored[groups].nonzero(as_tuple=True)
        if size == 0:
            continue
        parts = [
            value
            if value is None
            else value[groups[rows], columns].view(-1, size)
            if value.shape == scored.shape
            else value[groups]
            for value in values
        ]
        found = function(*parts)
        place = (groups,) if per_group else (groups[rows], columns)
        result = result.index_put(place, found.flatten().to(result.dtype))
    return result


def sequence_mean(values: Tensor, mask: Tensor, denominators: Denominators) -> Tensor:
    """Mean over tokens within a completion, then over completions (GRPO, Shao et al. 2024, eq. 3): scalar."""
    return row_means(values, mask).sum() / denominators.sequences


def token_mean(values: Tensor, mask: Tensor, denominators: Denominators) -> Tensor:
    """Mean over all tokens of the optimiser batch (DAPO, Yu et al. 2025, eq. 8): scalar.

    Serves ``bnpo`` and ``dapo`` alike. TRL's ``bnpo`` divides by the tokens of the local micro-batch instead,
    so that its gradient changes with ``gradient_accumulation_steps``; ours must not, and equals TRL's with
    one micro-batch.
    """
    return row_sums(values, mask).sum() / denominators.tokens


def fixed_length(values: Tensor, mask: Tensor, denominators: Denominators) -> Tensor:
    """Sum over tokens ÷ (completions × longest allowed completion) (Dr. GRPO, Liu et al. 2025): scalar.

    The constant divisor gives a token the same weight in a long completion as in a short one.
    """
    return row_sums(values, mask).sum() / (denominators.sequences * denominators.max_length)


def sequence_sum(values: Tensor, mask: Tensor, denominators: Denominators) -> Tensor:
    """Sum over tokens, then mean over completions (LUSPO, 2026, arXiv 2602.05261): scalar.

    With a ratio per completion, every completion counts in proportion to its length, as its tokens would.
    """
    return row_sums(values, mask).sum() / denominators.sequences
