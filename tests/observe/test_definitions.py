"""Every name that a run records has a definition."""

import json
from pathlib import Path
from typing import Any

import pytest

from maxent_grpo.config.loading import resolve
from maxent_grpo.observe import names
from maxent_grpo.observe.definitions import definition_of, definitions
from runs import train

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "num_generations": 4,
    "per_device_train_batch_size": 16,
    "max_steps": 3,
    "eval_steps": 2,
    "save_strategy": "no",
    "per_device_eval_batch_size": 16,
    "dataset_config": "train_size=16,eval_size=4",
    "eval_dataset_config": "train_size=16,eval_size=4",
    "disable_tqdm": True,
}
CONTROLLED = {
    "maxent_target_weight_entropy": 1.0,
    "maxent_tau_lr": 0.1,
    "kl_target": 0.05,
    "kl_horizon": 10,
    "kl_ctl_step_size": 1.0,
    "controller_meta_enabled": False,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "grpo": ("train-baseline", "grpo", {"greedy_eval_enabled": True}),
    "grpo with everything beside it": (
        "train-baseline",
        "grpo",
        {
            "objective": "grpo",
            "beta": 0.05,
            "steps_per_generation": 2,
            "generation_batch_size": None,
            "behaviour_kl_coef": 0.01,
            "entropy_coef": 0.001,
            "use_adaptive_entropy": True,
            "tis_cap": 2.0,
            "off_policy_mask_threshold": 0.5,
            "overlong_buffer": 8,
            "dynamic_sampling": True,
            "difficulty_pools": True,
            "top_entropy_quantile": 0.5,
        },
    ),
    "seed_grpo": ("train-baseline", "grpo", {"objective": "seed_grpo"}),
    "clip_cov": ("train-baseline", "grpo", {"objective": "clip_cov"}),
    "kl_cov": ("train-baseline", "grpo", {"objective": "kl_cov"}),
    "tilted with the meta-controller": ("train-maxent", "maxent-grpo", {"maxent_target_weight_entropy": 1.0}),
    "listwise with both controllers": (
        "train-maxent",
        "maxent-grpo",
        {"objective": "maxent", "beta": 0.09} | CONTROLLED,
    ),
    "likelihood": (
        "train-maxent",
        "maxent-grpo",
        {"objective": "maxent_likelihood", "beta": 0.05} | CONTROLLED,
    ),
    "flowrl": ("train-baseline", "grpo", {"objective": "flowrl", "train_grpo_objective": None}),
    "infoseed": ("train-infoseed", "infoseed", {"info_seed_alpha_entropy": 0.1}),
    "infoseed with a head": ("train-infoseed", "infoseed", {"info_seed_loss_type": "ce"}),
}


def test_every_metric_has_a_meaning_and_no_name_is_there_twice() -> None:
    listed = [metric.name for metric in definitions()]
    assert len(set(listed)) == len(listed) > 150
    assert [metric.name for metric in definitions() if not metric.meaning] == []


def test_a_name_finds_its_own_definition_before_a_pattern() -> None:
    for recorded, name in {
        "train/loss": "train/loss",
        "eval/pass_at_8": "eval/pass_at_<k>",
        "eval/pass_at_8_se": "eval/<metric>_se",
        "eval/greedy/mean_at_1": "eval/greedy/<metric>",
        "train/rewards/format/std": "train/rewards/<name>/std",
        "time/sample": "time/<phase>",
    }.items():
        found = definition_of(recorded)
        assert found is not None
        assert found.name == name
    assert definition_of("train/no_such_metric") is None


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_recorded_name_is_defined(family: str, tmp_path: Path) -> None:
    command, folder, settings = FAMILIES[family]
    recipe = ROOT / f"configs/recipes/tiny/{folder}/config_graph_coloring.yaml"
    flat = {k: v for k, v in (TINY | settings | {"output_dir": str(tmp_path)}).items() if v is not None}
    train(resolve(command, str(recipe), {"flat": flat}, environ={}))
    recorded = set()
    for file in (names.METRICS_FILE, names.TIMINGS_FILE):
        for line in (tmp_path / file).read_text().splitlines():
            record = json.loads(line)
            recorded |= {
                k for k in record if k != "step" and not any(key.startswith("run/") for key in record)
            }
    assert len(recorded) > 30
    assert sorted(name for name in recorded if definition_of(name) is None) == []
