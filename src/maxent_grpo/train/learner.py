"""The learner: the one place that holds the policy's parameters, their gradients and their optimiser."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from maxent_grpo.models.logps import completion_logps
from maxent_grpo.train.schedule import LearningRate
from maxent_grpo.types import Batch, Denominators, Forward, Signal


@dataclass(frozen=True)
class Update:
    """What an optimiser step did."""

    applied: bool  # False: the loss or a gradient was not finite, and nothing was stepped
    metrics: dict[str, float]


@dataclass
class Learner:
    """Forward, backward, update. The interface is that of many ranks; a micro-batch is a number of whole groups."""

    model: PreTrainedModel
    optimizer: Optimizer
    learning_rate: LearningRate
    accelerator: Accelerator
    temperature: float
    max_grad_norm: float
    max_completion_length: int
    differentiate_entropy: bool
    shared_prefix: bool
    _loss_is_finite: bool = field(default=True, init=False)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def denominators(self, batch: Batch) -> Denominators:
        """Counts over all ranks: what every micro-batch's loss is divided by."""
        local = [batch.utilities.shape[0], batch.utilities.numel(), int(batch.completion_mask.sum())]
        counts = torch.tensor(local, dtype=torch.float64, device=self.accelerator.device)
        groups, sequences, tokens = self.accelerator.reduce(counts, reduction="sum").tolist()
        return Denominators(groups, sequences, tokens, self.max_completion_length)

    def forward(self, batch: Batch) -> Forward:
        """The policy's log-probs of the batch's completion tokens, with gradient, and their entropy."""
        with self.accelerator.autocast():
            return completion_logps(
                self.model,
                batch,
                temperature=self.temperature,
                entropy="differentiate" if self.differentiate_entropy else "measure",
                shared_prefix=self.shared_prefix,
            )

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradient. The loss carries global denominators, and ranks' gradients are averaged."""
        self._loss_is_finite &= bool(torch.isfinite(loss))
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def gathered(self, signal: Signal) -> Signal:
        """The signal of the groups of all ranks, in rank order."""
        gather = self.accelerator.gather
        return Signal(
            advantages=gather(signal.advantages),
            weights=None if signal.weights is None else gather(signal.weights),
            log_q=None if signal.log_q is None else gather(signal.log_q),
            reference_scores=None if signal.reference_scores is None else gather(signal.reference_scores),
            tau_factor=None if signal.tau_factor is None else gather(signal.tau_factor),
        )

    def from_first_rank(self, numbers: Sequence[float]) -> list[float]:
        """The first rank's ``numbers``, on every rank."""
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        return [float(number) for number in broadcast(tensor, from_process=0)]

    def update(self, step: int) -> Update:
        """Clip and step the optimiser, with the learning rate of optimiser step ``step`` (from 0).

        A non-finite loss or gradient steps nothing: parameters and optimiser state stay as they were.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm or float("inf"))
        applied = self._loss_is_finite and bool(torch.isfinite(norm))
        rate = self.learning_rate.base * self.learning_rate.factor(step)
        if applied:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._loss_is_finite = True
        metrics = {"learning_rate": rate, "update_skipped": float(not applied)}
        return Update(applied, metrics | ({"grad_norm": float(norm)} if bool(torch.isfinite(norm)) else {}))


@torch.no_grad()
def with_reference(batch: Batch, reference: PreTrainedModel, learner: Learner, micro_groups: int) -> Batch:
    """The batch with the frozen reference policy's log-probs [B, T] of its completions."""
    width = batch.completion_ids.shape[1]
    parts = []
    for micro in batch.split(micro_groups):
        with learner.accelerator.autocast():
            logps = completion_logps(reference, micro, temperature=learner.temperature).logps
        parts.append(torch.nn.functional.pad(logps, (0, width - logps.shape[1])))
    return replace(batch, reference_logps=torch.cat(parts))


def make_optimizer(
    model: PreTrainedModel, optimizer_class: type[Optimizer], options: dict, weight_decay: float
) -> Optimizer:
    """An optimiser that decays matrices and leaves vectors (norms and biases) alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return optimizer_class(
        [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ],
        **options,
    )
