"""τ, β and everything around them as one mutable object, which the functions of this package read and move."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from maxent_grpo.controllers.feedback import annealed


@runtime_checkable
class WeightingConfigLike(Protocol):
    """Anything that carries τ and β; ``denom``, ``train_grpo_objective`` and the rest are read where they exist."""

    beta: float
    tau: float


@dataclass
class QDistributionSettings:
    """The target distribution q = softmax(U / temperature), floored at ``epsilon``."""

    temperature: float
    epsilon: float


@dataclass
class TauSchedule:
    """The τ controller: it brings the entropy of the weights to ``target_entropy`` (nats; None: it is off).

    With a start or a final target it moves from one to the other over the horizon (`controllers.feedback.annealed`).
    """

    target_entropy: float | None
    learning_rate: float
    minimum_value: float
    maximum_value: float  # 0 or less: no bound
    warmup_steps: int
    target_entropy_start: float | None = None
    target_entropy_final: float | None = None
    target_entropy_horizon: int = 0  # steps; 0: the final target at once

    def target_at(self, step: int) -> float | None:
        """The target at a step, nats; None: none."""
        start, final = self.target_entropy_start, self.target_entropy_final
        return annealed(self.target_entropy, start, final, self.target_entropy_horizon, max(0, step))


@dataclass
class KlControllerSettings:
    """The β controller: it brings the KL to the reference to ``target`` (nats); it is off where any of these is 0."""

    target: float
    horizon: int
    step_size: float


@dataclass
class WeightNormalizationSettings:
    """What the exponent of the weights is divided by, and whether reference log-probs are per token."""

    denom: float
    len_norm_ref: bool


@dataclass
class ControllerMetaSettings:
    """The meta-controller, which replaces the two controllers where it is enabled."""

    enabled: bool = False
    method: str = "analytic"
    learning_rate: float = 0.0
    tau_learning_rate: float = 0.0  # 0: learning_rate
    beta_learning_rate: float = 0.0  # 0: learning_rate
    beta_grad_clip: float = 0.0  # 0: none
    update_interval: int = 1
    objective: str = "potential"
    analytic_steps: int = 1
    optimizer: str = "sgd"
    truncation_steps: int = 1
    use_hessian: bool = False
    last_tau_grad: float = 0.0
    last_beta_grad: float = 0.0


class TorchControllerState:
    """τ and β as scalar tensors with gradient, for code that differentiates weights in them."""

    def __init__(self, tau: float, beta: float) -> None:
        self.tau: Tensor = torch.tensor(float(tau), dtype=torch.float64, requires_grad=True)
        self.beta: Tensor = torch.tensor(float(beta), dtype=torch.float64, requires_grad=True)

    def sync_from_scalars(self, tau: float, beta: float) -> None:
        """Take over the values that a controller has set."""
        with torch.no_grad():
            self.tau.fill_(float(tau))
            self.beta.fill_(float(beta))


def _forwarded(part: str, name: str, meaning: str) -> Any:
    """A property of `WeightingSettings` that reads and writes ``name`` of its part ``part``."""

    def read(self: Any) -> Any:
        return getattr(getattr(self, part), name)

    def write(self: Any, value: Any) -> None:
        setattr(getattr(self, part), name, value)

    return property(read, write, doc=meaning)


@dataclass
class WeightingSettings:
    """Sequence weighting in one object, its parts readable as if it were flat."""

    tau: float
    beta: float
    normalization: WeightNormalizationSettings
    q_distribution: QDistributionSettings
    tau_schedule: TauSchedule
    kl_controller: KlControllerSettings
    train_grpo_objective: bool
    scale_rewards: bool = True
    controller_meta: ControllerMetaSettings = field(default_factory=ControllerMetaSettings)
    controller_state: TorchControllerState | None = None
    allow_empty_weight_fallback: bool = False

    tau_log: float | None = field(default=None, init=False, repr=False)  # what the τ controller integrates
    tau_entropy_ema: float | None = field(
        default=None, init=False, repr=False
    )  # nats; None: none measured yet

    denom = _forwarded("normalization", "denom", "Denominator of the weights' exponent.")
    len_norm_ref = _forwarded("normalization", "len_norm_ref", "Whether reference log-probs are per token.")
    q_temperature = _forwarded("q_distribution", "temperature", "Temperature of the target distribution.")
    q_epsilon = _forwarded("q_distribution", "epsilon", "Floor of the target distribution.")
    tau_target_entropy = _forwarded(
        "tau_schedule", "target_entropy", "Target entropy of the weights, nats, or None."
    )
    tau_lr = _forwarded("tau_schedule", "learning_rate", "Learning rate of the τ controller.")
    tau_min = _forwarded("tau_schedule", "minimum_value", "Lower bound of τ.")
    tau_max = _forwarded("tau_schedule", "maximum_value", "Upper bound of τ; 0 or less: none.")
    tau_warmup_steps = _forwarded("tau_schedule", "warmup_steps", "Steps for which τ is held.")
    kl_target = _forwarded("kl_controller", "target", "Target KL of the β controller, nats.")
    kl_horizon = _forwarded("kl_controller", "horizon", "Horizon of the β controller, steps.")
    kl_ctl_step_size = _forwarded(
        "kl_controller", "step_size", "Bound on the relative error of the β controller."
    )


def set_knobs(config: Any, *, tau: float | None = None, beta: float | None = None) -> None:
    """Set τ or β and everything that follows from them: the denominator, ln τ and the tensors.

    The denominator stays what it was configured as: τ, τ + β, or another constant. It is 1 where τ or τ + β is not a
    positive number, and 1 in GRPO mode, which has no weights.
    """
    denominator = _denominator(config)
    config.tau = config.tau if tau is None else float(tau)
    config.beta = config.beta if beta is None else float(beta)
    if hasattr(config, "denom"):
        value = denominator(config.tau, config.beta)
        usable = math.isfinite(value) and value > 0 and not getattr(config, "train_grpo_objective", False)
        config.denom = value if usable else 1.0
    if tau is not None and hasattr(config, "tau_log"):
        config.tau_log = math.log(config.tau) if config.tau > 0 else None
    tensors = getattr(config, "controller_state", None)
    if tensors is not None:
        tensors.sync_from_scalars(config.tau, config.beta)


def _denominator(config: Any) -> Callable[[float, float], float]:
    """What ``config.denom`` is of τ and β, by its present value.

    With β = 0, where τ and τ + β are one, and with a denominator that is no positive number, it is τ, as the published
    functions have it.
    """
    denom = float(getattr(config, "denom", 0.0))
    if math.isclose(denom, config.tau) or not denom > 0 or (denom == 1.0 and config.tau <= 0):
        return lambda tau, beta: tau
    if math.isclose(denom, config.tau + config.beta):
        return lambda tau, beta: tau + beta
    return lambda tau, beta: denom
