"""Advantages [P, G]: how much better a completion did than its group."""

import torch
from torch import Tensor

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


def grpo(utilities: Tensor) -> Tensor:
    """``(U − mean(U)) / (std(U) + 1e-4)``, the sample deviation of the group (GRPO, Shao et al. 2024)."""
    return dr_grpo(utilities) / (group_std(utilities).unsqueeze(1) + STD_FLOOR)


def batch_scaled(utilities: Tensor, batch_std: Tensor | None = None) -> Tensor:
    """``(U − mean(U)) / (std of the batch + 1e-4)``: TRL's ``scale_rewards="batch"`` (Lite PPO).

    Args:
        utilities: [P, G].
        batch_std: scalar, the sample standard deviation over all utilities of the optimiser batch. None: of
            those given, for a caller who has the whole batch.
    """
    if batch_std is None:
        batch_std = utilities.std(correction=min(1, utilities.numel() - 1))
    return dr_grpo(utilities) / (batch_std + STD_FLOOR)


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
