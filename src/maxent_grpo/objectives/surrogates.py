"""Losses that improve the policy: surrogates of the importance ratio per token, and two losses over whole groups."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from maxent_grpo.objectives.reduce import log_ratio, row_means
from maxent_grpo.types import Batch, Forward

RatioLevel = Literal["token", "sequence", "sequence_token"]


def old_logps(forward: Forward, batch: Batch) -> Tensor:
    """Log-probs [B, T] at the start of the rollout's updates: on-policy, the forward's own."""
    return forward.logps.detach() if batch.old_logps is None else batch.old_logps


def ratio(logps: Tensor, old_logps: Tensor, mask: Tensor, level: RatioLevel) -> Tensor:
    """Importance ratio of the policy to the one at the start of the updates, differentiable in ``logps``.

    Args:
        logps, old_logps: [B, T]; padding may hold anything.
        mask: [B, T] bool.
        level: ``token``: π/π_old of each token. ``sequence``: the geometric mean over the completion's
            tokens, one number for all of them (GSPO, Zheng et al. 2025, arXiv 2507.18071, eq. 7).
            ``sequence_token``: that number as value, the gradient of the single token (GSPO-token, in the same paper).

    Returns:
        [B, T] for ``token`` (1 at padding) and ``sequence_token``, [B, 1] for ``sequence``.
    """
    difference = log_ratio(logps, old_logps, mask)
    match level:
        case "token":
            return difference.exp()
        case "sequence":
            return row_means(difference, mask).unsqueeze(1).exp()
        case "sequence_token":
            mean = row_means(difference, mask).unsqueeze(1)
            return (mean.detach() + difference - difference.detach()).exp()


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


def unclipped(ratio: Tensor, advantages: Tensor) -> Tensor:
    """``−ρ·A``: importance-weighted policy gradient, of the shape of ``ratio``."""
    return -ratio * advantages.unsqueeze(1)


def cispo(ratio: Tensor, logps: Tensor, advantages: Tensor, cap: float) -> Tensor:
    """``−sg[min(ρ, cap)]·A·log π``: the weight is clipped, the gradient never (CISPO, MiniMax 2025, arXiv 2506.13585).

    The paper clips to [1 − ε_low, 1 + ε_high] and sets ε_low so large that it does nothing; as in TRL, ``cap``
    is 1 + ε_high itself (ScaleRL, Khatri et al. 2025, arXiv 2510.13786: 4 to 5).

    Args:
        ratio: [B, T] or [B, 1].
        logps: [B, T] of the policy, the only way for the gradient.
        advantages: [B].
        cap: largest weight, > 0.
    """
    return -ratio.detach().clamp(max=cap) * advantages.unsqueeze(1) * logps


def sapo(ratio: Tensor, advantages: Tensor, temperature_pos: float, temperature_neg: float) -> Tensor:
    """``−(4/t)·sigmoid(t·(ρ − 1))·A``: a soft gate for the clip (SAPO, Gao et al. 2025, arXiv 2511.20347).

    Its gradient weight 4·s·(1 − s) is 1 at ρ = 1 and falls off smoothly on both sides; ``t`` is ``temperature_pos``
    where A > 0 and ``temperature_neg``, larger and hence stricter, elsewhere.
    """
    scale = advantages.unsqueeze(1)
    temperature = _by_sign(scale > 0, temperature_pos, temperature_neg, scale)
    return -torch.sigmoid(temperature * (ratio - 1.0)) * 4.0 / temperature * scale


def _by_sign(positive: Tensor, if_positive: float, otherwise: float, like: Tensor) -> Tensor:
    """One of two numbers for each entry, in the precision of ``like``."""
    return torch.where(positive, like.new_tensor(if_positive), like.new_tensor(otherwise))


LOG_WEIGHT_RANGE = (math.log(1e-8), 20.0)
"""Where VESPO's sequence log-weight is cut, as in the authors' code and TRL."""


@torch.no_grad()
def vespo_weights(
    log_ratio_sums: Tensor, advantages: Tensor, pos: tuple[float, float], neg: tuple[float, float]
) -> Tensor:
    """``φ(W) = e^λ·W^k·e^{−λW}``, φ(1) = 1, for W the ratio of the whole completion (VESPO, 2026, arXiv 2602.10693).

    Args:
        log_ratio_sums: [B] log W, summed over tokens.
        advantages: [B].
        pos, neg: (k, λ) where A ≥ 0, and where A < 0.

    Returns:
        [B, 1], constants.
    """
    log_weight = log_ratio_sums.clamp(*LOG_WEIGHT_RANGE)
    k = _by_sign(advantages >= 0, pos[0], neg[0], advantages)
    rate = _by_sign(advantages >= 0, pos[1], neg[1], advantages).clamp(min=1e-4)
    return (rate + k * log_weight - rate * log_weight.exp()).exp().unsqueeze(1)


def vespo(weights: Tensor, logps: Tensor, advantages: Tensor) -> Tensor:
    """``−φ(W)·A·log π`` per token, [B, T]; ``weights`` as from `vespo_weights`."""
    return -weights * advantages.unsqueeze(1) * logps


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
