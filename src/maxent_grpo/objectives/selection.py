"""Which tokens carry the policy gradient, or an extra penalty: by entropy, by covariance, by staleness.

What is compared with what is always the *group*, the completions of one prompt: it is never split over
micro-batches or ranks, so a selection does not depend on how a batch is cut. (The published code compares within
whatever lies in one micro-batch.) All functions return masks without gradient; padding is never selected.
"""

import torch
from torch import Tensor

from maxent_grpo.objectives.reduce import log_ratio, row_means


def high_entropy(entropy: Tensor, mask: Tensor, group_size: int, share: float) -> Tensor:
    """The tokens of each group whose entropy reaches its (1 − share) quantile: [B, T] → [B, T] bool.

    "Forking tokens" (Wang et al. 2025, "Beyond the 80/20 rule", arXiv 2506.01939), whose share is 0.2. TRL takes the
    quantile over the tokens of a micro-batch on all ranks; the two are equal where that is one group.
    """
    groups = torch.where(mask, entropy.detach(), torch.nan).reshape(-1, group_size * mask.shape[1])
    threshold = torch.nanquantile(groups, 1.0 - share, dim=1)
    return (entropy.detach() >= threshold.repeat_interleave(group_size).unsqueeze(1)) & mask


def covariance(advantages: Tensor, logps: Tensor, mask: Tensor, group_size: int) -> Tensor:
    """``(A − mean A)·(log π − mean log π)``, means over the tokens of the group: [B], [B, T] → [B, T]; 0 at padding.

    Its mean is the covariance that drives the entropy of a softmax policy down (Cui et al. 2025, "The entropy
    mechanism", arXiv 2505.22617, theorem 1, whose covariance is within one prompt, too).
    """
    logps = torch.where(mask, logps.detach(), 0.0)
    spread_out = torch.where(mask, advantages.unsqueeze(1).expand_as(logps), 0.0)
    groups = mask.reshape(-1, group_size * mask.shape[1])
    count = groups.sum(dim=1, keepdim=True).clamp(min=1)

    def centred(values: Tensor) -> Tensor:
        mean = values.reshape(groups.shape).sum(dim=1, keepdim=True) / count
        return values - mean.repeat_interleave(group_size, dim=0)

    return torch.where(mask, centred(spread_out) * centred(logps), 0.0)


def largest(values: Tensor, candidates: Tensor, mask: Tensor, group_size: int, share: float) -> Tensor:
    """Per group, the candidates of largest value, at most ``share`` of its tokens (rounded up): [B, T] bool."""
    shape = (-1, group_size * mask.shape[1])
    count = torch.ceil(share * mask.reshape(shape).sum(dim=1, keepdim=True).double() - 1e-9)
    ranked = torch.where(candidates, values, -torch.inf).reshape(shape)
    rank = ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < count).view_as(mask) & candidates


def clip_cov(
    cov: Tensor, clipped: Tensor, mask: Tensor, group_size: int, share: float, low: float, high: float
) -> Tensor:
    """Clip-Cov: the tokens to leave without gradient (Cui et al. 2025, arXiv 2505.22617, eq. 10–11).

    Candidates have a covariance in (low, high) and are not clipped already. The paper draws among them at random;
    here the largest go, so that a step is a function of its batch.

    Args:
        cov: [B, T], see `covariance`.
        clipped: [B, T] or [B, 1] bool, where the ratio's clip acts.
        mask: [B, T] bool.
        share: of a group's tokens (the paper's 2e-4), rounded up.
    """
    return largest(cov, (cov > low) & (cov < high) & ~clipped & mask, mask, group_size, share)


def kl_cov(cov: Tensor, mask: Tensor, group_size: int, share: float) -> Tensor:
    """KL-Cov: the tokens to hold by a KL, those of largest covariance (Cui et al. 2025, eq. 12–13)."""
    return largest(cov, mask, mask, group_size, share)


def on_policy_enough(
    advantages: Tensor, logps: Tensor, behaviour_logps: Tensor, mask: Tensor, threshold: float
) -> Tensor:
    """Off-policy sequence mask (DeepSeek-V3.2, 2025, arXiv 2512.02556): completions to learn from, [B, 1] bool.

    Dropped are those of negative advantage that the policy has moved away from: mean over tokens of log(μ/π)
    above ``threshold``.
    """
    gap = row_means(log_ratio(behaviour_logps, logps.detach(), mask), mask)
    return ((advantages >= 0) | (gap <= threshold)).unsqueeze(1)
