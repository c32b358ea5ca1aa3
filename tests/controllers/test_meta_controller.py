"""The meta-controller against a NumPy oracle that knows nothing of autograd: entropy slopes by hand."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from maxent_grpo.controllers.controller import Controllers, Measurement
from maxent_grpo.controllers.meta import MetaState, Moments, Potential, descend, meta_update, path_gradient
from maxent_grpo.controllers.settings import SMALLEST_TAU, ControllerSettings, MetaSettings
from maxent_grpo.objectives.weights import closed_form_weights, weight_entropy
from maxent_grpo.observe.definitions import definitions

DEFINED = {metric.name for metric in definitions() if metric.part == "controllers"}

Array = npt.NDArray[np.float64]
TAU, BETA = 0.3, 0.2
H_TARGET, KL, KL_TARGET = 1.5, 0.09, 0.05


def groups(seed: int, prompts: int = 5, size: int = 6) -> tuple[Array, Array]:
    """log q and reference scores, [prompts, size] each."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(prompts, size))
    log_q = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_q, rng.normal(size=(prompts, size)) * 0.5 - 1.0


def weights_of(log_q: Array, scores: Array) -> Callable[[Tensor, Tensor], Tensor]:
    q, r = torch.tensor(log_q), torch.tensor(scores)
    return lambda tau, beta: closed_form_weights(q, r, tau, beta)


@dataclass
class Oracle:
    """Φ and its slopes by hand. With s = log q + β·ℓ, T = τ + β and w = softmax(s/T) per group:

    ∂H/∂τ = Var_w(s)/T³ and ∂H/∂β = Var_w(s)/T³ − Cov_w(s, ℓ)/T².
    """

    log_q: Array
    scores: Array

    def entropy_and_slopes(self, tau: float, beta: float) -> tuple[float, float, float]:
        s, temperature = self.log_q + beta * self.scores, tau + beta
        w = np.exp((s - s.max(axis=1, keepdims=True)) / temperature)
        w /= w.sum(axis=1, keepdims=True)
        centred = s - (w * s).sum(axis=1, keepdims=True)
        variance = (w * centred**2).sum(axis=1)
        covariance = (w * centred * self.scores).sum(axis=1)
        entropy = -(w * np.log(w)).sum(axis=1).mean()
        tau_slope = (variance / temperature**3).mean()
        return float(entropy), float(tau_slope), float(tau_slope - (covariance / temperature**2).mean())

    def potential(self, tau: float, beta: float) -> float:
        entropy = self.entropy_and_slopes(tau, beta)[0]
        return 0.5 * (entropy - H_TARGET) ** 2 + 0.5 * (KL - (beta - BETA) - KL_TARGET) ** 2

    def slopes(self, tau: float, beta: float) -> tuple[float, float]:
        entropy, by_tau, by_beta = self.entropy_and_slopes(tau, beta)
        kl_slope = -(KL - (beta - BETA) - KL_TARGET)
        return (entropy - H_TARGET) * by_tau, (entropy - H_TARGET) * by_beta + kl_slope

    def path_mean(self, tau: float, beta: float, meta: MetaSettings, curvature: tuple[float, float]) -> float:
        values = [self.potential(tau, beta)]
        bound = meta.beta_grad_clip or math.inf
        for _ in range(meta.truncation_steps):
            by_tau, by_beta = self.slopes(tau, beta)
            tau -= meta.tau_rate / curvature[0] * by_tau
            beta = max(beta - meta.beta_rate / curvature[1] * float(np.clip(by_beta, -bound, bound)), 0.0)
            values.append(self.potential(tau, beta))
        return float(np.mean(values))


def differences(value: Callable[[float, float], float], step: float = 1e-5) -> tuple[float, float]:
    """Central finite differences at (TAU, BETA)."""
    by_tau = (value(TAU + step, BETA) - value(TAU - step, BETA)) / (2 * step)
    return by_tau, (value(TAU, BETA + step) - value(TAU, BETA - step)) / (2 * step)


def settings_of(meta: MetaSettings, **changes: float) -> ControllerSettings:
    values = {"tau": TAU, "beta": BETA, "target_weight_entropy": H_TARGET, "kl_target": KL_TARGET} | changes
    return ControllerSettings(meta=meta, **values)  # type: ignore[arg-type]


