"""Distributions over a group of candidates: the target q, the maximum-entropy weights w(τ, β), their entropy.

Everything acts on the last dimension of ``[P, G]`` tensors and is differentiable in τ and β where those are
tensors, so that a controller can ask how w responds to them.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maxent_grpo.objectives.reduce import sequence_scores, within_scored
from maxent_grpo.stats import Metrics, Stat, extreme_stat, mean_stat
from maxent_grpo.types import Batch, Knobs, Signal

WeightDenominator = Literal["tau_plus_beta", "tau"]


def target_log_q(utilities: Tensor, temperature: float, epsilon: float) -> Tensor:
    """Log of the target distribution: softmax of the utilities, mixed with the uniform to keep full support.

    ``q = (1 − ε·G)·softmax(U / T_q) + ε``, so every candidate keeps at least ε and the group still sums to 1.

    Args:
        utilities: [P, G], finite.
        temperature: T_q > 0, in units of utility.
        epsilon: floor ε ≥ 0 of each probability.

    Returns:
        [P, G] natural logs.

    Raises:
        ValueError: T_q ≤ 0, ε < 0, or ε·G ≥ 1 (nothing would be left for the softmax).
    """
    group_size = utilities.shape[-1]
    if temperature <= 0:
        raise ValueError(f"the temperature of q must be positive, got {temperature}")
    if epsilon < 0 or epsilon * group_size >= 1:
        raise ValueError(
            f"the floor of q needs 0 ≤ epsilon × group size < 1: epsilon={epsilon}, group size {group_size}"
        )
    log_softmax = torch.log_softmax(utilities / temperature, dim=-1)
    log_floor = math.log(epsilon) if epsilon > 0 else -math.inf
    return torch.logaddexp(log_softmax + math.log1p(-epsilon * group_size), utilities.new_tensor(log_floor))


def closed_form_weights(
    log_q: Tensor,
    reference_scores: Tensor | None,
    tau: float | Tensor,
    beta: float | Tensor,
    denominator: WeightDenominator = "tau_plus_beta",
) -> Tensor:
    """The distribution over a group that balances target, reference and entropy.

    ``tau_plus_beta`` maximises ``E_w[log q] − β·KL(w ‖ π_ref) + τ·H(w)`` over the simplex, where π_ref is the
    softmax of ℓ within the group. As −KL(w ‖ π_ref) = H(w) + E_w[ℓ] + constant, that is the strictly concave
    ``Σ_i w_i·(log q_i + β·ℓ_i) + (τ+β)·H(w)``. With a multiplier λ for Σ w = 1, its derivative in w_i
    vanishes where ``log q_i + β·ℓ_i − (τ+β)·(log w_i + 1) = λ``, which has the one solution

        ``w_i ∝ exp[(log q_i + β·ℓ_i) / (τ+β)]``.

    ``tau`` maximises ``E_w[log q] + β·E_w[ℓ] + τ·H(w)``, a cross-entropy in place of the KL; hence ``÷ τ``.

    Args:
        log_q: [P, G] log target, see `target_log_q`; only differences within a group matter.
        reference_scores: [P, G] ℓ, see `reduce.sequence_scores`; only differences within a group matter. None where
            there is no reference.
        tau: τ ≥ 0, a number or a scalar tensor; infinite gives the uniform distribution.
        beta: β ≥ 0 and finite, a number or a scalar tensor; 0 drops the reference.
        denominator: which of the two objectives.

    Returns:
        [P, G], each group sums to 1.

    Raises:
        ValueError: τ or β negative or NaN, β infinite, β > 0 without reference scores, or a denominator of 0.
    """
    _check_knobs(tau, beta, reference_scores)
    temperature = tau + beta if denominator == "tau_plus_beta" else tau
    if temperature <= 0:
        raise ValueError(
            f"the weights divide by {denominator}, which must be positive: tau={tau}, beta={beta}"
        )
    scores = log_q if reference_scores is None else log_q + beta * reference_scores
    return _tempered_softmax(scores, temperature)


def tilted_weights(
    utilities: Tensor,
    tau: float | Tensor,
    reference_scores: Tensor | None = None,
    beta: float | Tensor = 0.0,
) -> Tensor:
    """The distribution that maximises ``⟨w, Ū⟩ + τ·H(w) − β·KL(w ‖ π_ref)``.

    It is ``w_i ∝ exp(Ū_i/κ)·π_ref,i^{β/κ}`` with κ = τ+β; the derivation is that of `closed_form_weights`
    with Ū for log q. π_ref is the softmax of the reference scores within the group, whose normaliser cancels.
    The limits are exact: κ = 0 is uniform over the candidates that tie for the largest Ū, and τ = ∞ is
    uniform over the group.

    Args:
        utilities: [P, G] Ū, finite.
        tau: τ ≥ 0, in units of Ū; a number, a scalar tensor, or [P, 1], one per group (then all 0, or none).
        reference_scores: [P, G], see `reduce.sequence_scores`. None: no reference.
        beta: β ≥ 0 and finite.

    Returns:
        [P, G], each group sums to 1.

    Raises:
        ValueError: τ or β negative or NaN, β infinite, or β > 0 without reference scores.
    """
    _check_knobs(tau, beta, reference_scores)
    scores = utilities if reference_scores is None else utilities + beta * reference_scores
    return _tempered_softmax(scores, tau + beta)


def mode_adaptive_factor(mode_counts: Tensor) -> Tensor:
    """``1 / ln(1 + κ_x)``: what τ is multiplied by for a prompt with κ_x ≥ 1 right answers. [P] → [P, 1].

    Where more answers are right, less entropy of the weights is needed to keep them all, as xDr.GRPO's
    mode-adaptive arm τ_x = τ₀ / ln(1 + κ_x) has it. Counts come as floating point.
    """
    return 1.0 / torch.log1p(mode_counts.clamp(min=1)).unsqueeze(1)


def weight_entropy(weights: Tensor) -> Tensor:
    """Entropy of each group's weights in nats: [P, G] → [P]."""
    tiny = torch.finfo(weights.dtype).tiny  # keeps the gradient finite where a weight underflowed to 0
    return -(weights * weights.clamp(min=tiny).log()).sum(dim=-1)


