"""The loss, its gradient and its metrics do not depend on how a batch is cut into micro-batches or padded."""

from dataclasses import replace

import pytest
import torch
from objective_batches import TESTED, denominators, gradient, make_batch, split, total
from torch import Tensor

from maxent_grpo.objectives.catalog import CATALOG, ObjectiveSpec, build_objective
from maxent_grpo.types import Batch, Forward, Knobs

SPECS: dict[str, ObjectiveSpec] = {
    name: spec.with_settings(entropy_coef=0.1, behaviour_kl_coef=0.2, kl_in_loss=True)
    for name, spec in TESTED.items()
}
SPECS["grpo, corrected"] = SPECS["grpo"].with_settings(tis_cap=1.02)
SPECS["tilted, temperature by prompt"] = SPECS["tilted"].with_settings(maxent_tau_mode_adaptive=True)
SPECS["selection of every kind"] = SPECS["clip_cov"].with_settings(
    top_entropy_quantile=0.7, off_policy_mask_threshold=0.1, kl_cov_fraction=0.2
)
KNOBS = Knobs(tau=0.3, beta=0.1)


def whole(spec: ObjectiveSpec, batch: Batch, forward: Forward) -> tuple[Tensor, dict[str, float]]:
    signal, signal_metrics = build_objective(spec).signal(batch, KNOBS)
    loss, metrics = build_objective(spec).loss(forward, batch, signal, KNOBS, denominators(batch))
    return loss, total([signal_metrics, metrics])


@pytest.mark.parametrize("groups_per_part", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SPECS)
def test_parts_add_up_to_the_whole(name: str, groups_per_part: int) -> None:
    spec, (batch, forward) = SPECS[name], make_batch(groups=5)
    expected, expected_metrics = whole(spec, batch, forward)
    signal, signal_metrics = build_objective(spec).signal(batch, KNOBS)
    loss, metrics, row = torch.zeros((), dtype=torch.float64), [signal_metrics], 0
    parts = zip(split(batch, groups_per_part), split(signal, groups_per_part), strict=True)
    for part, part_signal in parts:
        rows, width = part.completion_mask.shape
        view = (slice(row, row + rows), slice(0, width))
        part_loss, part_metrics = build_objective(spec).loss(
            Forward(forward.logps[view], forward.entropy[view]), part, part_signal, KNOBS, denominators(batch)
        )
        loss, row = loss + part_loss, row + rows
        metrics.append(part_metrics)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    for leaf in (forward.logps, forward.entropy):
        torch.testing.assert_close(gradient(loss, leaf), gradient(expected, leaf), atol=1e-12, rtol=0)
    assert total(metrics) == pytest.approx(expected_metrics, abs=1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_more_padding_changes_nothing(name: str) -> None:
    spec = SPECS[name]
    (narrow, forward), (wide, wide_forward) = make_batch(width=7), make_batch(width=10)
    loss, metrics = whole(spec, narrow, forward)
    wide_loss, wide_metrics = whole(spec, wide, wide_forward)
    assert wide_loss.item() == pytest.approx(loss.item(), abs=1e-12)
    assert wide_metrics == pytest.approx(metrics, abs=1e-12)
    wide_gradient = gradient(wide_loss, wide_forward.logps)
    torch.testing.assert_close(wide_gradient[:, :7], gradient(loss, forward.logps), atol=1e-12, rtol=0)


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("name", SPECS)
def test_values_at_padding_reach_neither_loss_nor_gradient(name: str, garbage: float) -> None:
    spec, (batch, forward) = SPECS[name], make_batch()
    mask = batch.completion_mask
    padded = ("behaviour_logps", "reference_logps", "old_logps")

    def filled(value: float) -> tuple[Batch, Forward]:
        def fill(tensor: Tensor) -> Tensor:
            return torch.where(mask, tensor.detach(), value)

        leaves = Forward(fill(forward.logps).requires_grad_(), fill(forward.entropy).requires_grad_())
        return replace(batch, **{key: fill(getattr(batch, key)) for key in padded}), leaves

    (clean, clean_forward), (dirty, dirty_forward) = filled(0.0), filled(garbage)
    loss, metrics = whole(spec, clean, clean_forward)
    dirty_loss, dirty_metrics = whole(spec, dirty, dirty_forward)
    assert torch.equal(dirty_loss, loss)
    assert dirty_metrics == metrics
    grad = gradient(dirty_loss, dirty_forward.logps)
    assert torch.equal(grad, gradient(loss, clean_forward.logps))
    assert not grad[~mask].any()


def test_a_completion_without_tokens_is_harmless() -> None:
    batch, forward = make_batch()
    mask = batch.completion_mask.clone()
    mask[1] = False
    batch = replace(batch, completion_mask=mask)
    for spec in SPECS.values():
        loss, _ = whole(spec, batch, forward)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient(loss, forward.logps)).all()


def test_batch_scale_takes_the_deviation_over_all_ranks_from_its_caller() -> None:
    spec, (batch, _) = CATALOG["grpo"].with_settings(scale_rewards="batch"), make_batch()
    expected, _ = build_objective(spec).signal(batch, KNOBS)
    std = batch.utilities.std()
    parts = [build_objective(spec).signal(part, KNOBS, lambda: std)[0].advantages for part in split(batch, 1)]
    assert torch.equal(torch.cat(parts), expected.advantages)
