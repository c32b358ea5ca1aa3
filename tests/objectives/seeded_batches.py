"""Batches of groups with seeded completions, and the loss of InfoSeed on them."""

from dataclasses import replace
from typing import Any

import torch
from objective_batches import denominators, make_batch, total
from torch import Tensor

from maxent_grpo.objectives.catalog import CATALOG, ObjectiveSpec, build_objective
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


NAMES = {"coefficient": "lambda"}


def seeds(count: int, **numbers: float | str) -> dict[str, Any]:
    """Settings of InfoSeed by the names of `InfoSeed`'s numbers."""
    flat = {f"info_seed_{NAMES.get(name, name)}": value for name, value in numbers.items()}
    return {"info_seed_enabled": True, "info_seed_num_seeds": count} | flat


def spec_of(backbone: str = "grpo", **settings: float | str) -> ObjectiveSpec:
    return CATALOG[backbone].with_settings(**seeds(SEEDS, **settings))


def loss_of(spec: ObjectiveSpec, batch: Batch, forward: Forward) -> tuple[Tensor, dict[str, float]]:
    signal, first = build_objective(spec).signal(batch, KNOBS)
    loss, second = build_objective(spec).loss(forward, batch, signal, KNOBS, denominators(batch))
    return loss, total([first, second])
