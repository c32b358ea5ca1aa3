"""Importance ratios of the policy, and corrections for tokens that another policy sampled."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from maxent_grpo.objectives.reduce import log_ratio, row_means, row_sums

Ratio = Callable[[Tensor, Tensor, Tensor], Tensor]
"""logps (with gradient), old_logps, mask, each [B, T] → π/π_old, [B, T] or [B, 1]; padding may hold anything."""


def token_ratio(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """π/π_old of each token: [B, T], 1 at padding."""
    return log_ratio(logps, old_logps, mask).exp()


def sequence_ratio(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """The geometric mean over the completion's tokens, one number for all of them (GSPO, Zheng et al. 2025, arXiv
    2507.18071, eq. 7): [B, 1]."""
    return row_means(log_ratio(logps, old_logps, mask), mask).unsqueeze(1).exp()


def sequence_token_ratio(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """`sequence_ratio` as value, the gradient of the single token (GSPO-token, in the same paper): [B, T]."""
    difference = log_ratio(logps, old_logps, mask)
    mean = row_means(difference, mask).unsqueeze(1)
    return (mean.detach() + difference - difference.detach()).exp()


def token_importance(old_logps: Tensor, behaviour_logps: Tensor, mask: Tensor) -> Tensor:
    """``π_old / π_behaviour`` per token [B, T], 1 at padding, without gradient."""
    return log_ratio(old_logps, behaviour_logps, mask).detach().exp()


def sequence_importance(old_logps: Tensor, behaviour_logps: Tensor, mask: Tensor) -> Tensor:
    """The same of whole completions, for each of their tokens [B, T].

    Unbiased, but of a variance that grows with their length.
    """
    logs = log_ratio(old_logps, behaviour_logps, mask).detach()
    return row_sums(logs, mask).unsqueeze(1).expand_as(logs).exp()


@dataclass(frozen=True)
class TruncatedImportance:
    """``min(π_old / π_behaviour, cap)``, what the surrogate is multiplied by.

    Truncated importance sampling (Ionides 2008), as Yao et al. (2025) use it for language models: where the sampler's
    log-probs differ from the learner's own for the same weights, as an inference engine's do, or where the sampler
    was some updates behind.
    """

    cap: float
    ratios: Callable[[Tensor, Tensor, Tensor], Tensor] = token_importance
    """old_logps, behaviour_logps, mask → ratios [B, T], neither truncated nor masked."""

    def factors(self, old_logps: Tensor, behaviour_logps: Tensor, mask: Tensor) -> Tensor:
        """The truncated ratios [B, T], without gradient."""
        return self.ratios(old_logps, behaviour_logps, mask).clamp(max=self.cap)
