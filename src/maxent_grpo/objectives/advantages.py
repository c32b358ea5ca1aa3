"""Advantages [P, G]: how much better a completion did than its group."""

import math
from typing import Literal

import torch
from torch import Tensor

from maxent_grpo.errors import RunError

RIGHT = 1.0
"""A completion counts as right from this utility on."""

STD_FLOOR = 1e-4
"""Added to a standard deviation before dividing by it, as in TRL."""


def has_spread(utilities: Tensor) -> Tensor:
    """Whether the utilities of a group differ at all: [P, G] → [P] bool."""
    return utilities.amax(dim=1) > utilities.amin(dim=1)


def group_std(utilities: Tensor) -> Tensor:
    """Sample (G − 1) standard deviation of each group: [P, G] → [P]; exactly 0 for a group without spread."""
    std = utilities.std(dim=1, correction=min(1, utilities.shape[1] - 1))
    return torch.where(has_spread(utilities), std, 0.0)


def dr_grpo(utilities: Tensor) -> Tensor:
    """``U − mean(U)`` (Dr. GRPO, Liu et al. 2025).

    Exactly 0 for a group without spread, where rounding would leave the mean of equal numbers a little off.
    """
    centred = utilities - utilities.mean(dim=1, keepdim=True)
    return torch.where(has_spread(utilities).unsqueeze(1), centred, 0.0)


def scaled(
    advantages: Tensor,
    utilities: Tensor,
    scale: Literal["group", "batch", "none"],
    batch_std: Tensor | None = None,
) -> Tensor:
    """Advantages over the standard deviation of the utilities, + 1e-4: [P, G].

    Args:
        advantages, utilities: [P, G].
        scale: ``group``: the sample deviation of each group. ``batch``: that of the optimiser batch (TRL's
            ``scale_rewards="batch"``; Lite PPO, Liu et al. 2025, arXiv 2508.08221). ``none``: 1.
        batch_std: scalar, the sample deviation over all utilities of the optimiser batch. None: of those given, for
            a caller who has the whole batch.
    """
    match scale:
        case "group":
            return advantages / (group_std(utilities).unsqueeze(1) + STD_FLOOR)
        case "batch":
            std = utilities.std(correction=min(1, utilities.numel() - 1)) if batch_std is None else batch_std
            return advantages / (std + STD_FLOOR)
        case "none":
            return advantages


def grpo(utilities: Tensor) -> Tensor:
    """``(U − mean(U)) / (std(U) + 1e-4)``, the sample deviation of the group (GRPO, Shao et al. 2024)."""
    return scaled(dr_grpo(utilities), utilities, "group")


def rloo(utilities: Tensor) -> Tensor:
    """``U_i − mean of the other utilities`` (RLOO, Ahmadian et al. 2024, arXiv 2402.14740).

    Leaving a completion out of its own baseline makes the policy gradient unbiased. It is Dr. GRPO's advantage times
    G / (G − 1).
    """
    size = utilities.shape[1]
    return dr_grpo(utilities) * (size / max(1, size - 1))


def maxrl(utilities: Tensor) -> Tensor:
    """``(U − mean(U)) / mean(U)`` (MaxRL, Tajwar et al. 2026, arXiv 2602.02710).

    For utilities 0 and 1 its expectation is the gradient of the log-likelihood of a right answer, truncated at order
    G: rare successes count in proportion to 1 / (success rate). A group of zeros has no signal.

    Raises:
        RunError: a negative utility, for which the mean is no success rate.
    """
    if bool((utilities < 0).any()):
        raise RunError(
            f"advantage=maxrl divides by the mean utility of a group, and a utility is {float(utilities.min()):g}; "
            "use rewards that are never negative, or another advantage"
        )
    mean = utilities.mean(dim=1, keepdim=True)
    return torch.where(has_spread(utilities).unsqueeze(1), dr_grpo(utilities) / mean, 0.0)


def pass_at_k(utilities: Tensor, k: int) -> Tensor:
    """The advantage of pass@k as a reward, in closed form (Chen et al. 2025, arXiv 2508.10751, eq. 14–15).

    Of all subsets of k completions, a share ``μ = 1 − C(N⁻, k) / C(G, k)`` contains a right one; σ = √(μ(1−μ)). A right
    completion is worth ``(1 − μ) / σ``; a wrong one, whose k − 1 companions fail with probability
    ``C(N⁻ − 1, k − 1) / C(G − 1, k − 1)``, that much less than 1 − μ, over σ. Where every subset succeeds (fewer
    than k wrong ones), or none, all advantages are 0. k = 1 gives (U − mean) / population deviation.

    Args:
        utilities: [P, G]; right from `RIGHT` on, else wrong.
        k: at least 1.

    Raises:
        RunError: k above the group size.
    """
    size = utilities.shape[1]
    if k > size:
        raise RunError(f"pass_k={k} is above the {size} completions of a group; lower it")
    right = utilities >= RIGHT
    wrong_counts = (~right).sum(dim=1).tolist()
    values = torch.zeros_like(utilities)
    for row, wrong in enumerate(wrong_counts):
        all_fail = math.comb(wrong, k) / math.comb(size, k)
        if wrong == size or all_fail == 0.0:
            continue
        sigma = math.sqrt(all_fail * (1.0 - all_fail))
        rest_fails = math.comb(wrong - 1, k - 1) / math.comb(size - 1, k - 1)
        values[row] = (all_fail - rest_fails) / sigma
        values[row, right[row]] = all_fail / sigma
    return values


def risk_sensitive(utilities: Tensor, sensitivity: float) -> Tensor:
    """``(e^{βU} / mean(e^{βU}) − 1) / β`` (RS-GRPO, Jiang et al. 2025, arXiv 2509.24261).

    The policy gradient of ``log E[e^{βU}] / β``, which lies between the mean (β → 0) and the best utility (β → ∞).
    """
    share = torch.softmax(sensitivity * utilities, dim=1) * utilities.shape[1]
    return torch.where(has_spread(utilities).unsqueeze(1), (share - 1.0) / sensitivity, 0.0)


def listwise(weights: Tensor, scores: Tensor) -> Tensor:
    """``G·(w − p)``, p = softmax of the scores within the group.

    The listwise loss is, on-policy and to first order, a policy gradient with these advantages.

    Args:
        weights: [P, G], each group sums to 1.
        scores: [P, G] log-probs of the completions under the policy that sampled them, see
            `weights.sequence_scores`.
    """
    return weights.shape[1] * (weights - torch.softmax(scores, dim=1))


def likelihood(weights: Tensor) -> Tensor:
    """``G·w − 1``: on-policy, the weighted likelihood is a policy gradient with these advantages [P, G]."""
    return weights.shape[1] * weights - 1.0
