"""Statistics that add up over micro-batches and ranks."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stat:
    """One statistic. Means carry their weight, so that the whole is exact."""

    value: Tensor
    """Scalar: a weighted sum for ``mean``, the value itself for the rest."""
    weight: Tensor
    """Scalar: the sum of weights for ``mean``; unused for the rest."""
    kind: Literal["mean", "sum", "min", "max"] = "mean"

    def merged(self, other: "Stat") -> "Stat":
        """The statistic of both: sums and means add, extremes compete."""
        if self.kind in ("mean", "sum"):
            return Stat(self.value + other.value, self.weight + other.weight, self.kind)
        pick = torch.minimum if self.kind == "min" else torch.maximum
        return Stat(pick(self.value, other.value), self.weight, self.kind)


Metrics = dict[str, Stat]
"""Metric name without its ``train/`` prefix → statistic."""


def mean_stat(values: Tensor, mask: Tensor | None = None) -> Stat:
    """The mean of ``values`` where ``mask`` is true (everywhere if None)."""
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    kept = torch.where(mask, values.detach(), torch.zeros_like(values))
    return Stat(kept.double().sum(), mask.double().sum())


def sum_stat(value: Tensor) -> Stat:
    """A scalar that is one micro-batch's share of a sum, such as a loss under global denominators."""
    return Stat(value.detach().double(), torch.ones((), dtype=torch.float64, device=value.device), "sum")


def extreme_stat(values: Tensor, kind: Literal["min", "max"]) -> Stat:
    """The smallest or largest of ``values``."""
    value = values.detach().min() if kind == "min" else values.detach().max()
    return Stat(value.double(), torch.ones((), dtype=torch.float64, device=values.device), kind)