def potential_of(log_q: Array, scores: Array) -> Potential:
    entropy = Oracle(log_q, scores).entropy_and_slopes(TAU, BETA)[0]
    return Potential(TAU, BETA, entropy, H_TARGET, KL, KL_TARGET, weights_of(log_q, scores))


def gradient_of(meta: MetaSettings, seed: int, inner_updates: int) -> tuple[float, float]:
    found = path_gradient(potential_of(*groups(seed)), TAU, BETA, settings_of(meta), 1.0, inner_updates)
    return found.tau, found.beta


def test_first_order_gradient_equals_finite_differences_of_the_potential() -> None:
    oracle = Oracle(*groups(1))
    by_tau, by_beta = differences(oracle.potential)
    meta = MetaSettings(enabled=True, method="first_order", lr=0.01)
    assert gradient_of(meta, seed=1, inner_updates=0) == pytest.approx((by_tau, -by_beta), rel=1e-6)
    assert oracle.slopes(TAU, BETA) == pytest.approx((by_tau, by_beta), rel=1e-6)


@pytest.mark.parametrize("inner_updates", [1, 2, 5])
@pytest.mark.parametrize("clip", [0.0, 0.02])
def test_truncated_backprop_gradient_equals_finite_differences_through_the_inner_updates(
    inner_updates: int, clip: float
) -> None:
    meta = MetaSettings(
        enabled=True,
        method="truncated_backprop",
        tau_lr=0.05,
        beta_lr=0.02,
        truncation_steps=inner_updates,
        beta_grad_clip=clip,
    )
    oracle = Oracle(*groups(2))
    by_tau, by_beta = differences(lambda tau, beta: oracle.path_mean(tau, beta, meta, (1.0, 1.0)))
    found = gradient_of(meta, seed=2, inner_updates=inner_updates)
    assert found == pytest.approx((by_tau, -by_beta), rel=1e-6)
    first_order = gradient_of(meta, seed=2, inner_updates=0)
    assert abs(found[0] / first_order[0] - 1) > 1e-3  # the path matters


def test_curvature_is_the_second_derivative_where_that_is_the_largest_bound() -> None:
    oracle = Oracle(*groups(3))
    step = 1e-4
    here = oracle.potential(TAU, BETA)
    bends = (
        (oracle.potential(TAU + step, BETA) - 2 * here + oracle.potential(TAU - step, BETA)) / step**2,
        (oracle.potential(TAU, BETA + step) - 2 * here + oracle.potential(TAU, BETA - step)) / step**2,
    )
    slopes = oracle.slopes(TAU, BETA)
    expected = [max(1.0, abs(b), s**2 / (2 * here)) for b, s in zip(bends, slopes, strict=True)]
    settings = settings_of(MetaSettings(enabled=True, method="first_order", lr=0.1, use_hessian=True))
    found = path_gradient(potential_of(*groups(3)), TAU, BETA, settings, 1.0, 0)
    assert (found.tau_curvature, found.beta_curvature) == pytest.approx(expected, rel=1e-5)
    assert max(expected) > 1.0


def test_curvature_scaled_path_gradient_equals_finite_differences() -> None:
    meta = MetaSettings(
        enabled=True, method="truncated_backprop", lr=0.5, truncation_steps=2, use_hessian=True
    )
    found = path_gradient(potential_of(*groups(3)), TAU, BETA, settings_of(meta), 1.0, 2)
    curvature = found.tau_curvature, found.beta_curvature
    oracle = Oracle(*groups(3))
    by_tau, by_beta = differences(lambda tau, beta: oracle.path_mean(tau, beta, meta, curvature))
    assert (found.tau, found.beta) == pytest.approx((by_tau, -by_beta), rel=1e-6)


def test_newton_step_never_overshoots_a_linear_residual() -> None:
    """With rate 1 the curvature-scaled step in τ is at most the one that brings a linear residual to zero."""
    settings = settings_of(MetaSettings(enabled=True, method="first_order", lr=1.0, use_hessian=True))
    potential = potential_of(*groups(4))
    found = path_gradient(potential, TAU, BETA, settings, 1.0, 0)
    assert abs(found.tau / found.tau_curvature) <= 2 * found.potential / abs(found.tau) + 1e-15


