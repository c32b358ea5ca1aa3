"""The τ controller: integral feedback on the entropy of the candidate weights, in log τ."""

import math

from maxent_grpo.controllers.settings import ControllerSettings

EMA_DECAY = 0.9
LARGEST_LOG_TAU = 700.0  # exp() overflows a little above


def entropy_target(settings: ControllerSettings, step: int) -> float | None:
    """H* (nats) at ``step`` (optimiser steps completed), None where there is no target.

    With a start or a final value the target moves linearly over the horizon, reaches the final value at
    ``step = horizon`` and stays there; a missing end is the base target. Horizon 0: the final value at once.
    """
    base = settings.target_weight_entropy
    start = settings.target_weight_entropy_start
    final = settings.target_weight_entropy_final
    start = base if start is None else start
    final = base if final is None else final
    if start is None or final is None:
        return None
    horizon = settings.target_weight_entropy_horizon
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
