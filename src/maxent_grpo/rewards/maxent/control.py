"""The controllers on a `WeightingSettings`, which they move in place."""

import logging
import math
from pathlib import Path
from typing import Any

import torch

from maxent_grpo.controllers.feedback import next_beta, next_ema, next_tau
from maxent_grpo.controllers.settings import METHOD_ALIASES, SMALLEST_TAU
from maxent_grpo.controllers.state import META_VERSION, read_state, write_state
from maxent_grpo.errors import UsageError
from maxent_grpo.rewards.maxent.settings import (
    ControllerMetaSettings,
    WeightingConfigLike,
    WeightingSettings,
    set_knobs,
)
from maxent_grpo.rewards.maxent.weights import WeightLoggingView, WeightStats

logger = logging.getLogger(__name__)

_META_KEYS = (
    "enabled",
    "method",
    "learning_rate",
    "tau_learning_rate",
    "beta_learning_rate",
    "beta_grad_clip",
    "update_interval",
    "objective",
    "analytic_steps",
    "optimizer",
    "truncation_steps",
    "use_hessian",
    "last_tau_grad",
    "last_beta_grad",
)


def maybe_update_beta(weighting_cfg: WeightingSettings, measured_kl: float) -> None:
    """Move β towards the KL target, where the β controller is on and the KL a finite number."""
    cfg = weighting_cfg
    on = (
        cfg.kl_target > 0
        and cfg.kl_horizon > 0
        and cfg.kl_ctl_step_size > 0
        and not cfg.controller_meta.enabled
    )
    if on and math.isfinite(measured_kl):
        beta = next_beta(cfg.beta, measured_kl, cfg.kl_target, cfg.kl_horizon, cfg.kl_ctl_step_size)
        set_knobs(cfg, beta=beta)


def maybe_update_tau(
    weighting_cfg: WeightingSettings,
    weight_stats: WeightStats | WeightLoggingView | None,
    global_step: int,
    lr_scale: float | None = None,
) -> None:
    """Move τ towards the step's entropy target, where there is one and the warm-up is over.

    The entropy is averaged with decay 0.9, warm-up included, and the first one starts the average.
    """
    cfg = weighting_cfg
    target = cfg.tau_schedule.target_at(global_step)
    if weight_stats is None or target is None or cfg.controller_meta.enabled:
        return
    entropy = (
        weight_stats.entropy if isinstance(weight_stats, WeightLoggingView) else weight_stats.weight_entropy
    )
    if not math.isfinite(entropy):
        return
    cfg.tau_entropy_ema = next_ema(cfg.tau_entropy_ema, entropy)
    if global_step <= max(0, cfg.tau_warmup_steps):
        return
    log_tau = cfg.tau_log if cfg.tau_log is not None else math.log(max(cfg.tau, SMALLEST_TAU))
    rate = cfg.tau_lr * (1.0 if lr_scale is None else lr_scale)
    upper = cfg.tau_max if cfg.tau_max > 0 else math.inf
    tau, _ = next_tau(log_tau, cfg.tau_entropy_ema, target, rate, max(cfg.tau_min, SMALLEST_TAU), upper)
    set_knobs(cfg, tau=tau)


def apply_meta_controller_update(
    weighting_cfg: WeightingSettings,
    *,
    tau_grad: float | None = None,
    beta_grad: float | None = None,
    lr_scale: float = 1.0,
) -> bool:
    """Take one analytic meta-step: τ down its gradient, within its bounds; β up the clipped one, not below 0.

    Returns:
        Whether τ or β changed. False where the meta-controller is off or of another method, whose gradients come from
        the weights themselves (`maxent_grpo.controllers.meta`).
    """
    cfg, meta = weighting_cfg, weighting_cfg.controller_meta
    if not meta.enabled or METHOD_ALIASES.get(meta.method, meta.method) != "analytic":
        return False
    before = (cfg.tau, cfg.beta)
    if tau_grad is not None and math.isfinite(tau_grad):
        meta.last_tau_grad = float(tau_grad)
        rate = (meta.tau_learning_rate or meta.learning_rate) * lr_scale
        upper = cfg.tau_max if cfg.tau_max > 0 else math.inf
        set_knobs(cfg, tau=min(max(cfg.tau - rate * tau_grad, cfg.tau_min), upper))
    if beta_grad is not None and math.isfinite(beta_grad):
        meta.last_beta_grad = float(beta_grad)
        clip = meta.beta_grad_clip or math.inf
        rate = (meta.beta_learning_rate or meta.learning_rate) * lr_scale
        set_knobs(cfg, beta=max(0.0, cfg.beta + rate * min(max(beta_grad, -clip), clip)))
    return (cfg.tau, cfg.beta) != before


