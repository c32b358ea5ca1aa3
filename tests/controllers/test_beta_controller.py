import math

import pytest

from maxent_grpo.controllers.controller import Controllers, Measurement
from maxent_grpo.controllers.feedback import next_beta
from maxent_grpo.controllers.settings import ControllerSettings, MetaSettings

SETTINGS = ControllerSettings(tau=0.1, beta=0.5, kl_target=0.07, kl_horizon=500, kl_ctl_step_size=1.0)


def measured(step: int, kl: float | None) -> Measurement:
    return Measurement(step=step, kl=kl, weight_entropy=None, lr_scale=1.0)


def test_beta_follows_the_relative_kl_error_over_the_horizon() -> None:
    assert next_beta(0.5, kl=0.08, target=0.1, horizon=10, step_size=1.0) == pytest.approx(0.5 * (1 - 0.02))
    assert next_beta(0.5, kl=0.12, target=0.1, horizon=10, step_size=1.0) == pytest.approx(0.5 * (1 + 0.02))


@pytest.mark.parametrize(("kl", "error"), [(10.0, 0.2), (0.0, -0.2)])
def test_relative_error_is_clipped_at_the_step_size(kl: float, error: float) -> None:
    assert next_beta(0.5, kl, target=0.1, horizon=4, step_size=0.2) == pytest.approx(0.5 * (1 + error / 4))


def test_beta_stays_positive_where_the_step_would_cross_zero() -> None:
    assert next_beta(0.5, kl=0.0, target=0.1, horizon=0.5, step_size=1.0) == pytest.approx(0.5e-6)


def test_kl_on_target_leaves_beta_exactly() -> None:
    assert next_beta(0.3, kl=0.1, target=0.1, horizon=1, step_size=1.0) == 0.3


def test_beta_controller_brings_the_kl_to_its_target() -> None:
    controllers = Controllers.start(SETTINGS)
    for step in range(1, 4001):
        kl = 0.2 * math.exp(-2 * controllers.knobs().beta)
        controllers, _ = controllers.update(measured(step, kl))
    assert kl == pytest.approx(0.07, rel=1e-2)


def test_beta_that_starts_at_zero_is_refused_as_it_could_never_leave() -> None:
    with pytest.raises(ValueError, match=r"beta is 0.*start from beta > 0, or set kl_target to 0"):
        ControllerSettings(tau=0.1, beta=0.0, kl_target=0.07, kl_horizon=500, kl_ctl_step_size=1.0)
    assert ControllerSettings(tau=0.1, beta=0.0, kl_target=0.07).beta == 0.0  # no controller, no objection


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_non_finite_kl_changes_nothing_and_is_counted(kl: float) -> None:
    before = Controllers.start(SETTINGS)
    after, metrics = before.update(measured(1, kl))
    assert after == before
    assert metrics["controller/skipped"] == 1.0
    assert "kl_error_to_target" not in metrics


def test_missing_kl_changes_nothing_and_is_not_counted() -> None:
    before = Controllers.start(SETTINGS)
    after, metrics = before.update(measured(1, None))
    assert after == before
    assert metrics["controller/skipped"] == 0.0


def test_metrics_are_those_of_the_step_and_the_deltas_of_its_update() -> None:
    before = Controllers.start(SETTINGS)
    after, metrics = before.update(measured(1, 0.14))
    assert metrics["beta"] == 0.5
    assert metrics["delta_beta"] == pytest.approx(0.5 / 500)
    assert after.knobs().beta == 0.5 + metrics["delta_beta"]
    assert metrics["kl_error_to_target"] == pytest.approx(0.07)
    assert metrics["kl_ratio_to_target"] == pytest.approx(2.0)
    assert metrics["kl_controller/enabled"] == 1.0
    assert metrics["delta_tau"] == 0.0


@pytest.mark.parametrize("off", ["kl_target", "kl_horizon", "kl_ctl_step_size"])
def test_beta_is_fixed_unless_target_horizon_and_step_size_are_set(off: str) -> None:
    values = {"kl_target": 0.07, "kl_horizon": 500.0, "kl_ctl_step_size": 1.0, off: 0.0}
    before = Controllers.start(ControllerSettings(tau=0.1, beta=0.5, **values))
    after, metrics = before.update(measured(1, 5.0))
    assert after == before
    assert metrics["kl_controller/enabled"] == 0.0


def test_meta_controller_replaces_the_kl_controller() -> None:
    meta = MetaSettings(enabled=True, lr=0.1)
    settings = ControllerSettings(
        tau=0.1, beta=0.5, kl_target=0.07, kl_horizon=500, kl_ctl_step_size=1.0, meta=meta
    )
    after, metrics = Controllers.start(settings).update(measured(1, 0.17))
    assert after.knobs().beta == pytest.approx(0.5 + 0.1 * 0.1)
    assert metrics["kl_controller/enabled"] == 0.0
