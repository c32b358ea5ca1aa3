import math

import pytest

from maxent_grpo.config.rules import batch_problems
from maxent_grpo.config.schema import GRPOConfig, GRPOScriptArguments
from maxent_grpo.errors import UsageError


def config(**settings: object) -> GRPOConfig:
    return GRPOConfig(**({"output_dir": "x", "use_cpu": True} | settings))


def failure(**settings: object) -> str:
    with pytest.raises(UsageError) as caught:
        config(**settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_maxent_configuration_needs_three_numbers_from_python() -> None:
    training = config(objective="maxent", maxent_tau=0.01, beta=0.09)
    assert (training.train_grpo_objective, training.maxent_loss, training.objective_family) == (
        False,
        "listwise",
        "maxent",
    )
    assert (training.maxent_length_normalize_ref, training.maxent_length_normalize_policy) == (False, False)


def test_no_objective_means_grpo_as_trl_has_it() -> None:
    training = config()
    assert (training.objective, training.train_grpo_objective) == ("grpo", True)
    assert (training.loss_type, training.scale_rewards, training.epsilon, training.beta) == (
        "dapo",
        "group",
        0.2,
        0.0,
    )
    assert training.maxent_loss is None


def test_false_train_grpo_objective_alone_means_maxent() -> None:
    assert config(train_grpo_objective=False, maxent_tau=0.1, beta=0.1).objective == "maxent"


def test_a_named_objective_fills_what_is_unset_and_nothing_else() -> None:
    training = config(objective="dapo", epsilon=0.1)
    assert (training.epsilon, training.epsilon_high, training.loss_type) == (0.1, 0.28, "dapo")
    assert config(objective="dr_grpo").scale_rewards == "none"


def test_the_policy_is_length_normalised_as_the_reference_is() -> None:
    maxent = {"objective": "maxent", "maxent_tau": 0.1, "beta": 0.1, "maxent_length_normalize_ref": True}
    assert config(**maxent).maxent_length_normalize_policy is True
    assert config(**maxent, maxent_length_normalize_policy=False).maxent_length_normalize_policy is False


def test_defaults_that_differ_from_trl() -> None:
    training = config()
    assert (training.gradient_checkpointing, training.bf16, training.logging_steps) == (False, False, 1)
    assert (training.report_to, training.use_bias_correction_kl) == ([], False)


def test_checkpointing_is_set_under_either_name_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    training = config(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    assert training.gradient_checkpointing is training.activation_checkpointing is True
    assert training.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert not [w for w in recwarn if "checkpointing" in str(w.message)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("a||b", ["a", "b"]), ('["a", "b"]', ["a", "b"]), (["a"], ["a"]), (None, None), ([], None)],
)
def test_stop_sequences_in_each_of_their_forms(given: object, expected: object) -> None:
    assert config(stop_sequences=given).stop_sequences == expected


@pytest.mark.parametrize("given", ["a||", [""], "[1]", '["a"'])
def test_stop_sequences_that_cannot_be_meant(given: object) -> None:
    assert failure(stop_sequences=given).startswith("stop_sequences: ")


def test_resume_takes_true_and_paths() -> None:
    assert config(resume_from_checkpoint=True).resume_from_checkpoint == "true"
    assert config(resume_from_checkpoint="true").resume_from_checkpoint == "true"
    assert config(resume_from_checkpoint=False).resume_from_checkpoint is None
    assert config(resume_from_checkpoint="out/checkpoint-5").resume_from_checkpoint == "out/checkpoint-5"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "maxnet"}, "objective: there is no 'maxnet' (did you mean maxent?); known: "),
        (
            {"objective": "maxent", "train_grpo_objective": True},
            "train_grpo_objective: maxent is a MaxEnt objective; set it to false, or leave it out",
        ),
        ({"num_generations": 1}, "num_generations: 1 completions are no group; use at least 2"),
        (
            {"num_generations": 6, "per_device_train_batch_size": 8},
            "per_device_train_batch_size: the 8 completions of a rollout are not whole groups of "
            "num_generations=6; use per_device_train_batch_size=12",
        ),
        (
            {"generation_batch_size": 12},
            "generation_batch_size: 12 is not a multiple of per_device_train_batch_size=8 × 1 process(es); "
            "use 16",
        ),
        (
            {"generation_batch_size": 16, "steps_per_generation": 2},
            "generation_batch_size: steps_per_generation is set too; keep one of the two",
        ),
        (
            {"eval_strategy": "steps", "per_device_eval_batch_size": 4},
            "per_device_eval_batch_size: 4 completions are not whole groups of num_generations_eval=8; use "
            "per_device_eval_batch_size=8 or another num_generations_eval",
        ),
        ({"maxent_tau_min": -1.0}, "maxent_tau_min: -1.0 must be ≥ 0"),
        ({"maxent_q_temperature": 0}, "maxent_q_temperature: 0.0 must be > 0"),
        ({"maxent_tau_warmup_steps": -2}, "maxent_tau_warmup_steps: -2 must be ≥ -1"),
        (
            {"maxent_tau_min": 0.5, "maxent_tau_max": 0.1},
            "maxent_tau_max: 0.1 is below maxent_tau_min=0.5; raise it, or use 0 for no bound",
        ),
        ({"controller_meta_update_interval": 0}, "controller_meta_update_interval: 0 must be > 0"),
        ({"logging_steps": 0}, "logging_steps: 0.0 must be > 0"),
        ({"save_steps": -1}, "save_steps: -1.0 must be > 0"),
        (
            {"loss_type": "ppo"},
            "loss_type: 'ppo' is not one of grpo, bnpo, dapo, dr_grpo, luspo, cispo, sapo, vespo",
        ),
        ({"top_p": 0.0}, "top_p: 0.0 must be in (0, 1]"),
        ({"delta": 1.1}, "delta: 1.1 must be above 1 + epsilon = 1.2, or be unset"),
        (
            {"fp16": True},
            "fp16: is not supported, as float16 loses small probability ratios; use bf16 or float32",
        ),
        ({"benchmarks": ["aime24"]}, "benchmarks: training runs no benchmarks; leave it empty"),
        ({"info_seed_loss_type": "mse"}, "info_seed_loss_type: 'mse' is not one of infonce, ce"),
        ({"maxent_tau": "hot"}, "maxent_tau: 'hot' is not a finite number"),
        ({"maxent_tau": math.inf}, "maxent_tau: inf is not a finite number"),
        (
            {"info_seed_enabled": True, "info_seed_num_seeds": 1},
            "info_seed_num_seeds: 1 seeds tell nothing apart; use at least 2",
        ),
        (
            {"info_seed_enabled": True, "info_seed_num_seeds": 4, "info_seed_prompt_template": "x"},
            "info_seed_prompt_template: 'x' does not contain {seed}",
        ),
        (
            {"maxent_target_weight_entropy": 2.5},
            "maxent_target_weight_entropy: 2.5 nats is above ln num_generations = 2.079, "
            "the entropy of equal weights; lower it",
        ),
        ({"reference_model_revision": "abc"}, "reference_model_revision: names no model; set "),
        ({"lr_scheduler_type": "greedy"}, "lr_scheduler_type greedy requires an eval strategy"),
        ({"use_cpu": False, "bf16": True}, "bf16: no GPU with bfloat16 here; leave it out"),
    ],
)
def test_impossible_settings_are_one_line_with_a_remedy(
    settings: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert failure(**settings).startswith(message)


def test_several_problems_come_in_one_line() -> None:
    assert (
        failure(maxent_tau_lr=-1, kl_target=-1)
        == "maxent_tau_lr: -1.0 must be ≥ 0; kl_target: -1.0 must be ≥ 0"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"beta": 0, "maxent_tau": 0.1},
            "beta: the listwise loss without a reference drives the policy towards",
        ),
        (
            {"beta": 0, "maxent_allow_no_reference": True},
            "maxent_tau: the weights divide by maxent_tau + beta",
        ),
        (
            {"beta": 0.1, "maxent_weight_denominator": "tau"},
            "maxent_tau: weights divided by tau need maxent_tau > 0",
        ),
        ({"beta": 0, "maxent_loss": "likelihood"}, "maxent_tau: the weights divide by maxent_tau + beta"),
        (
            {"beta": 0.1, "maxent_q_epsilon": 0.2},
            "maxent_q_epsilon: 0.2 must be below 1 / num_generations = 0.125",
        ),
    ],
)
def test_maxent_needs_weights_that_exist(settings: dict[str, object], message: str) -> None:
    assert failure(objective="maxent", **settings).startswith(message)


