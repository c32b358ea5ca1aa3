"""What is added to a policy loss: KL to the reference and to the policy that sampled, token entropy.

What a term would penalise is measured all the same where it is not in the loss, if that costs nothing. KL-Cov's
term is `selection.KLCov`, InfoSeed's `infoseed.InfoSeed`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maxent_grpo.objectives.parts import LossInputs, Penalty
from maxent_grpo.objectives.reduce import log_ratio, token_mean
from maxent_grpo.stats import Metrics, mean_stat, sum_stat
from maxent_grpo.types import Denominators, Knobs

KLEstimator = Callable[[Tensor, Tensor, Tensor], Tensor]
"""logps of the policy (with gradient), of another, mask, each [B, T] → KL(policy ‖ other) per token, 0 at padding.

From sampled tokens (Schulman 2020, "Approximating KL"), with r = log π − log π_other, on-policy. The remarks on
gradients are those of Tang & Munos (2025)."""


def k1(logps: Tensor, other_logps: Tensor, mask: Tensor) -> Tensor:
    """``r``: unbiased, can be negative. As a loss it does nothing: its expected gradient is zero."""
    return log_ratio(logps, other_logps, mask)


def k2(logps: Tensor, other_logps: Tensor, mask: Tensor) -> Tensor:
    """``r²/2``: never negative, biased by a term of third order. Its expected gradient is that of KL(π ‖ other)."""
    return 0.5 * log_ratio(logps, other_logps, mask).square()


def k3(logps: Tensor, other_logps: Tensor, mask: Tensor) -> Tensor:
    """``e^{−r} − 1 + r``: unbiased, never negative, the field's default.

    Its expected gradient is that of KL(other ‖ π), which agrees with the other direction to second order.
    """
    difference = log_ratio(logps, other_logps, mask)
    return torch.expm1(-difference) + difference


def entropy_bonus(entropy: Tensor, mask: Tensor, denominators: Denominators) -> Tensor:
    """Mean next-token entropy of the policy over all tokens of the optimiser batch: [B, T] → scalar.

    A token mean under every ``loss_type``, as in TRL, so that a coefficient means the same for all of them.
    """
    return token_mean(entropy, mask, denominators)


@dataclass(frozen=True)
class ReferenceKL(Penalty):
    """β·KL(policy ‖ reference), and the KL as measured wherever the reference was scored."""

    estimator: KLEstimator = k3
    in_loss: bool = True
    """Whether β·KL is part of the loss. Weights read β in any case."""
    measure: bool = False
    """Have the reference scored, and the KL measured, even where neither loss nor weights need it."""

    def needs_reference(self, beta: float) -> bool:
        return self.measure or (beta > 0 and self.in_loss)

    def has_gradient(self, knobs: Knobs) -> bool:
        return self.in_loss and knobs.beta > 0

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        beta, reference, logps = inputs.knobs.beta, inputs.batch.reference_logps, inputs.forward.logps
        in_loss = self.has_gradient(inputs.knobs)
        if reference is None:
            if in_loss:
                raise ValueError(f"beta={beta} adds a KL to the loss, and the batch has no reference_logps")
            return inputs.zero, {}
        kl = self.estimator(logps if in_loss else logps.detach(), reference, inputs.mask)
        reduced = inputs.reduced(kl)
        weighted = beta * reduced if in_loss else inputs.zero
        return weighted, {
            "kl": mean_stat(kl, inputs.mask),
            "loss/kl": sum_stat(reduced),
            "loss/weighted_kl": sum_stat(weighted),
        }


@dataclass(frozen=True)
class BehaviourKL(Penalty):
    """A penalty on leaving the policy that sampled, and its KL as measured in any case."""

    coefficient: float = 0.0
    estimator: KLEstimator = k2
    """k2 by default: its gradient (log π − log μ)·∇log π is exactly zero on-policy and grows only linearly with the
    gap; k1 has no pull at all in expectation, and k3's explodes for tokens made unlikely."""

    def has_gradient(self, knobs: Knobs) -> bool:
        return self.coefficient != 0.0

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        in_loss, logps = self.coefficient != 0.0, inputs.forward.logps
        kl = self.estimator(logps if in_loss else logps.detach(), inputs.batch.behaviour_logps, inputs.mask)
        metrics = {"behaviour_kl": mean_stat(kl, inputs.mask)}
        if not in_loss:
            return inputs.zero, metrics
        penalty = self.coefficient * inputs.reduced(kl)
        return penalty, metrics | {"loss/behaviour_kl": sum_stat(penalty)}


@dataclass(frozen=True)
class TokenEntropy(Penalty):
    """Minus a bonus on the mean token entropy, which is measured wherever the forward computed it."""

    coefficient: float = 0.0
    """The weight; a controller may replace it step by step (`Knobs.entropy_coef`)."""
    adaptive: bool = False
    """Whether a controller does, so that the entropy must carry a gradient whatever ``coefficient`` is."""

    @property
    def needs_entropy(self) -> bool:
        return self.coefficient != 0.0 or self.adaptive

    def has_gradient(self, knobs: Knobs) -> bool:
        return self.needs_entropy

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        given, entropy = inputs.knobs.entropy_coef, inputs.forward.entropy
        coefficient = self.coefficient if given is None else given
        if entropy is None:
            if self.needs_entropy:
                raise ValueError(f"entropy_coef={coefficient} needs Forward.entropy, and it is None")
            return inputs.zero, {}
        metrics = {"entropy": mean_stat(entropy, inputs.mask)}
        if not self.needs_entropy:
            return inputs.zero, metrics
        bonus = coefficient * entropy_bonus(entropy, inputs.mask, inputs.denominators)
        return -bonus, metrics | {"loss/entropy": sum_stat(-bonus)}
