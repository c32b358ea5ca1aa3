"""The named objectives: what each is made of, and the two calls that a training step makes.

`CATALOG` maps a name to an `ObjectiveSpec`, plain numbers; `Objective` computes with it. A step calls
`Objective.signal` once per batch, over whole groups and without gradient, and `Objective.loss` once per
micro-batch. Losses add up over micro-batches and ranks because every denominator is global.
`METRIC_DEFINITIONS` says what is reported.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maxent_grpo.errors import UsageError
from maxent_grpo.objectives import advantages as advantage
from maxent_grpo.objectives import surrogates
from maxent_grpo.objectives.corrections import truncated_importance
from maxent_grpo.objectives.infoseed import InfoSeedSpec, seed_term
from maxent_grpo.objectives.metrics import (
    METRIC_DEFINITIONS,
    correction_metrics,
    ratio_metrics,
    sum_stat,
    utility_metrics,
    weight_metrics,
)
from maxent_grpo.objectives.reduce import REDUCTIONS, LossType
from maxent_grpo.objectives.regularizers import KLEstimator, entropy_bonus, kl_estimate
from maxent_grpo.objectives.surrogates import RatioLevel
from maxent_grpo.objectives.weights import (
    WeightDenominator,
    closed_form_weights,
    sequence_scores,
    target_log_q,
    tilted_weights,
)
from maxent_grpo.types import Batch, Denominators, Forward, Knobs, Metrics, Signal, mean_stat

__all__ = ["CATALOG", "METRIC_DEFINITIONS", "Objective", "ObjectiveSpec"]

PolicyLoss = Literal["clip", "listwise", "likelihood", "tilted"]
ScaleRewards = Literal["group", "batch", "none"]
TiltedUtility = Literal["length_free", "dr_grpo"]


@dataclass(frozen=True)
class ObjectiveSpec:
    """Everything that defines an objective, save τ and β, which the controllers set at each step.

    Raises:
        UsageError: settings that contradict each other.
    """

    policy_loss: PolicyLoss = "clip"
    """``clip``: PPO's surrogate.
    ``tilted``: the same, each completion re-weighted by G·w, w from `tilted_weights`.
    ``listwise``: cross-entropy from w, `closed_form_weights`, to the policy's softmax within the group.
    ``likelihood``: mean log-likelihood per token weighted by w − 1/G, w from `closed_form_weights`."""
    scale_rewards: ScaleRewards = "group"
    """What centred utilities are divided by: their standard deviation in the group, in the batch, or nothing.
    Not read by ``listwise`` and ``likelihood``, whose scale is the temperature of q."""
    loss_type: LossType = "grpo"
    """Reduction of per-token terms, the KL terms included; see `reduce.REDUCTIONS`."""
    importance_sampling_level: RatioLevel = "token"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    """Upper half of the clip range. None: ``epsilon``."""
    delta: float | None = None
    """Upper cap of the unclipped ratio (dual clip). None: no cap."""
    kl_estimator: KLEstimator = "k3"
    """Estimates KL(policy ‖ reference), both as measured and in the loss."""
    kl_in_loss: bool = True
    """Whether β·KL(policy ‖ reference) is part of the loss. Weights read β in any case."""
    log_reference_kl: bool = False
    """Have the reference scored, and the KL measured, even where neither loss nor weights need it."""
    behaviour_kl_coef: float = 0.0
    behaviour_kl_estimator: KLEstimator = "k2"
    """Estimates KL(policy ‖ behaviour). k2 by default: its gradient (log π − log μ)·∇log π is exactly zero
    on-policy and grows only linearly with the gap; k1 has no pull at all in expectation, and k3's explodes
    for tokens made unlikely."""
    entropy_coef: float = 0.0
    """Weight of the mean token entropy, subtracted from the loss."""
    tis_cap: float | None = None
    """Cap of truncated importance sampling. None: no correction."""
    q_temperature: float = 1.0
    q_epsilon: float = 1e-6
    weight_denominator: WeightDenominator = "tau_plus_beta"
    length_normalize_ref: bool = False
    """Reference score per token instead of per completion."""
    length_normalize_policy: bool = False
    """Policy score of ``listwise`` per token instead of per completion. Should agree with
    ``length_normalize_ref``: a reference per token against a policy per completion pulls all completions
    towards nearly equal probability, whatever their length, and so towards a uniform babbler."""
    tilted_utility: TiltedUtility = "length_free"
    """Ū of ``tilted``: the advantage A, or its share A·T_i/max_completion_length of Dr. GRPO's objective."""
    max_completion_length: int | None = None
    """Longest allowed completion in tokens; needed by ``tilted_utility="dr_grpo"`` only."""
    skip_zero_spread_groups: bool = True
    """``listwise`` and ``likelihood``: leave a group with equal utilities without policy loss, as GRPO does.
    Its target is uniform and says nothing about the task: the loss would only pull the policy's distribution
    over the group towards the uniform one (β = 0) or towards a flattened reference (β > 0). The denominators
    count the group all the same, as do the statistics of the weights."""
    info_seed: InfoSeedSpec | None = None
    """What InfoSeed adds, on batches with seeded completions. None: nothing."""

    def __post_init__(self) -> None:
        if self.tis_cap is not None and self.policy_loss in ("listwise", "likelihood"):
            raise UsageError(
                f"tis_cap={self.tis_cap} corrects an importance ratio, and policy_loss={self.policy_loss} "
                "has none: unset it"
            )
        if self.tilted_utility == "dr_grpo" and self.max_completion_length is None:
            raise UsageError("tilted_utility=dr_grpo divides by max_completion_length: set it")

    @property
    def needs_entropy(self) -> bool:
        """Whether `Forward.entropy` must be computed."""
        return self.entropy_coef != 0.0

    @property
    def clip_range(self) -> tuple[float, float]:
        """ε below and ε above 1."""
        return self.epsilon, self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def has_weights(self) -> bool:
        """Whether the objective has candidate weights w(τ, β)."""
        return self.policy_loss != "clip"

    def needs_reference(self, beta: float) -> bool:
        """Whether `Batch.reference_logps` must be computed for a step with this β."""
        return self.log_reference_kl or (beta > 0 and (self.kl_in_loss or self.has_weights))


