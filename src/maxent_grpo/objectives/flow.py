"""FlowRL: match the distribution of rewards instead of maximising their mean."""

import torch
from torch import Tensor


def flow_residuals(scores: Tensor, log_target: Tensor, reference_scores: Tensor, weights: Tensor) -> Tensor:
    """How far each completion is from trajectory balance: [P, G] nats per token.

    ``log Ẑ + log π/T − log target − log π_ref/T``. FlowRL (Zhu et al. 2025, arXiv 2509.15207, eq. 9) learns log Z
    with a network of its own. Here it is the value that minimises the group's loss, the weighted mean of what it
    balances: the log-partition variance loss of VarGrad (Richter et al. 2020, arXiv 2010.10436) and of trajectory
    balance with asynchrony (Bartoldson et al. 2025, arXiv 2503.18929). Being the minimiser, it passes no gradient.

    Args:
        scores: [P, G] mean log-prob per token of each completion under the policy.
        log_target: [P, G] scaled reward, up to a constant per group.
        reference_scores: [P, G] as ``scores``, under the reference.
        weights: [P, G] > 0, constants.
    """
    gap = scores - log_target - reference_scores
    log_z = -(weights * gap).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
    return gap + log_z.detach()


def flow_balance(scores: Tensor, log_target: Tensor, reference_scores: Tensor, weights: Tensor) -> Tensor:
    """``Σ_i v_i·(residual_i)²`` of each group: [P]. Arguments as in `flow_residuals`."""
    return (weights * flow_residuals(scores, log_target, reference_scores, weights).square()).sum(dim=1)


def flow_advantages(scores: Tensor, log_target: Tensor, reference_scores: Tensor) -> Tensor:
    """``−2·residual``: on-policy, the loss is a policy gradient with these advantages [P, G]."""
    return -2.0 * flow_residuals(scores, log_target, reference_scores, torch.ones_like(scores))
