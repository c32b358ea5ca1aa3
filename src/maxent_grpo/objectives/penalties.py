"""What an objective adds to its policy loss: one function per term, each a scalar share and its metrics.

A term that the spec leaves out is 0, and what it would penalise is measured all the same where that costs nothing.
InfoSeed's term is `infoseed.seed_term`.
"""

import torch
from torch import Tensor

from maxent_grpo.objectives import selection, surrogates
from maxent_grpo.objectives.metrics import sum_stat
from maxent_grpo.objectives.reduce import REDUCTIONS, log_ratio
from maxent_grpo.objectives.regularizers import entropy_bonus, kl_estimate
from maxent_grpo.objectives.spec import ObjectiveSpec
from maxent_grpo.types import Batch, Denominators, Forward, Knobs, Metrics, Signal, mean_stat


def reference_kl(
    spec: ObjectiveSpec, forward: Forward, batch: Batch, knobs: Knobs, denominators: Denominators
) -> tuple[Tensor, Metrics]:
    """β·KL to the reference, and the KL as measured wherever the reference was scored."""
    mask = batch.completion_mask
    weighted_kl = forward.logps.new_zeros(())
    in_loss = spec.kl_in_loss and knobs.beta > 0
    if batch.reference_logps is None:
        if in_loss:
            raise ValueError(f"beta={knobs.beta} adds a KL to the loss, and the batch has no reference_logps")
        return weighted_kl, {}
    logps = forward.logps if in_loss else forward.logps.detach()
    kl = kl_estimate(logps, batch.reference_logps, mask, spec.kl_estimator)
    reduced_kl = REDUCTIONS[spec.loss_type](kl, mask, denominators)
    if in_loss:
        weighted_kl = knobs.beta * reduced_kl
    return weighted_kl, {
        "kl": mean_stat(kl, mask),
        "loss/kl": sum_stat(reduced_kl),
        "loss/weighted_kl": sum_stat(weighted_kl),
    }


def behaviour_kl(
    spec: ObjectiveSpec, forward: Forward, batch: Batch, denominators: Denominators
) -> tuple[Tensor, Metrics]:
    """The penalty on leaving the policy that sampled, and its KL as measured in any case."""
    mask = batch.completion_mask
    in_loss = spec.behaviour_kl_coef != 0.0
    logps = forward.logps if in_loss else forward.logps.detach()
    kl = kl_estimate(logps, batch.behaviour_logps, mask, spec.behaviour_kl_estimator)
    metrics = {"behaviour_kl": mean_stat(kl, mask)}
    if not in_loss:
        return logps.new_zeros(()), metrics
    penalty = spec.behaviour_kl_coef * REDUCTIONS[spec.loss_type](kl, mask, denominators)
    return penalty, metrics | {"loss/behaviour_kl": sum_stat(penalty)}


def entropy(
    spec: ObjectiveSpec, forward: Forward, batch: Batch, knobs: Knobs, denominators: Denominators
) -> tuple[Tensor, Metrics]:
    """Minus the entropy bonus, and the entropy as measured wherever the forward computed it."""
    coefficient = spec.entropy_coef if knobs.entropy_coef is None else knobs.entropy_coef
    bonus = forward.logps.new_zeros(())
    if forward.entropy is None:
        if spec.needs_entropy:
            raise ValueError(f"entropy_coef={coefficient} needs Forward.entropy, and it is None")
        return bonus, {}
    metrics = {"entropy": mean_stat(forward.entropy, batch.completion_mask)}
    if not spec.needs_entropy:
        return bonus, metrics
    bonus = coefficient * entropy_bonus(forward.entropy, batch.completion_mask, denominators)
    return -bonus, metrics | {"loss/entropy": sum_stat(-bonus)}


def kl_cov(
    spec: ObjectiveSpec, forward: Forward, batch: Batch, signal: Signal, denominators: Denominators
) -> tuple[Tensor, Metrics]:
    """KL-Cov's |log π/π_old| on the tokens whose covariance is largest."""
    mask = batch.completion_mask
    if spec.kl_cov_fraction == 0:
        return forward.logps.new_zeros(()), {}
    cov = selection.covariance(signal.advantages.flatten(), forward.logps, mask, batch.group_size)
    held = selection.kl_cov(cov, mask, batch.group_size, spec.kl_cov_fraction)
    distance = log_ratio(forward.logps, surrogates.old_logps(forward, batch), mask).abs()
    penalty = REDUCTIONS[spec.loss_type](torch.where(held, distance, 0.0), mask, denominators)
    penalty = spec.kl_cov_coef * penalty
    return penalty, {"loss/kl_cov": sum_stat(penalty), "kl_cov/held": mean_stat(held.float(), mask)}
