"""The plots of *Controllers explained* show controllers that reach their targets, as the page says."""

import sys
from pathlib import Path

import numpy as np
import pytest

FIGURES = Path(__file__).resolve().parents[2] / "docs/_figures"
sys.path.insert(0, str(FIGURES))

from draw_architecture import svg  # noqa: E402
from draw_controllers import BETA_RUNS, META_RUNS, STEPS, TAU_RUNS, meta_settings  # noqa: E402
from simulation import entropy_curve, example_weights, run_kl, run_weights  # noqa: E402
from themes import STATIC, THEMES  # noqa: E402


def test_small_tau_shares_the_weight_among_the_right_and_large_tau_among_all() -> None:
    assert example_weights(0.1, right=3)[:3] == pytest.approx([1 / 3] * 3, abs=1e-6)
    assert example_weights(1e6) == pytest.approx([1 / 8] * 8, abs=1e-4)
    entropies = entropy_curve([0.1, 1.0, 10.0, 1e6], right=3)
    assert entropies == sorted(entropies)
    assert entropies[0] == pytest.approx(np.log(3), abs=1e-4)
    assert entropies[-1] == pytest.approx(np.log(8), abs=1e-4)


def test_two_starts_of_tau_meet_and_a_moving_target_is_followed() -> None:
    traces = {label: run_weights(settings, STEPS) for label, settings in TAU_RUNS.items()}
    low, high, moving = traces.values()
    assert high.tau[0] / low.tau[0] == pytest.approx(200)
    assert low.tau[-1] == pytest.approx(high.tau[-1], rel=0.02)
    for trace in traces.values():
        assert np.mean(trace.entropy[-50:]) == pytest.approx(trace.target[-1], abs=0.05)
    assert moving.target[0] == pytest.approx(1.6, abs=0.01)
    assert moving.target[-1] == pytest.approx(2.4)


def test_the_kl_reaches_its_target_and_the_short_horizon_overshoots() -> None:
    quick, slow, constant = (run_kl(settings, STEPS) for settings in BETA_RUNS.values())
    for trace in (quick, slow):
        assert np.mean(trace.kl[-50:]) == pytest.approx(0.07, abs=0.01)
    assert max(quick.beta) > 1.5 * quick.beta[-1]
    assert max(slow.beta) < 1.1 * slow.beta[-1]
    assert np.mean(constant.kl[-50:]) == pytest.approx(0.2, abs=0.01)


def test_every_meta_controller_reaches_the_target() -> None:
    for meta in META_RUNS.values():
        trace = run_weights(meta_settings(meta), 300)
        assert np.mean(trace.entropy[-50:]) == pytest.approx(2.4, abs=0.05)


def test_the_picture_of_the_architecture_is_the_scripts() -> None:
    for theme in THEMES:
        assert (STATIC / f"architecture-{theme.name}.svg").read_text(encoding="utf-8") == svg(theme)
