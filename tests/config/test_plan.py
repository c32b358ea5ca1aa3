import math

import pytest

from maxent_grpo.config.plan import BatchPlan, batch_plan, controller_settings, objective_spec, warmup_steps
from maxent_grpo.config.schema import GRPOConfig
from maxent_grpo.errors import UsageError
from maxent_grpo.objectives.catalog import CATALOG
from maxent_grpo.objectives.components import NUMBERS


def config(**settings: object) -> GRPOConfig:
    return GRPOConfig(output_dir="x", use_cpu=True, **settings)


def test_a_batch_counts_completions_and_keeps_groups_whole() -> None:
    training = config(num_generations=16, per_device_train_batch_size=2, gradient_accumulation_steps=32)
    assert batch_plan(training, 1) == BatchPlan(4, 4, 1, 1, 1)
    assert batch_plan(training, 3).prompts_per_step == 12


def test_a_micro_batch_holds_as_many_whole_groups_as_fit() -> None:
    training = config(num_generations=4, per_device_train_batch_size=10, gradient_accumulation_steps=2)
    assert batch_plan(training, 1).micro_groups == 2


def test_one_rollout_may_serve_several_updates() -> None:
    training = config(
        num_generations=4, per_device_train_batch_size=8, steps_per_generation=3, num_iterations=2
    )
    plan = batch_plan(training, 1)
    assert (plan.prompts_per_step, plan.prompts_per_rollout, plan.updates_per_rollout) == (2, 6, 3)
    assert not plan.on_policy
    assert batch_plan(config(), 1).on_policy


def test_a_share_that_is_not_whole_groups_is_refused_with_a_size_that_works() -> None:
    training = config(num_generations=8, per_device_train_batch_size=2, steps_per_generation=12,
                      gradient_accumulation_steps=6)  # fmt: skip
    message = (
        "per_device_train_batch_size: 2 × gradient_accumulation_steps=6 completions are not whole groups of "
        "num_generations=8 in each process; use per_device_train_batch_size=4"
    )
    with pytest.raises(UsageError) as caught:
        batch_plan(training, 1)
    assert str(caught.value) == message


def test_a_rollout_that_is_not_whole_steps_is_refused() -> None:
    training = config(gradient_accumulation_steps=2, steps_per_generation=3)
    with pytest.raises(UsageError, match=r"^steps_per_generation: 3 is not a multiple of .*=2; use 4$"):
        batch_plan(training, 1)


@pytest.mark.parametrize("name", list(CATALOG))
def test_an_objective_with_nothing_set_is_its_catalog_entry(name: str) -> None:
    extra = {"maxent_tau": 0.1, "beta": 0.1} if CATALOG[name].is_maxent else {}
    spec = objective_spec(config(objective=name, max_completion_length=77, **extra))
    entry = CATALOG[name].with_settings(max_completion_length=77)
    if entry.has_weights and entry["maxent_length_normalize_ref"]:
        entry = entry.with_settings(maxent_length_normalize_policy=True)
    assert {n: spec[n] for n in NUMBERS} == {n: entry[n] for n in NUMBERS}


def test_settings_reach_the_objective() -> None:
    spec = objective_spec(
        config(
            objective="maxent", beta=0.1, maxent_tau=0.1, maxent_q_temperature=0.7, maxent_q_epsilon=1e-5,
            maxent_loss="tilted", maxent_weight_denominator="tau", maxent_length_normalize_ref=True,
            maxent_tilted_utility="dr_grpo", maxent_kl_in_loss=True, tis_cap=2.0, behaviour_kl_coef=0.5,
            log_reference_kl=True, entropy_coef=0.01, epsilon=0.1, epsilon_high=0.3, delta=4.0,
            kl_estimator="k2", loss_type="bnpo", scale_rewards="batch", importance_sampling_level="sequence",
        )
    )  # fmt: skip
    assert (
        spec["maxent_q_temperature"],
        spec["maxent_q_epsilon"],
        spec["policy_loss"],
        spec["maxent_weight_denominator"],
    ) == (
        0.7,
        1e-5,
        "tilted",
        "tau",
    )
    assert (spec["maxent_length_normalize_ref"], spec["maxent_length_normalize_policy"]) == (True, True)
    assert (
        spec["maxent_tilted_utility"],
        spec["kl_in_loss"],
        spec["tis_cap"],
        spec["behaviour_kl_coef"],
    ) == (
        "dr_grpo",
        True,
        2.0,
        0.5,
    )
    assert (spec["log_reference_kl"], spec["entropy_coef"], spec["epsilon"], spec["epsilon_high"]) == (
        True,
        0.01,
        0.1,
        0.3,
    )
    assert (spec["delta"], spec["kl_estimator"], spec["loss_type"], spec["scale_rewards"]) == (
        4.0,
        "k2",
        "bnpo",
        "batch",
    )
    assert spec["importance_sampling_level"] == "sequence"


def test_controllers_get_their_numbers_under_their_own_names() -> None:
    training = config(
        objective="maxent", beta=0.04, maxent_tau=0.3, maxent_target_weight_entropy=0.6, kl_target=0.07,
        controller_meta_enabled=True, controller_meta_lr=0.05, controller_meta_tau_lr=0.01,
        controller_meta_method="truncated", controller_meta_truncation_steps=3, warmup_steps=0.1,
    )  # fmt: skip
    settings = controller_settings(training, total_steps=200)
    assert (settings.tau, settings.beta, settings.target_weight_entropy, settings.kl_target) == (
        0.3,
        0.04,
        0.6,
        0.07,
    )
    assert (settings.meta.tau_rate, settings.meta.beta_rate, settings.meta.method) == (
        0.01,
        0.05,
        "truncated_backprop",
    )
    assert settings.meta.truncation_steps == 3
    assert settings.tau_warmup == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"controller_meta_enabled": True, "kl_target": 0.1},
            "controller_meta_enabled is true: .*set controller_meta_lr > 0",
        ),
        (
            {"controller_meta_enabled": True, "controller_meta_lr": 0.1},
            "without a target: set maxent_target_weight_entropy or kl_target",
        ),
        (
            {"kl_target": 0.1, "kl_horizon": 10, "kl_ctl_step_size": 0.1},
            "^beta is 0, which the multiplicative KL controller",
        ),
        ({"controller_meta_method": "magic"}, "^controller_meta_method is 'magic'"),
    ],
)
def test_controllers_that_could_move_nothing_are_refused_in_the_users_words(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        controller_settings(config(**settings), total_steps=10)


def test_warmup_below_one_is_a_share_of_the_run() -> None:
    assert warmup_steps(config(warmup_steps=0.2).warmup_steps, 2000) == 400
    assert warmup_steps(config(warmup_steps=7).warmup_steps, 2000) == 7
    assert warmup_steps(config().warmup_steps, 2000) == 0
    assert math.isclose(config(warmup_steps=0.2).warmup_steps, 0.2)
