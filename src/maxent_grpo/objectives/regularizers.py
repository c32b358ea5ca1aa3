"""Penalties and bonuses added to a policy loss: KL to another policy, token entropy."""

from typing import Literal

import torch
from torch import Tensor

from maxent_grpo.objectives.reduce import log_ratio, token_mean
from maxent_grpo.types import Denominators

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logps: Tensor, other_logps: Tensor, mask: Tensor, estimator: KLEstimator) -> Tensor:
    """Per-token estimate of KL(policy ‖ other) from sampled tokens (Schulman 2020, "Approximating KL").

    With r = log π − log π_other, on-policy:

    - ``k1 = r``: unbiased, can be negative. As a loss it does nothing: its expected gradient is zero.
    - ``k2 = r²/2``: never negative, biased by a term of third order. Its expected gradient is that of
      KL(π ‖ other).
    - ``k3 = e^{−r} − 1 + r``: unbiased, never negative, the field's default. Its expected gradient is that of
      KL(other ‖ π), which agrees with the other direction to second order.

    The remarks on gradients are those of Tang & Munos (2025).

    Args:
        logps: [B, T] of the policy; gradients flow through it.
        other_logps: [B, T] of the reference or behaviour policy.
        mask: [B, T] bool; padding may hold anything in either input.
        estimator: which of the three.

    Returns:
        [B, T], 0 at padding.
    """
    difference = log_ratio(logps, other_logps, mask)
    match estimator:
        case "k1":
            return difference
        case "k2":
            return 0.5 * difference.square()
        case "k3":
            return torch.expm1(-difference) + difference


def entropy_bonus(entropy: Tensor, mask: Tensor, denominators: Denominators) -> Tensor:
    """Mean next-token entropy of the policy over all tokens of the optimiser batch: [B, T] → scalar.

    A token mean under every ``loss_type``, as in TRL, so that a coefficient means the same for all of them.
    """
    return token_mean(entropy, mask, denominators)
