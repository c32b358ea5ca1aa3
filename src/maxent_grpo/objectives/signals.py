"""What a step learns from, as an `ObjectiveSpec` composes it: utilities, shaped, become advantages and weights.

Each of the last four functions is the signal of one kind of policy loss. All act on whole groups, without gradient.
"""

import math

import torch
from torch import Tensor

from maxent_grpo.objectives import advantages as advantage
from maxent_grpo.objectives import flow, semantic, shaping
from maxent_grpo.objectives.group_loss import policy_scores, taught_groups
from maxent_grpo.objectives.metrics import seed_metrics, weight_metrics
from maxent_grpo.objectives.spec import ObjectiveSpec
from maxent_grpo.objectives.weights import (
    closed_form_weights,
    mode_adaptive_factor,
    sequence_scores,
    target_log_q,
    tilted_weights,
)
from maxent_grpo.types import Batch, Knobs, Metrics, Signal


def shaped_utilities(spec: ObjectiveSpec, batch: Batch, beta: float) -> Tensor:
    """The utilities [P, G] with every shaping that the spec asks for."""
    utilities, mask = batch.utilities, batch.completion_mask
    if spec.unlikeliness_coef:
        scores = sequence_scores(batch.behaviour_logps, mask, batch.group_size, length_normalize=False)
        utilities = shaping.unlikeliness(utilities, scores, spec.unlikeliness_coef)
    if spec.overlong_buffer:
        longest = spec.max_completion_length
        assert longest is not None, "ObjectiveSpec refuses this"
        lengths = batch.lengths.view_as(utilities).to(utilities.dtype)
        utilities = utilities + shaping.soft_overlong(
            lengths, longest, spec.overlong_buffer, spec.overlong_penalty
        )
    if spec.entropy_bonus_coef:
        utilities = shaping.entropy_bonus(utilities, batch.behaviour_logps, mask, spec.entropy_bonus_coef)
    if spec.kl_in_reward and beta > 0:
        if batch.reference_logps is None:
            raise ValueError(f"beta={beta} takes a KL from the rewards, and the batch has no reference_logps")
        utilities = shaping.kl_penalised(utilities, batch.behaviour_logps, batch.reference_logps, mask, beta)
    return utilities


def scaled_advantages(spec: ObjectiveSpec, utilities: Tensor, utility_std: Tensor | None) -> Tensor:
    """Advantages [P, G] of the chosen kind and scale, exactly 0 in groups without spread."""
    match spec.advantage:
        case "centred":
            values = advantage.dr_grpo(utilities)
        case "rloo":
            values = advantage.rloo(utilities)
        case "maxrl":
            values = advantage.maxrl(utilities)
        case "pass_at_k":
            values = advantage.pass_at_k(utilities, spec.pass_k)
        case "risk_sensitive":
            values = advantage.risk_sensitive(utilities, spec.risk_sensitivity)
        case function:
            values = torch.where(advantage.has_spread(utilities).unsqueeze(1), function(utilities), 0.0)
    values = advantage.scaled(values, utilities, spec.scale_rewards, utility_std)
    return values.clamp(min=0.0) if spec.positive_only else values


def clip_signal(spec: ObjectiveSpec, advantages: Tensor, batch: Batch) -> tuple[Signal, Metrics]:
    """The advantages themselves; under SEED-GRPO times a factor of each group."""
    if not spec.seed_grpo_enabled:
        return Signal(advantages), {}
    if batch.answer_clusters is None:
        raise ValueError("seed_grpo_enabled needs Batch.answer_clusters, and it is None")
    per_token = spec.seed_grpo_length_normalize_logprobs
    scores = sequence_scores(batch.behaviour_logps, batch.completion_mask, batch.group_size, per_token)
    entropy = semantic.semantic_entropy(batch.answer_clusters, scores)
    alpha = semantic.effective_alpha(
        spec.seed_grpo_alpha, batch.group_size, spec.seed_grpo_alpha_normalize_by_max_entropy
    )
    scale = semantic.seed_scale(entropy, alpha)
    return Signal(advantages * scale.unsqueeze(1)), seed_metrics(entropy, scale, alpha, batch.group_size)


def tilted_signal(
    spec: ObjectiveSpec, advantages: Tensor, batch: Batch, knobs: Knobs
) -> tuple[Signal, Metrics]:
    """The advantages times G·w, w the tilted weights."""
    reference = _reference_scores(spec, batch)
    tilt = advantages
    if spec.tilted_utility == "dr_grpo":
        longest = spec.max_completion_length
        assert longest is not None, "ObjectiveSpec refuses this"
        tilt = advantages * batch.lengths.view_as(advantages) / longest
    factor = None
    if spec.mode_adaptive_tau:
        if batch.mode_counts is None:
            raise ValueError("mode_adaptive_tau needs Batch.mode_counts, and it is None")
        factor = mode_adaptive_factor(batch.mode_counts.to(tilt.dtype))
    tau = knobs.tau if factor is None else knobs.tau * factor
    weights = tilted_weights(tilt, tau, reference, knobs.beta)
    if knobs.tau != math.inf:  # at τ = ∞ it is the backbone itself, to the last bit
        advantages = batch.group_size * weights * advantages
    log_q = torch.log_softmax(tilt, dim=1)
    signal = Signal(advantages, weights, log_q, reference, factor)
    return signal, weight_metrics(weights, log_q, tau + knobs.beta)


def weighted_signal(
    spec: ObjectiveSpec, utilities: Tensor, batch: Batch, knobs: Knobs
) -> tuple[Signal, Metrics]:
    """The closed-form weights of ``listwise`` and ``likelihood``, with the advantages that they amount to."""
    reference = _reference_scores(spec, batch)
    log_q = target_log_q(utilities, spec.q_temperature, spec.q_epsilon)
    weights = closed_form_weights(log_q, reference, knobs.tau, knobs.beta, spec.weight_denominator)
    if spec.policy_loss == "likelihood":
        advantages = advantage.likelihood(weights)
    else:
        advantages = advantage.listwise(weights, policy_scores(spec, batch.behaviour_logps, batch))
    advantages = torch.where(taught_groups(spec, log_q).unsqueeze(1), advantages, 0.0)
    denominator = knobs.tau + (knobs.beta if spec.weight_denominator == "tau_plus_beta" else 0.0)
    return Signal(advantages, weights, log_q, reference), weight_metrics(weights, log_q, denominator)


def flow_signal(spec: ObjectiveSpec, advantages: Tensor, batch: Batch) -> tuple[Signal, Metrics]:
    """The scaled rewards as the target of ``flow``, with the advantages that its residuals amount to."""
    log_target = spec.flow_reward_scale * advantages
    reference = _reference_scores(spec, batch)
    if reference is None:
        raise ValueError(
            "policy_loss=flow matches rewards times the reference: the batch has no reference_logps"
        )
    scores = policy_scores(spec, batch.behaviour_logps, batch)
    first_order = flow.flow_advantages(scores, log_target, reference)
    taught = taught_groups(spec, log_target).unsqueeze(1)
    return Signal(torch.where(taught, first_order, 0.0), None, log_target, reference), {}


def _reference_scores(spec: ObjectiveSpec, batch: Batch) -> Tensor | None:
    """The reference's log-prob of each completion [P, G]; None without a reference."""
    if batch.reference_logps is None:
        return None
    per_token = spec.policy_loss == "flow" or spec.length_normalize_ref
    return sequence_scores(batch.reference_logps, batch.completion_mask, batch.group_size, per_token)
