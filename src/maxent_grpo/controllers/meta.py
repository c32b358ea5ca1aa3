"""The meta-controller: gradient descent of (τ, β) on a potential of the measured entropy and KL.

**Potential** (nats²), a term only where its target is set and its quantity measured:

    Φ(τ, β) = ½·(H(τ, β) − H*)² + ½·(KL(β) − KL*)²

A knob moves only if its own term is there: τ with the entropy's, β with the KL's.

**How H and KL respond to the knobs.** Let (τ₀, β₀) be the knobs that the step used. KL is a property of the
policy, so no derivative reaches it: a unit response KL(β) = KL − (β − β₀) stands in, which has the right
sign (more β, less KL). ``analytic`` treats the entropy likewise, H(τ) = H + (τ − τ₀). The other two methods
read it off the weights: H(τ, β) = mean over groups of H(w(τ, β)), an exact function of both knobs with
∂H/∂τ ≥ 0.

**Methods.**

- ``analytic`` descends Φ; at (τ₀, β₀) its slopes are H − H* and −(KL − KL*). An update is
  ``analytic_steps`` steps.
- ``first_order`` descends Φ with ∂H/∂τ and ∂H/∂β by autograd. An update is one step.
- ``truncated_backprop`` descends the mean of Φ over the path x₀ … x_N of N = ``truncation_steps`` inner
  updates x ← project(x − rate·∇Φ(x)/c) from x₀ = (τ₀, β₀) on the same groups, differentiated through the
  path to x₀ (truncated unrolling: Shaban et al. 2019, arXiv:1810.10667). The mean over the path and not its
  end, as the end's gradient vanishes wherever the inner updates converge. They are plain gradient steps,
  whichever the optimiser, with its rates and clip.

**use_hessian** divides each knob's gradient by c = max(1, |∂²Φ|, (∂Φ)²/2Φ), taken at (τ₀, β₀); c is 1
without it. |∂²Φ| makes it Newton's step per knob, the absolute value keeps that a descent where the
curvature is negative (Dauphin et al. 2014, arXiv:1406.2572), the third term makes no step longer than the
one that zeroes a linear residual, and the first leaves flat directions the plain gradient. With
``analytic``, whose curvature is 1, it changes nothing.

**Sign.** τ ← τ − rate·g_τ with the slope g_τ, β ← β + rate·g_β with the *push* g_β, minus the slope, so
that ``analytic`` has g_β = KL − KL*.

The gradient methods need a slope: where τ is so small that the weights are one-hot, ∂H/∂τ is 0 and only
``analytic`` comes back. A positive ``tau_min`` keeps them out of there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from maxent_grpo.controllers.settings import ControllerSettings
from maxent_grpo.objectives.weights import weight_entropy

WeightsOf = Callable[[Tensor, Tensor], Tensor]
"""(τ, β), float64 scalars → w [P, G], differentiable in both."""
ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
WEIGHT_DECAY = 0.01
"""Of adamw, as torch.optim.AdamW has it."""


@dataclass(frozen=True)
class Moments:
    """Adam's running moments of one knob's gradient."""

    first: float = 0.0
    second: float = 0.0
    count: int = 0
    """Updates behind them."""


def descend(
    value: float, gradient: float, rate: float, optimizer: str, moments: Moments
) -> tuple[float, Moments]:
    """``value`` after one step against ``gradient``; sgd leaves the moments alone.

    Adam: Kingma & Ba 2015 (arXiv:1412.6980, algorithm 1). AdamW: Loshchilov & Hutter 2019 (arXiv:1711.05101).
    """
    if optimizer == "sgd":
        return value - rate * gradient, moments
    count = moments.count + 1
    first = ADAM_BETAS[0] * moments.first + (1 - ADAM_BETAS[0]) * gradient
    second = ADAM_BETAS[1] * moments.second + (1 - ADAM_BETAS[1]) * gradient**2
    if optimizer == "adamw":
        value -= rate * WEIGHT_DECAY * value
    first_unbiased = first / (1 - ADAM_BETAS[0] ** count)
    second_unbiased = second / (1 - ADAM_BETAS[1] ** count)
    step = rate * first_unbiased / (math.sqrt(second_unbiased) + ADAM_EPSILON)
    return value - step, Moments(first, second, count)


@dataclass(frozen=True)
class MetaState:
    """What the meta-controller remembers between updates."""

    last_tau_grad: float = 0.0
    last_beta_grad: float = 0.0
    tau_moments: Moments = field(default_factory=Moments)
    beta_moments: Moments = field(default_factory=Moments)


@dataclass(frozen=True)
class Potential:
    """Φ as a function of (τ, β), measured at (``tau``, ``beta``). Nats throughout."""

    tau: float
    beta: float
    entropy: float | None = None
    """Measured H."""
    target_entropy: float | None = None
    kl: float | None = None
    """Measured KL."""
    target_kl: float | None = None
    weights: WeightsOf | None = None
    """None: unit response of H to τ."""

    @property
    def has_entropy(self) -> bool:
        return self.entropy is not None and self.target_entropy is not None

    @property
    def has_kl(self) -> bool:
        return self.kl is not None and self.target_kl is not None

    def __call__(self, tau: Tensor, beta: Tensor) -> Tensor:
        """Φ(τ, β) as a float64 scalar."""
        value = torch.zeros_like(tau)
        if self.entropy is not None and self.target_entropy is not None:
            if self.weights is None:
                entropy = self.entropy + (tau - self.tau)
            else:
                held_beta = beta if self.has_kl else beta.detach()
                entropy = weight_entropy(self.weights(tau, held_beta)).mean().to(tau)
            value = value + 0.5 * (entropy - self.target_entropy) ** 2
        if self.kl is not None and self.target_kl is not None:
            value = value + 0.5 * (self.kl - (beta - self.beta) - self.target_kl) ** 2
        return value


@dataclass(frozen=True)
class Gradient:
    """Of the method's objective at one (τ, β), each in the sign that the module docstring gives."""

    tau: float
    beta: float
    tau_curvature: float
    beta_curvature: float
    potential: float
    """Φ there."""

    @property
    def finite(self) -> bool:
        numbers = (self.tau, self.beta, self.tau_curvature, self.beta_curvature, self.potential)
        return all(map(math.isfinite, numbers))


