"""Batches of groups with seeded completions, and the loss of InfoSeed on them."""

from dataclasses import replace

import torch
from objective_batches import denominators, make_batch, total
from torch import Tensor

from maxent_grpo.objectives.catalog import CATALOG, Objective, ObjectiveSpec
from maxent_grpo.objectives.infoseed import InfoSeedSpec
from maxent_grpo.types import Batch, Forward, Knobs

KNOBS = Knobs(tau=0.0, beta=0.1)
GROUPS, ORIGINALS, SEEDS, WIDTH = 4, 2, 3, 6


def seeded_batch(seed: int = 5) -> tuple[Batch, Forward]:
    """Groups of 2 originals and 3 seeded completions, with leaves for states and logits of the seed head."""
    batch, forward = make_batch(groups=GROUPS, group_size=ORIGINALS + SEEDS, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    ids = torch.tensor([-1] * ORIGINALS + list(range(SEEDS))).repeat(GROUPS)
    pooled = torch.randn(len(ids), WIDTH, generator=draw, dtype=torch.float64)
    logits = torch.randn(len(ids), SEEDS, generator=draw, dtype=torch.float64)
    forward = replace(forward, pooled=pooled.requires_grad_(), seed_logits=logits.requires_grad_())
    return replace(batch, seed_ids=ids), forward


def spec_of(backbone: str = "grpo", **settings: float | str) -> ObjectiveSpec:
    return replace(CATALOG[backbone], info_seed=InfoSeedSpec(SEEDS, **settings))


def loss_of(spec: ObjectiveSpec, batch: Batch, forward: Forward) -> tuple[Tensor, dict[str, float]]:
    signal, first = Objective(spec).signal(batch, KNOBS)
    loss, second = Objective(spec).loss(forward, batch, signal, KNOBS, denominators(batch))
    return loss, total([first, second])
