"""The coefficient of the token-entropy bonus."""

import pytest

from maxent_grpo.controllers.controller import Controllers, Measurement
from maxent_grpo.controllers.feedback import kl_factor, next_coef
from maxent_grpo.controllers.settings import ControllerSettings, EntropySettings

ADAPTIVE = EntropySettings(adaptive=True, coef=0.01, coef_max=0.02, coef_delta=0.005, target=0.2)


def controllers(entropy: EntropySettings) -> Controllers:
    return Controllers.start(ControllerSettings(tau=0.3, beta=0.2, entropy=entropy))


def seen(step: int, entropy: float | None, kl: float | None = None) -> Measurement:
    return Measurement(step, kl, None, 1.0, entropy=entropy)


def test_it_steps_towards_the_target_within_its_bounds() -> None:
    assert next_coef(0.01, 0.1, ADAPTIVE) == pytest.approx(0.015)
    assert next_coef(0.01, 0.2, ADAPTIVE) == pytest.approx(0.015)
    assert next_coef(0.018, 0.1, ADAPTIVE) == 0.02
    assert next_coef(0.01, 0.3, ADAPTIVE) == pytest.approx(0.005)
    assert next_coef(0.001, 0.3, ADAPTIVE) == 0.0


def test_a_coefficient_acts_only_while_the_entropy_is_at_or_below_its_target() -> None:
    """TRL's sequence: the coefficient of a step is that of the step before, gated by its entropy."""
    now, used = controllers(ADAPTIVE), []
    for step, entropy in enumerate((0.1, 0.5, 0.5, 0.1), start=1):
        now, metrics = now.update(seen(step, entropy))
        used.append(metrics["entropy_coef"])
    assert used == pytest.approx([0.0, 0.015, 0.0, 0.0])
    assert now.knobs().entropy_coef == pytest.approx(0.01)


def test_a_constant_coefficient_is_no_knob() -> None:
    assert controllers(EntropySettings(coef=0.1)).knobs().entropy_coef is None


@pytest.mark.parametrize(
    ("kl", "factor"), [(0.0, 2.0), (0.02, 1.5), (0.04, 1.0), (0.06, 1 / 1.5), (0.08, 0.5), (9.0, 0.5)]
)
def test_the_kl_scales_by_a_factor_of_two_at_most(kl: float, factor: float) -> None:
    assert kl_factor(kl, EntropySettings(kl_threshold=0.04)) == pytest.approx(factor)
    zone = EntropySettings(kl_threshold=0.04, kl_trust_zone=True)
    assert kl_factor(kl, zone) == pytest.approx(factor if kl <= 0.04 else 0.0)


def test_the_kl_of_the_last_step_scales_the_next() -> None:
    now = controllers(EntropySettings(coef=0.1, kl_threshold=0.04))
    assert now.knobs().entropy_coef == 0.1
    now, _ = now.update(seen(1, None, kl=0.06))
    assert now.knobs().entropy_coef == pytest.approx(0.1 / 1.5)


def test_the_state_survives_both_plain_forms() -> None:
    now, _ = controllers(ADAPTIVE).update(seen(1, 0.5, kl=0.01))
    start = controllers(ADAPTIVE)
    assert start.load_state_dict(now.state_dict()) == now
    assert start.from_vector(now.as_vector()) == now
    assert "entropy" not in controllers(EntropySettings()).state_dict()


def test_a_state_of_a_run_without_it_starts_it_afresh() -> None:
    other = controllers(EntropySettings()).state_dict()
    assert controllers(ADAPTIVE).load_state_dict(other) == controllers(ADAPTIVE)


def test_what_is_not_finite_moves_nothing() -> None:
    now, metrics = controllers(ADAPTIVE).update(seen(1, float("nan")))
    assert metrics["controller/skipped"] == 1
    assert now.state.entropy == controllers(ADAPTIVE).state.entropy


@pytest.mark.parametrize("bad", [{"adaptive": True, "coef": 2.0}, {"kl_threshold": 0.0}])
def test_settings_that_contradict_each_other_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="entropy"):
        EntropySettings(**bad)
