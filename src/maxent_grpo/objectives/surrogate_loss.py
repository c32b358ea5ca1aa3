"""The loss of single tokens, as an `ObjectiveSpec` composes it: ratio, surrogate, mask, correction, reduction."""

import math

import torch
from torch import Tensor

from maxent_grpo.objectives import selection, surrogates
from maxent_grpo.objectives.corrections import importance_ratios, truncated_importance
from maxent_grpo.objectives.metrics import correction_metrics, ratio_metrics
from maxent_grpo.objectives.reduce import REDUCTIONS, log_ratio, row_sums
from maxent_grpo.objectives.spec import ObjectiveSpec
from maxent_grpo.objectives.surrogates import ClipEvents
from maxent_grpo.types import Batch, Denominators, Forward, Metrics, Signal, mean_stat


def surrogate_loss(
    spec: ObjectiveSpec, forward: Forward, batch: Batch, signal: Signal, denominators: Denominators
) -> tuple[Tensor, Metrics]:
    """A micro-batch's share of the loss of ``clip`` and ``tilted``, a scalar, and its metrics."""
    mask, old_logps = batch.completion_mask, surrogates.old_logps(forward, batch)
    ratio = surrogates.ratio(forward.logps, old_logps, mask, spec.importance_sampling_level)
    advantages = signal.advantages.flatten()
    events = _clip_events(spec, ratio, advantages)
    metrics = ratio_metrics(ratio, events, mask)
    per_token = _per_token_loss(spec, ratio, forward, batch, advantages)
    kept, more = _kept_tokens(spec, forward, batch, advantages, events)
    metrics |= more
    if kept is not None:
        per_token = torch.where(kept, per_token, 0.0)
    if spec.tis_cap is not None:
        ratios = importance_ratios(old_logps, batch.behaviour_logps, mask, spec.tis_level)
        metrics |= correction_metrics(ratios, spec.tis_cap, mask)
        if spec.surrogate_kind != "vespo":  # which has them in its weight already
            per_token = per_token * ratios.clamp(max=spec.tis_cap)
    return REDUCTIONS[spec.loss_type](per_token, mask, denominators), metrics


def _per_token_loss(
    spec: ObjectiveSpec, ratio: Tensor, forward: Forward, batch: Batch, advantages: Tensor
) -> Tensor:
    """The surrogate's loss, [B, T] or [B, 1]."""
    low, high = spec.clip_range
    match spec.surrogate_kind:
        case "clip":
            return surrogates.clipped(ratio, advantages, low, high, spec.delta)
        case "unclipped":
            return surrogates.unclipped(ratio, advantages)
        case "cispo":
            return surrogates.cispo(ratio, forward.logps, advantages, high)
        case "sapo":
            temperatures = spec.sapo_temperature_pos, spec.sapo_temperature_neg
            return surrogates.sapo(ratio, advantages, *temperatures)
        case "vespo":
            weights = _vespo_weights(spec, forward, batch, advantages)
            return surrogates.vespo(weights, forward.logps, advantages)
        case function:
            return function(ratio, advantages)


def _vespo_weights(spec: ObjectiveSpec, forward: Forward, batch: Batch, advantages: Tensor) -> Tensor:
    """VESPO's weight of each completion, the importance correction included: [B, 1]."""
    mask, old_logps = batch.completion_mask, surrogates.old_logps(forward, batch)
    per_token = log_ratio(forward.logps, old_logps, mask).detach().clamp(-20.0, 20.0)
    if spec.tis_cap is not None:
        factors = truncated_importance(old_logps, batch.behaviour_logps, mask, spec.tis_cap)
        per_token = per_token + factors.log().clamp(*surrogates.LOG_WEIGHT_RANGE)
    pos, neg = (spec.vespo_k_pos, spec.vespo_lambda_pos), (spec.vespo_k_neg, spec.vespo_lambda_neg)
    return surrogates.vespo_weights(row_sums(per_token, mask), advantages, pos, neg)


def _clip_events(spec: ObjectiveSpec, ratio: Tensor, advantages: Tensor) -> ClipEvents:
    """Where the surrogate's clip acts; nowhere for surrogates without one."""
    low, high = spec.clip_range
    match spec.surrogate_kind:
        case "clip":
            return surrogates.clip_events(ratio, advantages, low, high)
        case "cispo":
            return surrogates.clip_events(ratio, advantages, math.inf, high - 1.0)
        case _:
            return surrogates.clip_events(ratio, advantages, math.inf, math.inf)


def _kept_tokens(
    spec: ObjectiveSpec, forward: Forward, batch: Batch, advantages: Tensor, events: ClipEvents
) -> tuple[Tensor | None, Metrics]:
    """The tokens that carry policy gradient, [B, T] bool; None: all of them."""
    mask, size = batch.completion_mask, batch.group_size
    kept: list[Tensor] = []
    metrics: Metrics = {}
    if spec.off_policy_mask_threshold is not None:
        near = selection.on_policy_enough(
            advantages, forward.logps, batch.behaviour_logps, mask, spec.off_policy_mask_threshold
        )
        metrics["off_policy_mask/kept"] = mean_stat(near.float())
        kept.append(near.expand_as(mask))
    if spec.top_entropy_quantile < 1.0:
        if forward.entropy is None:
            raise ValueError("top_entropy_quantile needs Forward.entropy, and it is None")
        top = selection.high_entropy(forward.entropy, mask, size, spec.top_entropy_quantile)
        metrics["top_entropy/kept"] = mean_stat(top.float(), mask)
        kept.append(top)
    if spec.clip_cov_fraction > 0:
        cov = selection.covariance(advantages, forward.logps, mask, size)
        dropped = selection.clip_cov(
            cov, events.low | events.high, mask, size,
            spec.clip_cov_fraction, spec.clip_cov_low, spec.clip_cov_high,
        )  # fmt: skip
        metrics["clip_cov/dropped"] = mean_stat(dropped.float(), mask)
        kept.append(~dropped)
    return (torch.stack(kept).all(dim=0) if kept else None), metrics