@dataclass(frozen=True)
class Objective:
    """An objective as a step sees it: `signal`, `loss`, and for controllers that differentiate, `weights`."""

    spec: ObjectiveSpec

    @torch.no_grad()
    def signal(self, batch: Batch, knobs: Knobs, utility_std: Tensor | None = None) -> tuple[Signal, Metrics]:
        """What a step learns from: advantages and, where the objective has them, candidate weights.

        On-policy and to first order, every objective is a policy gradient, and `Signal.advantages` are its
        advantages: the centred and scaled utilities A for ``clip``; G·w·A for ``tilted``; G·(w − p) for
        ``listwise``, with p the behaviour policy's softmax within the group; G·w − 1 for ``likelihood``. They
        are exactly zero in a group with equal utilities, which then has no policy gradient at all (unless
        ``skip_zero_spread_groups`` is off).

        Args:
            batch: whole groups, all those of this rank.
            knobs: τ and β of this step.
            utility_std: sample standard deviation of the utilities over all ranks, for
                ``scale_rewards="batch"``. None: ``batch`` is the whole batch.

        Raises:
            ValueError: β > 0 in an objective with weights, and no reference log-probs in the batch.
        """
        spec, utilities = self.spec, batch.utilities
        metrics = utility_metrics(utilities)
        if not spec.has_weights:
            return Signal(self._scaled_advantages(utilities, utility_std)), metrics
        reference = self._reference_scores(batch)
        if spec.policy_loss == "tilted":
            advantages = self._scaled_advantages(utilities, utility_std)
            tilt = self._tilted_utility(advantages, batch)
            log_q = torch.log_softmax(tilt, dim=1)
            weights = tilted_weights(tilt, knobs.tau, reference, knobs.beta)
            if knobs.tau != math.inf:  # at τ = ∞ it is the backbone itself, to the last bit
                advantages = batch.group_size * weights * advantages
            denominator = knobs.tau + knobs.beta
        else:
            log_q = target_log_q(utilities, spec.q_temperature, spec.q_epsilon)
            weights = closed_form_weights(log_q, reference, knobs.tau, knobs.beta, spec.weight_denominator)
            advantages = self._first_order_advantages(weights, batch)
            denominator = knobs.tau + (knobs.beta if spec.weight_denominator == "tau_plus_beta" else 0.0)
        signal = Signal(advantages, weights, log_q, reference)
        return signal, metrics | weight_metrics(weights, log_q, denominator)

    def weights(self, signal: Signal, tau: Tensor, beta: Tensor) -> Tensor:
        """The candidate weights at other τ and β, differentiable in both: scalars → [P, G].

        Raises:
            ValueError: the objective has no weights, or see `closed_form_weights` and `tilted_weights`.
        """
        if signal.log_q is None:
            raise ValueError(f"policy_loss={self.spec.policy_loss} has no candidate weights")
        if self.spec.policy_loss == "tilted":
            return tilted_weights(signal.log_q, tau, signal.reference_scores, beta)
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
        policy, metrics = self._policy_loss(forward, batch, signal, denominators)
        reference, reference_metrics = self._reference_term(forward, batch, knobs, denominators)
        behaviour, behaviour_metrics = self._behaviour_term(forward, batch, denominators)
        entropy, entropy_metrics = self._entropy_term(forward, batch, denominators)
        loss = policy + reference + behaviour + entropy
        if self.spec.info_seed is not None:
            seed, seed_metrics = seed_term(self.spec.info_seed, forward, batch, signal, denominators)
            loss = loss + seed
            metrics |= seed_metrics
        metrics |= {"loss": sum_stat(loss), "loss/policy": sum_stat(policy)}
        return loss, metrics | reference_metrics | behaviour_metrics | entropy_metrics

    def _scaled_advantages(self, utilities: Tensor, utility_std: Tensor | None) -> Tensor:
        match self.spec.scale_rewards:
            case "group":
                return advantage.grpo(utilities)
            case "batch":
                return advantage.batch_scaled(utilities, utility_std)
            case "none":
                return advantage.dr_grpo(utilities)

    def _tilted_utility(self, advantages: Tensor, batch: Batch) -> Tensor:
        if self.spec.tilted_utility == "length_free":
            return advantages
        longest = self.spec.max_completion_length
        assert longest is not None, "ObjectiveSpec refuses this"
        return advantages * batch.lengths.view_as(advantages) / longest

    def _first_order_advantages(self, weights: Tensor, batch: Batch) -> Tensor:
        if self.spec.policy_loss == "likelihood":
            advantages = advantage.likelihood(weights)
        else:
            advantages = advantage.listwise(weights, self._policy_scores(batch.behaviour_logps, batch))
        return torch.where(self._taught(batch.utilities).unsqueeze(1), advantages, 0.0)

    def _taught(self, utilities: Tensor) -> Tensor:
        """Which groups have a listwise or likelihood loss: [P, G] → [P] bool."""
        spread = advantage.has_spread(utilities)
        return spread if self.spec.skip_zero_spread_groups else torch.ones_like(spread)

    def _policy_scores(self, logps: Tensor, batch: Batch) -> Tensor:
        per_token = self.spec.policy_loss == "likelihood" or self.spec.length_normalize_policy
        return sequence_scores(logps, batch.completion_mask, batch.group_size, per_token)

    def _reference_scores(self, batch: Batch) -> Tensor | None:
        if batch.reference_logps is None:
            return None
        return sequence_scores(
            batch.reference_logps, batch.completion_mask, batch.group_size, self.spec.length_normalize_ref
        )

    def _policy_loss(
        self, forward: Forward, batch: Batch, signal: Signal, denominators: Denominators
    ) -> tuple[Tensor, Metrics]:
        if signal.weights is None or self.spec.policy_loss == "tilted":
            return self._clipped_loss(forward, batch, signal, denominators)
        return self._group_loss(forward, batch, signal.weights, denominators), {}

    def _clipped_loss(
        self, forward: Forward, batch: Batch, signal: Signal, denominators: Denominators
    ) -> tuple[Tensor, Metrics]:
        spec, mask = self.spec, batch.completion_mask
        old_logps = forward.logps.detach() if batch.old_logps is None else batch.old_logps
        ratio = surrogates.ratio(forward.logps, old_logps, mask, spec.importance_sampling_level)
        advantages = signal.advantages.flatten()
        low, high = spec.clip_range
        per_token = surrogates.clipped(ratio, advantages, low, high, spec.delta)
        metrics = ratio_metrics(ratio, surrogates.clip_events(ratio, advantages, low, high), mask)
        if spec.tis_cap is not None:
            factors = truncated_importance(old_logps, batch.behaviour_logps, mask, spec.tis_cap)
            per_token = per_token * factors
            metrics |= correction_metrics(factors, spec.tis_cap, mask)
        return REDUCTIONS[spec.loss_type](per_token, mask, denominators), metrics

    def _group_loss(
        self, forward: Forward, batch: Batch, weights: Tensor, denominators: Denominators
    ) -> Tensor:
        """``listwise`` or ``likelihood``, on the scale of a policy gradient whose advantages are G·(w_i − …).

        Dividing by groups is dividing weights that sum to G by completions, so that gradients compare with
        those of the surrogate: under its ``grpo`` reduction where scores are means over tokens, and under
        ``dr_grpo`` where they are sums, hence divided by the longest length as there.
        """
        scores = self._policy_scores(forward.logps, batch)
        if self.spec.policy_loss == "likelihood":
            per_group, divisor = surrogates.weighted_likelihood(scores, weights), denominators.groups
        else:
            per_group = surrogates.listwise(scores, weights)
            per_token = self.spec.length_normalize_policy
            divisor = denominators.groups * (1 if per_token else denominators.max_length)
        return torch.where(self._taught(batch.utilities), per_group, 0.0).sum() / divisor

    def _reference_term(
        self, forward: Forward, batch: Batch, knobs: Knobs, denominators: Denominators
    ) -> tuple[Tensor, Metrics]:
        """β·KL to the reference, and the KL as measured wherever the reference was scored."""
        spec, mask = self.spec, batch.completion_mask
        weighted_kl = forward.logps.new_zeros(())
        in_loss = spec.kl_in_loss and knobs.beta > 0
        if batch.reference_logps is None:
            if in_loss:
                raise ValueError(
                    f"beta={knobs.beta} adds a KL to the loss, and the batch has no reference_logps"
                )
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

    def _behaviour_term(
        self, forward: Forward, batch: Batch, denominators: Denominators
    ) -> tuple[Tensor, Metrics]:
        """The penalty on leaving the policy that sampled, and its KL as measured in any case."""
        spec, mask = self.spec, batch.completion_mask
        in_loss = spec.behaviour_kl_coef != 0.0
        logps = forward.logps if in_loss else forward.logps.detach()
        kl = kl_estimate(logps, batch.behaviour_logps, mask, spec.behaviour_kl_estimator)
        metrics = {"behaviour_kl": mean_stat(kl, mask)}
        if not in_loss:
            return logps.new_zeros(()), metrics
        penalty = spec.behaviour_kl_coef * REDUCTIONS[spec.loss_type](kl, mask, denominators)
        return penalty, metrics | {"loss/behaviour_kl": sum_stat(penalty)}

    def _entropy_term(
        self, forward: Forward, batch: Batch, denominators: Denominators
    ) -> tuple[Tensor, Metrics]:
        """Minus the entropy bonus, and the entropy as measured wherever the forward computed it."""
        bonus = forward.logps.new_zeros(())
        if forward.entropy is None:
            if self.spec.needs_entropy:
                raise ValueError(
                    f"entropy_coef={self.spec.entropy_coef} needs Forward.entropy, and it is None"
                )
            return bonus, {}
        metrics = {"entropy": mean_stat(forward.entropy, batch.completion_mask)}
        if not self.spec.needs_entropy:
            return bonus, metrics
        bonus = self.spec.entropy_coef * entropy_bonus(forward.entropy, batch.completion_mask, denominators)
        return -bonus, metrics | {"loss/entropy": sum_stat(-bonus)}


