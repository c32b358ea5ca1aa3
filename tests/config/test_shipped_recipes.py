"""The recipes under configs/: all of them resolve, and pairs differ in nothing but what is trained."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from maxent_grpo.config.loading import resolve, resolved
from maxent_grpo.config.plan import batch_plan, controller_settings

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "configs" / "recipes"
COMMAND_OF = {"grpo": "train-baseline", "maxent-grpo": "train-maxent", "infoseed": "train-infoseed"}
MODELS = ("Qwen2.5-0.5B-Instruct", "Qwen2.5-1.5B-Instruct", "Qwen2.5-7B-Instruct", "Llama-3.1-8B-Instruct")
ALL = sorted(RECIPES.glob("*/*/config_*.yaml"))
PAIRS = [path for path in ALL if path.parent.name == "grpo" and "SmolLM2" not in str(path)]
SECTION_OF = {"train-baseline": "baseline", "train-maxent": "maxent", "train-infoseed": "infoseed"}

METHOD_KEYS = frozenset(
    {
        "objective",
        "train_grpo_objective",
        "force_custom_loop",
        "loss_type",
        "scale_rewards",
        "beta",
        "epsilon",
        "kl_target",
        "kl_horizon",
        "kl_ctl_step_size",
        "output_dir",
        "run_name",
    }
)
"""What may differ between a GRPO recipe and its counterpart, besides ``maxent_*`` and ``controller_*``."""


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES))


def test_every_model_has_the_three_recipes() -> None:
    expected = {f"{model}/{method}/config_math.yaml" for model in MODELS for method in COMMAND_OF}
    tiny = {
        f"tiny/{method}/config_{task}.yaml"
        for method in COMMAND_OF
        for task in ("graph_coloring", "countdown")
    }
    language_model = {"SmolLM2-135M-Instruct/grpo/config_name_one.yaml"}
    assert {name_of(path) for path in ALL} == expected | tiny | language_model


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_a_shipped_recipe_resolves_for_the_native_loop(path: Path) -> None:
    config = resolve(COMMAND_OF[path.parent.name], path, None, {})
    assert config.route == "native"
    assert config.training.temperature == 1.0
    assert config.training.use_vllm is False
    without_meta = path.parent.name == "grpo" or name_of(path).startswith("tiny/infoseed")
    assert config.training.controller_meta_enabled == (not without_meta)
    assert batch_plan(config.training, 1).on_policy


@pytest.mark.parametrize("path", PAIRS, ids=name_of)
def test_a_pair_differs_in_the_method_only(path: Path) -> None:
    grpo = _settings("train-baseline", path)
    maxent = _settings("train-maxent", path.parent.parent / "maxent-grpo" / path.name)
    differing = {key for key in grpo if grpo[key] != maxent[key]}
    differing = {key for key in differing if not key.startswith(("maxent_", "controller_"))}
    assert differing <= METHOD_KEYS
    assert (grpo["force_custom_loop"], grpo["maxent_reference_logprobs_source"]) == (True, "model")
    assert (grpo["kl_horizon"], grpo["controller_meta_enabled"]) == (0, False)


@pytest.mark.parametrize("path", [p for p in ALL if p.parent.name != "grpo"], ids=name_of)
def test_controllers_take_over_where_the_meta_controller_is_switched_off(path: Path) -> None:
    overrides = {"training": {"controller_meta_enabled": False}}
    training = resolve(COMMAND_OF[path.parent.name], path, overrides, {}).training
    settings = controller_settings(training, training.max_steps)
    assert settings.adapts_tau == (path.parent.name == "maxent-grpo")
    assert settings.adapts_beta == ("tiny" not in path.parts)


@pytest.mark.parametrize("path", PAIRS[:-2], ids=name_of)
def test_a_grpo_recipe_takes_the_meta_controller(path: Path) -> None:
    meta = {
        "controller_meta_enabled": True,
        "controller_meta_method": "first_order",
        "controller_meta_lr": 0.02,
    }
    assert resolve("train-baseline", path, {"training": meta}, {}).training.controller_meta_enabled


def test_the_paired_math_recipes_have_their_published_numbers() -> None:
    for method in ("grpo", "maxent-grpo"):
        settings = _settings(
            COMMAND_OF[method], RECIPES / "Qwen2.5-1.5B-Instruct" / method / "config_math.yaml"
        )
        expected = {
            "dataset_name": "open-r1/OpenR1-Math-220k",
            "eval_dataset_name": "HuggingFaceH4/MATH-500",
            "eval_dataset_split": "test",
            "eval_dataset_prompt_column": "problem",
            "eval_dataset_solution_column": "answer",
            "seed": 42,
            "eval_strategy": "steps",
            "eval_steps": 25,
            "per_device_eval_batch_size": 8,
            "learning_rate": 1e-6,
            "max_grad_norm": 0.15,
            "num_generations": 16,
            "max_completion_length": 2048,
            "max_steps": 2000,
            "save_steps": 50,
            "beta": 0.5,
        }
        assert {key: settings[key] for key in expected} == expected


PRESETS = [path for path in sorted((RECIPES / "hydra").glob("*.yaml")) if "recipe:" in path.read_text()]
"""Those of TorchRL's dialect hold their settings themselves."""


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_hydra_preset_bundles_a_command_and_a_recipe(preset: Path) -> None:
    tree = yaml.safe_load(preset.read_text())
    section = tree[SECTION_OF[tree["command"]]]
    overrides = {key: value for key, value in section.items() if key != "recipe"}
    assert set(tree) == {"command", SECTION_OF[tree["command"]]}
    assert resolve(tree["command"], ROOT / section["recipe"], overrides, {}).route == "native"


def _settings(command: str, path: Path) -> dict[str, Any]:
    tree = resolved(resolve(command, path, None, {}))
    return tree["script"] | tree["model"] | tree["training"]
