"""A sampler with a copy of the weights: here a local one on a copy of the model, which a weight sync fills."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from copy_sync import CopySync, sampler_of_a_copy
from safetensors.torch import load_file

from maxent_grpo.config.loading import RunConfig
from maxent_grpo.config.plan import VLLM_TIS_CAP, objective_spec
from maxent_grpo.errors import RunError
from maxent_grpo.objectives.surrogates import TruncatedImportance, sequence_importance
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.samplers import SAMPLERS, SamplerParts
from runs import train


@pytest.fixture
def sample_from_a_copy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[CopySync]]:
    """Makes runs sample from a copy; returns where its `CopySync` will be found."""

    def install(**events: Any) -> list[CopySync]:
        made: list[CopySync] = []

        def factory(parts: SamplerParts) -> tuple[LocalSampler, CopySync]:
            sampler, sync = sampler_of_a_copy(parts, **events)
            made.append(sync)
            return sampler, sync

        monkeypatch.setitem(SAMPLERS, "local", factory)
        return made

    return install


def records(config: RunConfig) -> list[dict[str, float]]:
    lines = (Path(str(config.training.output_dir)) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def learned(config: RunConfig) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The metrics but those of the sampler, and the final policy."""
    plain = [{k: v for k, v in record.items() if "sampling/" not in k} for record in records(config)]
    return plain, load_file(Path(str(config.training.output_dir)) / "model.safetensors")


def same(a: Any, b: Any) -> bool:
    return a[0] == b[0] and all(torch.equal(a[1][name], b[1][name]) for name in a[1])


def test_a_synced_copy_and_the_learner_itself_train_the_same_policy(
    configure: Callable[..., RunConfig], sample_from_a_copy: Callable[..., list[CopySync]], tmp_path: Path
) -> None:
    local = configure(max_steps=4, output_dir=str(tmp_path / "local"))
    train(local)
    for name, events in {"copy": {}, "lost": {"lost_after": 2}, "failing": {"failing": 2}}.items():
        made = sample_from_a_copy(**events)
        config = configure(max_steps=4, output_dir=str(tmp_path / name))
        train(config)
        assert same(learned(config), learned(local)), name
        assert all(r["train/sampling/logp_difference/max"] < 1e-4 for r in records(config))
        ratios = [r[f"train/sampling/ratio/{which}"] for r in records(config) for which in ("min", "max")]
        assert all(abs(ratio - 1) < 1e-3 for ratio in ratios)
        syncs = len(made[0].versions)
        assert syncs == (4 if name == "copy" else 5)
        assert [r.get("train/sampling/lost_weights", 0.0) for r in records(config)] == (
            [0.0, 1.0, 0.0, 0.0] if name == "lost" else [0.0] * 4
        )
        assert sum(r["train/sampling/publishes"] for r in records(config)) == syncs


def test_a_sampler_of_ones_own_is_named_by_the_recipe(
    configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    local, own = (
        configure(max_steps=3, output_dir=str(tmp_path / str(i)), sampler=name)
        for i, name in enumerate(("local", "copy_sync:sampler_of_a_copy"))
    )
    train(local)
    train(own)
    assert same(learned(own), learned(local))
    assert all(r["train/sampling/publishes"] == 1 for r in records(own))


def test_a_sampler_with_other_weights_ends_the_run_before_it_learns(
    configure: Callable[..., RunConfig], sample_from_a_copy: Callable[..., list[CopySync]]
) -> None:
    made = sample_from_a_copy(forgets="model.layers.1.mlp.up_proj.weight")
    config = configure()
    with pytest.raises(
        RunError, match=r"step 0: the sampler did not get .*: its log-probs differ .* nats per token"
    ):
        train(config)
    assert len(made[0].versions) == 3
    assert records(config) == []


def test_weights_are_synced_at_the_interval(
    configure: Callable[..., RunConfig], sample_from_a_copy: Callable[..., list[CopySync]]
) -> None:
    made = sample_from_a_copy()
    config = configure(max_steps=4, max_nonfinite_steps=9, vllm_sync_interval_steps=2)
    train(config)
    name = made[0].versions[0].removesuffix("-0")
    assert made[0].versions == [f"{name}-0", f"{name}-2"]
    assert [r["train/sampling/staleness"] for r in records(config)] == [0.0, 1.0, 0.0, 1.0]
    assert all(
        r["train/sampling/ratio/max"] > 1.001 for r in records(config)[1::2]
    )  # the copy is a step behind
    completions = Path(str(config.training.output_dir)) / "completions.jsonl"
    assert completions.is_file()


def test_importance_weights_are_on_where_vllm_samples_tokens(configure: Callable[..., RunConfig]) -> None:
    def cap(**settings: Any) -> float | None:
        command = "train-maxent" if "maxent_loss" in settings else "train-baseline"
        return objective_spec(configure(command, **settings).training)["tis_cap"]

    assert cap() is None
    assert cap(use_vllm=True) == VLLM_TIS_CAP
    assert cap(use_vllm=True, tis_cap=3.0) == 3.0
    assert cap(use_vllm=True, tis_cap=0.0) is None
    assert cap(use_vllm=True, maxent_loss="tilted") == VLLM_TIS_CAP
    assert cap(use_vllm=True, maxent_loss="listwise") is None


def test_importance_of_completions_is_the_product_of_their_tokens() -> None:
    old = torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0]], dtype=torch.float64)
    behaviour = torch.tensor([[-1.5, -1.9, 5.0], [-1.1, -1.2, -1.3]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    found = TruncatedImportance(1.6, sequence_importance).factors(old, behaviour, mask)
    first, second = (
        torch.tensor(0.4, dtype=old.dtype).exp(),
        torch.tensor(1.6, dtype=old.dtype),
    )  # e^0.6 is above the cap
    torch.testing.assert_close(found, torch.stack([first.expand(3), second.expand(3)]), rtol=1e-12, atol=0)
