"""Every training command that the project promises, letter by letter, and where it leads."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composed import jobs_of
from maxent_grpo.cli.compose import Composed
from maxent_grpo.cli.request import Request, read_request, resolve_job
from maxent_grpo.config.loading import RunConfig

SCRIPTS = {
    "maxent-grpo": None,
    "maxent-grpo-baseline": "train-baseline",
    "maxent-grpo-maxent": "train-maxent",
    "maxent-grpo-infoseed": "train-infoseed",
}
QWEN = "configs/recipes/Qwen2.5-1.5B-Instruct"
GRPO, MAXENT, INFOSEED = (f"{QWEN}/{kind}/config_math.yaml" for kind in ("grpo", "maxent-grpo", "infoseed"))
PRESET = "maxent-grpo --config-path configs/recipes/hydra --config-name"

# Command line, GRPO_RECIPE, then the command, the route and some settings that it leads to.
LINES: list[tuple[str, str | None, str, str, dict[str, Any]]] = [
    (
        f"maxent-grpo-baseline baseline.recipe={GRPO}",
        None,
        "train-baseline",
        "native",
        {"force_custom_loop": True},
    ),
    (
        f"maxent-grpo-infoseed infoseed.recipe={INFOSEED}",
        None,
        "train-infoseed",
        "native",
        {"info_seed_enabled": True, "controller_meta_enabled": True},
    ),
    (
        "maxent-grpo-baseline command=train-baseline "
        "baseline.script.dataset_name=open-r1/OpenR1-Math-220k baseline.training.output_dir=var/data/out",
        GRPO,
        "train-baseline",
        "native",
        {"output_dir": "var/data/out"},
    ),
    (
        "maxent-grpo-maxent maxent.training.controller_meta_enabled=false",
        MAXENT,
        "train-maxent",
        "native",
        {"controller_meta_enabled": False},
    ),
    (
        "maxent-grpo-baseline baseline.training.controller_meta_enabled=true "
        "baseline.training.controller_meta_method=first_order baseline.training.controller_meta_lr=0.02",
        GRPO,
        "train-baseline",
        "native",
        {
            "controller_meta_enabled": True,
            "controller_meta_method": "first_order",
            "controller_meta_lr": 0.02,
        },
    ),
    (
        "maxent-grpo-maxent controller_meta_enabled=false",
        MAXENT,
        "train-maxent",
        "native",
        {"controller_meta_enabled": False},
    ),
    (
        "maxent-grpo-maxent controller_meta_method=first_order",
        MAXENT,
        "train-maxent",
        "native",
        {"controller_meta_method": "first_order"},
    ),
    (
        "maxent-grpo-infoseed controller_meta_lr=0.02",
        INFOSEED,
        "train-infoseed",
        "native",
        {"controller_meta_lr": 0.02},
    ),
    (
        "maxent-grpo-baseline command=train-baseline training.output_dir=var/data/out",
        GRPO,
        "train-baseline",
        "native",
        {"output_dir": "var/data/out"},
    ),
    ("maxent-grpo-maxent", MAXENT, "train-maxent", "native", {"train_grpo_objective": False, "seed": 42}),
    ("maxent-grpo-baseline", GRPO, "train-baseline", "native", {"train_grpo_objective": True, "seed": 42}),
    (f"{PRESET} baseline_math", None, "train-baseline", "native", {"force_custom_loop": True}),
    (f"{PRESET} grpo_custom_math", None, "train-baseline", "native", {"force_custom_loop": True}),
    (f"{PRESET} maxent_math", None, "train-maxent", "native", {"train_grpo_objective": False}),
    (f"{PRESET} infoseed_math", None, "train-infoseed", "native", {"info_seed_enabled": True}),
    (
        f"{PRESET} maxent_math maxent.training.controller_meta_enabled=false",
        None,
        "train-maxent",
        "native",
        {"controller_meta_enabled": False},
    ),
    (
        "maxent-grpo --config-name maxent_math",
        None,
        "train-maxent",
        "native",
        {"train_grpo_objective": False},
    ),
]


def _request(line: str) -> tuple[Request, Composed]:
    script, *arguments = shlex.split(line)
    (job,) = jobs_of(arguments)
    return read_request(job, SCRIPTS[script]), job


def _resolved(line: str, recipe: str | None) -> RunConfig:
    return resolve_job(*_request(line), {"GRPO_RECIPE": recipe} if recipe else {})


@pytest.mark.parametrize(("line", "recipe", "command", "route", "settings"), LINES)
def test_promised_line(
    line: str,
    recipe: str | None,
    command: str,
    route: str,
    settings: dict[str, Any],
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(repository)
    config = _resolved(line, recipe)
    assert (config.command, config.route) == (command, route)
    assert {key: getattr(config.training, key) for key in settings} == settings


@pytest.mark.parametrize(("line", "recipe", "command", "route", "settings"), LINES)
def test_a_line_that_names_no_recipe_starts_from_the_template(
    line: str,
    recipe: str | None,
    command: str,
    route: str,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if recipe is None:
        pytest.skip("the line names its recipe")
    monkeypatch.chdir(tmp_path)  # the checkout that runs is found from anywhere
    config = _resolved(line, None)
    assert (config.command, config.route) == (command, route)
    assert {key: getattr(config.training, key) for key in settings} == settings
    assert config.model.model_name_or_path == "Qwen/Qwen2.5-1.5B-Instruct"


def test_inline_overrides_suffice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = _resolved(
        "maxent-grpo-baseline baseline.model.model_name_or_path=some/model "
        "baseline.script.dataset_name=some/data baseline.training.output_dir=var/data/out",
        None,
    )
    assert (config.route, config.recipe_path, config.script.dataset_name) == ("trl", None, "some/data")


def test_precedence_is_recipe_then_preset_then_command_line(
    recipe: Callable[[str], Path], tmp_path: Path
) -> None:
    path = recipe("maxent")
    (tmp_path / "mine.yaml").write_text(
        f"command: train-maxent\nmaxent:\n  recipe: {path}\n  training: {{maxent_tau: 0.3, beta: 0.4}}\n"
    )
    training = _resolved(
        "maxent-grpo --config-dir . --config-name mine maxent.training.beta=0.5", None
    ).training
    assert (training.learning_rate, training.maxent_tau, training.beta) == (1e-6, 0.3, 0.5)


def test_a_named_recipe_wins_over_the_environments(recipe: Callable[[str], Path]) -> None:
    recipe("maxent")
    config = _resolved("maxent-grpo-maxent maxent.recipe=maxent.yaml", "absent.yaml")
    assert config.recipe_path == Path("maxent.yaml").resolve()


def test_each_job_of_a_sweep_has_its_own_directory(recipe: Callable[[str], Path]) -> None:
    recipe("maxent")
    jobs = jobs_of(["--multirun", "maxent.recipe=maxent.yaml", "seed=0,1", "maxent.training.beta=0.1,0.2"])
    configs = [resolve_job(read_request(job, "train-maxent"), job, {}) for job in jobs]
    assert [(c.training.output_dir, c.training.seed, c.training.beta) for c in configs] == [
        ("var/data/out/beta=0.1,seed=0", 0, 0.1),
        ("var/data/out/beta=0.2,seed=0", 0, 0.2),
        ("var/data/out/beta=0.1,seed=1", 1, 0.1),
        ("var/data/out/beta=0.2,seed=1", 1, 0.2),
    ]


def test_a_sweep_over_output_dir_is_left_alone(recipe: Callable[[str], Path]) -> None:
    recipe("maxent")
    jobs = jobs_of(["--multirun", "maxent.recipe=maxent.yaml", "training.output_dir=a,b"])
    configs = [resolve_job(read_request(job, "train-maxent"), job, {}) for job in jobs]
    assert [config.training.output_dir for config in configs] == ["a", "b"]
