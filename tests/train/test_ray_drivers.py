"""The Ray drivers make the steps of the inline one, and lose nothing when their workers are killed."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maxent_grpo.config.loading import RunConfig
from maxent_grpo.errors import UsageError
from maxent_grpo.train.run import train

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for the module, with more logical processors than there are."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=6,
        _node_ip_address="127.0.0.2",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture
def on_ray(ray_here: None, configure: Callable[..., RunConfig], tmp_path: Path) -> Callable[..., RunConfig]:
    def build(name: str, driver: str, **settings: object) -> RunConfig:
        return configure(output_dir=str(tmp_path / name), driver=driver, **settings)

    return build


def records(directory: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


@pytest.mark.slow
def test_all_drivers_give_the_same_parameters(configure, on_ray, tmp_path):
    train(configure(max_steps=10, output_dir=str(tmp_path / "inline")))
    train(on_ray("sync", "sync", max_steps=10))
    train(on_ray("async", "async", max_steps=10, max_staleness=0, rollout_workers=2))
    expected = (tmp_path / "inline" / "model.safetensors").read_bytes()
    assert (tmp_path / "sync" / "model.safetensors").read_bytes() == expected
    assert (tmp_path / "async" / "model.safetensors").read_bytes() == expected
    for name in ("sync", "async"):
        assert [r["train/buffer/policy_age_max"] for r in records(tmp_path / name)[1:]] == [0.0] * 10
