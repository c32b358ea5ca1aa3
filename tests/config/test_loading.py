"""A setting's way from recipe and overrides to the typed configuration, and back to a file."""

import stat
from pathlib import Path
from typing import Any

import pytest
from config_cases import BASE, COMMANDS, GRPO, MAXENT, Recipe, Resolve, failure

from maxent_grpo import config
from maxent_grpo.config import load_grpo_recipe
from maxent_grpo.config.loading import resolve, resolved, write_resolved
from maxent_grpo.config.schema import GRPOConfig
from maxent_grpo.errors import UsageError

# Routing, precedence, aliases


def test_a_flat_recipe_is_routed_by_name(resolved_recipe: Resolve) -> None:
    config = resolved_recipe("train-maxent", MAXENT | {"dtype": "bfloat16", "reward_funcs": ["task_reward"]})
    assert (config.script.dataset_name, config.script.reward_funcs) == (
        "task:graph_coloring",
        ["task_reward"],
    )
    assert (config.training.maxent_tau, config.training.output_dir) == (0.01, "out")
    assert (config.model.model_name_or_path, config.model.dtype) == ("bundled:tiny-policy", "bfloat16")


def test_a_sectioned_recipe_says_the_same(recipe: Recipe) -> None:
    tree = {
        "script": {"dataset_name": "a"},
        "training": {"output_dir": "out", "learning_rate": "2e-6", "use_cpu": True},
        "model": {"model_name_or_path": "m"},
    }
    config = resolve("train-baseline", recipe(tree), None, {})
    assert (config.script.dataset_name, config.training.learning_rate, config.model.model_name_or_path) == (
        "a",
        2e-6,
        "m",
    )


def test_overrides_win_over_the_recipe_and_null_unsets_what_it_says(recipe: Recipe) -> None:
    path = recipe(GRPO | {"learning_rate": 1e-5, "seed": 1})
    overrides = {
        "training": {"learning_rate": "3e-6", "seed": None},
        "script": None,
        "flat": {"temperature": 0.7},
    }
    config = resolve("train-baseline", path, overrides, {})
    assert (config.training.learning_rate, config.training.seed, config.training.temperature) == (
        3e-6,
        42,
        0.7,
    )


def test_nested_mappings_are_merged(recipe: Recipe) -> None:
    path = recipe(
        GRPO | {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2, "lr_end": 0.1}}
    )
    config = resolve("train-baseline", path, {"training": {"lr_scheduler_kwargs": {"power": 3}}}, {})
    assert config.training.lr_scheduler_kwargs == {"power": 3, "lr_end": 0.1}


def test_no_recipe_is_needed() -> None:
    overrides = {
        "script": {"dataset_name": "a"},
        "training": {"output_dir": "out"},
        "model": {"model_name_or_path": "m"},
    }
    config = resolve("train-baseline", None, overrides, {})
    assert (config.recipe_path, config.route) == (None, "trl")


@pytest.mark.parametrize("alias", ["init_kl_coeff", "init_kl_coef", "kl_penalty_beta"])
def test_a_kl_alias_is_beta(alias: str, recipe: Recipe, resolved_recipe: Resolve) -> None:
    without_beta = {key: value for key, value in GRPO.items() if key != "beta"}
    assert resolved_recipe("train-baseline", without_beta | {alias: 0.3}).training.beta == 0.3
    assert resolved_recipe("train-baseline", GRPO | {"beta": 0.3, alias: 0.3}).training.beta == 0.3
    assert failure("train-baseline", recipe(GRPO | {"beta": 0.1, alias: 0.3})).endswith(
        f"{alias} and beta are the same setting with different values; keep one"
    )
    assert resolved_recipe("train-baseline", GRPO | {"beta": 0.1}, **{alias: 0.3}).training.beta == 0.3


