"""TorchRL's names: the arithmetic of their counts, and what happens where both languages speak."""

import pytest

from maxent_grpo.config import torchrl_names
from maxent_grpo.config.records import RECORDS
from maxent_grpo.config.torchrl_names import ALIASES, ENVIRONMENTS, Claim, translated
from maxent_grpo.errors import UsageError

COUNTS = {
    "train.gradient_accumulation_steps": 2,
    "train_model.num_devices": 1,
    "train.optim_batch_size": 32,
    "train.dialog_turns_per_batch": 64,
    "train.epochs": 3,
}


def test_every_name_leads_to_a_setting_and_so_does_every_default_of_an_environment() -> None:
    known = set().union(*RECORDS.values())
    assert {alias.setting for alias in ALIASES.values()} <= known
    assert {need for alias in ALIASES.values() for need in alias.needs} <= known
    assert {key for settings in ENVIRONMENTS.values() for key in settings} <= known


def test_what_a_conversion_needs_stands_before_it() -> None:
    order = [alias.setting for alias in ALIASES.values()]
    for alias in ALIASES.values():
        for need in alias.needs:
            assert order.index(need) < order.index(alias.setting), (need, alias.setting)


@pytest.mark.parametrize(
    ("step", "accumulation", "learners", "rows"), [(32, 1, 1, 32), (32, 8, 1, 4), (32, 2, 4, 4), (6, 2, 3, 1)]
)
def test_a_steps_completions_are_shared_out(step: int, accumulation: int, learners: int, rows: int) -> None:
    assert torchrl_names.completions_per_device(step, accumulation, learners) == rows
    assert rows * accumulation * learners == step


def test_a_step_that_cannot_be_shared_out_is_refused_with_the_next_that_can() -> None:
    with pytest.raises(
        UsageError, match=r"^train.optim_batch_size: 10 completions .* = 4 × 1 equal parts; use 12$"
    ):
        torchrl_names.completions_per_device(10, 4, 1)
    with pytest.raises(UsageError, match=r"^train.dialog_turns_per_batch: 40 .* steps of 32; use 64$"):
        torchrl_names.micro_batches_per_rollout(40, 16, 2, 1)
    with pytest.raises(
        UsageError, match=r"^train.buffer_size: 40 completions are not whole groups of 16; use 48$"
    ):
        torchrl_names.groups_in_buffer(40, 16)


@pytest.mark.parametrize("total", [1, 63, 64, 65, 128, 100_000])
def test_the_steps_use_up_the_turns_and_less_than_a_rollout_more(total: int) -> None:
    steps = torchrl_names.optimiser_steps(
        total, per_device=16, accumulation=2, learners=1, micro_batches=4, epochs=3
    )
    per_rollout = 2 * 3  # 64 completions are two steps of 32, three times over
    assert steps % per_rollout == 0
    sampled = steps // per_rollout * 64
    assert total <= sampled < total + 64


def test_counts_become_the_settings_of_a_step() -> None:
    found = translated(COUNTS | {"train.total_dialog_turns": 6400, "env.repeats": 8}, {}, ())
    assert found == {
        "gradient_accumulation_steps": 2,
        "learner_workers": 1,
        "per_device_train_batch_size": 16,
        "steps_per_generation": 4,
        "num_iterations": 3,
        "max_steps": 100 * 2 * 3,
        "num_generations": 8,
    }


def test_a_conversion_reads_our_names_too_and_says_what_it_lacks() -> None:
    own = {
        "gradient_accumulation_steps": Claim("training.gradient_accumulation_steps", 4, False, 4),
        "learner_workers": Claim("learner_workers", 2, True, 2),
    }
    assert translated({"train.optim_batch_size": 64}, own, ()) == {"per_device_train_batch_size": 8}
    with pytest.raises(
        UsageError, match=r"^train.optim_batch_size: is converted with learner_workers; give that too$"
    ):
        translated({"train.optim_batch_size": 64, "train.gradient_accumulation_steps": 4}, {}, ())


