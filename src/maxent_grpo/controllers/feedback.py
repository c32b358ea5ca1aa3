"""The feedback controllers: β follows the KL to the reference, τ the entropy of the weights, the coefficient of the
token-entropy bonus the entropy of the policy. Pure functions of plain floats."""

import math
from dataclasses import dataclass

from maxent_grpo.controllers.settings import ControllerSettings, EntropySettings

NEGLIGIBLE_ERROR = 1e-8
SMALLEST_BETA_FACTOR = 1e-6
EMA_DECAY = 0.9
LARGEST_LOG_TAU = 700.0
"""exp() overflows a little above."""
KL_FACTORS = (0.5, 2.0)
"""Range of what the KL multiplies the entropy coefficient by."""


def next_beta(beta: float, kl: float, target: float, horizon: float, step_size: float) -> float:
    """β after an optimiser step whose KL was ``kl``: β·(1 + e/horizon), e = clip(kl/target − 1, ±step_size).

    The multiplicative controller of Ziegler et al. 2019 (arXiv:1909.08593), with the clip as a parameter.
    More KL than ``target`` raises β. ``target`` and ``horizon`` must be positive; β = 0 is a fixed point.
    """
    error = min(max(kl / target - 1.0, -step_size), step_size)
    if abs(error) < NEGLIGIBLE_ERROR:
        return beta
    return beta * max(1.0 + error / horizon, SMALLEST_BETA_FACTOR)


def entropy_target(settings: ControllerSettings, step: int) -> float | None:
    """H* (nats) at ``step`` (optimiser steps completed), None where there is no target. See `annealed`."""
    return annealed(
        settings.target_weight_entropy,
        settings.target_weight_entropy_start,
        settings.target_weight_entropy_final,
        settings.target_weight_entropy_horizon,
        step,
    )


def annealed(
    base: float | None, start: float | None, final: float | None, horizon: int, step: int
) -> float | None:
    """A target at ``step``; None where there is none.

    With a start or a final value it moves linearly over the horizon, reaches the final value at ``step = horizon`` and
    stays there; a missing end is ``base``. Horizon 0: the final value at once.
    """
    start = base if start is None else start
    final = base if final is None else final
    if start is None or final is None:
        return None
    done = min(step / horizon, 1.0) if horizon > 0 else 1.0
    return start + (final - start) * done


def next_ema(ema: float | None, entropy: float) -> float:
    """Exponential moving average of the entropy; the first measured entropy starts it."""
    return entropy if ema is None else EMA_DECAY * ema + (1.0 - EMA_DECAY) * entropy


def next_tau(
    tau_log: float, ema: float, target: float, rate: float, lower: float, upper: float
) -> tuple[float, float]:
    """(τ, log τ) after log τ ← log τ + rate·(target − ema), τ within [``lower``, ``upper``].

    The entropy of w grows with τ, so too little entropy raises τ. Where a bound was active log τ is the
    bound's: the controller does not wind up behind it. ``lower`` must be positive.
    """
    tau_log = min(tau_log + rate * (target - ema), LARGEST_LOG_TAU)
    tau = math.exp(tau_log)
    bounded = min(max(tau, lower), upper)
    return bounded, tau_log if bounded == tau else math.log(bounded)


@dataclass(frozen=True)
class EntropyState:
    """The state of the entropy coefficient."""

    coef: float
    entropy: float | None = None
    """Of the last step, nats; None before the first."""
    kl: float | None = None
    """Of the last step, nats."""


def next_coef(coef: float, entropy: float, settings: EntropySettings) -> float:
    """One step of ``coef_delta`` up where the entropy is at or below its target, else down, within the bounds.

    Skywork-OR1 (He et al. 2025, arXiv 2505.22312, section 4), as TRL has it.
    """
    if entropy <= settings.target:
        return min(coef + settings.coef_delta, settings.coef_max)
    return max(coef - settings.coef_delta, settings.coef_min)


def kl_factor(kl: float, settings: EntropySettings) -> float:
    """What the KL from the reference multiplies the coefficient by: 1 at the threshold, within [½, 2].

    Below the threshold t ``1 + gain·(t − KL)/t``, above it ``1 / (1 + gain·(KL − t)/t)``, or 0 in a trust zone.
    """
    threshold = settings.kl_threshold
    if threshold is None:
        return 1.0
    if kl <= threshold:
        return min(1.0 + settings.kl_gain * (threshold - kl) / threshold, KL_FACTORS[1])
    if settings.kl_trust_zone:
        return 0.0
    return max(1.0 / (1.0 + settings.kl_gain * (kl - threshold) / threshold), KL_FACTORS[0])


def applied_coef(state: EntropyState, settings: EntropySettings) -> float:
    """The coefficient for the next step.

    An adaptive one acts only after a step whose entropy was at or below the target, so never in the first.
    """
    reached = state.entropy is not None and state.entropy <= settings.target
    coef = state.coef if reached or not settings.adaptive else 0.0
    return coef if state.kl is None else coef * kl_factor(state.kl, settings)


def next_entropy_state(
    state: EntropyState, entropy: float | None, kl: float | None, settings: EntropySettings
) -> EntropyState:
    """The state after a step that measured ``entropy`` and ``kl``; what was not measured stays."""
    coef = state.coef
    if settings.adaptive and entropy is not None:
        coef = next_coef(coef, entropy, settings)
    return EntropyState(coef, state.entropy if entropy is None else entropy, state.kl if kl is None else kl)
