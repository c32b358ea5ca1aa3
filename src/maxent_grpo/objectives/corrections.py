"""Corrections for tokens that another policy, or another implementation of the same policy, sampled."""

from torch import Tensor

from maxent_grpo.objectives.reduce import log_ratio


def importance_ratios(old_logps: Tensor, behaviour_logps: Tensor, mask: Tensor) -> Tensor:
    """``π_old / π_behaviour`` per token [B, T], without gradient, neither truncated nor masked; 1 at padding."""
    return log_ratio(old_logps, behaviour_logps, mask).detach().exp()


def truncated_importance(old_logps: Tensor, behaviour_logps: Tensor, mask: Tensor, cap: float) -> Tensor:
    """``min(π_old / π_behaviour, cap)`` per token, without gradient.

    Truncated importance sampling (Ionides 2008), as Yao et al. (2025) use it for language models.

    It multiplies the surrogate where the sampler's log-probs differ from the learner's own for the same
    weights, as an inference engine's do, or where the sampler was some updates behind.

    Args:
        old_logps: [B, T] under the learner at the start of the updates.
        behaviour_logps: [B, T] as the sampler reported them.
        mask: [B, T] bool; padding may hold anything.
        cap: largest factor, > 0.

    Returns:
        [B, T], min(1, cap) at padding.
    """
    return importance_ratios(old_logps, behaviour_logps, mask).clamp(max=cap)
