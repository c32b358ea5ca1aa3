"""Every way to get a request wrong, and the one line that it ends in."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from config_cases import GRPO, INFOSEED, MAXENT, Recipe, Resolve, failure

from maxent_grpo.config.loading import resolve
from maxent_grpo.errors import UsageError

# What a command refuses


def test_maxent_settings_without_maxent_training_are_refused_by_name(recipe: Recipe) -> None:
    path = recipe(GRPO | {"maxent_tau": 0.2, "maxent_q_temperature": 0.5, "maxent_q_epsilon": 1e-6})
    assert failure("train-baseline", path) == (
        f"train-baseline | {path}: MaxEnt overrides (maxent_q_temperature, maxent_tau) "
        "require train_grpo_objective=false"
    )


def test_a_paired_grpo_recipe_may_say_who_scores_the_reference(resolved_recipe: Resolve) -> None:
    settings = GRPO | {"maxent_reference_logprobs_source": "model"}
    assert resolved_recipe("train-baseline", settings).training.maxent_reference_logprobs_source == "model"


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        ("train-infoseed", GRPO, "train-infoseed requires info_seed_enabled=true"),
        ("train-baseline", INFOSEED, "InfoSeed is not supported for this command; use train-infoseed"),
        ("train-maxent", INFOSEED, "InfoSeed is not supported for this command; use train-infoseed"),
        (
            "train-baseline",
            GRPO | {"info_seed_lambda": 0.1},
            "InfoSeed overrides (info_seed_lambda) require info_seed_enabled=true",
        ),
        ("train-baseline", MAXENT, "train_grpo_objective=false trains a MaxEnt objective; use train-maxent"),
        (
            "train-baseline",
            GRPO | {"objective": "tilted"},
            "objective=tilted trains a MaxEnt objective; use train-maxent",
        ),
    ],
)
def test_a_recipe_of_another_command_is_refused(
    command: str, settings: dict[str, Any], message: str, recipe: Recipe
) -> None:
    path = recipe(settings)
    assert failure(command, path) == f"{command} | {path}: {message}"


def test_an_unknown_command() -> None:
    assert failure("train-everything", None) == "Unsupported command: train-everything"


# What a flat recipe must say


@pytest.mark.parametrize(
    ("settings", "without", "message"),
    [
        (GRPO, "model_name_or_path", "model_name_or_path: a recipe must set it"),
        (GRPO, "output_dir", "output_dir: a recipe must set it"),
        (GRPO, "dataset_name", "dataset_name: Either `dataset_name` or `dataset_mixture` must be provided"),
        (
            GRPO,
            "beta",
            "beta: a baseline recipe must set it (or init_kl_coeff, init_kl_coef, kl_penalty_beta); "
            "0 drops the reference",
        ),
        (MAXENT, "maxent_tau", "maxent_tau: a MaxEnt recipe must set it"),
    ],
)
def test_a_flat_recipe_lacks_something(
    settings: dict[str, Any], without: str, message: str, recipe: Recipe
) -> None:
    path = recipe({key: value for key, value in settings.items() if key != without})
    assert failure("train-baseline", path) == f"Recipe {path} failed validation: {message}"


def test_problems_of_a_recipe_are_joined(recipe: Recipe) -> None:
    path = recipe({"dataset_name": "a", "beta": 0.1})
    assert failure("train-baseline", path) == (
        f"Recipe {path} failed validation: model_name_or_path: a recipe must set it; "
        "output_dir: a recipe must set it"
    )


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (
            "maxent-grpo",
            "train_grpo_objective: a MaxEnt recipe must set it to false; "
            "maxent_tau: a MaxEnt recipe must set it",
        ),
        ("infoseed", "info_seed_enabled: an InfoSeed recipe must set it to true"),
    ],
)
def test_the_folder_of_a_recipe_says_what_it_is_for(folder: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / folder / "config.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(GRPO))
    assert failure("train-baseline", path) == f"Recipe {path} failed validation: {message}"


def test_a_minimal_maxent_recipe_and_a_mixture_are_enough(resolved_recipe: Resolve) -> None:
    settings = {key: value for key, value in MAXENT.items() if key not in ("dataset_name", "use_cpu")}
    mixture = {"seed": 42, "datasets": [{"id": "a", "split": "train", "columns": ["problem"], "weight": 0.5}]}
    config = resolved_recipe("train-maxent", settings | {"dataset_mixture": mixture})
    assert config.script.dataset_mixture == mixture


@pytest.mark.parametrize("key", ["logging_steps", "save_steps"])
def test_cadences_must_be_positive(key: str, recipe: Recipe) -> None:
    path = recipe(GRPO | {key: 0})
    assert failure("train-baseline", path).startswith(f"Recipe {path} failed validation: {key}: 0")


# Files and names that are wrong


def test_unknown_keys_get_a_suggestion(recipe: Recipe) -> None:
    path = recipe(GRPO | {"learning_rat": 1e-6})
    assert failure("train-baseline", path) == (
        f"train-baseline | {path}: unknown key 'learning_rat' (did you mean learning_rate?)"
    )
    path = recipe(GRPO | {"zzzzz": 1})
    assert failure("train-baseline", path) == f"train-baseline | {path}: unknown key 'zzzzz'"
    path = recipe(GRPO)
    assert failure("train-baseline", path, {"training": {"maxent_tua": 1}}) == (
        f"train-baseline | {path}: override: unknown key training.maxent_tua (did you mean maxent_tau?)"
    )


def test_misplaced_keys_say_where_they_belong(recipe: Recipe) -> None:
    path = recipe(GRPO)
    assert failure("train-baseline", path, {"training": {"dataset_name": "a"}}) == (
        f"train-baseline | {path}: override: training.dataset_name is misplaced; write script.dataset_name"
    )
    path = recipe({"training": {"output_dir": "x"}, "seed": 3})
    assert failure("train-baseline", path) == (
        f"train-baseline | {path}: seed stands beside the sections; move it into training"
    )
    path = recipe({"training": 3})
    assert failure("train-baseline", path).endswith("training must be a mapping of settings, not 3")
    assert "unknown section 'train'" in failure("train-baseline", None, {"train": {"seed": 1}})


def test_values_of_the_wrong_type_name_key_value_expectation_and_file(recipe: Recipe) -> None:
    path = recipe(GRPO | {"learning_rate": "fast", "num_generations": 2.5})
    assert failure("train-baseline", path) == (
        f"Recipe {path} failed validation: learning_rate: 'fast' is not a finite number; "
        "num_generations: 2.5 is not an integer or null"
    )
    path = recipe(GRPO)
    assert failure("train-baseline", path, {"training": {"seed": "x"}}) == (
        f"train-baseline | {path}: override: seed: 'x' is not an integer"
    )
    path = recipe("\n".join(f"{k}: {v}" for k, v in GRPO.items()) + "\neval_strategy: no\ndtype: half\n")
    message = failure("train-baseline", path)
    assert (
        "eval_strategy: False is not one of no, steps, epoch (YAML reads a bare yes, no, on or off" in message
    )
    assert "dtype: 'half' is not one of auto, bfloat16, float16, float32" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2", "not YAML in line 2"),
        ("a: 1\na: 2", "not YAML in line 2 (found duplicate key a)"),
        ("- 1\n- 2", "a recipe is a mapping of settings (key: value)"),
        ("output_dir: ${nowhere}", "cannot be read (Interpolation key 'nowhere' not found"),
    ],
)
def test_files_that_are_no_recipe(text: str, message: str, recipe: Recipe) -> None:
    path = recipe(text)
    assert failure("train-baseline", path).startswith(f"train-baseline | {path}: {message}")


def test_a_missing_and_an_unreadable_file(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "none.yaml"
    message = f"train-baseline | {path}: there is no such recipe; give the path of a YAML file"
    assert failure("train-baseline", path) == message
    assert failure("train-baseline", tmp_path).endswith(
        "there is no such recipe; give the path of a YAML file"
    )
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    assert "binary.yaml: " in failure("train-baseline", binary)


def test_without_a_recipe_the_line_says_what_is_missing() -> None:
    assert failure("train-baseline", None, {"script": {"dataset_name": "a"}}) == (
        "train-baseline: settings failed validation: model_name_or_path: no model is named; "
        "give a hub id, a directory, or bundled:tiny-policy"
    )
    overrides = {"script": {"dataset_name": "a"}, "model": {"model_name_or_path": "m"}}
    assert failure("train-baseline", None, overrides).endswith(
        "output_dir: no output directory is named; set output_dir"
    )


def test_settings_that_the_trainer_would_ignore_are_refused(recipe: Recipe) -> None:
    path = recipe(MAXENT | {"dataloader_num_workers": 4})
    assert "dataloader_num_workers: the native loop keys its prompt order" in failure("train-maxent", path)
    path = recipe(GRPO | {"force_custom_loop": False, "tis_cap": 2.0})
    assert "tis_cap: TRL's trainer does not read it; set force_custom_loop=true" in failure(
        "train-baseline", path
    )


def test_rules_of_trl_and_transformers_become_one_line(recipe: Recipe) -> None:
    path = recipe(GRPO | {"load_in_8bit": True, "load_in_4bit": True})
    assert "model: You can't use 8 bit and 4 bit precision at the same time" in failure(
        "train-baseline", path
    )
    path = recipe(GRPO | {"force_custom_loop": False, "accelerator_config": "nowhere.json"})
    config = resolve("train-baseline", path, None, {})
    with pytest.raises(UsageError, match=f"^Recipe {path} failed validation: .*nowhere.json"):
        config.built()  # a file that only Transformers reads


def test_a_native_batch_must_hold_whole_groups_per_process(recipe: Recipe) -> None:
    path = recipe(GRPO | {"num_generations": 8, "per_device_train_batch_size": 2, "steps_per_generation": 4})
    assert "are not whole groups of num_generations=8 in each process" in failure("train-baseline", path)
