"""An objective at work: the two calls that a training step makes.

A step calls `Objective.signal` once per batch, over whole groups and without gradient, and `Objective.loss` once per
micro-batch. Losses add up over micro-batches and ranks because every denominator is global.

An `Objective` is a handful of values that carry their own numbers: `catalog` makes it of flat settings.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from maxent_grpo.objectives.advantages import GroupAdvantages, UtilityStd, utility_metrics
from maxent_grpo.objectives.infoseed import InfoSeed
from maxent_grpo.objectives.parts import Credit, LossInputs, OfGroups, Penalty, PolicyLoss, Shaping
from maxent_grpo.objectives.reduce import Reduction, sequence_mean
from maxent_grpo.objectives.regularizers import BehaviourKL, ReferenceKL, TokenEntropy
from maxent_grpo.objectives.replay import Replay
from maxent_grpo.objectives.shaping import ModeEntropy, Unlikeliness, mode_entropies
from maxent_grpo.objectives.token_loss import TokenLoss
from maxent_grpo.objectives.weights import Tilt
from maxent_grpo.stats import Metrics, mean_stat, sum_stat
from maxent_grpo.types import Batch, Denominators, Forward, Group, Knobs, Signal


@dataclass(frozen=True)
class Objective:
    """An objective as a step sees it: `signal`, `loss`, and for controllers that differentiate, `weights`."""

    policy_loss: PolicyLoss = field(default_factory=TokenLoss)
    advantages: GroupAdvantages = field(default_factory=GroupAdvantages)
    shaping: tuple[Shaping, ...] = ()
    credit: tuple[Credit, ...] = ()
    """Changes of the advantages, before they are tilted or otherwise reweighted."""
    reduction: Reduction = sequence_mean
    """Of per-token terms to a scalar, those of the KL terms included."""
    kl: ReferenceKL = field(default_factory=ReferenceKL)
    behaviour_kl: BehaviourKL = field(default_factory=BehaviourKL)
    entropy: TokenEntropy = field(default_factory=TokenEntropy)
    penalties: tuple[Penalty, ...] = ()
    """Further terms of the loss."""
    info_seed: InfoSeed | None = None
    """What InfoSeed adds, on batches with seeded completions."""
    replay: Replay | None = None
    """What a step learns from besides its groups (`train.replay`): it is no part of `loss`."""

    @property
    def terms(self) -> tuple[Penalty, ...]:
        """All that is added to the policy loss, in order."""
        seeds = () if self.info_seed is None else (self.info_seed,)
        return (self.kl, self.behaviour_kl, self.entropy, *self.penalties, *seeds)

    @property
    def of_groups(self) -> tuple[OfGroups, ...]:
        """All that changes utilities and advantages, in order."""
        return (*self.shaping, *self.credit)

    @property
    def has_weights(self) -> bool:
        """Whether it has candidate weights w(τ, β)."""
        return self.policy_loss.has_weights

    @property
    def needs_entropy(self) -> bool:
        """Whether `Forward.entropy` must be computed, with its gradient."""
        return self.entropy.needs_entropy

    @property
    def needs_answers(self) -> bool:
        """Whether `Batch.answer_clusters` and `Batch.mode_counts` must be there."""
        return self.policy_loss.needs_answers or any(shape.needs_answers for shape in self.shaping)

    @property
    def needs_correctness(self) -> bool:
        """Whether it reads `Batch.right` or `Batch.correctness`."""
        unlikely = any(isinstance(shape, Unlikeliness) for shape in self.shaping)
        credited = any(credit.needs_right for credit in self.credit)
        return unlikely or credited or self.advantages.reads != "utilities"

    @property
    def reads_modes(self) -> bool:
        """Whether `Batch.modes` must be there."""
        return any(part.reads_modes for part in self.of_groups)

    @property
    def tempered(self) -> str:
        """The metric of the entropy that τ raises: that of the candidate weights, or of the verified answers."""
        return (
            "mode_entropy"
            if any(isinstance(shape, ModeEntropy) for shape in self.shaping)
            else "weight_entropy"
        )

    def has_signal(self, group: Group) -> bool:
        """Whether anything differs among a group's completions that the objective tells apart."""
        told_apart = any(part.has_signal(group) for part in self.of_groups)
        return group.has_signal(self.advantages.reads) or told_apart

    @property
    def needs_mode_history(self) -> bool:
        """Whether it reads `Batch.mode_history`."""
        of_groups = any(part.needs_mode_history for part in self.of_groups)
        return of_groups or self.policy_loss.needs_mode_history

    @property
    def keeps_modes(self) -> bool:
        """Whether a run must keep the right answers of earlier steps."""
        return self.replay is not None or self.needs_mode_history

    @property
    def counts_modes(self) -> bool:
        """Whether it reads `Batch.mode_counts`."""
        reweighting = self.policy_loss.reweighting if isinstance(self.policy_loss, TokenLoss) else None
        return isinstance(reweighting, Tilt) and reweighting.mode_adaptive

    @property
    def reads_logps(self) -> bool:
        """Whether `signal` reads `Batch.behaviour_logps`."""
        return self.policy_loss.reads_logps or any(part.reads_logps for part in self.of_groups)

    def needs_reference(self, beta: float) -> bool:
        """Whether `Batch.reference_logps` must be there for a step with this β."""
        parts: tuple[PolicyLoss | Shaping | Penalty, ...] = (self.policy_loss, *self.shaping, *self.terms)
        return any(part.needs_reference(beta) for part in parts)

    @torch.no_grad()
    def signal(
        self, batch: Batch, knobs: Knobs, utility_std: UtilityStd | None = None
    ) -> tuple[Signal, Metrics]:
        """What a step learns from: advantages and, where the objective has them, candidate weights.

        On-policy and to first order, every objective is a policy gradient, and `Signal.advantages` are its
        advantages: the scaled advantages A for ``clip``; G·w·A for ``tilted``; G·(w − p) for ``listwise``, with p the
        behaviour policy's softmax within the group; G·w − 1 for ``likelihood``; −2 × the residual for ``flow``. They
        are exactly zero in a group with equal utilities, which then has no policy gradient at all (unless
        ``skip_zero_spread_groups`` is off, or different right answers tell its completions apart). A completion without
        a utility has advantage and weight 0, and the others of its group get what they would get without it.

        Args:
            batch: whole groups, all those of this rank.
            knobs: τ and β of this step.
            utility_std: sample standard deviation of the utilities over all ranks, for
                ``scale_rewards="batch"``. None: ``batch`` is the whole batch.

        Raises:
            ValueError: β > 0 in an objective with weights, or with the KL in the reward, and no reference log-probs
                in the batch, or answer clusters or mode counts that the objective needs and the batch lacks.
        """
        scored = batch.scored
        metrics = utility_metrics(batch.utilities, scored)
        if batch.modes is not None:
            entropies = mode_entropies(batch.modes.where(scored, -1))
            metrics["mode_entropy"] = mean_stat(entropies, ~entropies.isnan())
        utilities = batch.utilities.masked_fill(~scored, 0.0)
        utilities = self._shaped(utilities, batch, knobs)
        if self.shaping:
            metrics["reward_shaped"] = mean_stat(utilities, scored)
        judged = utilities
        if self.advantages.reads == "correctness" and batch.correctness is not None:
            judged = self._shaped(batch.correctness, batch, knobs)
        elif self.advantages.reads == "right" and batch.right is not None:
            judged = batch.right.to(utilities.dtype)
        advantages = self.advantages(judged, utility_std, scored)
        if self.credit:
            before = advantages
            for credit in self.credit:
                advantages = credit(advantages, batch)
            metrics["mode_credit"] = mean_stat((advantages - before).abs(), scored)
        signal, more = self.policy_loss.signal(utilities, advantages, batch, knobs)
        return replace(signal, scored=scored), metrics | more

    def _shaped(self, utilities: Tensor, batch: Batch, knobs: Knobs) -> Tensor:
        for shape in self.shaping:
            utilities = shape(utilities, batch, knobs)
        return utilities

    def weights(self, signal: Signal, tau: Tensor, beta: Tensor) -> Tensor:
        """The candidate weights at other τ and β, differentiable in both: scalars → [P, G].

        Raises:
            ValueError: the objective has no weights, or see `closed_form_weights` and `tilted_weights`.
        """
        return self.policy_loss.weights(signal, tau, beta)

    def loss(
        self, forward: Forward, batch: Batch, signal: Signal, knobs: Knobs, denominators: Denominators
    ) -> tuple[Tensor, Metrics]:
        """One micro-batch's share of the loss of the optimiser batch, and of its metrics.

        Summed over any split into whole groups, the shares are the loss and the gradient of the whole.

        Args:
            forward: the policy's log-probs of the micro-batch, with gradient, and its entropy if needed.
            batch, signal: the micro-batch, and the part of `signal`'s result that belongs to it.
            knobs: as given to `signal`.
            denominators: counts over the whole optimiser batch.

        Returns:
            The scalar to minimise, and metrics.

        Raises:
            ValueError: the objective needs entropy or reference log-probs and they are not there.
        """
        inputs = LossInputs(forward, batch, signal, knobs, denominators, self.reduction)
        loss, metrics = self.policy_loss(inputs)
        metrics |= {"loss/policy": sum_stat(loss)}
        for term in self.terms:
            value, more = term(inputs)
            loss, metrics = loss + value, metrics | more
        return loss, metrics | {"loss": sum_stat(loss)}

    def has_gradient(self, batch: Batch, signal: Signal, knobs: Knobs) -> Tensor:
        """Which groups can have a gradient at all: [P] bool. The others' share of `loss` is constant."""
        if any(term.has_gradient(knobs) for term in self.terms):
            return torch.ones_like(batch.utilities[:, 0], dtype=torch.bool)
        return self.policy_loss.has_gradient(signal)
