"""Ray's rollout workers with vLLM engines: right weights after every publication, and the training of an inline run."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from local_ray import ray_of_this_machine
from maxent_grpo.config.loading import resolve
from runs import train

RECIPE = Path(__file__).parents[2] / "configs/recipes/tiny/maxent-grpo/config_graph_coloring.yaml"
SMALL: dict[str, Any] = {
    "use_vllm": True,
    "vllm_mode": "colocate",
    "vllm_max_model_length": 512,
    "num_generations": 8,
    "max_completion_length": 24,
    "per_device_train_batch_size": 32,
    "max_steps": 4,
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "disable_tqdm": True,
}
RIGHT = 1e-4  # nats, in float32


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A Ray whose workers' engines take a GiB for their cache, with as many logical processors as two workers need."""
    with ray_of_this_machine(num_cpus=2, VLLM_CPU_KVCACHE_SPACE="1"):
        yield


def trained_on_ray(output_dir: Path, **settings: Any) -> list[dict[str, float]]:
    """Train as the tiny MaxEnt recipe says, in Ray's workers; the metrics of its steps."""
    given = SMALL | {"output_dir": str(output_dir)} | settings
    train(resolve("train-maxent", RECIPE, {"flat": given}, environ={}))
    return records(output_dir)


def trained_inline(output_dir: Path, **settings: Any) -> list[dict[str, float]]:
    """The same by the command, in a process that has the engine."""
    output_dir.mkdir()
    recipe = output_dir / "recipe.yaml"
    given = SMALL | {"output_dir": str(output_dir)} | settings
    recipe.write_text(yaml.safe_dump(yaml.safe_load(RECIPE.read_text()) | given))
    command = [sys.executable, "-m", "maxent_grpo.maxent_grpo", "--config", str(recipe)]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return records(output_dir)


def records(output_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()[1:]]


def largest_difference(steps: list[dict[str, float]]) -> float:
    return max(step["train/sampling/logp_difference/max"] for step in steps)


@pytest.mark.slow
def test_an_engine_in_the_rollout_worker_trains_as_one_in_the_trainer(ray_here: None, tmp_path: Path) -> None:
    inline = trained_inline(tmp_path / "inline")
    on_ray = trained_on_ray(tmp_path / "async", driver="async", max_staleness=0)
    for steps in (inline, on_ray):
        assert [step["train/sampling/publishes"] for step in steps] == [1.0] * 4
        assert largest_difference(steps) < RIGHT
    for one, other in zip(inline, on_ray, strict=True):
        shared = {name: other[name] for name in one if name in other}
        assert {"train/loss", "train/grad_norm", "train/sampling/ratio/max"} <= shared.keys()
        assert shared == {name: one[name] for name in shared}
    policies = [load_file(tmp_path / name / "model.safetensors") for name in ("inline", "async")]
    assert max(float((policies[0][name] - policies[1][name]).abs().max()) for name in policies[0]) == 0


@pytest.mark.nightly
def test_an_adapter_is_merged_for_the_engine(ray_here: None, tmp_path: Path) -> None:
    """The first publication is of an adapter that changes nothing yet, the second of one that a step has moved."""
    adapter = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "learning_rate": 1e-2}
    steps = trained_on_ray(
        tmp_path / "run", driver="sync", max_steps=2, lora_target_modules=["q_proj", "v_proj"], **adapter
    )
    assert [step["train/sampling/publishes"] for step in steps] == [1.0] * 2
    assert largest_difference(steps) < RIGHT