def test_older_names_are_understood(resolved_recipe: Resolve) -> None:
    settings = GRPO | {
        "evaluation_strategy": "steps",
        "eval_steps": 5,
        "torch_dtype": "bfloat16",
        "warmup_ratio": 0.1,
    }
    config = resolved_recipe("train-baseline", settings)
    assert (config.training.eval_strategy, config.model.dtype, config.training.warmup_steps) == (
        "steps",
        "bfloat16",
        0.1,
    )


def test_an_older_name_that_contradicts_the_present_one_is_refused(recipe: Recipe) -> None:
    path = recipe(GRPO | {"evaluation_strategy": "steps", "eval_strategy": "no"})
    assert "evaluation_strategy and eval_strategy are the same setting with different values" in failure(
        "train-baseline", path
    )


@pytest.mark.parametrize(
    ("url", "base", "host", "port", "full"),
    [
        ("http://gpu1:9000/generate", "http://gpu1:9000", "gpu1", 9000, "http://gpu1:9000/generate"),
        ("gpu1:9000", "http://gpu1:9000", "gpu1", 9000, "http://gpu1:9000/generate"),
        ("https://gpu1/v2/generate", "https://gpu1", "gpu1", 443, "https://gpu1/v2/generate"),
    ],
)
def test_the_vllm_url_gives_the_server_address(
    url: str, base: str, host: str, port: int, full: str, resolved_recipe: Resolve
) -> None:
    settings = GRPO | {"use_vllm": True, "vllm_mode": "server", "vllm_url": url}
    training = resolved_recipe("train-baseline", settings).training
    assert (training.vllm_server_base_url, training.vllm_server_host, training.vllm_server_port) == (
        base,
        host,
        port,
    )
    assert training.vllm_url == full
    explicit = resolved_recipe("train-baseline", settings | {"vllm_server_port": 1234}).training
    assert (explicit.vllm_server_host, explicit.vllm_server_port) == (host, 1234)


def test_the_environment_sets_the_log_level_over_everything(resolved_recipe: Resolve) -> None:
    settings = GRPO | {"log_level": "error"}
    assert (
        resolved_recipe("train-baseline", settings, {"MAXENT_GRPO_LOGLEVEL": "DEBUG"}).training.log_level
        == "debug"
    )
    both = {"MAXENT_LOG_LEVEL": "info", "MAXENT_GRPO_LOGLEVEL": "debug"}
    assert resolved_recipe("train-baseline", settings, both, log_level="warning").training.log_level == "info"
    with pytest.raises(UsageError, match=r"^MAXENT_LOG_LEVEL: 'LOUD' is not one of "):
        resolved_recipe("train-baseline", settings, {"MAXENT_LOG_LEVEL": "LOUD"})


def test_the_environment_names_a_recipe_and_learns_which_was_used(recipe: Recipe) -> None:
    path = recipe(GRPO)
    environ = {"GRPO_RECIPE": str(path)}
    config = resolve("train-baseline", None, None, environ)
    assert config.recipe_path == path.resolve()
    assert environ["GRPO_RECIPE_USED"] == str(path.resolve())


def test_prompts_are_clipped_at_what_the_environment_says(resolved_recipe: Resolve) -> None:
    assert resolved_recipe("train-baseline", GRPO).max_prompt_chars is None
    assert resolved_recipe("train-baseline", GRPO, {"MAX_PROMPT_CHARS": "99"}).max_prompt_chars == 99
    with pytest.raises(UsageError, match="MAX_PROMPT_CHARS: 0 must be > 0"):
        resolved_recipe("train-baseline", GRPO, {"MAX_PROMPT_CHARS": "0"})