@dataclass(frozen=True)
class Move:
    """One meta-update."""

    tau: float
    beta: float
    start: Gradient
    """At the knobs that the step used."""
    tau_projected: bool
    beta_projected: bool
    state: MetaState


def _slopes(value: Tensor, tau: Tensor, beta: Tensor, *, differentiable: bool) -> tuple[Tensor, Tensor]:
    """∂value/∂τ and ∂value/∂β; zero where ``value`` does not depend on the knob."""
    if not value.requires_grad:
        return torch.zeros_like(tau), torch.zeros_like(beta)
    tau_slope, beta_slope = torch.autograd.grad(
        value, (tau, beta), create_graph=differentiable, allow_unused=True, materialize_grads=True
    )
    return tau_slope, beta_slope


def _curvatures(
    value: Tensor, slopes: tuple[Tensor, Tensor], tau: Tensor, beta: Tensor
) -> tuple[float, float]:
    """The divisors of the two gradients under use_hessian."""
    second = (
        _slopes(slopes[0], tau, beta, differentiable=True)[0],
        _slopes(slopes[1], tau, beta, differentiable=True)[1],
    )
    potential = value.item()
    found = []
    for slope, bend in zip(slopes, second, strict=True):
        polyak = slope.item() ** 2 / (2 * potential) if potential > 0 else 0.0
        found.append(max(1.0, abs(bend.item()), polyak))
    return found[0], found[1]