def test_maxent_limits_that_are_allowed() -> None:
    no_reference = config(objective="maxent", beta=0, maxent_tau=0.1, maxent_allow_no_reference=True)
    no_entropy = config(objective="maxent", beta=0.1, maxent_tau=0)
    argmax = config(objective="tilted", beta=0, maxent_tau=0)
    likelihood = config(objective="maxent", beta=0, maxent_tau=0.5, maxent_loss="likelihood")
    knobs = [(c.maxent_tau, c.beta) for c in (no_reference, no_entropy, argmax, likelihood)]
    assert knobs == [(0.1, 0), (0, 0.1), (0, 0), (0.5, 0)]


def test_ranks_enter_the_batch_rules() -> None:
    training = config(num_generations=8, per_device_train_batch_size=8)
    training.generation_batch_size = training.steps_per_generation = None  # as before construction
    training.per_device_train_batch_size = 2
    assert [*batch_problems(training, processes=4)] == []
    assert len([*batch_problems(training, processes=3)]) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "dataset_name: Either `dataset_name` or `dataset_mixture` must be provided"),
        (
            {"dataset_name": "a", "dataset_mixture": {"datasets": [{"id": "b"}]}},
            "dataset_mixture: dataset_name is set too; keep one of the two",
        ),
        ({"dataset_mixture": {"seed": 1}}, "dataset_mixture: names no datasets; add `datasets: [{id: …}]`"),
        (
            {"dataset_name": "a", "reward_funcs": []},
            "reward_funcs: is empty; name at least one reward function",
        ),
        ({"dataset_name": "a", "reward_funcs": "x"}, "reward_funcs: 'x' is not a list of texts; write [x]"),
    ],
)
def test_data_and_rewards_must_be_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        GRPOScriptArguments(**settings)
    assert str(caught.value) == message


def test_a_mixture_needs_no_dataset_name() -> None:
    assert GRPOScriptArguments(dataset_mixture={"datasets": [{"id": "b"}]}).dataset_name is None
