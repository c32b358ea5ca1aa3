"""Which tokens carry the policy gradient, or an extra penalty: by entropy, by covariance, by staleness.

What is compared with what is always the *group*, the completions of one prompt: it is never split over
micro-batches or ranks, so a selection does not depend on how a batch is cut. (The published code compares within
whatever lies in one micro-batch.) All functions return masks without gradient; padding is never selected.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from maxent_grpo.objectives.parts import LossInputs, Penalty
from maxent_grpo.objectives.reduce import log_ratio, row_means
from maxent_grpo.objectives.surrogates import ClipEvents
from maxent_grpo.stats import Metrics, mean_stat, sum_stat


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
    mechanism", arXiv 2505.22617, whose covariance is within one prompt, too).
    """
    logps = torch.where(mask, logps.detach(), 0.0)
    spread_out = torch.where(mask, advantages.unsqueeze(1).expand_as(logps), 0.0)
    groups = mask.reshape(-1, group_size * mask.shape[1])
    count = groups.sum(dim=1, keepdim=True).clamp(min=1)

    def centered(values: Tensor) -> Tensor:
        mean = values.reshape(groups.shape).sum(dim=1, keepdim=True) / count
        return values - mean.repeat_interleave(group_size, dim=0)

    return torch.where(mask, centered(spread_out) * centered(logps), 0.0)


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
    """Clip-Cov: the tokens to leave without gradient (Cui et al. 2025, arXiv 2505.22617).

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
    """KL-Cov: the tokens to hold by a KL, those of largest covariance (Cui et al. 2025)."""
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


class Selection(Protocol):
    """Which tokens of a micro-batch carry the policy gradient."""

    def __call__(self, inputs: LossInputs, events: ClipEvents) -> tuple[Tensor, Metrics]:
        """The tokens kept, [B, T] bool; ``events``: where the surrogate's clip acts."""


@dataclass(frozen=True)
class OffPolicyMask:
    """`on_policy_enough` completions alone."""

    threshold: float

    def __call__(self, inputs: LossInputs, events: ClipEvents) -> tuple[Tensor, Metrics]:
        behaviour, mask = inputs.batch.behaviour_logps, inputs.mask
        near = on_policy_enough(inputs.advantages, inputs.forward.logps, behaviour, mask, self.threshold)
        return near.expand_as(mask), {"off_policy_mask/kept": mean_stat(near.float())}


@dataclass(frozen=True)
class TopEntropy:
    """The `high_entropy` tokens alone."""

    share: float

    def __call__(self, inputs: LossInputs, events: ClipEvents) -> tuple[Tensor, Metrics]:
        entropy = inputs.forward.entropy
        if entropy is None:
            raise ValueError("top_entropy_quantile needs Forward.entropy, and it is None")
        top = high_entropy(entropy, inputs.scored_mask, inputs.batch.group_size, self.share)
        return top, {"top_entropy/kept": mean_stat(top.float(), inputs.scored_mask)}


@dataclass(frozen=True)
class ClipCov:
    """All tokens but those of `clip_cov`."""

    share: float
    low: float = 1.0
    high: float = 5.0

    def __call__(self, inputs: LossInputs, events: ClipEvents) -> tuple[Tensor, Metrics]:
        mask, size = inputs.scored_mask, inputs.batch.group_size
        cov = covariance(inputs.advantages, inputs.forward.logps, mask, size)
        dropped = clip_cov(cov, events.low | events.high, mask, size, self.share, self.low, self.high)
        return ~dropped, {"clip_cov/dropped": mean_stat(dropped.float(), mask)}


@dataclass(frozen=True)
class KLCov(Penalty):
    """A penalty |log π/π_old| on the tokens of `kl_cov`."""

    share: float
    coefficient: float = 1.0

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        mask, size, logps = inputs.scored_mask, inputs.batch.group_size, inputs.forward.logps
        cov = covariance(inputs.advantages, logps, mask, size)
        held = kl_cov(cov, mask, size, self.share)
        distance = log_ratio(logps, inputs.old_logps, mask).abs()
        penalty = self.coefficient * inputs.reduced(torch.where(held, distance, 0.0))
        return penalty, {"loss/kl_cov": sum_stat(penalty), "kl_cov/held": mean_stat(held.float(), mask)}
