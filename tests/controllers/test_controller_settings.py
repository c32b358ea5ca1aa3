import math

import pytest

from maxent_grpo.controllers.settings import ControllerSettings, MetaSettings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau": -0.1}, "tau is -0.1: it must be at least 0"),
        ({"beta": math.nan}, "beta is nan: give a finite number"),
        ({"tau_warmup_steps": -2}, "tau_warmup_steps is -2: it must be at least -1"),
        ({"tau_min": 0.5, "tau_max": 0.1}, r"tau_max \(0.1\) is below tau_min \(0.5\)"),
        ({"kl_horizon": -1.0}, "kl_horizon is -1.0"),
        ({"target_weight_entropy": 1.0}, "tau_lr is 0: set tau_lr > 0"),
        ({"target_weight_entropy": 1.0, "tau_lr": 0.1, "tau": 0.0}, "tau is 0.*start from tau > 0"),
        ({"target_weight_entropy": -1.0, "tau_lr": 0.1}, "target_weight_entropy is -1.0"),
        ({"target_weight_entropy_final": 2.0, "tau_lr": 0.1}, "target_weight_entropy_start is missing"),
        ({"target_weight_entropy_start": 2.0, "tau_lr": 0.1}, "target_weight_entropy_final is missing"),
        ({"meta": MetaSettings(enabled=True, lr=0.1)}, "meta is enabled without a target"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_a_remedy(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ControllerSettings(**({"tau": 0.1, "beta": 0.1} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "magic"},
            "meta.method is 'magic': choose one of analytic, first_order, truncated_backprop",
        ),
        ({"optimizer": "lion"}, "meta.optimizer is 'lion': choose one of sgd, adam, adamw"),
        ({"update_interval": 0}, "meta.update_interval is 0: it must be at least 1"),
        ({"beta_grad_clip": -1.0}, "meta.beta_grad_clip is -1.0"),
        ({"enabled": True}, "all its learning rates are 0"),
    ],
)
def test_meta_settings_that_cannot_work_are_refused_with_a_remedy(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaSettings(**changes)


@pytest.mark.parametrize(
    ("alias", "method"),
    [
        ("analytic_grad", "analytic"),
        ("potential", "analytic"),
        ("truncated", "truncated_backprop"),
        ("backprop", "truncated_backprop"),
        ("first_order", "first_order"),
    ],
)
def test_method_aliases_are_normalised(alias: str, method: str) -> None:
    assert MetaSettings(method=alias).method == method


def test_upper_bound_below_the_lower_is_fine_where_zero_means_none() -> None:
    settings = ControllerSettings(tau=0.1, beta=0.1, tau_min=0.05, tau_max=0.0)
    assert settings.tau_upper == math.inf


def test_separate_learning_rates_default_to_the_common_one() -> None:
    meta = MetaSettings(lr=0.1, beta_lr=0.3)
    assert (meta.tau_rate, meta.beta_rate) == (0.1, 0.3)