def weighs(scored: Tensor) -> Tensor:
    """Groups with enough scored completions for their weights to say something: [P, G] → [P] bool.

    That is two, or all where a group is one completion.
    """
    return scored.sum(dim=1) >= min(2, scored.shape[1])


def weight_metrics(
    weights: Tensor, log_q: Tensor, denominator: float | Tensor, scored: Tensor | None = None
) -> Metrics:
    """Statistics of the candidate weights and of their target, both [P, G]; ``denominator`` is τ+β or τ.

    Both are 0 where not ``scored``; groups that `weighs` leaves out do not count.
    """
    entropy = weight_entropy(weights)
    q_entropy = weight_entropy(log_q.exp())
    kept, largest = None, math.log(max(2, weights.shape[1]))
    normalized = entropy / largest
    if scored is not None and not bool(scored.all()):
        kept = weighs(scored)
        normalized = entropy / scored.sum(dim=1).clamp(min=2).to(entropy.dtype).log()

    def extreme(values: Tensor, kind: Literal["min", "max"]) -> Stat:
        nothing = math.inf if kind == "min" else -math.inf
        return extreme_stat(values if kept is None else values.masked_fill(~kept, nothing), kind)

    return {
        "weight_entropy": mean_stat(entropy, kept),
        "weight_entropy_norm": mean_stat(normalized if weights.shape[1] > 1 else entropy, kept),
        "weight_entropy_min": extreme(entropy, "min"),
        "weight_entropy_max": extreme(entropy, "max"),
        "weight_norm_denom": mean_stat(
            torch.as_tensor(denominator, dtype=weights.dtype, device=weights.device)
        ),
        "effective_rollouts": mean_stat(entropy.exp(), kept),
        "q_entropy_mean": mean_stat(q_entropy, kept),
        "q_entropy_min": extreme(q_entropy, "min"),
        "q_entropy_max": extreme(q_entropy, "max"),
    }


def group_sizes(scored: Tensor) -> Tensor | int:
    """G, or where some completions are not ``scored`` how many are: [P, 1]."""
    if bool(scored.all()):
        return scored.shape[1]
    return scored.sum(dim=1, keepdim=True)


def scores_of_reference(batch: Batch, per_token: bool) -> Tensor | None:
    """The reference's log-prob of each completion [P, G], per token or in all; None without a reference."""
    if batch.reference_logps is None:
        return None
    return sequence_scores(batch.reference_logps, batch.completion_mask, batch.group_size, per_token)


