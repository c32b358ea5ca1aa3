"""Losses that improve the policy: the clipped surrogate per token, and two losses over whole groups."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from maxent_grpo.objectives.reduce import log_ratio, row_means

RatioLevel = Literal["token", "sequence"]


def ratio(logps: Tensor, old_logps: Tensor, mask: Tensor, level: RatioLevel) -> Tensor:
    """Importance ratio of the policy to the one at the start of the updates, differentiable in ``logps``.

    Args:
        logps, old_logps: [B, T]; padding may hold anything.
        mask: [B, T] bool.
        level: ``token``: π/π_old of each token. ``sequence``: the geometric mean over the completion's
            tokens, one number for all of them (GSPO, Zheng et al. 2025, eq. 7).

    Returns:
        [B, T] for ``token`` (1 at padding), [B, 1] for ``sequence``.
    """
    difference = log_ratio(logps, old_logps, mask)
    if level == "sequence":
        difference = row_means(difference, mask).unsqueeze(1)
    return difference.exp()


def clipped(
    ratio: Tensor, advantages: Tensor, epsilon_low: float, epsilon_high: float, delta: float | None = None
) -> Tensor:
    """PPO's pessimistic surrogate ``−min(ρ·A, clip(ρ, 1−ε_low, 1+ε_high)·A)`` (Schulman et al. 2017, eq. 7).

    The minimum is taken after multiplying by A, so that for A < 0 the clip binds from below: a token whose
    probability has already fallen by the factor 1 − ε_low is left alone, one that has become likelier is not.

    Args:
        ratio: [B, T] or [B, 1], see `ratio`.
        advantages: [B].
        epsilon_low, epsilon_high: the clip range (DAPO's clip-higher where they differ).
        delta: upper cap of the unclipped ratio, larger than 1 + ε_high; it bounds the loss where A < 0 (dual
            clip, Ye et al. 2020; TRL's two-sided clipping). None: no cap.

    Returns:
        Loss per token, of the shape of ``ratio``.
    """
    scale = advantages.unsqueeze(1)
    inside = ratio.clamp(1.0 - epsilon_low, 1.0 + epsilon_high)
    outside = ratio if delta is None else ratio.clamp(max=delta)
    return -torch.minimum(outside * scale, inside * scale)


class ClipEvents(NamedTuple):
    """Where the clip switched the gradient off: bool tensors of the shape of the ratio."""

    low: Tensor  # ρ < 1 − ε_low with A < 0
    high: Tensor  # ρ > 1 + ε_high with A > 0


def clip_events(ratio: Tensor, advantages: Tensor, epsilon_low: float, epsilon_high: float) -> ClipEvents:
    """Which entries of ``ratio`` ([B, T] or [B, 1]) the clip of `clipped` holds, given advantages [B]."""
    sign = advantages.unsqueeze(1)
    return ClipEvents((ratio < 1.0 - epsilon_low) & (sign < 0), (ratio > 1.0 + epsilon_high) & (sign > 0))


def listwise(scores: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy from the weights to the policy's softmax within the group: ``−Σ_i w_i·log softmax_i(s)``.

    The gradient in s_i is p_i − w_i: zero exactly where the policy's distribution p over the group equals w.

    Args:
        scores: [P, G] log-prob of each completion under the policy, see `weights.sequence_scores`.
        weights: [P, G], each group sums to 1; constants.

    Returns:
        [P] in nats.
    """
    return -(weights * torch.log_softmax(scores, dim=1)).sum(dim=1)


def weighted_likelihood(scores: Tensor, weights: Tensor) -> Tensor:
    """Weighted log-likelihood with a baseline: ``−Σ_i (w_i − 1/G)·s_i``.

    Without the baseline 1/G, every sampled completion would be made more likely, the bad ones too; with it,
    uniform weights have no gradient.

    Args:
        scores: [P, G] mean log-prob per token of each completion under the policy.
        weights: [P, G], each group sums to 1; constants.

    Returns:
        [P].
    """
    return -((weights - 1.0 / weights.shape[1]) * scores).sum(dim=1)
