"""An objective at work: the two calls that a training step makes.

A step calls `Objective.signal` once per batch, over whole groups and without gradient, and `Objective.loss` once per
micro-batch. Losses add up over micro-batches and ranks because every denominator is global.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maxent_grpo.objectives import advantages as advantage
from maxent_grpo.objectives import flow, selection, semantic, shaping, surrogates
from maxent_grpo.objectives.corrections import importance_ratios, truncated_importance
from maxent_grpo.objectives.infoseed import seed_term
from maxent_grpo.objectives.metrics import (
    correction_metrics,
    ratio_metrics,
    seed_metrics,
    sum_stat,
    utility_metrics,
    weight_metrics,
)
from maxent_grpo.objectives.reduce import REDUCTIONS, log_ratio, row_sums
from maxent_grpo.objectives.regularizers import entropy_bonus, kl_estimate
from maxent_grpo.objectives.spec import GROUP_LOSSES, ObjectiveSpec
from maxent_grpo.objectives.surrogates import ClipEvents
from maxent_grpo.objectives.weights import (
    closed_form_weights,
    mode_adaptive_factor,
    sequence_scores,
    target_log_q,
    tilted_weights,
)
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
        utilities = self._shaped_utilities(batch, knobs.beta)
        if spec.shapes_utilities:
            metrics["reward_shaped"] = mean_stat(utilities)
        if spec.policy_loss in ("listwise", "likelihood"):
            signal, more = self._weighted_signal(utilities, batch, knobs)
            return signal, metrics | more
        advantages = self._advantages(utilities, utility_std)
        if spec.policy_loss == "tilted":
            signal, more = self._tilted_signal(advantages, batch, knobs)
            return signal, metrics | more
        if spec.policy_loss == "flow":
            return self._flow_signal(advantages, batch), metrics
        if spec.seed_grpo_enabled:
            scale, more = self._seed_scale(batch)
            return Signal(advantages * scale.unsqueeze(1)), metrics | more
        return Signal(advantages), metrics

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
        policy, metrics = self._policy_loss(forward, batch, signal, denominators)
        metrics |= {"loss/policy": sum_stat(policy)}
        loss = policy
        for term, more in (
            self._reference_term(forward, batch, knobs, denominators),
            self._behaviour_term(forward, batch, denominators),
            self._entropy_term(forward, batch, knobs, denominators),
            self._kl_cov_term(forward, batch, signal, denominators),
            self._seed_term(forward, batch, signal, denominators),
        ):
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
            return self._taught(signal.log_q)
        return (signal.advantages != 0).any(dim=1)

    # What a step learns from

    def _shaped_utilities(self, batch: Batch, beta: float) -> Tensor:
        """The utilities [P, G] with every shaping that the spec asks for."""
        spec, utilities, mask = self.spec, batch.utilities, batch.completion_mask
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
                raise ValueError(
                    f"beta={beta} takes a KL from the rewards, and the batch has no reference_logps"
                )
            utilities = shaping.kl_penalised(
                utilities, batch.behaviour_logps, batch.reference_logps, mask, beta
            )
        return utilities

    def _advantages(self, utilities: Tensor, utility_std: Tensor | None) -> Tensor:
        """Advantages [P, G] of the chosen kind and scale, exactly 0 in groups without spread."""
        spec = self.spec
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

    def _seed_scale(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """SEED-GRPO's factor of each group [P]."""
        spec = self.spec
        if batch.answer_clusters is None:
            raise ValueError("seed_grpo_enabled needs Batch.answer_clusters, and it is None")
        per_token = spec.seed_grpo_length_normalize_logprobs
        scores = sequence_scores(batch.behaviour_logps, batch.completion_mask, batch.group_size, per_token)
        entropy = semantic.semantic_entropy(batch.answer_clusters, scores)
        alpha = semantic.effective_alpha(
            spec.seed_grpo_alpha, batch.group_size, spec.seed_grpo_alpha_normalize_by_max_entropy
        )
        scale = semantic.seed_scale(entropy, alpha)
        return scale, seed_metrics(entropy, scale, alpha, batch.group_size)

    def _tilted_signal(self, advantages: Tensor, batch: Batch, knobs: Knobs) -> tuple[Signal, Metrics]:
        reference = self._reference_scores(batch)
        tilt = self._tilted_utility(advantages, batch)
        factor = None
        if self.spec.mode_adaptive_tau:
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

    def _weighted_signal(self, utilities: Tensor, batch: Batch, knobs: Knobs) -> tuple[Signal, Metrics]:
        """The signal of ``listwise`` and ``likelihood``."""
        spec, reference = self.spec, self._reference_scores(batch)
        log_q = target_log_q(utilities, spec.q_temperature, spec.q_epsilon)
        weights = closed_form_weights(log_q, reference, knobs.tau, knobs.beta, spec.weight_denominator)
        if spec.policy_loss == "likelihood":
            advantages = advantage.likelihood(weights)
        else:
            advantages = advantage.listwise(weights, self._policy_scores(batch.behaviour_logps, batch))
        advantages = torch.where(self._taught(log_q).unsqueeze(1), advantages, 0.0)
        denominator = knobs.tau + (knobs.beta if spec.weight_denominator == "tau_plus_beta" else 0.0)
        return Signal(advantages, weights, log_q, reference), weight_metrics(weights, log_q, denominator)

    def _flow_signal(self, advantages: Tensor, batch: Batch) -> Signal:
        log_target = self.spec.flow_reward_scale * advantages
        reference = self._reference_scores(batch)
        if reference is None:
            raise ValueError(
                "policy_loss=flow matches rewards times the reference: the batch has no reference_logps"
            )
        scores = self._policy_scores(batch.behaviour_logps, batch)
        first_order = flow.flow_advantages(scores, log_target, reference)
        taught = self._taught(log_target).unsqueeze(1)
        return Signal(torch.where(taught, first_order, 0.0), None, log_target, reference)

    def _tilted_utility(self, advantages: Tensor, batch: Batch) -> Tensor:
        if self.spec.tilted_utility == "length_free":
            return advantages
        longest = self.spec.max_completion_length
        assert longest is not None, "ObjectiveSpec refuses this"
        return advantages * batch.lengths.view_as(advantages) / longest

    def _taught(self, log_q: Tensor) -> Tensor:
        """Which groups have a listwise, likelihood or flow loss: those whose target has spread. [P, G] → [P] bool."""
        spread = advantage.has_spread(log_q)
        return spread if self.spec.skip_zero_spread_groups else torch.ones_like(spread)

    def _policy_scores(self, logps: Tensor, batch: Batch) -> Tensor:
        per_token = self.spec.policy_loss in ("likelihood", "flow") or self.spec.length_normalize_policy
        return sequence_scores(logps, batch.completion_mask, batch.group_size, per_token)

    def _reference_scores(self, batch: Batch) -> Tensor | None:
        if batch.reference_logps is None:
            return None
        per_token = self.spec.policy_loss == "flow" or self.spec.length_normalize_ref
        return sequence_scores(batch.reference_logps, batch.completion_mask, batch.group_size, per_token)

    # The policy term

    def _policy_loss(
        self, forward: Forward, batch: Batch, signal: Signal, denominators: Denominators
    ) -> tuple[Tensor, Metrics]:
        if self.spec.policy_loss in GROUP_LOSSES:
            return self._group_loss(forward, batch, signal, denominators), {}
        return self._surrogate_loss(forward, batch, signal, denominators)

    def _surrogate_loss(
        self, forward: Forward, batch: Batch, signal: Signal, denominators: Denominators
    ) -> tuple[Tensor, Metrics]:
        spec, mask = self.spec, batch.completion_mask
        old_logps = _old_logps(forward, batch)
        ratio = surrogates.ratio(forward.logps, old_logps, mask, spec.importance_sampling_level)
        advantages = signal.advantages.flatten()
        events = self._clip_events(ratio, advantages)
        metrics = ratio_metrics(ratio, events, mask)
        per_token = self._per_token_loss(ratio, forward, batch, advantages)
        kept, more = self._kept_tokens(forward, batch, advantages, events)
        metrics |= more
        if kept is not None:
            per_token = torch.where(kept, per_token, 0.0)
        if spec.tis_cap is not None:
            ratios = importance_ratios(old_logps, batch.behaviour_logps, mask, spec.tis_level)
            metrics |= correction_metrics(ratios, spec.tis_cap, mask)
            if spec.surrogate_kind != "vespo":  # which has them in its weight already
                per_token = per_token * ratios.clamp(max=spec.tis_cap)
        return REDUCTIONS[spec.loss_type](per_token, mask, denominators), metrics

    def _per_token_loss(self, ratio: Tensor, forward: Forward, batch: Batch, advantages: Tensor) -> Tensor:
        """The surrogate's loss, [B, T] or [B, 1]."""
        spec, logps = self.spec, forward.logps
        low, high = spec.clip_range
        match spec.surrogate_kind:
            case "clip":
                return surrogates.clipped(ratio, advantages, low, high, spec.delta)
            case "unclipped":
                return surrogates.unclipped(ratio, advantages)
            case "cispo":
                return surrogates.cispo(ratio, logps, advantages, high)
            case "sapo":
                temperatures = spec.sapo_temperature_pos, spec.sapo_temperature_neg
                return surrogates.sapo(ratio, advantages, *temperatures)
            case "vespo":
                return surrogates.vespo(self._vespo_weights(forward, batch, advantages), logps, advantages)
            case function:
                return function(ratio, advantages)

    def _vespo_weights(self, forward: Forward, batch: Batch, advantages: Tensor) -> Tensor:
        spec, mask, old_logps = self.spec, batch.completion_mask, _old_logps(forward, batch)
        per_token = log_ratio(forward.logps, old_logps, mask).detach().clamp(-20.0, 20.0)
        if spec.tis_cap is not None:
            factors = truncated_importance(old_logps, batch.behaviour_logps, mask, spec.tis_cap)
            per_token = per_token + factors.log().clamp(*surrogates.LOG_WEIGHT_RANGE)
        pos, neg = (spec.vespo_k_pos, spec.vespo_lambda_pos), (spec.vespo_k_neg, spec.vespo_lambda_neg)
        return surrogates.vespo_weights(row_sums(per_token, mask), advantages, pos, neg)

    def _clip_events(self, ratio: Tensor, advantages: Tensor) -> ClipEvents:
        """Where the surrogate's clip acts; nowhere for surrogates without one."""
        low, high = self.spec.clip_range
        match self.spec.surrogate_kind:
            case "clip":
                return surrogates.clip_events(ratio, advantages, low, high)
            case "cispo":
                return surrogates.clip_events(ratio, advantages, math.inf, high - 1.0)
            case _:
                return surrogates.clip_events(ratio, advantages, math.inf, math.inf)

    def _kept_tokens(
        self, forward: Forward, batch: Batch, advantages: Tensor, events: ClipEvents
    ) -> tuple[Tensor | None, Metrics]:
        """The tokens that carry policy gradient, [B, T] bool; None: all of them."""
        spec, mask, size = self.spec, batch.completion_mask, batch.group_size
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

    def _group_loss(
        self, forward: Forward, batch: Batch, signal: Signal, denominators: Denominators
    ) -> Tensor:
        """``listwise``, ``likelihood`` or ``flow``, on the scale of a policy gradient whose advantages are G·(w_i − …).

        Dividing by groups is dividing weights that sum to G by completions, so that gradients compare with
        those of the surrogate: under its ``grpo`` reduction where scores are means over tokens, and under
        ``dr_grpo`` where they are sums, hence divided by the longest length as there.
        """
        spec = self.spec
        scores = self._policy_scores(forward.logps, batch)
        assert signal.log_q is not None, "signal gives every group loss a target"
        if spec.policy_loss == "flow":
            assert signal.reference_scores is not None, "signal refuses this"
            old_logps = _old_logps(forward, batch)
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
        return torch.where(self._taught(signal.log_q), per_group, 0.0).sum() / divisor

    # Regularisers

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
        self, forward: Forward, batch: Batch, knobs: Knobs, denominators: Denominators
    ) -> tuple[Tensor, Metrics]:
        """Minus the entropy bonus, and the entropy as measured wherever the forward computed it."""
        coefficient = self.spec.entropy_coef if knobs.entropy_coef is None else knobs.entropy_coef
        bonus = forward.logps.new_zeros(())
        if forward.entropy is None:
            if self.spec.needs_entropy:
                raise ValueError(f"entropy_coef={coefficient} needs Forward.entropy, and it is None")
            return bonus, {}
        metrics = {"entropy": mean_stat(forward.entropy, batch.completion_mask)}
        if not self.spec.needs_entropy:
            return bonus, metrics
        bonus = coefficient * entropy_bonus(forward.entropy, batch.completion_mask, denominators)
        return -bonus, metrics | {"loss/entropy": sum_stat(-bonus)}

    def _kl_cov_term(
        self, forward: Forward, batch: Batch, signal: Signal, denominators: Denominators
    ) -> tuple[Tensor, Metrics]:
        """KL-Cov's |log π/π_old| on the tokens whose covariance is largest."""
        spec, mask = self.spec, batch.completion_mask
        if spec.kl_cov_fraction == 0:
            return forward.logps.new_zeros(()), {}
        cov = selection.covariance(signal.advantages.flatten(), forward.logps, mask, batch.group_size)
        held = selection.kl_cov(cov, mask, batch.group_size, spec.kl_cov_fraction)
        distance = log_ratio(forward.logps, _old_logps(forward, batch), mask).abs()
        penalty = REDUCTIONS[spec.loss_type](torch.where(held, distance, 0.0), mask, denominators)
        penalty = spec.kl_cov_coef * penalty
        return penalty, {"loss/kl_cov": sum_stat(penalty), "kl_cov/held": mean_stat(held.float(), mask)}

    def _seed_term(
        self, forward: Forward, batch: Batch, signal: Signal, denominators: Denominators
    ) -> tuple[Tensor, Metrics]:
        """What InfoSeed adds."""
        if self.spec.info_seed is None:
            return forward.logps.new_zeros(()), {}
        return seed_term(self.spec.info_seed, forward, batch, signal, denominators)


def _old_logps(forward: Forward, batch: Batch) -> Tensor:
    """Log-probs [B, T] at the start of the rollout's updates: on-policy, the forward's own."""
    return forward.logps.detach() if batch.old_logps is None else batch.old_logps
