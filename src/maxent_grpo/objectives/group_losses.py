"""The losses that score whole completions against their group: ``listwise``, ``likelihood`` and ``flow``.

Their scale is that of a policy gradient whose advantages are G·(w_i − …): dividing by groups is dividing weights that
sum to G by completions, so that gradients compare with those of a surrogate: under its ``grpo`` reduction where
scores are means over tokens, and under ``dr_grpo`` where they are sums, hence divided by the longest length as there.
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from maxent_grpo.objectives.advantages import has_spread
from maxent_grpo.objectives.parts import LossInputs, PolicyLoss
from maxent_grpo.objectives.reduce import sequence_scores, within_scored
from maxent_grpo.objectives.surrogates import Clip, sequence_ratio
from maxent_grpo.objectives.weights import ClosedForm, scores_of_reference, weighs
from maxent_grpo.stats import Metrics
from maxent_grpo.types import Batch, Knobs, Signal


def listwise(scores: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy from the weights to the policy's softmax within the group: ``−Σ_i w_i·log softmax_i(s)``.

    The gradient in s_i is p_i − w_i: zero exactly where the policy's distribution p over the group equals w.

    Args:
        scores: [P, G] log-prob of each completion under the policy, see `reduce.sequence_scores`.
        weights: [P, G], each group sums to 1; constants.

    Returns:
        [P] in nats.
    """
    return -(weights * torch.log_softmax(scores, dim=1)).sum(dim=1)


def listwise_advantages(weights: Tensor, scores: Tensor) -> Tensor:
    """``G·(w − p)``, p = softmax of the scores within the group: [P, G].

    The listwise loss is, on-policy and to first order, a policy gradient with these advantages; ``scores`` [P, G] are
    then log-probs of the completions under the policy that sampled them.
    """
    return weights.shape[1] * (weights - torch.softmax(scores, dim=1))


def weighted_likelihood(scores: Tensor, weights: Tensor) -> Tensor:
    """Weighted log-likelihood with a baseline: ``−Σ_i (w_i − 1/G)·s_i``.

    Without the baseline 1/G, every sampled completion would be made more likely, the bad ones too; with it,
    uniform weights have no gradient.

    Args:
        scores: [P, G] mean log-prob per token of each completion under the policy.
        weights: [P, G], each group sums to 1; constants.

    Returns:
        [P].
    """
    return -((weights - 1.0 / weights.shape[1]) * scores).sum(dim=1)


def likelihood_advantages(weights: Tensor) -> Tensor:
    """``G·w − 1``: on-policy, the weighted likelihood is a policy gradient with these advantages [P, G]."""
    return weights.shape[1] * weights - 1.0


def flow_residuals(scores: Tensor, log_target: Tensor, reference_scores: Tensor, weights: Tensor) -> Tensor:
    """How far each completion is from trajectory balance: [P, G] nats per token.

    ``log Ẑ + log π/T − log target − log π_ref/T``. FlowRL (Zhu et al. 2025, arXiv 2509.15207) learns log Z
    with a network of its own. Here it is the value that minimises the group's loss, the weighted mean of what it
    balances: the log-partition variance loss of VarGrad (Richter et al. 2020, arXiv 2010.10436) and of trajectory
    balance with asynchrony (Bartoldson et al. 2025, arXiv 2503.18929). Being the minimiser, it passes no gradient.

    Args:
        scores: [P, G] mean log-prob per token of each completion under the policy.
        log_target: [P, G] scaled reward, up to a constant per group.
        reference_scores: [P, G] as ``scores``, under the reference.
        weights: [P, G] > 0, constants.
    """
    gap = scores - log_target - reference_scores
    log_z = -(weights * gap).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
    return gap + log_z.detach()


def flow_balance(scores: Tensor, log_target: Tensor, reference_scores: Tensor, weights: Tensor) -> Tensor:
    """``Σ_i v_i·(residual_i)²`` of each group: [P]. Arguments as in `flow_residuals`."""
    return (weights * flow_residuals(scores, log_target, reference_scores, weights).square()).sum(dim=1)


def flow_advantages(scores: Tensor, log_target: Tensor, reference_scores: Tensor) -> Tensor:
    """``−2·residual``: on-policy, the loss is a policy gradient with these advantages [P, G]."""
    return -2.0 * flow_residuals(scores, log_target, reference_scores, torch.ones_like(scores))


class GroupLoss(PolicyLoss):
    """A loss over whole groups. Its scores are the policy's log-probs of completions, per token or in all."""

    skip_zero_spread: bool
    """Leave a group whose target has no spread without policy loss, as GRPO does a group with equal utilities. Its
    target says nothing about the task: the loss would only pull the policy's distribution over the group towards
    the uniform one (β = 0) or towards a flattened reference (β > 0). The denominators count the group all the
    same, as do the statistics of the weights."""

    @property
    def per_token(self) -> bool:
        """Whether scores are means over tokens instead of sums."""
        return True

    def has_gradient(self, signal: Signal) -> Tensor:
        """The groups that have such a loss: [P] bool."""
        assert signal.log_q is not None, "`signal` sets it"
        spread = has_spread(signal.log_q, signal.scored)
        if self.skip_zero_spread:
            return spread
        return torch.ones_like(spread) if signal.scored is None else weighs(signal.scored)

    def scores(self, logps: Tensor, batch: Batch) -> Tensor:
        """Log-probs [B, T] → scores [P, G]."""
        return sequence_scores(logps, batch.completion_mask, batch.group_size, self.per_token)

    def _summed(self, per_group: Tensor, signal: Signal) -> Tensor:
        """The losses [P] of the groups that have one, added up."""
        return torch.where(self.has_gradient(signal), per_group, 0.0).sum()

    def _silenced(self, signal: Signal, advantages: Tensor) -> Signal:
        """The signal with these advantages in the groups that have a loss, and 0 in the others."""
        groups = self.has_gradient(signal).unsqueeze(1)
        return replace(signal, advantages=torch.where(groups, advantages, 0.0))


