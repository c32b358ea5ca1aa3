"""Statistics that add up over micro-batches and ranks, and the meter that does it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


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


class Meter:
    """Collects `Metrics` until `reduced` hands them out as numbers and empties the meter."""

    def __init__(self, accelerator: "Accelerator") -> None:
        self._accelerator = accelerator
        self._stats: Metrics = {}

    def add(self, metrics: Metrics) -> None:
        """Merge statistics: sums and means add, extremes compete."""
        for name, new in metrics.items():
            self._stats[name] = self._stats[name].merged(new) if name in self._stats else new

    def taken(self) -> Metrics:
        """This process's statistics as they are, to be added to another meter. Empties this one."""
        stats, self._stats = self._stats, {}
        return stats

    def reduced(self) -> dict[str, float]:
        """Every statistic over all ranks, as a number. A mean or extreme over nothing is left out.

        Every rank must have met the same names: they travel in one tensor.
        """
        stats = self.taken()
        if not stats:
            return {}
        names = sorted(stats)
        device = self._accelerator.device
        pairs = torch.stack(
            [torch.stack([stats[n].value.double(), stats[n].weight.double()]).to(device) for n in names]
        )
        per_rank = self._accelerator.gather(pairs.unsqueeze(0)).cpu()  # [ranks, names, 2]
        numbers = {}
        for i, name in enumerate(names):
            values, weights = per_rank[:, i, 0], per_rank[:, i, 1]
            kind = stats[name].kind
            if kind == "mean" and weights.sum() > 0:
                numbers[name] = float(values.sum() / weights.sum())
            elif kind == "sum":
                numbers[name] = float(values.sum())
            elif kind in ("min", "max"):
                extreme = float(values.min() if kind == "min" else values.max())
                if extreme != (math.inf if kind == "min" else -math.inf):
                    numbers[name] = extreme
        return numbers
