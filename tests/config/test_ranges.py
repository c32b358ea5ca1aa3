"""Values that no run could mean: refused in one line that names the setting, where the setting is read."""

from pathlib import Path
from typing import Any

import pytest

from maxent_grpo.config.loading import resolve
from maxent_grpo.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs/recipes/tiny/grpo/config_graph_coloring.yaml"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 1e30}, r"temperature: 1e\+30 must be in \(0, 100\]"),
        ({"eval_temperature": 1e30}, r"eval_temperature: 1e\+30 must be in \[0, 100\]"),
        ({"weight_decay": -1}, r"weight_decay: -1.0 must be in \[0, 1000\]"),
        ({"reward_weights": [0]}, "reward_weights: all are 0, so that nothing is rewarded"),
        ({"reward_weights": [1, 2]}, "reward_weights: 2 weights for 1 reward functions"),
        ({"beta": 1e30}, r"beta: 1e\+30 must be in \[0, 1e\+06\]"),
        ({"warmup_ratio": 5}, r"warmup_ratio: 5 must be in \[0, 1\), a share of the run; warmup_steps takes"),
        ({"epsilon": 0.2, "epsilon_high": 0.1}, "epsilon_high: 0.1 is below epsilon=0.2; raise it"),
        ({"seed": -1}, r"seed: -1 must be in \[0, 4.29497e\+09\)"),
        ({"output_dir": ""}, "output_dir: no output directory is named"),
        ({"output_dir": " "}, "output_dir: no output directory is named"),
        ({"adam_beta1": 2}, r"adam_beta1: 2.0 must be in \[0, 1\)"),
        ({"adam_beta2": -0.1}, r"adam_beta2: -0.1 must be in \[0, 1\)"),
        ({"adam_epsilon": -1}, r"adam_epsilon: -1.0 must be in \[0, 1\]"),
        ({"model_name_or_path": ""}, "model_name_or_path: no model is named"),
        ({"attn_implementation": "nope"}, "attn_implementation: 'nope' is none of eager, sdpa"),
        ({"use_vllm": True, "vllm_mode": "both"}, "vllm_mode: 'both' is not one of server, colocate"),
        ({"vllm_server_port": 70000}, r"vllm_server_port: 70000 must be in \[1, 65535\]"),
        ({"max_steps": 10**30}, f"max_steps: {10**30} "),
        ({"cosine_min_value_wrong": -1e30}, r"cosine_min_value_wrong: -1e\+30 must be in \[-1e15, 1e15\]"),
        ({"lora_dropout": 1}, r"lora_dropout: 1.0 must be in \[0, 1\)"),
    ],
)
def test_nonsense_is_refused_by_the_name_of_its_setting(given: dict[str, Any], message: str) -> None:
    flat = {"force_custom_loop": True} | given
    with pytest.raises(UsageError, match=message) as refused:
        resolve("train-baseline", RECIPE, {"flat": flat}, {})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "attention",
    ["sdpa", "flash_attention_2", "paged|sdpa", "kernels-community/flash-attn@v1:flash_attn_varlen_func"],
)
def test_what_transformers_takes_as_attention_passes(attention: str) -> None:
    config = resolve("train-baseline", RECIPE, {"flat": {"attn_implementation": attention}}, {})
    assert config.model.attn_implementation == attention


def test_a_warmup_ratio_is_a_share_and_warmup_steps_a_number() -> None:
    for given, steps in (({"warmup_ratio": 0.1}, 0.1), ({"warmup_steps": 5}, 5)):
        assert resolve("train-baseline", RECIPE, {"flat": given}, {}).training.warmup_steps == steps


def test_no_evaluation_that_is_typed_means_none_at_all() -> None:
    typed = {"flat": {"eval_strategy": "no", "force_custom_loop": True}}
    assert resolve("train-baseline", RECIPE, {}, {}).training.eval_on_start  # the recipe's own
    assert not resolve("train-baseline", RECIPE, typed, {}).training.eval_on_start
    both = {"flat": typed["flat"] | {"eval_on_start": True}}
    assert resolve("train-baseline", RECIPE, both, {}).training.eval_on_start