@dataclass(frozen=True)
class ClosedForm:
    """`closed_form_weights` of the utilities' `target_log_q`, as the losses over whole groups use them."""

    q_temperature: float = 1.0
    q_epsilon: float = 1e-6
    denominator: WeightDenominator = "tau_plus_beta"
    length_normalize_ref: bool = False
    """Reference score per token instead of per completion."""

    def signal(self, utilities: Tensor, batch: Batch, knobs: Knobs) -> tuple[Signal, Metrics]:
        """The weights, with all advantages 0."""
        scored = batch.scored
        reference = scores_of_reference(batch, self.length_normalize_ref)
        log_q = within_scored(
            lambda given: target_log_q(given, self.q_temperature, self.q_epsilon), scored, utilities
        ).masked_fill(~scored, -math.inf)
        weights = self._weights(log_q, reference, knobs.tau, knobs.beta, scored)
        divisor = knobs.tau + (knobs.beta if self.denominator == "tau_plus_beta" else 0.0)
        signal = Signal(torch.zeros_like(weights), weights, log_q, reference, scored=scored)
        return signal, weight_metrics(weights, log_q, divisor, scored)

    def weights(self, signal: Signal, tau: Tensor, beta: Tensor) -> Tensor:
        """The weights at other τ and β."""
        assert signal.log_q is not None, "`signal` sets it"
        return self._weights(signal.log_q, signal.reference_scores, tau, beta, signal.scored)

    def _weights(
        self,
        log_q: Tensor,
        reference: Tensor | None,
        tau: float | Tensor,
        beta: float | Tensor,
        scored: Tensor | None,
    ) -> Tensor:
        return within_scored(
            lambda target, known: closed_form_weights(target, known, tau, beta, self.denominator),
            scored,
            log_q,
            reference,
        )


@dataclass(frozen=True)
class Tilt:
    """Advantages times G·w, w their `tilted_weights`: a reweighting of token losses."""

    by_length_share: bool = False
    """Tilt by each advantage's share A·T_i/``max_length`` of Dr. GRPO's objective instead of by A itself."""
    max_length: int | None = None
    length_normalize_ref: bool = False
    mode_adaptive: bool = False
    """τ_x = τ·`mode_adaptive_factor`, by the number of right answers of the prompt (`Batch.mode_counts`)."""

    @property
    def needs_answers(self) -> bool:
        return self.mode_adaptive

    def signal(self, advantages: Tensor, batch: Batch, knobs: Knobs) -> tuple[Signal, Metrics]:
        """The tilted advantages [P, G], the weights, and what they are made of."""
        scored = batch.scored
        reference = scores_of_reference(batch, self.length_normalize_ref)
        tilt = advantages
        if self.by_length_share:
            assert self.max_length is not None, "the catalog refuses this"
            tilt = advantages * batch.lengths.view_as(advantages) / self.max_length
        factor = None
        if self.mode_adaptive:
            if batch.mode_counts is None:
                raise ValueError("maxent_tau_mode_adaptive needs Batch.mode_counts, and it is None")
            factor = mode_adaptive_factor(batch.mode_counts.to(tilt.dtype))
        tau = knobs.tau if factor is None else knobs.tau * factor
        weights = self._weights(tilt, reference, knobs.tau, factor, knobs.beta, scored)
        if knobs.tau != math.inf:  # at τ = ∞ it is the backbone itself, to the last bit
            advantages = group_sizes(scored) * weights * advantages
        log_q = within_scored(lambda given: torch.log_softmax(given, dim=1), scored, tilt)
        log_q = log_q.masked_fill(~scored, -math.inf)
        signal = Signal(advantages, weights, log_q, reference, factor, scored)
        return signal, weight_metrics(weights, log_q, tau + knobs.beta, scored)

    def weights(self, signal: Signal, tau: Tensor, beta: Tensor) -> Tensor:
        """The weights at other τ and β."""
        assert signal.log_q is not None, "`signal` sets it"
        return self._weights(
            signal.log_q, signal.reference_scores, tau, signal.tau_factor, beta, signal.scored
        )

    def _weights(
        self,
        tilt: Tensor,
        reference: Tensor | None,
        tau: float | Tensor,
        factor: Tensor | None,
        beta: float | Tensor,
        scored: Tensor | None,
    ) -> Tensor:
        def weights(given: Tensor, known: Tensor | None, times: Tensor | None) -> Tensor:
            return tilted_weights(given, tau if times is None else tau * times, known, beta)

        return within_scored(weights, scored, tilt, reference, factor)


def _tempered_softmax(scores: Tensor, temperature: float | Tensor) -> Tensor:
    """softmax(scores / temperature); at temperature 0 its limit, uniform over the exact argmax set."""
    best = scores.detach().amax(dim=-1, keepdim=True)
    if bool(torch.as_tensor(temperature == 0).all()):
        ties = (scores == best).to(scores.dtype)
        return ties / ties.sum(dim=-1, keepdim=True)
    # Shifted by the maximum first, the best stays at 0 even where a tiny temperature overflows the rest.
    return torch.softmax((scores - best) / temperature, dim=-1)


def _check_knobs(tau: float | Tensor, beta: float | Tensor, reference_scores: Tensor | None) -> None:
    if not bool(torch.as_tensor(tau >= 0).all()):
        raise ValueError(f"tau must be a number ≥ 0, got {tau}")
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta must be a finite number ≥ 0, got {beta}")
    if reference_scores is None and beta > 0:
        raise ValueError(
            f"beta={beta} pulls the weights towards a reference, but there are no reference scores"
        )
