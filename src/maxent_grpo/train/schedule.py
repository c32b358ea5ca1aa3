"""The learning rate as a function of the step: nothing to save, nothing to restore."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from maxent_grpo.errors import UsageError


@dataclass(frozen=True)
class LearningRate:
    """Transformers' schedule ``name``, shifted so that neither the first nor the last step has rate 0.

    Transformers' schedules give warm-up step 0 the factor 0, and a decay's last step too; both would be wasted
    rollouts here. Step s of N (counted from 0) therefore takes the factor of step s + 1 of a schedule of N + 1 steps.
    """

    base: float
    name: str
    warmup_steps: int
    total_steps: int
    options: dict[str, Any]

    def factor(self, step: int) -> float:
        """The rate of optimiser step ``step`` (from 0), divided by the base rate."""
        return float(self._lambda(step + 1))

    @cached_property
    def _lambda(self) -> Any:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
        scheduler = get_scheduler(
            self.name,
            optimizer,
            num_warmup_steps=self.warmup_steps,
            num_training_steps=self.total_steps + 1,
            scheduler_specific_kwargs=self.options or None,
        )
        if not isinstance(scheduler, LambdaLR):
            raise UsageError(
                f"lr_scheduler_type: {self.name!r} depends on more than the step; "
                "use linear, cosine, constant, constant_with_warmup, polynomial or inverse_sqrt"
            )
        return scheduler.lr_lambdas[0]
