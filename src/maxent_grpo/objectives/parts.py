"""The kinds of values that an objective is made of, and what the terms of its loss read."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maxent_grpo.objectives.reduce import Reduction
from maxent_grpo.stats import Metrics
from maxent_grpo.types import Batch, Denominators, Forward, Group, Knobs, Signal


@dataclass(frozen=True)
class LossInputs:
    """What the terms of a micro-batch's loss read."""

    forward: Forward
    batch: Batch
    signal: Signal
    knobs: Knobs
    denominators: Denominators
    reduction: Reduction

    @property
    def mask(self) -> Tensor:
        """[B, T] bool"""
        return self.batch.completion_mask

    @property
    def scored_mask(self) -> Tensor:
        """The tokens of completions that have a utility, [B, T] bool: what a group compares."""
        return self.mask & self.batch.scored.view(-1, 1)

    @property
    def advantages(self) -> Tensor:
        """[B]"""
        return self.signal.advantages.flatten()

    @property
    def old_logps(self) -> Tensor:
        """Log-probs [B, T] at the start of the rollout's updates: on-policy, the forward's own."""
        if self.batch.old_logps is None:
            return self.forward.logps.detach()
        return self.batch.old_logps

    @property
    def zero(self) -> Tensor:
        """The term that adds nothing: scalar."""
        return self.forward.logps.new_zeros(())

    def reduced(self, per_token: Tensor) -> Tensor:
        """[B, T] or [B, 1] → a scalar, this micro-batch's share."""
        return self.reduction(per_token, self.mask, self.denominators)


class OfGroups:
    """What a change of utilities or advantages reads of a batch."""

    reads_logps: ClassVar[bool] = False
    """Whether it reads `Batch.behaviour_logps`."""
    needs_mode_history: ClassVar[bool] = False
    """Whether it reads `Batch.mode_history`."""
    reads_modes: ClassVar[bool] = False
    """Whether it reads `Batch.modes`, so that a group of equal utilities and different answers has a signal."""

    def has_signal(self, group: Group) -> bool:
        """Whether it can tell completions of equal utilities apart."""
        return self.reads_modes and len(set(group.modes or ()) - {None}) > 1


class Shaping(OfGroups):
    """A change of the utilities [P, G] before they become advantages or targets."""

    reads_logps: ClassVar[bool] = True
    needs_answers: ClassVar[bool] = False
    """Whether it reads `Batch.answer_clusters` or `Batch.mode_counts`."""

    def needs_reference(self, beta: float) -> bool:
        """Whether it reads `Batch.reference_logps`."""
        return False

    def __call__(self, utilities: Tensor, batch: Batch, knobs: Knobs) -> Tensor:
        """The utilities [P, G], changed."""
        raise NotImplementedError


class Credit(OfGroups):
    """A change of the advantages [P, G] of a group, after centring and scaling (`mode_credit`)."""

    needs_right: ClassVar[bool] = False
    """Whether it reads `Batch.right`."""

    def __call__(self, advantages: Tensor, batch: Batch) -> Tensor:
        """The advantages [P, G], changed; 0 stays where a completion has no utility."""
        raise NotImplementedError


class PolicyLoss:
    """What improves the policy: `token_loss.TokenLoss`, and the values of `group_losses`."""

    @property
    def has_weights(self) -> bool:
        """Whether it has candidate weights w(τ, β)."""
        return False

    @property
    def needs_answers(self) -> bool:
        """Whether it reads `Batch.answer_clusters` or `Batch.mode_counts`."""
        return False

    @property
    def needs_mode_history(self) -> bool:
        """Whether it reads `Batch.mode_history`."""
        return False

    @property
    def reads_logps(self) -> bool:
        """Whether `signal` reads `Batch.behaviour_logps`."""
        return False

    def needs_reference(self, beta: float) -> bool:
        """Whether it reads `Batch.reference_logps`."""
        return beta > 0 and self.has_weights

    def signal(
        self, utilities: Tensor, advantages: Tensor, batch: Batch, knobs: Knobs
    ) -> tuple[Signal, Metrics]:
        """Shaped utilities and their advantages, both [P, G] → what the loss learns from."""
        raise NotImplementedError

    def weights(self, signal: Signal, tau: Tensor, beta: Tensor) -> Tensor:
        """The candidate weights at other τ and β, differentiable in both: [P, G]."""
        raise ValueError(f"{type(self).__name__} has no candidate weights")

    def has_gradient(self, signal: Signal) -> Tensor:
        """Which groups can have a gradient: [P] bool. The loss of the others is constant."""
        return torch.ones_like(signal.advantages[:, 0], dtype=torch.bool)

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        """A micro-batch's share, a scalar, and its metrics."""
        raise NotImplementedError


class Penalty:
    """A term that is added to the policy loss."""

    def needs_reference(self, beta: float) -> bool:
        """Whether it reads `Batch.reference_logps`."""
        return False

    def has_gradient(self, knobs: Knobs) -> bool:
        """Whether it pulls at all: then at every group."""
        return True

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        """A micro-batch's share, a scalar, and its metrics."""
        raise NotImplementedError
