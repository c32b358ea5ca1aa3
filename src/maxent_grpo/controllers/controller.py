"""The controllers together: what a step measured goes in, the knobs of the next step come out.

Everything is computed from global measurements (all micro-batches, all ranks): ranks agree by construction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from maxent_grpo.controllers.feedback import (
    EntropyState,
    applied_coef,
    entropy_target,
    next_beta,
    next_ema,
    next_entropy_state,
    next_tau,
)
from maxent_grpo.controllers.meta import Potential, WeightsOf, meta_update
from maxent_grpo.controllers.settings import ControllerSettings
from maxent_grpo.controllers.state import ControllerState, from_json, from_numbers, to_json, to_numbers
from maxent_grpo.types import Knobs


@dataclass(frozen=True)
class Measurement:
    """What one optimiser step tells the controllers: means over all groups of all ranks."""

    step: int
    """Optimiser steps completed, this one included."""
    kl: float | None
    """Nats; None where the step measured none."""
    weight_entropy: float | None
    """Of what τ tempers, in nats: the candidate weights, or the verified answers under mode entropy; None where the
    objective has neither, or no group tells."""
    lr_scale: float
    """Learning rate now / base learning rate."""
    weights: WeightsOf | None = None
    """Of the step's groups, captured tensors made outside inference mode."""
    entropy: float | None = None
    """Mean token entropy of the policy, nats; None where the step measured none."""

    def without_non_finite(self) -> tuple["Measurement", int]:
        """The measurement with None for what is NaN or infinite, and how often that was."""
        values = {"kl": self.kl, "weight_entropy": self.weight_entropy, "entropy": self.entropy}
        lost = [name for name, value in values.items() if value is not None and not math.isfinite(value)]
        return replace(self, **dict.fromkeys(lost)), len(lost)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Controllers:
    """τ, β and what adapts them. Immutable: `update` returns the controllers of the next step."""

    settings: ControllerSettings
    state: ControllerState = field(repr=False)

    @classmethod
    def start(cls, settings: ControllerSettings) -> "Controllers":
        entropy = EntropyState(settings.entropy.coef) if settings.entropy.enabled else None
        return cls(settings, ControllerState(tau=settings.tau, beta=settings.beta, entropy=entropy))

    def knobs(self) -> Knobs:
        """τ, β and the entropy coefficient for the next step."""
        entropy = self.state.entropy
        coef = None if entropy is None else applied_coef(entropy, self.settings.entropy)
        return Knobs(tau=self.state.tau, beta=self.state.beta, entropy_coef=coef)

    def needs_weights(self, step: int) -> bool:
        """Whether the update after ``step`` differentiates the weights of an objective that has them."""
        meta = self.settings.meta
        by_gradient = meta.enabled and meta.method != "analytic" and self.settings.targets_entropy
        return by_gradient and step % meta.update_interval == 0

    def update(self, measurement: Measurement) -> tuple["Controllers", dict[str, float]]:
        """The controllers after a step that used `knobs`, and its metrics, named without ``train/``.

        A measurement that is not finite counts as not made: what depends on it stays as it is. Raises
        ``ValueError`` where `needs_weights` and an entropy comes without the weights behind it.
        """
        seen, skipped = measurement.without_non_finite()
        state = self.state
        if seen.weight_entropy is not None:
            state = replace(state, entropy_ema=next_ema(state.entropy_ema, seen.weight_entropy))
        if state.entropy is not None:
            entropy = next_entropy_state(state.entropy, seen.entropy, seen.kl, self.settings.entropy)
            state = replace(state, entropy=entropy)
        metrics: dict[str, float] = {}
        if self.settings.meta.enabled:
            state, metrics, meta_skipped = self._meta_updated(state, seen)
            skipped += meta_skipped
        else:
            state = self._fed_back(state, seen)
        metrics |= self._metrics(state, seen) | {"controller/skipped": float(skipped)}
        return replace(self, state=state), metrics

    def _fed_back(self, state: ControllerState, seen: Measurement) -> ControllerState:
        """The β and τ feedback controllers, each where it is active."""
        s = self.settings
        if s.adapts_beta and seen.kl is not None:
            beta = next_beta(state.beta, seen.kl, s.kl_target, s.kl_horizon, s.kl_ctl_step_size)
            state = replace(state, beta=beta)
        target = entropy_target(s, seen.step)
        due = seen.step > max(0, s.tau_warmup) and seen.weight_entropy is not None
        if due and target is not None and state.entropy_ema is not None and state.tau_log is not None:
            rate = s.tau_lr * seen.lr_scale
            tau, tau_log = next_tau(state.tau_log, state.entropy_ema, target, rate, s.tau_lower, s.tau_upper)
            state = replace(state, tau=tau, tau_log=tau_log)
        return state

    def _meta_updated(
        self, state: ControllerState, seen: Measurement
    ) -> tuple[ControllerState, dict[str, float], int]:
        """The state after the meta-controller, its metrics, and how many gradients were not finite."""
        meta = self.settings.meta
        metrics = {
            "meta/lr": meta.lr,
            "meta/update_interval": float(meta.update_interval),
            "meta/truncation_steps": float(meta.truncation_steps),
            "meta/use_hessian": float(meta.use_hessian),
        }
        if seen.step % meta.update_interval:
            return state, metrics, 0
        potential = self._potential(seen)
        if not (potential.has_entropy or potential.has_kl):
            return state, metrics, 0
        move = meta_update(potential, state.meta, self.settings, seen.lr_scale)
        if move is None:
            return state, metrics, 1
        metrics |= {
            "meta/loss": move.start.potential,
            "meta/tau_grad": move.start.tau,
            "meta/beta_grad": move.start.beta,
            "meta/grad_norm": math.hypot(move.start.tau, move.start.beta),
            "meta/tau_projected": float(move.tau_projected),
            "meta/beta_projected": float(move.beta_projected),
        }
        return state.moved(move.tau, move.beta, move.state), metrics, 0

    def _potential(self, seen: Measurement) -> Potential:
        weights = None
        if self.needs_weights(seen.step) and seen.weight_entropy is not None:
            if seen.weights is None:
                raise ValueError(
                    f"meta.method {self.settings.meta.method} differentiates the weights, but the measurement"
                    " has none: pass Measurement.weights, or choose analytic"
                )
            weights = seen.weights
        return Potential(
            tau=self.state.tau,
            beta=self.state.beta,
            entropy=seen.weight_entropy,
            target_entropy=entropy_target(self.settings, seen.step),
            kl=seen.kl,
            target_kl=self.settings.kl_target if self.settings.kl_target > 0 else None,
            weights=weights,
        )

    def _metrics(self, after: ControllerState, seen: Measurement) -> dict[str, float]:
        s, before = self.settings, self.state
        metrics = {
            "tau": before.tau,
            "beta": before.beta,
            "delta_tau": after.tau - before.tau,
            "delta_beta": after.beta - before.beta,
            "kl_controller/enabled": float(s.adapts_beta),
            "meta/enabled": float(s.meta.enabled),
        }
        coef = self.knobs().entropy_coef
        if coef is not None:
            metrics["entropy_coef"] = coef
        if before.tau_log is not None:
            metrics["tau_log"] = before.tau_log
        if after.entropy_ema is not None:
            metrics["weight_entropy_ema"] = after.entropy_ema
        target = entropy_target(s, seen.step)
        if target is not None:
            metrics["tau_target_entropy"] = target
            if seen.weight_entropy is not None:
                metrics["weight_entropy_error"] = seen.weight_entropy - target
        if s.kl_target > 0 and seen.kl is not None:
            metrics["kl_error_to_target"] = seen.kl - s.kl_target
            metrics["kl_ratio_to_target"] = seen.kl / s.kl_target
        if s.adapts_beta:
            metrics["kl_controller/target"] = s.kl_target
            metrics["kl_controller/horizon"] = s.kl_horizon
            metrics["kl_controller/step_size"] = s.kl_ctl_step_size
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The state as plain JSON, with the meta-controller's settings and memory where it is enabled."""
        return to_json(self.state, self.settings.meta)

    def load_state_dict(self, state: dict[str, Any], source: str = "controller state") -> "Controllers":
        """These controllers with a saved state; ``source`` names its file in errors.

        With the meta-controller enabled here and in ``state``, its settings come from ``state`` too, so that
        a resumed run goes on as it was. Raises `UsageError` naming the key that is missing or unusable.
        """
        loaded, meta = from_json(state, self.settings, source)
        return Controllers(replace(self.settings, meta=meta), loaded)

    def as_vector(self) -> list[float]:
        """The state as finite numbers, always as many: to broadcast, or to compare ranks with ``==``."""
        return to_numbers(self.state)

    def from_vector(self, vector: Sequence[float]) -> "Controllers":
        """These settings with the state that `as_vector` gave."""
        return replace(self, state=from_numbers(vector))
