"""TRL-style flags: what they parse to, and who wins."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from maxent_grpo import grpo, maxent_grpo
from maxent_grpo.cli.flags import training_flags
from maxent_grpo.errors import UsageError


@pytest.mark.parametrize(
    ("typed", "settings"),
    [
        ("--run_name demo --report_to wandb", {"run_name": "demo", "report_to": "wandb"}),
        ("--learning_rate 1e-5 --learning-rate=1e-6", {"learning_rate": "1e-6"}),
        ("--maxent_tau 0.1 --maxent_q_epsilon 1e-6", {"maxent_tau": "0.1", "maxent_q_epsilon": "1e-6"}),
        (
            "--maxent_length_normalize_ref --controller_meta_enabled true",
            {"maxent_length_normalize_ref": True, "controller_meta_enabled": True},
        ),
        ("--bf16 false", {"bf16": False}),
        ("--bf16", {"bf16": True}),
        ("--no_bf16", {"bf16": False}),
        ("--no-bf16", {"bf16": False}),
        ("--resume_from_checkpoint true", {"resume_from_checkpoint": True}),
        ("--resume_from_checkpoint var/x", {"resume_from_checkpoint": "var/x"}),
        ("--reward_funcs pure_accuracy_math", {"reward_funcs": ["pure_accuracy_math"]}),
        ("--reward_funcs a b", {"reward_funcs": ["a", "b"]}),
        ('--dataset_mixture {"seed":1}', {"dataset_mixture": {"seed": 1}}),
        ("--init_kl_coeff 0.5 --kl_target 0.07", {"init_kl_coeff": "0.5", "kl_target": "0.07"}),
        ("--max_steps -1", {"max_steps": "-1"}),
        ("--chat_template {%x%}", {"chat_template": "{%x%}"}),
        ("--vllm_server_host h --vllm_server_port 80", {"vllm_server_host": "h", "vllm_server_port": "80"}),
    ],
)
def test_flags_take_the_spelling_of_trls_parser(typed: str, settings: dict[str, Any]) -> None:
    assert training_flags(typed.split()) == settings


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("learning_rate=1", "learning_rate=1: settings are flags here"),
        ("--config", "--config needs one recipe file"),
        ("--learning_rate", "--learning_rate needs a value"),
        ("--learning_rate 1 2", "--learning_rate takes one value and got 2"),
        ("--dataset_mixture {a", "not JSON"),
        ("--dry_run maybe", "--dry_run is true or false"),
    ],
)
def test_malformed_flags_are_refused(typed: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        training_flags(typed.split())


def _settings(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    printed = yaml.safe_load(capsys.readouterr().out)
    return {**printed["settings"]["training"], **printed["settings"]["script"], "command": printed["command"]}


def test_flags_win_over_the_recipe(recipe: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe("maxent")
    assert maxent_grpo.main(["--config", str(path), "--learning_rate", "2e-6", "--seed=7", "--dry_run"]) == 0
    settings = _settings(capsys)
    assert (settings["command"], settings["learning_rate"], settings["seed"]) == ("train-maxent", 2e-6, 7)
    assert settings["maxent_tau"] == 0.2


def test_flags_count_although_the_environment_names_a_recipe(
    recipe: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_RECIPE", str(recipe("baseline")))
    assert grpo.main(["--seed", "7", "--reward_funcs", "pure_accuracy_math", "--dry_run"]) == 0
    settings = _settings(capsys)
    assert (settings["command"], settings["seed"], settings["learning_rate"]) == ("train-baseline", 7, 1e-6)


def test_config_wins_over_the_environments_recipe(
    recipe: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_RECIPE", "absent.yaml")
    path = recipe("maxent")
    assert maxent_grpo.main(["--config", str(path), "--dry_run"]) == 0
    assert os.environ["GRPO_RECIPE_USED"] == str(path)
    assert _settings(capsys)["maxent_tau"] == 0.2


def test_an_unknown_flag_names_its_neighbour(
    recipe: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe("maxent")
    assert maxent_grpo.main(["--config", str(path), "--lerning_rate", "1"]) == 2
    error = capsys.readouterr().err
    assert "did you mean learning_rate?" in error
    assert error.count("\n") == 1


def test_help_says_how_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert grpo.main(["--help"]) == 0
    assert "python -m maxent_grpo.grpo --config FILE" in capsys.readouterr().out
