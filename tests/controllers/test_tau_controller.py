import math

import numpy as np
import pytest
import torch

from maxent_grpo.controllers.controller import Controllers, Measurement
from maxent_grpo.controllers.feedback import entropy_target, next_tau
from maxent_grpo.controllers.settings import SMALLEST_TAU, ControllerSettings
from maxent_grpo.objectives.weights import closed_form_weights, weight_entropy


def settings(**changes: float | None) -> ControllerSettings:
    values = {"tau": 0.1, "beta": 0.0, "target_weight_entropy": 1.0, "tau_lr": 0.01, "tau_warmup_steps": 0}
    return ControllerSettings(**(values | changes))  # type: ignore[arg-type]


def measured(step: int, entropy: float | None, lr_scale: float = 1.0) -> Measurement:
    return Measurement(step=step, kl=None, weight_entropy=entropy, lr_scale=lr_scale)


def test_too_little_entropy_raises_tau_and_too_much_lowers_it() -> None:
    tau, tau_log = next_tau(math.log(0.1), ema=0.5, target=1.0, rate=0.2, lower=1e-8, upper=math.inf)
    assert tau_log == pytest.approx(math.log(0.1) + 0.1)
    assert tau == pytest.approx(0.1 * math.exp(0.1))
    assert next_tau(math.log(0.1), 1.5, 1.0, 0.2, 1e-8, math.inf)[0] == pytest.approx(0.1 * math.exp(-0.1))


def test_log_tau_is_recomputed_after_the_clamp_so_that_nothing_winds_up() -> None:
    tau, tau_log = next_tau(math.log(0.9), ema=0.0, target=100.0, rate=1.0, lower=0.01, upper=1.0)
    assert (tau, tau_log) == (1.0, 0.0)
    back, _ = next_tau(tau_log, ema=1.1, target=1.0, rate=1.0, lower=0.01, upper=1.0)
    assert back == pytest.approx(math.exp(-0.1))


def test_learning_rate_schedule_scales_the_step() -> None:
    after, _ = Controllers.start(settings()).update(measured(1, 0.0, lr_scale=0.25))
    assert after.state.tau_log == pytest.approx(math.log(0.1) + 0.01 * 0.25)


def test_ema_starts_at_the_first_measured_entropy() -> None:
    controllers, metrics = Controllers.start(settings()).update(measured(1, None))
    assert controllers.state.entropy_ema is None
    assert "weight_entropy_ema" not in metrics
    controllers, metrics = controllers.update(measured(2, 2.0))
    assert metrics["weight_entropy_ema"] == 2.0
    controllers, metrics = controllers.update(measured(3, 1.0))
    assert metrics["weight_entropy_ema"] == pytest.approx(1.9)
    assert metrics["weight_entropy_error"] == 0.0  # of the step, not of the average


def test_tau_max_zero_means_unbounded() -> None:
    controllers = Controllers.start(settings(tau_max=0.0, tau_lr=1.0))
    for step in range(1, 6):
        controllers, _ = controllers.update(measured(step, 0.0))
    assert controllers.knobs().tau == pytest.approx(0.1 * math.exp(5.0))


def test_unbounded_tau_outlives_an_unreachable_target() -> None:
    controllers = Controllers.start(settings(tau_lr=100.0))
    for step in range(1, 30):
        controllers, _ = controllers.update(measured(step, 0.0))
    assert math.isfinite(controllers.knobs().tau)


def test_tau_stays_positive_under_an_unreachably_small_target() -> None:
    controllers = Controllers.start(settings(target_weight_entropy=0.0, tau_lr=100.0))
    for step in range(1, 30):
        controllers, _ = controllers.update(measured(step, 1.0))
    assert controllers.knobs().tau == SMALLEST_TAU


def test_tau_warmup_of_minus_one_lasts_as_long_as_the_learning_rate_warmup() -> None:
    controllers = Controllers.start(settings(tau_warmup_steps=-1, lr_warmup_steps=3))
    moved = []
    for step in range(1, 6):
        controllers, metrics = controllers.update(measured(step, 0.5))
        moved.append(metrics["delta_tau"] > 0)
    assert moved == [False, False, False, True, True]


def test_explicit_tau_warmup_overrides_that_of_the_learning_rate() -> None:
    controllers = Controllers.start(settings(tau_warmup_steps=1, lr_warmup_steps=50))
    controllers, metrics = controllers.update(measured(1, 0.5))
    assert metrics["delta_tau"] == 0.0
    _, metrics = controllers.update(measured(2, 0.5))
    assert metrics["delta_tau"] > 0.0


def test_target_anneals_linearly_and_then_stays() -> None:
    annealed = settings(
        target_weight_entropy_start=1.2, target_weight_entropy_final=2.2, target_weight_entropy_horizon=100
    )
    found = [entropy_target(annealed, step) for step in (0, 25, 100, 500)]
    assert found == pytest.approx([1.2, 1.45, 2.2, 2.2])


@pytest.mark.parametrize(("given", "expected"), [("start", 1.5), ("final", 2.5)])
def test_missing_end_of_the_schedule_is_the_base_target(given: str, expected: float) -> None:
    ends = {f"target_weight_entropy_{given}": 2.0 if given == "start" else 4.0}
    half = settings(target_weight_entropy=1.0, target_weight_entropy_horizon=2, **ends)
    assert entropy_target(half, 1) == pytest.approx(expected)


def test_schedule_without_horizon_is_at_its_final_value() -> None:
    ends = {"target_weight_entropy_start": 1.2, "target_weight_entropy_final": 2.2}
    assert entropy_target(settings(**ends), 1) == 2.2


def test_tau_is_fixed_without_a_target() -> None:
    before = Controllers.start(settings(target_weight_entropy=None))
    after, metrics = before.update(measured(1, 0.5))
    assert after.knobs() == before.knobs()
    assert "tau_target_entropy" not in metrics


def test_non_finite_entropy_changes_nothing_and_is_counted() -> None:
    before = Controllers.start(settings())
    after, metrics = before.update(measured(1, math.nan))
    assert after == before
    assert metrics["controller/skipped"] == 1.0


@pytest.mark.parametrize("start", [0.01, 20.0])
def test_tau_controller_brings_the_weight_entropy_to_its_target(start: float) -> None:
    rng = np.random.default_rng(0)
    controllers = Controllers.start(settings(tau=start, target_weight_entropy=1.4, tau_lr=0.05))
    entropies = []
    for step in range(1, 601):
        log_q = torch.log_softmax(torch.tensor(rng.normal(size=(16, 8))), dim=-1)
        entropy = weight_entropy(closed_form_weights(log_q, None, controllers.knobs().tau, 0.0)).mean().item()
        entropies.append(entropy)
        controllers, _ = controllers.update(measured(step, entropy))
    assert np.mean(entropies[-200:]) == pytest.approx(1.4, abs=0.02)
