import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local_ray import ray_of_this_machine
from maxent_grpo.config.loading import RunConfig, resolve
from runs import train


@pytest.fixture
def configure(policy_dir: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """A configuration of seconds: 12 prompts, 4 groups of 4 a step, the random policy, everything on the CPU."""
    rows = "\n".join(f'{{"problem": "Say {w}.", "answer": "a"}}' for w in "abcdefghijkl")
    (tmp_path / "prompts.jsonl").write_text(rows)

    def build(command: str = "train-maxent", **settings: Any) -> RunConfig:
        defaults: dict[str, Any] = {
            "model_name_or_path": str(policy_dir),
            "dataset_name": str(tmp_path / "prompts.jsonl"),
            "reward_funcs": ["checksum_reward:checksum"],
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "num_generations": 4,
            "max_completion_length": 6,
            "max_steps": 6,
            "learning_rate": 3e-3,
            "save_steps": 2,
            "use_cpu": True,
            "disable_tqdm": True,
            "force_custom_loop": True,
        }
        if command == "train-maxent":
            defaults |= {"maxent_tau": 0.05, "beta": 0.1}
        launched = {name: os.environ[name] for name in ("WORLD_SIZE", "RANK") if name in os.environ}
        return resolve(command, None, {"flat": defaults | settings}, environ=launched)

    return build


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """One Ray for the session, with more logical processors than there are."""
    with ray_of_this_machine(num_cpus=6):
        yield


def tiny(directory: Path, command: str = "train-baseline", **settings: Any) -> RunConfig:
    """Dr. GRPO with the bundled policy on graph colouring: 2 groups of 8 a step."""
    defaults: dict[str, Any] = {
        "model_name_or_path": "bundled:tiny-policy",
        "dataset_name": "task:graph_coloring",
        "dataset_config": "train_size=24",
        "reward_funcs": ["task_reward"],
        "objective": "dr_grpo",
        "output_dir": str(directory),
        "per_device_train_batch_size": 16,
        "num_generations": 8,
        "max_completion_length": 16,
        "max_steps": 10,
        "learning_rate": 1e-4,
        "save_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "force_custom_loop": True,
    }
    return resolve(command, None, {"flat": defaults | settings}, environ={})


@pytest.fixture
def configure_tiny(tmp_path: Path) -> Callable[..., RunConfig]:
    """`tiny` in a folder of the test's own."""
    return lambda name, **settings: tiny(tmp_path / name, **settings)


@pytest.fixture(scope="session")
def inline_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `tiny` by the inline driver."""
    directory = tmp_path_factory.mktemp("tiny") / "inline"
    train(tiny(directory))
    return directory