def test_reward_weights_may_be_given_in_either_section_but_not_in_both(recipe: Recipe) -> None:
    path = recipe(GRPO)
    for section in ("script", "training"):
        config = resolve("train-baseline", path, {section: {"reward_weights": [2]}}, {})
        assert (config.training.reward_weights, config.script.reward_weights) == ([2.0], [])
    weighted = recipe(GRPO | {"reward_weights": [1]})
    assert resolve(
        "train-baseline", weighted, {"training": {"reward_weights": [3]}}, {}
    ).training.reward_weights == [3.0]
    path = recipe(GRPO)
    both = {section: {"reward_weights": [2]} for section in ("script", "training")}
    assert failure("train-baseline", path, both).endswith(
        "reward_weights is both a script and a training setting; keep one"
    )
    assert failure("train-baseline", path, {"script": {"reward_weights": [1, 2]}}).endswith(
        "reward_weights: 2 weights for 1 reward functions; give one each"
    )


# Who trains


@pytest.mark.parametrize(
    ("command", "settings", "route"),
    [
        ("train-baseline", {"force_custom_loop": False}, "trl"),
        ("train-baseline", {}, "native"),
        (
            "train-baseline",
            {
                "force_custom_loop": False,
                "controller_meta_enabled": True,
                "controller_meta_lr": 0.1,
                "kl_target": 0.1,
            },
            "native",
        ),
        ("train-maxent", {}, "native"),
        ("train-infoseed", {"force_custom_loop": False}, "native"),
    ],
)
def test_routes(command: str, settings: dict[str, Any], route: str, resolved_recipe: Resolve) -> None:
    assert resolved_recipe(command, COMMANDS[command] | settings).route == route


def test_the_maxent_command_trains_grpo_where_told_to(resolved_recipe: Resolve) -> None:
    settings = BASE | {"train_grpo_objective": True, "beta": 0.1}
    assert resolved_recipe("train-maxent", settings, use_cpu=True).route == "trl"
    assert (
        resolved_recipe("train-maxent", settings | {"force_custom_loop": True}, use_cpu=True).route
        == "native"
    )


# Written back


@pytest.mark.parametrize("command", list(COMMANDS))
def test_what_construction_adds_to_the_light_configuration_depends_on_the_device(
    command: str, resolved_recipe: Resolve
) -> None:
    settings = COMMANDS[command] | {"eval_strategy": "steps", "report_to": "wandb", "save_steps": 7.0}
    light = resolved_recipe(command, settings)
    before, after = resolved(light), resolved(light.built())
    differing = {
        key
        for section in ("script", "training", "model")
        for key, value in after[section].items()
        if before[section][key] != value or type(before[section][key]) is not type(value)
    }
    assert differing <= {"bf16", "disable_tqdm"}


def test_null_unsets_from_every_source(recipe: Recipe) -> None:
    path = recipe(
        GRPO | {"seed": None, "beta": 0.2, "dataset_prompt_column": "question", "max_prompt_length": 5}
    )
    overrides = {"flat": {"beta": None, "dataset_prompt_column": None, "max_prompt_length": None}}
    config = resolve("train-baseline", path, overrides, {})
    assert (config.training.seed, config.training.beta, config.training.max_prompt_length) == (42, 0.0, None)
    assert config.script.dataset_prompt_column is None
    training = GRPOConfig(output_dir="x", use_cpu=True, maxent_tau=None, seed=None, reward_timeout=None)
    assert (training.maxent_tau, training.seed, training.reward_timeout) == (0.0, 42, 10.0)


def test_null_beside_another_name_of_a_setting_says_nothing(recipe: Recipe) -> None:
    settings = {key: value for key, value in GRPO.items() if key != "beta"} | {
        "beta": None,
        "init_kl_coeff": 0.3,
    }
    path = recipe(settings | {"reward_weights": [2.0]})
    assert resolve("train-baseline", path, None, {}).training.beta == 0.3
    unset = resolve("train-baseline", path, {"flat": {"kl_penalty_beta": None, "reward_weights": None}}, {})
    assert (unset.training.beta, unset.training.reward_weights) == (0.0, None)


