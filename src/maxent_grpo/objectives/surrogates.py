"""Importance ratios, corrections for tokens that another policy sampled, and surrogates: what a ratio and an advantage
make of one token."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from maxent_grpo.objectives.parts import LossInputs
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
    """``r = π_old / π_behaviour`` within bounds, what the surrogate is multiplied by: ``min(r, cap)``, or masked.

    Truncated importance sampling (Ionides 2008), as Yao et al. (2025) use it for language models: where the sampler's
    log-probs differ from the learner's own for the same weights, as an inference engine's do, or where the sampler
    was some updates behind. With ``low`` the weight is r·1{low ≤ r ≤ cap} instead: a mask on both sides, which leaves
    denominators alone (IcePop, Ling Team 2025, arXiv 2510.18855; 0.5 and 5 in verl).
    """

    cap: float
    ratios: Callable[[Tensor, Tensor, Tensor], Tensor] = token_importance
    """old_logps, behaviour_logps, mask → ratios [B, T], neither truncated nor masked."""
    low: float | None = None
    """Least ratio that keeps its gradient; then those above ``cap`` lose theirs too. None: truncation."""

    def bounded(self, ratios: Tensor) -> Tensor:
        """The ratios truncated at ``cap``, or 0 where they lie outside [``low``, ``cap``]; of their shape."""
        if self.low is None:
            return ratios.clamp(max=self.cap)
        return torch.where((ratios >= self.low) & (ratios <= self.cap), ratios, 0.0)

    def factors(self, old_logps: Tensor, behaviour_logps: Tensor, mask: Tensor) -> Tensor:
        """The bounded ratios [B, T], without gradient."""
        return self.bounded(self.ratios(old_logps, behaviour_logps, mask))


class ClipEvents(NamedTuple):
    """Where the clip switched the gradient off: bool tensors of the shape of the ratio."""

    low: Tensor
    """ρ < 1 − ε_low with A < 0"""
    high: Tensor
    """ρ > 1 + ε_high with A > 0"""


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


def gmpo(
    log_ratios: Tensor, advantages: Tensor, mask: Tensor, epsilon_low: float, epsilon_high: float
) -> Tensor:
    """``−A·exp(mean_t δ_t)``, δ_t = log π/π_old held on the side that A favours: the geometric mean of token ratios,
    each clipped by itself (GMPO, Zhao et al. 2025, arXiv 2507.20673, and github.com/callsys/GMPO).

    ``δ_t`` becomes min(δ_t, ε_high) where A > 0, and max(δ_t, −ε_low) where A < 0: the clip of PPO in logarithms. No
    token can outweigh the others, as one of a large ratio does in their arithmetic mean, so that ε can be 0.4.

    Args:
        log_ratios: [B, T], see `reduce.log_ratio`.
        advantages: [B].
        mask: [B, T] bool.
        epsilon_low, epsilon_high: in log space, ≥ 0.

    Returns:
        Loss per completion, [B, 1].
    """
    scale = advantages.unsqueeze(1)
    held = torch.where(scale > 0, log_ratios.clamp(max=epsilon_high), log_ratios.clamp(min=-epsilon_low))
    return -scale * row_means(held, mask).unsqueeze(1).exp()


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


def clip_events(ratio: Tensor, advantages: Tensor, epsilon_low: float, epsilon_high: float) -> ClipEvents:
    """Which entries of ``ratio`` ([B, T] or [B, 1]) the clip of `clipped` holds, given advantages [B]."""
    sign = advantages.unsqueeze(1)
    return ClipEvents((ratio < 1.0 - epsilon_low) & (sign < 0), (ratio > 1.0 + epsilon_high) & (sign > 0))


class Surrogate:
    """A surrogate with its numbers: the loss of each token, of the ratio's shape, and where its clip acts."""

    corrects_itself: ClassVar[bool] = False
    """Whether the importance correction is in its weights already."""
    silent_at_zero: ClassVar[bool] = True
    """Whether a completion of advantage 0 has no gradient."""

    def __call__(self, inputs: LossInputs, ratio: Tensor, correction: TruncatedImportance | None) -> Tensor:
        """The loss per token; ``ratio`` [B, T] or [B, 1]. ``correction`` multiplies it unless it `corrects_itself`."""
        raise NotImplementedError

    def clip_events(self, ratio: Tensor, advantages: Tensor) -> ClipEvents:
        """Nowhere, for surrogates without a clip."""
        return clip_events(ratio, advantages, math.inf, math.inf)


