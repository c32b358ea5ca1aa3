"""Advantages against the textbook, and exact zeros where a group has no signal."""

import statistics

import pytest
import torch

from maxent_grpo.objectives import advantages
from maxent_grpo.objectives.group_losses import likelihood_advantages, listwise_advantages

U = torch.tensor([[0.0, 1.0, 1.0, 0.25], [0.1, 0.1, 0.1, 0.1], [3.0, -1.0, 0.0, 0.0]], dtype=torch.float64)


def test_dr_grpo_centres_each_group() -> None:
    for row, utilities in zip(advantages.dr_grpo(U).tolist(), U.tolist(), strict=True):
        assert row == pytest.approx([u - statistics.fmean(utilities) for u in utilities], abs=1e-15)


def test_grpo_divides_by_the_sample_deviation_of_the_group() -> None:
    for row, utilities in zip(advantages.grpo(U).tolist(), U.tolist(), strict=True):
        mean, std = statistics.fmean(utilities), statistics.stdev(utilities)
        assert row == pytest.approx([(u - mean) / (std + 1e-4) for u in utilities], abs=1e-12)


def batch_scaled(utilities: torch.Tensor, batch_std: torch.Tensor | None = None) -> torch.Tensor:
    given = None if batch_std is None else lambda: batch_std
    return advantages.over_batch_std(advantages.dr_grpo(utilities), utilities, given)


def test_the_scale_of_the_batch_is_its_sample_deviation() -> None:
    std = statistics.stdev(U.flatten().tolist())
    expected = advantages.dr_grpo(U) / (std + 1e-4)
    torch.testing.assert_close(batch_scaled(U), expected, atol=1e-13, rtol=0)
    assert torch.equal(batch_scaled(U[:1], U.std()), batch_scaled(U)[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 3, 6, 7])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6 + 0.1])
def test_equal_utilities_have_advantages_of_exactly_zero(value: float, size: int, dtype: torch.dtype) -> None:
    equal = torch.full((2, size), value, dtype=dtype)
    for estimate in (advantages.grpo, advantages.dr_grpo, batch_scaled):
        assert not estimate(equal).any()
    assert not advantages.has_spread(equal).any()
    assert not advantages.group_std(equal).any()


def test_spread_and_deviation_per_group() -> None:
    assert advantages.has_spread(U).tolist() == [True, False, True]
    expected = [statistics.stdev(row) for row in U.tolist()]
    assert advantages.group_std(U).tolist() == pytest.approx(expected, abs=1e-12)


def test_first_order_advantages_sum_to_zero_in_each_group() -> None:
    weights = torch.softmax(U, dim=1)
    scores = torch.tensor([[-1.0, -2.0, -3.0, -9.0]], dtype=torch.float64).expand(3, 4)
    for values in (listwise_advantages(weights, scores), likelihood_advantages(weights)):
        torch.testing.assert_close(values.sum(dim=1), torch.zeros(3, dtype=torch.float64), atol=1e-14, rtol=0)
    assert likelihood_advantages(weights)[1].tolist() == [0.0] * 4
    assert not listwise_advantages(torch.softmax(scores, dim=1), scores).any()
