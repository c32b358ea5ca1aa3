"""Recipes in the words of liv-daliberti/maxent-grpo: what has a counterpart, what changes nothing, what is refused."""

import logging
from pathlib import Path
from typing import Any

import pytest
from config_cases import GRPO, MAXENT, Recipe, failure

from maxent_grpo.cli.dry_run import dry_run_text
from maxent_grpo.config import load_grpo_recipe
from maxent_grpo.config.loading import resolve
from maxent_grpo.config.records import ALIASES, section_of
from maxent_grpo.config.reference_keys import UNLESS, WITHOUT_EFFECT, without_effect
from maxent_grpo.launch.recipe import read_facts

OWN_LOOP = {"force_custom_loop": True, "num_generations": 8, "per_device_train_batch_size": 64}
SAMPLING = {"gen_temperature": 0.7, "gen_top_p": 0.9, "gen_top_k": -1, "vllm_top_k": -1, "gen_best_of": 1}
SPEED = {
    "vllm_return_logprobs": True,
    "vllm_request_logprobs": True,
    "maxent_logprob_chunk_size": 2,
    "maxent_prompt_cache_size": 20000,
    "disable_distributed_sampler": True,
    "log_like_grpo": True,
}
CLIP = {"clip_range": 0.05, "ppo_clip_range": 0.1, "clip_range_high": 0.25, "clip_delta": 0.0}

PAIRED = GRPO | OWN_LOOP | SAMPLING | SPEED | CLIP | {"grpo_loss_type": "dr_grpo", "log_level": 20}
LISTWISE = MAXENT | {"objective": "maxent_listwise", "maxent_use_clip_objective": True} | SAMPLING | SPEED


def test_every_name_is_either_a_setting_or_a_key_without_one() -> None:
    keys = {*WITHOUT_EFFECT, *UNLESS}
    assert not WITHOUT_EFFECT.keys() & UNLESS.keys()
    assert {key for key in keys if section_of(key) is not None} == set()
    known = ("clip_range", "clip_range_high", "gen_temperature", "gen_top_p", "gen_top_k", "grpo_loss_type")
    assert [ALIASES[name] for name in known] == [
        "epsilon", "epsilon_high", "temperature", "top_p", "top_k", "loss_type",
    ]  # fmt: skip


def test_a_paired_recipe_trains_with_its_own_numbers_and_one_notice(recipe: Recipe) -> None:
    config = resolve("train-baseline", recipe(PAIRED), environ={})
    training = config.training
    assert (training.epsilon, training.epsilon_high, training.loss_type) == (0.05, 0.25, "dr_grpo")
    assert (training.temperature, training.top_p, training.top_k) == (0.7, 0.9, 0)
    assert training.log_level == "info"
    assert config.notice.startswith("without effect: ")
    assert "\n" not in config.notice
    for key in (*SPEED, "ppo_clip_range", "clip_delta", "gen_best_of"):
        assert config.notice.count(key) == 1 or key in ("clip_delta",), key
    assert "epsilon" not in config.notice
    assert f"notice: '{config.notice[:20]}" in dry_run_text(config).replace("\n  ", " ")


def test_their_names_of_objectives(recipe: Recipe) -> None:
    config = resolve("train-maxent", recipe(LISTWISE), environ={})
    assert config.training.objective == "maxent"
    assert "maxent_use_clip_objective (a MaxEnt loss is one term" in config.notice
    entropy = GRPO | OWN_LOOP | {"objective": "maxent_entropy", "maxent_alpha": 0.02}
    training = resolve("train", recipe(entropy), environ={}).training
    assert (training.objective, training.entropy_coef) == ("grpo", 0.02)
    bonus = GRPO | OWN_LOOP | {"objective": "grpo_entropy_bonus", "policy_entropy_bonus_coef": 0.3}
    training = resolve("train", recipe(bonus), environ={}).training
    assert (training.objective, training.entropy_bonus_coef) == ("grpo_entropy_bonus", 0.3)


def test_a_recipe_that_names_its_objective_is_of_that_kind_whatever_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "maxent-grpo" / "config.yaml"
    path.parent.mkdir()
    for settings, command in ((GRPO | {"objective": "grpo"}, "train-baseline"), (LISTWISE, "train-maxent")):
        given = {key: value for key, value in settings.items() if key != "train_grpo_objective"}
        path.write_text(
            "\n".join(f"{key}: {value!r}" for key, value in given.items()).replace("True", "true")
        )
        assert resolve("train", path, environ={}).command == command