def _inner_update(
    point: tuple[Tensor, Tensor],
    slopes: tuple[Tensor, Tensor],
    curvatures: tuple[float, float],
    settings: ControllerSettings,
    lr_scale: float,
) -> tuple[Tensor, Tensor]:
    """One differentiable gradient step from ``point``: clipped, scaled, projected."""
    meta = settings.meta
    bound = meta.beta_grad_clip or math.inf
    tau = point[0] - meta.tau_rate * lr_scale / curvatures[0] * slopes[0]
    beta = point[1] - meta.beta_rate * lr_scale / curvatures[1] * slopes[1].clamp(-bound, bound)
    return tau.clamp(settings.tau_lower, settings.tau_upper), beta.clamp(min=0.0)


def path_gradient(
    potential: Potential,
    tau: float,
    beta: float,
    settings: ControllerSettings,
    lr_scale: float,
    inner_updates: int,
) -> Gradient:
    """The gradient at (``tau``, ``beta``) of the mean of Φ over the path of ``inner_updates`` inner updates.

    With no inner update this is the gradient of Φ.
    """
    start = (
        torch.tensor(tau, dtype=torch.float64, requires_grad=True),
        torch.tensor(beta, dtype=torch.float64, requires_grad=True),
    )
    with torch.enable_grad():
        path = [potential(*start)]
        slopes = _slopes(path[0], *start, differentiable=True)
        curvatures = _curvatures(path[0], slopes, *start) if settings.meta.use_hessian else (1.0, 1.0)
        point = start
        for _ in range(inner_updates):
            slopes = _slopes(path[-1], *point, differentiable=True)
            point = _inner_update(point, slopes, curvatures, settings, lr_scale)
            path.append(potential(*point))
        tau_slope, beta_slope = _slopes(torch.stack(path).mean(), *start, differentiable=False)
    return Gradient(tau_slope.item(), -beta_slope.item(), *curvatures, path[0].item())


def meta_update(
    potential: Potential, state: MetaState, settings: ControllerSettings, lr_scale: float
) -> Move | None:
    """One update from the knobs at which ``potential`` was measured; None if a gradient is not finite.

    Learning rates are multiplied by ``lr_scale``.
    """
    method = settings.meta.method
    inner_updates = settings.meta.truncation_steps if method == "truncated_backprop" else 0
    steps = settings.meta.analytic_steps if method == "analytic" else 1
    start = path_gradient(potential, potential.tau, potential.beta, settings, lr_scale, inner_updates)
    if not start.finite:
        return None
    state = replace(state, last_tau_grad=start.tau, last_beta_grad=start.beta)
    move = Move(potential.tau, potential.beta, start, False, False, state)
    move = _descended(move, start, potential, settings, lr_scale)
    for _ in range(steps - 1):
        gradient = path_gradient(potential, move.tau, move.beta, settings, lr_scale, inner_updates)
        move = _descended(move, gradient, potential, settings, lr_scale)
    return move


def _descended(
    move: Move, gradient: Gradient, potential: Potential, settings: ControllerSettings, lr_scale: float
) -> Move:
    """``move`` continued by one optimiser step along ``gradient``: clipped, scaled, projected."""
    meta = settings.meta
    if potential.has_entropy:
        step = gradient.tau / gradient.tau_curvature
        free, moments = descend(
            move.tau, step, meta.tau_rate * lr_scale, meta.optimizer, move.state.tau_moments
        )
        tau = min(max(free, settings.tau_lower), settings.tau_upper)
        state = replace(move.state, tau_moments=moments)
        move = replace(move, tau=tau, tau_projected=move.tau_projected or tau != free, state=state)
    if potential.has_kl:
        bound = meta.beta_grad_clip or math.inf
        step = -min(max(gradient.beta, -bound), bound) / gradient.beta_curvature
        free, moments = descend(
            move.beta, step, meta.beta_rate * lr_scale, meta.optimizer, move.state.beta_moments
        )
        beta = max(free, 0.0)
        state = replace(move.state, beta_moments=moments)
        move = replace(move, beta=beta, beta_projected=move.beta_projected or beta != free, state=state)
    return move
