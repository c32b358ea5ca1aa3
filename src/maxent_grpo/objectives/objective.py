"""An objective at work: the two calls that a training step makes.

A step calls `Objective.signal` once per batch, over whole groups and without gradient, and `Objective.loss` once per
micro-batch. Losses add up over micro-batches and ranks because every denominator is global.

The parts lie beside this file: `signals` (what a step learns from), `surrogate_loss` and `group_loss` (the policy
loss), `penalties` and `infoseed` (what is added to it).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from maxent_grpo.objectives import penalties, signals
from maxent_grpo.objectives.group_loss import group_loss, taught_groups
from maxent_grpo.objectives.infoseed import seed_term
from maxent_grpo.objectives.metrics import sum_stat, utility_metrics
from maxent_grpo.objectives.spec import GROUP_LOSSES, ObjectiveSpec
from maxent_grpo.objectives.surrogate_loss import surrogate_loss
from maxent_grpo.objectives.weights import closed_form_weights, tilted_weights
from maxent_grpo.types import Batch, Denominators, Forward, Knobs, Metrics, Signal, mean_stat


@dataclass(frozen=True)
class Objective:
    """An objective as a step sees it: `signal`, `loss`, and for controllers that differentiate, `weights`."""

    spec: ObjectiveSpec

    @torch.no_grad()
    def signal(self, batch: Batch, knobs: Knobs, utility_std: Tensor | None = None) -> tuple[Signal, Metrics]:
        """What a step learns from: advantages and, where the objective has them, candidate weights.

        On-policy and to first order, every objective is a policy gradient, and `Signal.advantages` are its
        advantages: the scaled advantages A for ``clip``; G·w·A for ``tilted``; G·(w − p) for ``listwise``, with p the
        behaviour policy's softmax within the group; G·w − 1 for ``likelihood``; −2 × the residual for ``flow``. They
        are exactly zero in a group with equal utilities, which then has no policy gradient at all (unless
        ``skip_zero_spread_groups`` is off).

        Args:
            batch: whole groups, all those of this rank.
            knobs: τ and β of this step.
            utility_std: sample standard deviation of the utilities over all ranks, for
                ``scale_rewards="batch"``. None: ``batch`` is the whole batch.

        Raises:
            ValueError: β > 0 in an objective with weights, or with the KL in the reward, and no reference log-probs
                in the batch, or answer clusters or mode counts that the objective needs and the batch lacks.
        """
        spec = self.spec
        metrics = utility_metrics(batch.utilities)
        utilities = signals.shaped_utilities(spec, batch, knobs.beta)
        if spec.shapes_utilities:
            metrics["reward_shaped"] = mean_stat(utilities)
        if spec.policy_loss in ("listwise", "likelihood"):
            signal, more = signals.weighted_signal(spec, utilities, batch, knobs)
            return signal, metrics | more
        advantages = signals.scaled_advantages(spec, utilities, utility_std)
        if spec.policy_loss == "tilted":
            signal, more = signals.tilted_signal(spec, advantages, batch, knobs)
        elif spec.policy_loss == "flow":
            signal, more = signals.flow_signal(spec, advantages, batch)
        else:
            signal, more = signals.clip_signal(spec, advantages, batch)
        return signal, metrics | more

    def weights(self, signal: Signal, tau: Tensor, beta: Tensor) -> Tensor:
        """The candidate weights at other τ and β, differentiable in both: scalars → [P, G].

        Raises:
            ValueError: the objective has no weights, or see `closed_form_weights` and `tilted_weights`.
        """
        if signal.log_q is None or not self.spec.has_weights:
            raise ValueError(f"policy_loss={self.spec.policy_loss} has no candidate weights")
        if self.spec.policy_loss == "tilted":
            taus = tau if signal.tau_factor is None else tau * signal.tau_factor
            return tilted_weights(signal.log_q, taus, signal.reference_scores, beta)
        return closed_form_weights(
            signal.log_q, signal.reference_scores, tau, beta, self.spec.weight_denominator
        )

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
            ValueError: the spec needs entropy or reference log-probs and they are not there.
        """
        spec = self.spec
        metrics: Metrics = {}
        if spec.policy_loss in GROUP_LOSSES:
            loss = group_loss(spec, forward, batch, signal, denominators)
        else:
            loss, metrics = surrogate_loss(spec, forward, batch, signal, denominators)
        metrics |= {"loss/policy": sum_stat(loss)}
        terms = [
            penalties.reference_kl(spec, forward, batch, knobs, denominators),
            penalties.behaviour_kl(spec, forward, batch, denominators),
            penalties.entropy(spec, forward, batch, knobs, denominators),
            penalties.kl_cov(spec, forward, batch, signal, denominators),
        ]
        if spec.info_seed is not None:
            terms.append(seed_term(spec.info_seed, forward, batch, signal, denominators))
        for term, more in terms:
            loss, metrics = loss + term, metrics | more
        return loss, metrics | {"loss": sum_stat(loss)}

    def teaching(self, batch: Batch, signal: Signal, knobs: Knobs) -> Tensor:
        """Which groups can have a gradient at all: [P] bool. The others' share of `loss` is constant."""
        spec = self.spec
        everywhere = (
            (spec.kl_in_loss and knobs.beta > 0)
            or spec.behaviour_kl_coef != 0.0
            or spec.needs_entropy
            or spec.kl_cov_fraction > 0
            or spec.info_seed is not None
            or callable(spec.surrogate)  # somebody's own may pull without an advantage
        )
        if everywhere:
            return torch.ones_like(batch.utilities[:, 0], dtype=torch.bool)
        if spec.policy_loss in GROUP_LOSSES:
            assert signal.log_q is not None, "`signal` gives it to these"
            return taught_groups(spec, signal.log_q)
        return (signal.advantages != 0).any(dim=1)
