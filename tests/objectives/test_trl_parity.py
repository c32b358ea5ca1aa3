"""Our clipped losses equal those of TRL's trainer on the same batch: value, gradient and statistics."""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from objective_batches import MAX_LENGTH, denominators, gradient, make_batch, total
from torch import Tensor
from trl import GRPOTrainer

from maxent_grpo.objectives.catalog import Objective, ObjectiveSpec
from maxent_grpo.types import Batch, Forward, Knobs, Signal


def filled(batch: Batch, forward: Forward) -> tuple[Batch, Forward]:
    """TRL multiplies by the mask, so that its padding must be finite."""
    mask, names = batch.completion_mask, ("behaviour_logps", "reference_logps", "old_logps")
    clean = {name: torch.where(mask, getattr(batch, name), 0.0) for name in names}
    leaves = [torch.where(mask, t.detach(), 0.0).requires_grad_() for t in (forward.logps, forward.entropy)]
    return replace(batch, **clean), Forward(*leaves)


def trl_loss(
    spec: ObjectiveSpec, batch: Batch, forward: Forward, advantages: Tensor, beta: float
) -> tuple[Tensor, dict[str, float]]:
    """`GRPOTrainer._compute_loss` on a stand-in that carries the attributes that it reads."""
    metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
    low, high = spec.clip_range
    accelerator = SimpleNamespace(
        num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x
    )
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (forward.logps, forward.entropy, None),
        _metrics=metrics,
        _entropy_bonus_enabled=spec.entropy_coef != 0,
        accelerator=accelerator,
        args=SimpleNamespace(delta=spec.delta, use_bias_correction_kl=False, steps_per_generation=1),
        aux_loss_enabled=False,
        beta=beta,
        current_gradient_accumulation_steps=1,
        entropy_coef=spec.entropy_coef,
        epsilon_high=high,
        epsilon_low=low,
        importance_sampling_level=spec.importance_sampling_level,
        loss_type=spec.loss_type,
        max_completion_length=MAX_LENGTH,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_adaptive_entropy=False,
        use_vllm=spec.tis_cap is not None,
        vllm_importance_sampling_correction=True,
    )
    inputs: dict[str, Any] = {
        "prompt_ids": batch.prompt_ids.repeat_interleave(batch.group_size, dim=0),
        "prompt_mask": batch.prompt_mask.repeat_interleave(batch.group_size, dim=0).long(),
        "completion_ids": batch.completion_ids,
        "completion_mask": batch.completion_mask.long(),
        "advantages": advantages.flatten(),
        "old_per_token_logps": batch.old_logps,
        "ref_per_token_logps": batch.reference_logps,
        "num_items_in_batch": batch.completion_mask.sum(),
    }
    if spec.tis_cap is not None:
        inputs["importance_sampling_ratio"] = (
            (batch.old_logps - batch.behaviour_logps).exp().clamp(max=spec.tis_cap)
        )
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, {name: values[0] for name, values in metrics["train"].items()}


def assert_equals_trl(spec: ObjectiveSpec, beta: float, on_policy: bool = False) -> None:
    batch, forward = filled(*make_batch(dtype=torch.float32))
    if on_policy:
        batch = replace(batch, old_logps=None)
    knobs = Knobs(0.0, beta)
    signal, _ = Objective(spec).signal(batch, knobs)
    ours, our_metrics = Objective(spec).loss(forward, batch, signal, knobs, denominators(batch))
    theirs, their_metrics = trl_loss(spec, batch, forward, signal.advantages, beta)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for leaf in (forward.logps, forward.entropy):
        torch.testing.assert_close(gradient(ours, leaf), gradient(theirs, leaf), atol=1e-6, rtol=1e-5)
    assert gradient(ours, forward.logps).abs().max() > 1e-3
    measured = total([our_metrics])
    names = {"clip_ratio": "clip_ratio/region_mean", "entropy": "entropy"}
    names |= {name: name for name in ("clip_ratio/low_mean", "clip_ratio/high_mean")}
    names |= {"kl": "kl"} if beta else {}
    for our_name, their_name in names.items():
        assert measured[our_name] == pytest.approx(their_metrics[their_name], abs=1e-5)


@pytest.mark.parametrize("delta", [None, 1.35])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_clipped_losses_equal_trl(loss_type: str, level: str, beta: float, delta: float | None) -> None:
    epsilon = 0.2 if level == "token" else 0.05
    spec = ObjectiveSpec(
        loss_type=loss_type, importance_sampling_level=level, epsilon=epsilon, epsilon_high=0.28, delta=delta
    )
    assert_equals_trl(spec, beta)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_on_policy_losses_equal_trl(level: str) -> None:
    assert_equals_trl(ObjectiveSpec(importance_sampling_level=level), beta=0.1, on_policy=True)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_truncated_importance_sampling_equals_trl(level: str) -> None:
    assert_equals_trl(
        ObjectiveSpec(loss_type="dapo", importance_sampling_level=level, tis_cap=1.02), beta=0.1
    )


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
def test_entropy_bonus_equals_trl(loss_type: str) -> None:
    assert_equals_trl(ObjectiveSpec(loss_type=loss_type, entropy_coef=0.05), beta=0.0)


def test_first_order_advantages_make_trl_train_listwise() -> None:
    spec = ObjectiveSpec(policy_loss="listwise", loss_type="dr_grpo", kl_in_loss=False)
    batch, forward = filled(*make_batch())
    batch = replace(batch, old_logps=None, behaviour_logps=forward.logps.detach())
    knobs = Knobs(0.3, 0.1)
    signal: Signal = Objective(spec).signal(batch, knobs)[0]
    ours, _ = Objective(spec).loss(forward, batch, signal, knobs, denominators(batch))
    theirs, _ = trl_loss(ObjectiveSpec(loss_type="dr_grpo"), batch, forward, signal.advantages, beta=0.0)
    torch.testing.assert_close(
        gradient(ours, forward.logps), gradient(theirs, forward.logps), atol=1e-12, rtol=0
    )
