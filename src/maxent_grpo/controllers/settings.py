"""Settings of the controllers: plain numbers, checked once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

METHOD_ALIASES = {
    "analytic_grad": "analytic",
    "potential": "analytic",
    "truncated": "truncated_backprop",
    "backprop": "truncated_backprop",
}
"""Other accepted names of the meta-controller's methods."""

SMALLEST_TAU = 1e-8  # the lower bound where tau_min is 0: at τ = 0 neither ln τ nor all weights exist

METHODS = ("analytic", "first_order", "truncated_backprop")
OPTIMIZERS = ("sgd", "adam", "adamw")


def _refuse_bad_numbers(settings: object, least: Mapping[str, float], prefix: str = "") -> None:
    """Every number of ``settings`` must be finite, and at least ``least[name]`` where that is given."""
    for name in (f.name for f in fields(settings)):  # type: ignore[arg-type]
        value = getattr(settings, name)
        if not isinstance(value, (int, float)):
            continue
        if not math.isfinite(value):
            raise ValueError(f"{prefix}{name} is {value}: give a finite number")
        if name in least and value < least[name]:
            raise ValueError(f"{prefix}{name} is {value}: it must be at least {least[name]}")


@dataclass(frozen=True)
class MetaSettings:
    """The meta-controller (see `maxent_grpo.controllers.meta`), which replaces the β and τ controllers.

    Raises ``ValueError`` on a value out of range, and where ``enabled`` could not move anything.
    """

    enabled: bool = False
    method: str = "analytic"
    """One of METHODS, or an alias."""
    lr: float = 0.0
    tau_lr: float = 0.0
    """0: lr."""
    beta_lr: float = 0.0
    """0: lr."""
    beta_grad_clip: float = 0.0
    """bound on |β gradient|; 0: none."""
    update_interval: int = 1
    """Optimiser steps between two updates."""
    objective: str = "potential"
    """A label kept in the state file: the potential is what is optimised."""
    analytic_steps: int = 1
    """Steps per update of method analytic."""
    optimizer: str = "sgd"
    truncation_steps: int = 1
    """Inner updates that truncated_backprop unrolls."""
    use_hessian: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", METHOD_ALIASES.get(self.method, self.method))
        if self.method not in METHODS:
            raise ValueError(f"meta.method is {self.method!r}: choose one of {', '.join(METHODS)}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"meta.optimizer is {self.optimizer!r}: choose one of {', '.join(OPTIMIZERS)}")
        at_least = {"lr": 0, "tau_lr": 0, "beta_lr": 0, "beta_grad_clip": 0}
        at_least |= {"update_interval": 1, "analytic_steps": 1, "truncation_steps": 1}
        _refuse_bad_numbers(self, at_least, prefix="meta.")
        if self.enabled and max(self.lr, self.tau_lr, self.beta_lr) == 0:
            raise ValueError(
                "meta is enabled but all its learning rates are 0: set meta.lr > 0, or disable it"
            )

    @property
    def tau_rate(self) -> float:
        return self.tau_lr or self.lr

    @property
    def beta_rate(self) -> float:
        return self.beta_lr or self.lr


@dataclass(frozen=True)
class EntropySettings:
    """What adapts the coefficient. Raises ``ValueError`` on values that contradict each other."""

    adaptive: bool = False
    """Step the coefficient towards the target."""
    coef: float = 0.0
    """At the start; the constant where not adaptive."""
    coef_min: float = 0.0
    coef_max: float = 1.0
    coef_delta: float = 0.005
    """How far one optimiser step moves it."""
    target: float = 0.2
    """Mean token entropy in nats."""
    kl_threshold: float | None = None
    """Nats per token; None: the KL changes nothing."""
    kl_gain: float = 1.0
    kl_trust_zone: bool = False
    """No bonus at all above the threshold, instead of less."""

    def __post_init__(self) -> None:
        if self.adaptive and not self.coef_min <= self.coef <= self.coef_max:
            raise ValueError(
                f"entropy.coef {self.coef} is outside entropy.coef_min={self.coef_min} … "
                f"entropy.coef_max={self.coef_max}"
            )
        if self.kl_threshold is not None and self.kl_threshold <= 0:
            raise ValueError(f"entropy.kl_threshold {self.kl_threshold} must be above 0")

    @property
    def enabled(self) -> bool:
        """Whether the coefficient is not simply constant."""
        return self.adaptive or self.kl_threshold is not None


@dataclass(frozen=True)
class ControllerSettings:
    """Initial τ and β, and what adapts them. Entropies in nats, horizons and warm-ups in optimiser steps.

    Raises ``ValueError`` on a value out of range, and where a controller is asked for that could never move
    its knob: both feedback controllers are multiplicative, so they cannot leave 0.
    """

    tau: float
    beta: float
    kl_target: float = 0.0
    kl_horizon: float = 0.0
    kl_ctl_step_size: float = 0.0
    target_weight_entropy: float | None = None
    target_weight_entropy_start: float | None = None
    """With _final: a target that moves linearly."""
    target_weight_entropy_final: float | None = None
    target_weight_entropy_horizon: int = 0
    """Steps from start to final; 0: final at once."""
    tau_lr: float = 0.0
    tau_min: float = 0.0
    tau_max: float = 0.0
    """0: unbounded."""
    tau_warmup_steps: int = -1
    """Τ is held for so many steps; -1: for lr_warmup_steps."""
    lr_warmup_steps: int = 0
    meta: MetaSettings = field(default_factory=MetaSettings)
    entropy: EntropySettings = field(default_factory=EntropySettings)

    def __post_init__(self) -> None:
        names = ("tau", "beta", "kl_target", "kl_horizon", "kl_ctl_step_size", "tau_lr", "tau_min", "tau_max")
        at_least = dict.fromkeys((*names, "lr_warmup_steps", "target_weight_entropy_horizon"), 0.0)
        targets = ("target_weight_entropy", "target_weight_entropy_start", "target_weight_entropy_final")
        at_least |= dict.fromkeys(targets, 0.0)
        _refuse_bad_numbers(self, at_least | {"tau_warmup_steps": -1})
        if 0 < self.tau_max < self.tau_min:
            raise ValueError(
                f"tau_max ({self.tau_max}) is below tau_min ({self.tau_min}): raise it, or 0 for no bound"
            )
        self._refuse_half_a_schedule()
        if self.meta.enabled and not (self.targets_entropy or self.kl_target > 0):
            raise ValueError(
                "meta is enabled without a target: set target_weight_entropy or kl_target, or disable it"
            )
        self.refuse_stuck(self.tau, self.beta)
        if self.adapts_tau and self.tau_lr == 0:
            raise ValueError(
                "target_weight_entropy is set but tau_lr is 0: set tau_lr > 0, or remove the target"
            )

    def _refuse_half_a_schedule(self) -> None:
        ends = {
            "target_weight_entropy_start": self.target_weight_entropy_start,
            "target_weight_entropy_final": self.target_weight_entropy_final,
        }
        missing = [name for name, value in ends.items() if value is None]
        if len(missing) == 1 and self.target_weight_entropy is None:
            raise ValueError(f"{missing[0]} is missing: give it, or target_weight_entropy to stand in for it")

    def refuse_stuck(self, tau: float, beta: float) -> None:
        """Raise ``ValueError`` where a multiplicative controller would have to move a knob that is 0."""
        if self.adapts_beta and beta == 0:
            raise ValueError(
                "beta is 0, which the multiplicative KL controller can never leave:"
                " start from beta > 0, or set kl_target to 0"
            )
        if self.adapts_tau and tau == 0:
            raise ValueError(
                "tau is 0, which the entropy controller can never leave as it works on log tau:"
                " start from tau > 0, or remove target_weight_entropy"
            )

    @property
    def targets_entropy(self) -> bool:
        return self.target_weight_entropy is not None or self.target_weight_entropy_final is not None

    @property
    def adapts_beta(self) -> bool:
        """Whether the β KL controller runs."""
        asked = self.kl_target > 0 and self.kl_horizon > 0 and self.kl_ctl_step_size > 0
        return asked and not self.meta.enabled

    @property
    def adapts_tau(self) -> bool:
        """Whether the τ entropy controller runs (after its warm-up)."""
        return self.targets_entropy and not self.meta.enabled

    @property
    def tau_warmup(self) -> int:
        """Steps for which τ is held, −1 resolved."""
        return self.lr_warmup_steps if self.tau_warmup_steps == -1 else self.tau_warmup_steps

    @property
    def tau_lower(self) -> float:
        """The lower bound of a τ that is adapted, positive."""
        return max(self.tau_min, SMALLEST_TAU)

    @property
    def tau_upper(self) -> float:
        """The upper bound of τ, infinite where there is none."""
        return self.tau_max if self.tau_max > 0 else math.inf