def test_a_recipe_without_such_keys_has_no_notice(recipe: Recipe) -> None:
    config = resolve("train-baseline", recipe(GRPO), environ={})
    assert config.notice == ""
    assert "notice" not in dry_run_text(config)


@pytest.mark.parametrize(
    ("key", "neutral", "asks", "remedy"),
    [
        ("gen_best_of", 1, 4, "raise num_generations"),
        ("clip_delta", 0.0, 0.1, "widen epsilon"),
        ("eval_greedy_only_enabled", False, True, "eval_temperature: 0"),
        ("prompt_template", "no", "r1", "chat_template"),
        ("maxent_clip_range", None, 0.3, "set epsilon"),
        ("maxent_reference_ema_enabled", False, True, "frozen"),
    ],
)
def test_what_asks_for_something_else_is_refused_with_what_to_do(
    key: str, neutral: Any, asks: Any, remedy: str, recipe: Recipe
) -> None:
    assert without_effect(key, neutral) is not None
    assert without_effect(key, asks) is None
    message = failure("train-baseline", recipe(GRPO | {key: asks}))
    assert f"unknown key '{key}'" in message
    assert remedy in message


def test_unknown_keys_are_refused_all_at_once_unless_they_are_to_be_ignored(recipe: Recipe) -> None:
    unknown = {"learning_rat": 1.0, "zzzzz": 1, "gen_best_of": 4, "maxent_cusp_gate": True}
    settings = GRPO | OWN_LOOP | SPEED | unknown
    message = failure("train-baseline", recipe(settings))
    for key in unknown:
        assert key in message
    assert "vllm_return_logprobs" not in message
    assert "unknown_keys=ignore" in message
    for config in (
        resolve("train-baseline", recipe(settings | {"unknown_keys": "ignore"}), environ={}),
        resolve("train-baseline", recipe(settings), {"flat": {"unknown_keys": "ignore"}}, environ={}),
    ):
        for key in (*unknown, "vllm_return_logprobs"):
            assert key in config.notice
    assert "unknown_keys: 'drop' is not one of refuse, ignore" in failure(
        "train-baseline", recipe(GRPO | {"unknown_keys": "drop"})
    )


def test_what_is_typed_is_refused_where_only_the_recipe_ignores(recipe: Recipe) -> None:
    path = recipe(GRPO | {"unknown_keys": "ignore"})
    message = failure("train-baseline", path, {"training": {"maxent_tua": 1}})
    assert "override: unknown key training.maxent_tua" in message
    config = resolve(
        "train-baseline", path, {"training": {"maxent_tua": 1, "unknown_keys": "ignore"}}, environ={}
    )
    assert "maxent_tua (ignored" in config.notice


def test_settings_that_the_run_would_not_read_are_passed_over_too(recipe: Recipe) -> None:
    unread = {"push_to_hub": True, "logging_first_step": True, "maxent_tau": 0.2}
    settings = GRPO | OWN_LOOP | unread
    assert "maxent_tau" in failure("train-baseline", recipe(settings))
    config = resolve("train-baseline", recipe(settings | {"unknown_keys": "ignore"}), environ={})
    assert (config.training.push_to_hub, config.training.logging_first_step) == (False, False)
    assert config.training.maxent_tau == 0.0
    for key in unread:
        assert key in config.notice


def test_python_and_launchers_read_such_recipes_too(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    path = recipe(PAIRED)
    with caplog.at_level(logging.WARNING):
        _, training, _ = load_grpo_recipe(path, {})
    assert training.epsilon == 0.05
    assert [record.getMessage()[:15] for record in caplog.records] == ["without effect:"]
    assert read_facts(path, ()).path == path
    with_more = recipe(PAIRED | {"zzzzz": 1})
    assert read_facts(with_more, ("--unknown_keys", "ignore")).path == with_more


def test_a_misspelt_section_and_a_text_for_a_list_get_a_hint_that_fits(recipe: Recipe) -> None:
    path = recipe(GRPO)
    assert failure("train-baseline", path, {"flat": {"trainin": {"learning_rate": 1}}}).endswith(
        "unknown key 'trainin' (did you mean training?)"
    )
    assert failure("train-baseline", path, {"flat": {"logging": {"experiment_name": 1}}}).endswith(
        "unknown key 'logging'"
    )
    assert failure("train-baseline", path, {"flat": {"reward_funcs": "accuracy"}}).endswith(
        "reward_funcs: 'accuracy' is not a list of texts; write [accuracy]"
    )