@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize("native", [True, False])
def test_a_resolved_configuration_resolves_to_itself(
    command: str, native: bool, resolved_recipe: Resolve, tmp_path: Path
) -> None:
    settings = COMMANDS[command] | {"force_custom_loop": native, "eval_strategy": "steps", "eval_steps": 5}
    settings |= {"reward_weights": [2.0], "system_prompt": "Be brief.\nBe right."}
    light = resolved_recipe(command, settings)
    config = light.built()
    path = tmp_path / "resolved_config.yaml"
    write_resolved(config, path)
    again = resolve(command, path, None, {}).built()
    assert resolved(again) == resolved(config)
    assert again.route == config.route
    assert again.training.to_dict() == config.training.to_dict()
    assert (again.script, again.model) == (config.script, config.model)


def test_a_resolved_configuration_holds_every_setting_and_belongs_to_its_command(
    resolved_recipe: Resolve, tmp_path: Path
) -> None:
    config = resolved_recipe("train-maxent", MAXENT)
    tree = resolved(config)
    assert tree["training"]["maxent_loss"] == "listwise"
    assert tree["training"]["steps_per_generation"] == 1
    assert set(BASE) <= {*tree["script"], *tree["training"], *tree["model"]}
    path = tmp_path / "resolved_config.yaml"
    write_resolved(config, path)
    assert path.read_text().splitlines()[0] == f"# Resolved from {config.recipe_path}; a recipe itself."
    assert failure("train-baseline", path) == (
        f"train-baseline | {path}: was resolved for train-maxent; run it with that command"
    )


def test_secrets_are_not_written(resolved_recipe: Resolve, tmp_path: Path) -> None:
    settings = GRPO | {
        "force_custom_loop": False,
        "hub_token": "hf_secret",
        "model_init_kwargs": {"token": "hf_secret"},
    }
    config = resolved_recipe("train-baseline", settings)
    path = tmp_path / "resolved_config.yaml"
    write_resolved(config, path)
    assert "hf_secret" not in path.read_text()
    assert config.training.hub_token == "hf_secret"
    assert "average_tokens_across_devices" in path.read_text()
    assert not path.stat().st_mode & stat.S_IXUSR


def test_patience_with_the_hub_comes_from_the_environment() -> None:
    flat = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    environ = {"MAXENT_HF_DATASET_RETRIES": "2", "MAXENT_HF_DATASET_RETRY_SLEEP": "0.5"}
    retry = resolve("train-baseline", None, {"flat": flat}, environ).dataset_retry
    assert (retry.retries, retry.sleep, retry.max_sleep) == (2, 0.5, 60.0)
    with pytest.raises(UsageError, match="MAXENT_HF_DATASET_RETRIES: 'many' is not an integer"):
        resolve("train-baseline", None, {"flat": flat}, {"MAXENT_HF_DATASET_RETRIES": "many"})


def test_a_recipe_is_loaded_from_python_into_the_three_configurations(recipe: Recipe) -> None:
    path = recipe({key: value for key, value in GRPO.items() if key != "beta"} | {"init_kl_coef": 0.25})
    environ: dict[str, str] = {"MAXENT_LOG_LEVEL": "debug"}
    script, training, model = load_grpo_recipe(path, environ)
    assert isinstance(training, GRPOConfig)
    assert (training.beta, training.log_level) == (0.25, "debug")
    assert script.dataset_name == GRPO["dataset_name"]
    assert model.model_name_or_path == GRPO["model_name_or_path"]
    assert environ["GRPO_RECIPE_USED"] == str(path.resolve())
    assert config.GRPOConfig is GRPOConfig
    assert config.ModelConfig is type(model)


def test_all_unknown_keys_of_a_recipe_are_named_at_once(recipe: Recipe) -> None:
    path = recipe(GRPO | {"learning_rat": 1.0, "clip_rang": 0.2})
    with pytest.raises(UsageError, match=r"unknown keys 'clip_rang' .*, 'learning_rat' "):
        resolve("train-baseline", path, {}, {})
