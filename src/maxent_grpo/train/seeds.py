"""InfoSeed in the step: what the loss needs of the whole optimiser batch, and what is measured over it."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from maxent_grpo.objectives.infoseed import contrast_gradient, state_metrics
from maxent_grpo.train.micro_batches import MicroBatch
from maxent_grpo.train.state import Run
from maxent_grpo.types import Batch, Metrics, Signal


def with_contrast(run: Run, batch: Batch, signal: Signal, parts: Sequence[MicroBatch]) -> Signal:
    """The signal with the gradient of the contrast over the optimiser batch: all micro-batches, all ranks.

    A contrast compares every completion with every other, so it is no sum over micro-batches. Its gradient in the
    pooled states needs no graph, though: a pass without gradient gives the states, and the micro-batches then pass
    that gradient on to the parameters (GradCache). Nothing is done where the batch is a single forward anyway.
    """
    spec, learner = run.objective.spec.info_seed, run.learner
    alone = learner.accelerator.num_processes == 1 and len(parts) == 1
    if spec is None or not spec.contrasts or alone:
        return signal
    assert batch.seed_ids is not None, "the driver samples seeds where the objective reads them"
    gather = learner.accelerator.gather
    pooled = learner.pooled(batch, parts)
    shares, gradient = contrast_gradient(gather(pooled), gather(batch.seed_ids), spec.temperature)
    first = learner.accelerator.process_index * len(pooled)
    own = slice(first, first + len(pooled))
    return replace(
        signal,
        contrast_losses=shares[own].view_as(signal.advantages),
        contrast_gradient=gradient[own].view(*signal.advantages.shape, -1),
    )


def seed_metrics(run: Run, batch: Batch, states: Sequence[tuple[list[int], Tensor | None]]) -> Metrics:
    """Metrics over the pooled states of the whole optimiser batch; ``states`` are groups and theirs, pass by pass."""
    spec = run.objective.spec.info_seed
    if spec is None:
        return {}
    assert batch.seed_ids is not None, "the driver samples seeds where the objective reads them"
    order = [group for groups, _ in states for group in groups]
    seeded = batch.seed_ids.view(len(order), -1)[order].flatten() >= 0
    pooled = torch.cat([part.detach() for _, part in states if part is not None])[seeded]
    everywhere = run.learner.accelerator.gather(pooled)
    return state_metrics(spec, everywhere.view(-1, spec.num_seeds, pooled.shape[1]))
