"""The losses that score whole completions against their group: ``listwise``, ``likelihood`` and ``flow``."""

import torch
from torch import Tensor

from maxent_grpo.objectives import advantages, flow, surrogates
from maxent_grpo.objectives.spec import ObjectiveSpec
from maxent_grpo.objectives.weights import sequence_scores
from maxent_grpo.types import Batch, Denominators, Forward, Signal


def group_loss(
    spec: ObjectiveSpec, forward: Forward, batch: Batch, signal: Signal, denominators: Denominators
) -> Tensor:
    """A micro-batch's share, on the scale of a policy gradient whose advantages are G·(w_i − …): scalar.

    Dividing by groups is dividing weights that sum to G by completions, so that gradients compare with
    those of the surrogate: under its ``grpo`` reduction where scores are means over tokens, and under
    ``dr_grpo`` where they are sums, hence divided by the longest length as there.
    """
    scores = policy_scores(spec, forward.logps, batch)
    assert signal.log_q is not None, "signal gives every group loss a target"
    if spec.policy_loss == "flow":
        assert signal.reference_scores is not None, "signal refuses this"
        old_logps = surrogates.old_logps(forward, batch)
        ratio = surrogates.ratio(forward.logps, old_logps, batch.completion_mask, "sequence")
        low, high = spec.clip_range
        weights = ratio.detach().clamp(1.0 - low, 1.0 + high).view_as(scores)
        per_group = flow.flow_balance(scores, signal.log_q, signal.reference_scores, weights)
        divisor = denominators.sequences
    else:
        assert signal.weights is not None, "signal gives these losses weights"
        divisor = denominators.groups
        if spec.policy_loss == "likelihood":
            per_group = surrogates.weighted_likelihood(scores, signal.weights)
        else:
            per_group = surrogates.listwise(scores, signal.weights)
            divisor *= 1 if spec.length_normalize_policy else denominators.max_length
    return torch.where(taught_groups(spec, signal.log_q), per_group, 0.0).sum() / divisor


def policy_scores(spec: ObjectiveSpec, logps: Tensor, batch: Batch) -> Tensor:
    """The policy's log-prob of each completion, as these losses read it: [B, T] → [P, G]."""
    per_token = spec.policy_loss in ("likelihood", "flow") or spec.length_normalize_policy
    return sequence_scores(logps, batch.completion_mask, batch.group_size, per_token)


def taught_groups(spec: ObjectiveSpec, log_q: Tensor) -> Tensor:
    """Which groups have such a loss: those whose target has spread. [P, G] → [P] bool."""
    spread = advantages.has_spread(log_q)
    return spread if spec.skip_zero_spread_groups else torch.ones_like(spread)
