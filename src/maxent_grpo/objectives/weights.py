"""Distributions over a group of candidates: the target q, the maximum-entropy weights w(τ, β), their entropy.

Everything acts on the last dimension of ``[P, G]`` tensors and is differentiable in τ and β where those are
tensors, so that a controller can ask how w responds to them.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from maxent_grpo.objectives.reduce import row_means, row_sums

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
        reference_scores: [P, G] ℓ, see `sequence_scores`; only differences within a group matter. None where
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
        reference_scores: [P, G], see `sequence_scores`. None: no reference.
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


def sequence_scores(logps: Tensor, mask: Tensor, group_size: int, length_normalize: bool) -> Tensor:
    """Log-prob of each completion, summed over its tokens or averaged over them: [B, T] → [P, G].

    Args:
        logps: [B, T] per-token log-probs; padding may hold anything.
        mask: [B, T] bool.
        group_size: G; B must be a multiple of it.
        length_normalize: divide by the number of tokens (at least 1).
    """
    rows = row_means(logps, mask) if length_normalize else row_sums(logps, mask)
    return rows.view(-1, group_size)


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