def broadcast_controller_state(accelerator: Any, weighting_cfg: WeightingConfigLike) -> bool:
    """Give every rank the first rank's τ, β, ln τ and entropy average.

    Returns:
        Whether they have it: False where ``accelerator`` has neither ``gather`` nor ``broadcast_object_list``, and
        where that failed, which is logged.
    """
    names = ("tau", "beta", "tau_log", "tau_entropy_ema")
    first: list[float | None] = [getattr(weighting_cfg, name, None) for name in names]
    gather = getattr(accelerator, "gather", None)
    broadcast = getattr(accelerator, "broadcast_object_list", None)
    try:
        if callable(gather):
            numbers = [math.nan if value is None else float(value) for value in first]
            row = torch.tensor([numbers], dtype=torch.float64, device=getattr(accelerator, "device", "cpu"))
            first = [None if math.isnan(x) else x for x in gather(row)[0].tolist()]
        elif callable(broadcast):
            broadcast(first, 0)
        else:
            return False
    except (RuntimeError, ValueError, TypeError) as error:
        logger.warning("τ and β could not be brought to all ranks: %s", error)
        return False
    _restore(weighting_cfg, *first)
    return True


def controller_state_dict(weighting_cfg: WeightingConfigLike) -> dict[str, Any]:
    """The state as plain JSON; a ``meta`` block only where the meta-controller is enabled."""
    state: dict[str, Any] = {
        "beta": float(weighting_cfg.beta),
        "tau": float(weighting_cfg.tau),
        "tau_log": getattr(weighting_cfg, "tau_log", None),
        "tau_entropy_ema": getattr(weighting_cfg, "tau_entropy_ema", None),
    }
    if state["tau_log"] is None and state["tau"] > 0:
        state["tau_log"] = math.log(state["tau"])
    meta: ControllerMetaSettings | None = getattr(weighting_cfg, "controller_meta", None)
    if meta is not None and meta.enabled:
        controller = {key: getattr(meta, key) for key in _META_KEYS}
        state["meta"] = {"version": META_VERSION, "controller": controller}
    return state


def save_controller_state(path: str | None, weighting_cfg: WeightingConfigLike) -> None:
    """Write `controller_state_dict` to ``path``, all or nothing; None writes nothing."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_state(Path(path), controller_state_dict(weighting_cfg))


def load_controller_state(path: str | None, weighting_cfg: WeightingConfigLike) -> bool:
    """Read τ, β and the rest from ``path``; False, and nothing changed, where it holds no controller state.

    A ``meta`` block restores the meta-controller's settings, too. A missing ``tau_log`` is ln τ. Why a file that is
    there was not read is logged.
    """
    if path is None or not Path(path).is_file():
        return False
    try:
        state = read_state(Path(path))
        tau, beta = (_knob(state, name) for name in ("tau", "beta"))
        saved = dict(state.get("meta", {}).get("controller", {}))
        meta = getattr(weighting_cfg, "controller_meta", None)
        settings = {key: type(getattr(meta, key))(saved[key]) for key in _META_KEYS if meta and key in saved}
        log, ema = (None if state.get(k) is None else float(state[k]) for k in ("tau_log", "tau_entropy_ema"))
    except (UsageError, ValueError, TypeError, AttributeError) as error:
        logger.warning("%s holds no controller state, τ and β stay as they are: %s", path, error)
        return False
    _restore(weighting_cfg, tau, beta, log, ema)
    for key, value in settings.items():
        setattr(meta, key, value)
    return True


def _knob(state: dict[str, Any], name: str) -> float:
    value: Any = state.get(name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value!r}, not a number of at least 0; restore it from a checkpoint")
    return float(value)


def _restore(
    cfg: WeightingConfigLike, tau: float | None, beta: float | None, tau_log: float | None, ema: float | None
) -> None:
    set_knobs(cfg, tau=tau, beta=beta)
    if hasattr(cfg, "tau_log") and tau_log is not None:
        cfg.tau_log = float(tau_log)
    if hasattr(cfg, "tau_entropy_ema"):
        cfg.tau_entropy_ema = None if ema is None else float(ema)
