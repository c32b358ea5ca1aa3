"""Corrections for tokens that another policy, or another implementation of the same policy, sampled."""

from typing import Literal

from torch import Tensor

from maxent_grpo.objectives.reduce import log_ratio, row_sums

CorrectionLevel = Literal["token", "sequence"]


def importance_ratios(
    old_logps: Tensor, behaviour_logps: Tensor, mask: Tensor, level: CorrectionLevel = "token"
) -> Tensor:
    """``π_old / π_behaviour`` per token or per completion [B, T], without gradient, neither truncated nor masked."""
    logs = log_ratio(old_logps, behaviour_logps, mask).detach()
    if level == "sequence":
        logs = row_sums(logs, mask).unsqueeze(1).expand_as(logs)
    return logs.exp()


def truncated_importance(
    old_logps: Tensor, behaviour_logps: Tensor, mask: Tensor, cap: float, level: CorrectionLevel = "token"
) -> Tensor:
    """``min(π_old / π_behaviour, cap)`` per token or per completion, without gradient.

    Truncated importance sampling (Ionides 2008), as Yao et al. (2025) use it for language models.

    It multiplies the surrogate where the sampler's log-probs differ from the learner's own for the same
    weights, as an inference engine's do, or where the sampler was some updates behind.

    Args:
        old_logps: [B, T] under the learner at the start of the updates.
        behaviour_logps: [B, T] as the sampler reported them.
        mask: [B, T] bool; padding may hold anything.
        cap: largest factor, > 0.
        level: ``sequence`` takes the ratio of whole completions, the same for each of their tokens: unbiased but for
            the cap, and of a variance that grows with their length.

    Returns:
        [B, T]; per token, min(1, cap) at padding.
    """
    return importance_ratios(old_logps, behaviour_logps, mask, level).clamp(max=cap)