@pytest.mark.parametrize("use_hessian", [False, True])
def test_analytic_update_has_the_closed_form(use_hessian: bool) -> None:
    meta = MetaSettings(enabled=True, tau_lr=0.1, beta_lr=0.3, use_hessian=use_hessian)
    controllers = Controllers.start(settings_of(meta))
    after, metrics = controllers.update(Measurement(1, kl=KL, weight_entropy=1.1, lr_scale=0.5))
    assert metrics["meta/tau_grad"] == pytest.approx(1.1 - H_TARGET)
    assert metrics["meta/beta_grad"] == pytest.approx(KL - KL_TARGET)
    assert after.knobs().tau == pytest.approx(TAU - 0.1 * 0.5 * (1.1 - H_TARGET))  # too little entropy: up
    assert after.knobs().beta == pytest.approx(BETA + 0.3 * 0.5 * (KL - KL_TARGET))  # too much KL: up
    assert metrics["meta/loss"] == pytest.approx(0.5 * (1.1 - H_TARGET) ** 2 + 0.5 * (KL - KL_TARGET) ** 2)
    assert metrics["meta/grad_norm"] == pytest.approx(math.hypot(1.1 - H_TARGET, KL - KL_TARGET))


def test_analytic_steps_follow_the_unit_response_towards_the_target() -> None:
    meta = MetaSettings(enabled=True, lr=0.2, analytic_steps=3)
    after, metrics = Controllers.start(settings_of(meta)).update(Measurement(1, KL, 1.1, 1.0))
    assert metrics["delta_tau"] == pytest.approx((H_TARGET - 1.1) * (1 - 0.8**3))
    assert metrics["delta_beta"] == pytest.approx((KL - KL_TARGET) * (1 - 0.8**3))
    assert after.state.meta.last_tau_grad == pytest.approx(1.1 - H_TARGET)


@pytest.mark.parametrize("method", ["first_order", "truncated_backprop"])
def test_gradient_reaches_both_knobs_through_the_weights(method: str) -> None:
    log_q, scores = groups(5)
    settings = settings_of(MetaSettings(enabled=True, method=method, lr=0.01))
    entropy, by_tau, by_beta = Oracle(log_q, scores).entropy_and_slopes(TAU, BETA)
    seen = Measurement(
        1, kl=KL_TARGET, weight_entropy=entropy, lr_scale=1.0, weights=weights_of(log_q, scores)
    )
    _, metrics = Controllers.start(settings).update(seen)
    assert metrics["delta_tau"] != 0.0
    assert metrics["delta_beta"] != 0.0
    if method == "first_order":  # the KL is on target: only the entropy pushes
        assert metrics["meta/tau_grad"] == pytest.approx((entropy - H_TARGET) * by_tau)
        assert metrics["meta/beta_grad"] == pytest.approx(-(entropy - H_TARGET) * by_beta)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_separate_learning_rates_and_projection_flags_hold_for_every_optimizer(optimizer: str) -> None:
    def after(**rates: float) -> tuple[Controllers, dict[str, float]]:
        meta = MetaSettings(enabled=True, optimizer=optimizer, **rates)  # type: ignore[arg-type]
        return Controllers.start(settings_of(meta, tau_min=0.25, tau_max=0.35)).update(seen)

    seen = Measurement(1, kl=0.0, weight_entropy=H_TARGET + 0.2, lr_scale=1.0)
    _, small = after(tau_lr=0.001, beta_lr=0.002)
    _, doubled = after(tau_lr=0.002, beta_lr=0.002)
    assert doubled["delta_tau"] == pytest.approx(2 * small["delta_tau"])
    assert doubled["delta_beta"] == small["delta_beta"]
    assert (small["meta/tau_projected"], small["meta/beta_projected"]) == (0.0, 0.0)
    bounded, metrics = after(tau_lr=5.0, beta_lr=50.0)
    assert (metrics["meta/tau_projected"], metrics["meta/beta_projected"]) == (1.0, 1.0)
    assert (bounded.knobs().tau, bounded.knobs().beta) == (0.25, 0.0)


def test_upper_bound_projects_and_zero_means_none() -> None:
    seen = Measurement(1, kl=None, weight_entropy=0.0, lr_scale=1.0)
    meta = MetaSettings(enabled=True, lr=1.0)
    bounded, metrics = Controllers.start(settings_of(meta, tau_max=1.0)).update(seen)
    assert (bounded.knobs().tau, metrics["meta/tau_projected"]) == (1.0, 1.0)
    free, metrics = Controllers.start(settings_of(meta, tau_max=0.0)).update(seen)
    assert (free.knobs().tau, metrics["meta/tau_projected"]) == (TAU + H_TARGET, 0.0)