@dataclass(frozen=True)
class Listwise(GroupLoss):
    """`listwise` towards closed-form weights: the policy's softmax within the group is moved to them."""

    target: ClosedForm = field(default_factory=ClosedForm)
    length_normalize_policy: bool = False
    """Policy score per token instead of per completion. Should agree with ``target.length_normalize_ref``: a
    reference per token against a policy per completion pulls all completions towards nearly equal probability,
    whatever their length, and so towards a uniform babbler."""
    skip_zero_spread: bool = True

    has_weights: ClassVar[bool] = True
    reads_logps: ClassVar[bool] = True

    @property
    def per_token(self) -> bool:
        return self.length_normalize_policy

    def signal(
        self, utilities: Tensor, advantages: Tensor, batch: Batch, knobs: Knobs
    ) -> tuple[Signal, Metrics]:
        signal, metrics = self.target.signal(utilities, batch, knobs)
        assert signal.weights is not None, "`ClosedForm.signal` sets them"
        scores = self.scores(batch.behaviour_logps, batch)
        first_order = within_scored(listwise_advantages, batch.scored, signal.weights, scores)
        return self._silenced(signal, first_order), metrics

    def weights(self, signal: Signal, tau: Tensor, beta: Tensor) -> Tensor:
        return self.target.weights(signal, tau, beta)

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        signal, denominators = inputs.signal, inputs.denominators
        assert signal.weights is not None, "`signal` sets them"
        scores = self.scores(inputs.forward.logps, inputs.batch)
        per_group = within_scored(listwise, inputs.batch.scored, scores, signal.weights, per_group=True)
        divisor = denominators.groups * (1 if self.per_token else denominators.max_length)
        return self._summed(per_group, signal) / divisor, {}


@dataclass(frozen=True)
class Likelihood(GroupLoss):
    """`weighted_likelihood` by closed-form weights: completions are made likelier in proportion to w − 1/G."""

    target: ClosedForm = field(default_factory=ClosedForm)
    skip_zero_spread: bool = True

    has_weights: ClassVar[bool] = True

    def signal(
        self, utilities: Tensor, advantages: Tensor, batch: Batch, knobs: Knobs
    ) -> tuple[Signal, Metrics]:
        signal, metrics = self.target.signal(utilities, batch, knobs)
        assert signal.weights is not None, "`ClosedForm.signal` sets them"
        first_order = within_scored(likelihood_advantages, batch.scored, signal.weights)
        return self._silenced(signal, first_order), metrics

    def weights(self, signal: Signal, tau: Tensor, beta: Tensor) -> Tensor:
        return self.target.weights(signal, tau, beta)

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        assert inputs.signal.weights is not None, "`signal` sets them"
        scores = self.scores(inputs.forward.logps, inputs.batch)
        weights, scored = inputs.signal.weights, inputs.batch.scored
        per_group = within_scored(weighted_likelihood, scored, scores, weights, per_group=True)
        return self._summed(per_group, inputs.signal) / inputs.denominators.groups, {}


@dataclass(frozen=True)
class Flow(GroupLoss):
    """`flow_balance` with the scaled rewards as its target: FlowRL, its partition function estimated per group."""

    reward_scale: float = 15.0
    """β of FlowRL: what advantages are multiplied by, in nats per token."""
    clip: Clip = field(default_factory=Clip)
    """Range of the importance ratio of completions that weighs the residuals."""
    skip_zero_spread: bool = True

    reads_logps: ClassVar[bool] = True

    def needs_reference(self, beta: float) -> bool:
        return True

    def signal(
        self, utilities: Tensor, advantages: Tensor, batch: Batch, knobs: Knobs
    ) -> tuple[Signal, Metrics]:
        log_target = self.reward_scale * advantages
        reference = scores_of_reference(batch, self.per_token)
        if reference is None:
            raise ValueError(
                "policy_loss=flow matches rewards times the reference: the batch has no reference_logps"
            )
        scores, scored = self.scores(batch.behaviour_logps, batch), batch.scored
        first_order = within_scored(flow_advantages, scored, scores, log_target, reference)
        log_target = log_target.masked_fill(~scored, -math.inf)
        signal = Signal(advantages, None, log_target, reference, scored=scored)
        return self._silenced(signal, first_order), {}

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        signal = inputs.signal
        assert signal.log_q is not None, "`signal` sets it"
        assert signal.reference_scores is not None, "`signal` sets them"
        scores = self.scores(inputs.forward.logps, inputs.batch)
        ratio = sequence_ratio(inputs.forward.logps, inputs.old_logps, inputs.mask)
        low, high = self.clip.range
        weights = ratio.detach().clamp(1.0 - low, 1.0 + high).view_as(scores)
        per_group = within_scored(
            flow_balance,
            inputs.batch.scored,
            scores,
            signal.log_q,
            signal.reference_scores,
            weights,
            per_group=True,
        )
        return self._summed(per_group, signal) / inputs.denominators.sequences, {}
