"""Passes over a batch: whole groups, every group once, equally many on every rank."""

from dataclasses import replace

import pytest
import torch

from maxent_grpo.config.plan import BatchPlan
from maxent_grpo.train.micro_batches import MicroBatch, micro_batches, packed_by_tokens, scoring_batches
from maxent_grpo.types import Batch

LENGTHS = [[3, 1], [9, 2], [1, 1], [4, 4], [2, 6]]  # group tokens with a prompt of 5: 9 16 7 13 13


@pytest.fixture
def batch() -> Batch:
    lengths = torch.tensor(LENGTHS).flatten()
    mask = torch.arange(9) < lengths[:, None]
    prompt = torch.ones(5, 5, dtype=torch.long)
    return Batch(prompt, prompt.bool(), mask.long(), mask, torch.zeros(10, 9), torch.zeros(5, 2))


def alone(numbers):
    return list(numbers)


def plan(groups: int = 2, tokens: int | None = None) -> BatchPlan:
    return BatchPlan(5, 5, groups, 1, 1, tokens)


def test_groups_are_packed_from_the_longest_completion_down_up_to_the_budget(batch):
    everything = torch.ones(5, dtype=torch.bool)
    found = micro_batches(batch, plan(tokens=29), everything, alone)
    assert found == [MicroBatch([1, 4], True), MicroBatch([3, 0, 2], True, last=True)]
    assert batch.group_tokens.tolist() == [9, 16, 7, 13, 13]
    assert packed_by_tokens([0, 1, 2], [5, 90, 5], 10) == [[0], [1], [2]]


def test_groups_without_gradient_go_through_without_a_backward_pass(batch):
    has_gradient = torch.tensor([True, False, True, True, False])
    assert micro_batches(batch, plan(), has_gradient, alone) == [
        MicroBatch([0, 2], True),
        MicroBatch([3], True, last=True),
        MicroBatch([1, 4], False),
    ]
    assert scoring_batches(batch, plan(3), alone) == [MicroBatch([0, 1, 2], False), MicroBatch([3, 4], False)]


def test_a_rank_with_fewer_parts_repeats_its_smallest_group_without_counting_it(batch):
    def two_more(numbers):
        return [number + 2 for number in numbers]

    filler = MicroBatch([2], True, counts=False)
    found = micro_batches(batch, plan(5), torch.ones(5, dtype=torch.bool), two_more)
    assert found[1:] == [filler, replace(filler, last=True), *[MicroBatch([2], False, counts=False)] * 2]
    assert scoring_batches(batch, plan(5), two_more)[1:] == [MicroBatch([2], False, counts=False)] * 2


def test_an_optimiser_never_steps_without_a_gradient(batch):
    found = micro_batches(batch, plan(5), torch.zeros(5, dtype=torch.bool), alone)
    assert found == [MicroBatch([2], True, counts=False, last=True), MicroBatch([0, 1, 2, 3, 4], False)]