CATALOG: dict[str, ObjectiveSpec] = {
    # GRPO: Shao et al. 2024 (DeepSeekMath). Token ratio, deviation of the group, mean per completion.
    "grpo": ObjectiveSpec(),
    # The same with every token of the batch weighing the same, under TRL's name.
    "bnpo": ObjectiveSpec(loss_type="bnpo"),
    # Dr. GRPO: Liu et al. 2025 (Understanding R1-Zero-like training). No standard deviation, constant length.
    "dr_grpo": ObjectiveSpec(scale_rewards="none", loss_type="dr_grpo"),
    # DAPO: Yu et al. 2025. Token mean over the batch and clip-higher.
    "dapo": ObjectiveSpec(loss_type="dapo", epsilon=0.2, epsilon_high=0.28),
    # GSPO: Zheng et al. 2025. Ratio per completion, with the paper's clip range, which suits that ratio.
    "gspo": ObjectiveSpec(importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4),
    # MaxEnt-GRPO, listwise: the policy's softmax within the group is moved to the closed-form weights.
    "maxent": ObjectiveSpec(policy_loss="listwise", loss_type="dr_grpo", kl_in_loss=False),
    # MaxEnt-GRPO, likelihood: completions are made likelier in proportion to w − 1/G.
    "maxent_likelihood": ObjectiveSpec(policy_loss="likelihood", kl_in_loss=False),
    # Tilted Dr. GRPO: completions with a larger advantage weigh more in the policy gradient.
    "tilted": ObjectiveSpec(
        policy_loss="tilted",
        scale_rewards="none",
        loss_type="dr_grpo",
        kl_in_loss=False,
        length_normalize_ref=True,
    ),
}
"""Name → objective. A new objective is a function in its room and an entry here."""
