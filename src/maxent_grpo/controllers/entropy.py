"""The coefficient of the token-entropy bonus, adapted to a target entropy and to the KL from the reference."""

from dataclasses import dataclass

LARGEST_FACTOR, SMALLEST_FACTOR = 2.0, 0.5  # of the KL scaling


@dataclass(frozen=True)
class EntropySettings:
    """What adapts the coefficient. Raises ``ValueError`` on values that contradict each other."""

    adaptive: bool = False  # step the coefficient towards the target
    coef: float = 0.0  # at the start; the constant where not adaptive
    coef_min: float = 0.0
    coef_max: float = 1.0
    coef_delta: float = 0.005  # how far one optimiser step moves it
    target: float = 0.2  # mean token entropy in nats
    kl_threshold: float | None = None  # nats per token; None: the KL changes nothing
    kl_gain: float = 1.0
    kl_trust_zone: bool = False  # no bonus at all above the threshold, instead of less

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
class EntropyState:
    """What the controller remembers."""

    coef: float
    entropy: float | None = None  # of the last step, nats; None before the first
    kl: float | None = None  # of the last step, nats


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
        return min(1.0 + settings.kl_gain * (threshold - kl) / threshold, LARGEST_FACTOR)
    if settings.kl_trust_zone:
        return 0.0
    return max(1.0 / (1.0 + settings.kl_gain * (kl - threshold) / threshold), SMALLEST_FACTOR)


def applied_coef(state: EntropyState, settings: EntropySettings) -> float:
    """The coefficient for the next step.

    An adaptive one acts only after a step whose entropy was at or below the target, so never in the first.
    """
    reached = state.entropy is not None and state.entropy <= settings.target
    coef = state.coef if reached or not settings.adaptive else 0.0
    return coef if state.kl is None else coef * kl_factor(state.kl, settings)


def after(
    state: EntropyState, entropy: float | None, kl: float | None, settings: EntropySettings
) -> EntropyState:
    """The state after a step that measured ``entropy`` and ``kl``; what was not measured stays."""
    coef = state.coef
    if settings.adaptive and entropy is not None:
        coef = next_coef(coef, entropy, settings)
    return EntropyState(coef, state.entropy if entropy is None else entropy, state.kl if kl is None else kl)
