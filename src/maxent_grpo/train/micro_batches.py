"""Which groups go through the model together: whole groups, in passes that every rank makes equally often."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from maxent_grpo.config.plan import BatchPlan
from maxent_grpo.types import Batch, consecutive

MaxOverRanks = Callable[[Sequence[int]], list[int]]
"""The largest of each number over all ranks. Sharded parameters are gathered in every forward and backward pass, so
ranks must make equally many: one with fewer parts than another repeats its smallest group without counting it."""


@dataclass(frozen=True)
class MicroBatch:
    """One pass of a process through the model."""

    groups: list[int]
    needs_backward: bool
    counts: bool = True
    """False: it keeps step with other ranks, and neither its gradient nor its metrics are used."""
    last: bool = False
    """Whether it is the last one with a backward pass."""


def micro_batches(
    batch: Batch, plan: BatchPlan, has_gradient: Tensor, max_over_ranks: MaxOverRanks
) -> list[MicroBatch]:
    """The passes over ``batch`` (this rank's share) in a step: first those with a backward pass, then those without.

    There is at least one with a backward pass: an optimiser steps on a gradient of zero, not on none.

    Args:
        has_gradient: [P] bool, the groups that need a backward pass.
        max_over_ranks: see `MaxOverRanks`.
    """
    with_gradient = _parts(batch, plan, _where(has_gradient))
    rest = _parts(batch, plan, _where(~has_gradient))
    passes, passes_without = max_over_ranks([len(with_gradient), len(rest)])
    backward = _filled(batch, with_gradient, max(1, passes), True)
    backward[-1] = replace(backward[-1], last=True)
    return backward + _filled(batch, rest, passes_without, False)


def scoring_batches(batch: Batch, plan: BatchPlan, max_over_ranks: MaxOverRanks) -> list[MicroBatch]:
    """The passes over ``batch`` for a policy that is not trained."""
    parts = _parts(batch, plan, list(range(batch.utilities.shape[0])))
    return _filled(batch, parts, max_over_ranks([len(parts)])[0], False)


def _parts(batch: Batch, plan: BatchPlan, groups: list[int]) -> list[list[int]]:
    """``groups`` in parts, by ``plan.micro_tokens``, or where that is unset, of ``plan.micro_groups`` each.

    By tokens, groups are sorted by their longest completion, longest first, and packed in that order up to so many
    real tokens (`Batch.group_tokens`; padding is not counted, as none is computed).
    """
    if plan.micro_tokens is None:
        return [[groups[i] for i in part] for part in consecutive(len(groups), plan.micro_groups)]
    longest = batch.lengths.view_as(batch.utilities).amax(dim=1).tolist()
    ordered = sorted(groups, key=lambda group: -longest[group])
    return packed_by_tokens(ordered, batch.group_tokens.tolist(), plan.micro_tokens)


def _filled(batch: Batch, parts: list[list[int]], needed: int, needs_backward: bool) -> list[MicroBatch]:
    passes = [MicroBatch(part, needs_backward) for part in parts]
    smallest = [int(batch.group_tokens.argmin())]
    return passes + [MicroBatch(smallest, needs_backward, counts=False)] * (needed - len(parts))


def packed_by_tokens(groups: Sequence[int], tokens: Sequence[int], budget: int) -> list[list[int]]:
    """``groups`` in order, in parts of at most ``budget`` tokens; a larger group is a part by itself."""
    parts: list[list[int]] = []
    left = 0
    for group in groups:
        if not parts or tokens[group] > left:
            parts.append([])
            left = budget
        parts[-1].append(group)
        left -= tokens[group]
    return parts


def _where(chosen: Tensor) -> list[int]:
    return [int(i) for i in chosen.nonzero().squeeze(1)]