def test_tau_projected_without_a_lower_bound_stays_where_weights_exist() -> None:
    meta = MetaSettings(enabled=True, lr=100.0)
    after, metrics = Controllers.start(settings_of(meta, beta=0.0)).update(Measurement(1, None, 1.8, 1.0))
    assert (after.knobs().tau, metrics["meta/tau_projected"]) == (SMALLEST_TAU, 1.0)
    log_q, _ = groups(6)
    weights = closed_form_weights(torch.tensor(log_q), None, after.knobs().tau, 0.0)
    assert torch.equal(weights.argmax(dim=1), torch.tensor(log_q).argmax(dim=1))


def test_beta_gradient_is_clipped_before_the_step_and_logged_before_the_clip() -> None:
    meta = MetaSettings(enabled=True, lr=0.1, beta_grad_clip=0.5)
    _, metrics = Controllers.start(settings_of(meta)).update(
        Measurement(1, kl=9.05, weight_entropy=None, lr_scale=1)
    )
    assert metrics["meta/beta_grad"] == pytest.approx(9.0)
    assert metrics["delta_beta"] == pytest.approx(0.05)


def test_meta_runs_every_update_interval_and_logs_its_gradients_only_then() -> None:
    controllers = Controllers.start(settings_of(MetaSettings(enabled=True, lr=0.1, update_interval=3)))
    ran = []
    for step in range(1, 8):
        controllers, metrics = controllers.update(Measurement(step, KL, 1.0, 1.0))
        assert (metrics["delta_tau"] != 0) == ("meta/tau_grad" in metrics)
        ran.append("meta/tau_grad" in metrics)
    assert ran == [False, False, True, False, False, True, False]


@pytest.mark.parametrize("method", ["analytic", "first_order", "truncated_backprop"])
def test_objective_without_weights_adapts_beta_alone(method: str) -> None:
    settings = settings_of(MetaSettings(enabled=True, method=method, lr=0.1), tau=0.0)
    after, metrics = Controllers.start(settings).update(Measurement(1, KL, None, 1.0))
    assert after.knobs().tau == 0.0
    assert metrics["meta/tau_grad"] == 0.0
    assert metrics["delta_beta"] > 0
    assert "tau_log" not in metrics


