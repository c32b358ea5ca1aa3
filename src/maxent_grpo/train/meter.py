"""Adds a step's statistics up, over micro-batches and then over ranks."""

import torch
from accelerate import Accelerator

from maxent_grpo.stats import Metrics


class Meter:
    """Collects `Metrics` until `reduced` hands them out as numbers and empties the meter."""

    def __init__(self, accelerator: Accelerator) -> None:
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
        """Every statistic over all ranks, as a number. A mean over nothing (no weight) is left out.

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
                numbers[name] = float(values.min() if kind == "min" else values.max())
        return numbers