def test_two_values_of_equal_rank_are_refused_with_both_named() -> None:
    own = {"beta": Claim("training.beta", 0.2, True, 0.2)}
    with pytest.raises(
        UsageError,
        match=r"^training.beta=0.2 and policy.kl_coef=0.1 set the same thing \(beta=0.2 and 0.1\): keep one$",
    ):
        translated({"policy.kl_coef": 0.1}, own, ["policy.kl_coef"])
    with pytest.raises(
        UsageError, match=r"^policy.kl_coef=0.1 and train.kl_to_ref_coeff=0.2 set the same thing"
    ):
        translated({"policy.kl_coef": 0.1, "train.kl_to_ref_coeff": 0.2}, {}, ())
    with pytest.raises(
        UsageError, match=r"optim_batch_size=32 set the same thing \(per_device_train_batch_size=4 and 16\)"
    ):
        translated(COUNTS, {"per_device_train_batch_size": Claim("x", 4, False, 4)}, ())


def test_equal_values_agree() -> None:
    both = {"policy.kl_coef": 0.1, "train.kl_to_ref_coeff": 0.1}
    own = {"beta": Claim("beta", 0.1, True, 0.1)}
    assert translated(both, own, both) == {"beta": 0.1}


@pytest.mark.parametrize("typed", ["policy.kl_coef", "beta", "train.kl_to_ref_coeff"])
def test_what_is_typed_goes_before_a_preset_in_either_language(typed: str) -> None:
    values = {"policy.kl_coef": 0.1, "train.kl_to_ref_coeff": 0.2}
    own = {"beta": Claim("beta", 0.3, typed == "beta", 0.3)}
    found = translated({k: v for k, v in values.items() if typed in (k, "beta")}, own, {typed})
    assert found == {"beta": {**values, "beta": 0.3}[typed]}


def test_an_environment_is_a_default() -> None:
    own = {"dataset_name": Claim("dataset_name", "mine.jsonl", False, "mine.jsonl")}
    found = translated({"env.dataset": "gsm8k"}, own, ())
    assert found == ENVIRONMENTS["gsm8k"] | {"dataset_name": "mine.jsonl"}
    typed = translated({"env.dataset": "gsm8k"}, own, ["env.dataset"])
    assert typed["dataset_name"] == "openai/gsm8k"
    with pytest.raises(
        UsageError, match=r"^env.dataset: 'gsm9k' is not one of .* \(did you mean gsm8k\?\); name other data"
    ):
        translated({"env.dataset": "gsm9k"}, {}, ())


def test_booleans_turn_round_and_nothing_else_is_taken_for_one() -> None:
    assert translated({"train.kl_coef_in_loss": False, "train.sync_iter": True}, {}, ()) == {
        "kl_in_reward": True,
        "overlap_sampling": False,
    }
    with pytest.raises(UsageError, match=r"^train.sync_iter: 'no' is not true or false$"):
        translated({"train.sync_iter": "no"}, {}, ())
    with pytest.raises(UsageError, match=r"^env.repeats: 2.5 is not a whole number of at least 1$"):
        translated({"env.repeats": 2.5}, {}, ())


def test_their_names_are_parted_from_ours() -> None:
    tree = {
        "model": {"name": "a/b", "dtype": "bfloat16"},
        "train": {"epochs": 2, "weight_update_frequency": None},
        "mode": "sync",
        "beta": 0.1,
    }
    rest, found = torchrl_names.split(tree)
    assert rest == {"model": {"dtype": "bfloat16"}, "beta": 0.1}
    assert found == {
        "train.epochs": 2,
        "train.weight_update_frequency": None,
        "mode": "sync",
        "model.name": "a/b",
    }


def test_a_typed_null_unsets_and_one_of_a_preset_says_nothing() -> None:
    own = {"beta": Claim("beta", 0.3, False, 0.3)}
    assert translated({"policy.kl_coef": None}, own, ()) == {}
    assert translated({"policy.kl_coef": None}, own, ["policy.kl_coef"]) == {"beta": None}
    typed = {"beta": Claim("beta", None, True, None)}
    assert translated({"policy.kl_coef": 0.1}, typed, ()) == {"beta": None}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"train": {"kl_to_reff_coeff": 1}},
            r"^unknown key train.kl_to_reff_coeff \(did you mean train.kl_to_ref_coeff\?\)$",
        ),
        ({"optimizer": {"learning_rate": 1}}, "^unknown key optimizer.learning_rate"),
        ({"env": 3}, "^env=3: settings are needed"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(tree: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        torchrl_names.split(tree)
