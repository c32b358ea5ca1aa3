"""Pooled states of a whole optimiser batch, while micro-batches go through the model one by one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maxent_grpo.objectives.infoseed import InfoSeed
from maxent_grpo.stats import Metrics
from maxent_grpo.train.learner import Learner
from maxent_grpo.train.micro_batches import MicroBatch
from maxent_grpo.types import Batch, Forward, Signal


class PooledStates:
    """What InfoSeed needs of all states before the micro-batches, and measures of them afterwards; else nothing."""

    def __init__(
        self, seeds: InfoSeed | None, learner: Learner, batch: Batch, parts: Sequence[MicroBatch]
    ) -> None:
        self._seeds = seeds
        self._learner = learner
        self._batch = batch
        self._parts = parts
        self._seen: list[tuple[list[int], Tensor | None]] = []

    def prepared(self, signal: Signal) -> Signal:
        """The signal with the gradient of the contrast over the optimiser batch: all micro-batches, all ranks.

        A contrast compares every completion with every other, so it is no sum over micro-batches. Its gradient in the
        pooled states needs no graph, though: a pass without gradient gives the states, and the micro-batches then pass
        that gradient on to the parameters (GradCache). Nothing is done where the batch is a single forward anyway.
        """
        accelerator = self._learner.accelerator
        alone = accelerator.num_processes == 1 and len(self._parts) == 1
        if self._seeds is None or not self._seeds.contrasts or alone:
            return signal
        assert self._batch.seed_ids is not None, "the driver samples seeds where the objective reads them"
        pooled = self._learner.pooled(self._batch, self._parts)
        first = accelerator.process_index * len(pooled)
        states, seed_ids = accelerator.gather(pooled), accelerator.gather(self._batch.seed_ids)
        return self._seeds.prepared(signal, states, seed_ids, slice(first, first + len(pooled)))

    def add(self, part: MicroBatch, forward: Forward) -> None:
        """Keep the states of a pass."""
        self._seen.append((part.groups, forward.pooled))

    def metrics(self) -> Metrics:
        """Statistics over the states of all passes and ranks."""
        if self._seeds is None:
            return {}
        assert self._batch.seed_ids is not None, "the driver samples seeds where the objective reads them"
        order = [group for groups, _ in self._seen for group in groups]
        seeded = self._batch.seed_ids.view(len(order), -1)[order].flatten() >= 0
        pooled = torch.cat([states.detach() for _, states in self._seen if states is not None])[seeded]
        return self._seeds.state_metrics(self._learner.accelerator.gather(pooled))