@dataclass(frozen=True)
class Clip(Surrogate):
    """`clipped` within [1 − low, 1 + high]."""

    low: float = 0.2
    high: float | None = None
    """None: as ``low``."""
    delta: float | None = None
    """Upper cap of the unclipped ratio (dual clip). None: no cap."""

    @property
    def range(self) -> tuple[float, float]:
        """ε below and ε above 1."""
        return self.low, self.low if self.high is None else self.high

    def __call__(self, inputs: LossInputs, ratio: Tensor, correction: TruncatedImportance | None) -> Tensor:
        return clipped(ratio, inputs.advantages, *self.range, self.delta)

    def clip_events(self, ratio: Tensor, advantages: Tensor) -> ClipEvents:
        return clip_events(ratio, advantages, *self.range)


class Unclipped(Surrogate):
    """`unclipped`."""

    def __call__(self, inputs: LossInputs, ratio: Tensor, correction: TruncatedImportance | None) -> Tensor:
        return unclipped(ratio, inputs.advantages)


@dataclass(frozen=True)
class CISPO(Surrogate):
    """`cispo` with its cap."""

    cap: float = 5.0

    def __call__(self, inputs: LossInputs, ratio: Tensor, correction: TruncatedImportance | None) -> Tensor:
        return cispo(ratio, inputs.forward.logps, inputs.advantages, self.cap)

    def clip_events(self, ratio: Tensor, advantages: Tensor) -> ClipEvents:
        return clip_events(ratio, advantages, math.inf, self.cap - 1.0)


@dataclass(frozen=True)
class SAPO(Surrogate):
    """`sapo` with its temperatures."""

    temperature_pos: float = 1.0
    temperature_neg: float = 1.05

    def __call__(self, inputs: LossInputs, ratio: Tensor, correction: TruncatedImportance | None) -> Tensor:
        return sapo(ratio, inputs.advantages, self.temperature_pos, self.temperature_neg)


@dataclass(frozen=True)
class VESPO(Surrogate):
    """`vespo` with its (k, λ) where A ≥ 0, and where A < 0. Its weights hold the importance correction."""

    k_pos: float = 2.0
    lambda_pos: float = 3.0
    k_neg: float = 3.0
    lambda_neg: float = 2.0

    corrects_itself: ClassVar[bool] = True

    def __call__(self, inputs: LossInputs, ratio: Tensor, correction: TruncatedImportance | None) -> Tensor:
        mask = inputs.mask
        per_token = log_ratio(inputs.forward.logps, inputs.old_logps, mask).detach().clamp(-20.0, 20.0)
        if correction is not None:
            factors = correction.factors(inputs.old_logps, inputs.batch.behaviour_logps, mask)
            per_token = per_token + factors.log().clamp(*LOG_WEIGHT_RANGE)
        pos, neg = (self.k_pos, self.lambda_pos), (self.k_neg, self.lambda_neg)
        weights = vespo_weights(row_sums(per_token, mask), inputs.advantages, pos, neg)
        return vespo(weights, inputs.forward.logps, inputs.advantages)


@dataclass(frozen=True)
class GMPO(Clip):
    """`gmpo`, its ε ``low`` and ``high`` in log space."""

    low: float = 0.4

    def __call__(self, inputs: LossInputs, ratio: Tensor, correction: TruncatedImportance | None) -> Tensor:
        logs = log_ratio(inputs.forward.logps, inputs.old_logps, inputs.mask)
        return gmpo(logs, inputs.advantages, inputs.mask, *self.range)

    def clip_events(self, ratio: Tensor, advantages: Tensor) -> ClipEvents:
        return clip_events(1.0 + ratio.log(), advantages, *self.range)


@dataclass(frozen=True)
class OwnSurrogate(Surrogate):
    """Somebody's function of the ratio and the advantages [B]."""

    function: Callable[[Tensor, Tensor], Tensor]

    silent_at_zero: ClassVar[bool] = False

    def __call__(self, inputs: LossInputs, ratio: Tensor, correction: TruncatedImportance | None) -> Tensor:
        return self.function(ratio, inputs.advantages)


def own_surrogate(given: Surrogate | Callable[[Tensor, Tensor], Tensor]) -> Surrogate:
    """A surrogate of somebody's: theirs, or made of their function."""
    return given if isinstance(given, Surrogate) else OwnSurrogate(given)