@pytest.mark.parametrize("method", ["analytic", "first_order", "truncated_backprop"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_beta_is_held_where_no_kl_was_measured(method: str, optimizer: str) -> None:
    """Weights without a reference exist at β = 0 only, and without a KL nothing would hold β back."""
    log_q, _ = groups(7)

    def weights(tau: Tensor, beta: Tensor) -> Tensor:
        return closed_form_weights(torch.tensor(log_q), None, tau, beta)

    meta = MetaSettings(enabled=True, method=method, lr=0.1, optimizer=optimizer, truncation_steps=3)
    controllers = Controllers.start(settings_of(meta, beta=0.0))
    after, metrics = controllers.update(Measurement(1, None, 1.0, 1.0, weights))
    assert after.knobs().beta == 0.0
    assert metrics["meta/beta_grad"] == 0.0
    assert metrics["delta_tau"] > 0


@pytest.mark.parametrize("method", ["first_order", "truncated_backprop"])
def test_gradient_methods_refuse_an_entropy_without_its_weights(method: str) -> None:
    controllers = Controllers.start(
        settings_of(MetaSettings(enabled=True, method=method, lr=0.1, update_interval=2))
    )
    assert [controllers.needs_weights(step) for step in (1, 2)] == [False, True]
    controllers, _ = controllers.update(Measurement(1, KL, 1.0, 1.0))
    with pytest.raises(ValueError, match=f"meta.method {method} differentiates the weights"):
        controllers.update(Measurement(2, KL, 1.0, 1.0))


def test_non_finite_measurements_and_gradients_change_nothing_and_are_counted() -> None:
    before = Controllers.start(settings_of(MetaSettings(enabled=True, method="first_order", lr=0.1)))
    after, metrics = before.update(Measurement(1, math.nan, math.inf, 1.0))
    assert (after, metrics["controller/skipped"]) == (before, 2.0)

    def broken(tau: Tensor, beta: Tensor) -> Tensor:
        return torch.full((2, 3), math.nan, dtype=torch.float64) * tau * beta

    after, metrics = before.update(Measurement(1, KL, 1.0, 1.0, broken))
    assert after.knobs() == before.knobs()
    assert metrics["controller/skipped"] == 1.0
    assert "meta/tau_grad" not in metrics


def test_update_works_under_no_grad_and_with_single_precision_weights() -> None:
    log_q, scores = (torch.tensor(values, dtype=torch.float32) for values in groups(8))
    settings = settings_of(MetaSettings(enabled=True, method="first_order", lr=0.1))
    with torch.no_grad():
        seen = Measurement(1, KL, 1.0, 1.0, lambda tau, beta: closed_form_weights(log_q, scores, tau, beta))
        _, metrics = Controllers.start(settings).update(seen)
    by_tau, by_beta = Oracle(*groups(8)).slopes(TAU, BETA)
    assert (metrics["meta/tau_grad"], -metrics["meta/beta_grad"]) == pytest.approx(
        (by_tau, by_beta), rel=1e-4
    )


CASES = [
    MetaSettings(enabled=True, method="analytic", lr=0.1),
    MetaSettings(enabled=True, method="analytic", lr=0.04, analytic_steps=3),
    MetaSettings(enabled=True, method="first_order", lr=0.1),
    MetaSettings(enabled=True, method="first_order", lr=0.3, use_hessian=True),
    MetaSettings(enabled=True, method="first_order", lr=0.02, optimizer="adam"),
    MetaSettings(enabled=True, method="first_order", lr=0.02, optimizer="adamw"),
    MetaSettings(enabled=True, method="truncated_backprop", lr=0.1, truncation_steps=2),
    MetaSettings(enabled=True, method="truncated_backprop", lr=0.3, truncation_steps=2, use_hessian=True),
]


@pytest.mark.parametrize("start", [0.1, 1.0])
@pytest.mark.parametrize(
    "meta", CASES, ids=lambda m: f"{m.method}-{m.optimizer}-{m.use_hessian}-{m.analytic_steps}"
)
def test_every_method_brings_entropy_and_kl_to_their_targets(meta: MetaSettings, start: float) -> None:
    """New random groups every step; the KL falls with β, on average to its target at β = ln(4)/3 ≈ 0.46."""
    noise = np.random.default_rng(9)
    settings = settings_of(meta, tau=start, beta=0.1, kl_target=0.1, target_weight_entropy=1.4, tau_min=0.02)
    controllers = Controllers.start(settings)
    entropies, kls = [], []
    for step in range(1, 251):
        weights = weights_of(*groups(step, prompts=8))
        knobs = controllers.knobs()
        tau, beta = (torch.tensor(value, dtype=torch.float64) for value in (knobs.tau, knobs.beta))
        entropies.append(weight_entropy(weights(tau, beta)).mean().item())
        kls.append(0.4 * math.exp(-3 * knobs.beta) * (1 + 0.1 * noise.normal()))
        controllers, metrics = controllers.update(Measurement(step, kls[-1], entropies[-1], 1.0, weights))
        assert {f"train/{name}" for name in metrics} <= DEFINED
    assert np.mean(entropies[-100:]) == pytest.approx(1.4, abs=0.03)
    assert np.mean(kls[-100:]) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_optimizer_equals_that_of_torch(optimizer: str) -> None:
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    parameter = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    reference = kinds[optimizer]([parameter], lr=0.03)
    value, moments = 0.7, Moments()
    for gradient in np.random.default_rng(10).normal(size=20):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        reference.step()
        value, moments = descend(value, float(gradient), 0.03, optimizer, moments)
        assert value == pytest.approx(parameter.item(), rel=1e-12)


def test_update_at_the_target_is_at_rest() -> None:
    settings = settings_of(MetaSettings(enabled=True, method="truncated_backprop", lr=0.1, use_hessian=True))
    log_q, scores = groups(11)
    entropy = Oracle(log_q, scores).entropy_and_slopes(TAU, BETA)[0]
    potential = Potential(TAU, BETA, entropy, entropy, 0.05, 0.05, weights_of(log_q, scores))
    move = meta_update(potential, MetaState(), settings, 1.0)
    assert move is not None
    assert (move.tau, move.beta) == pytest.approx((TAU, BETA), abs=1e-12)
