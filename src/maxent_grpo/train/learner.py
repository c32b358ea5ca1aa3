"""The learner: forward, backward and update of the policy, with all that ranks must agree on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from maxent_grpo.errors import RunError
from maxent_grpo.train.schedule import LearningRate
from maxent_grpo.train.strategy import Strategy
from maxent_grpo.types import Batch, Denominators, Forward, Signal

SAME_NORM = 1e-5
"""Ranks whose gradient norms differ relatively by more than this hold different gradients."""


@dataclass(frozen=True)
class Update:
    """What an optimiser step did."""

    applied: bool  # False: the loss or a gradient was not finite, and nothing was stepped
    metrics: dict[str, float]


@dataclass
class Learner:
    """Forward, backward, update. The interface is that of many ranks; a micro-batch is a number of whole groups."""

    strategy: Strategy
    learning_rate: LearningRate
    accelerator: Accelerator
    temperature: float
    max_grad_norm: float
    max_completion_length: int
    differentiate_entropy: bool
    shared_prefix: bool

    @property
    def model(self) -> PreTrainedModel:
        """The policy's model; its weights are whole where the strategy keeps them so, else in ``full_weights``."""
        return self.strategy.sampling_model

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def denominators(self, batch: Batch) -> Denominators:
        """Counts over all ranks: what every micro-batch's loss is divided by."""
        local = [batch.utilities.shape[0], batch.utilities.numel(), int(batch.completion_mask.sum())]
        counts = torch.tensor(local, dtype=torch.float64, device=self.accelerator.device)
        groups, sequences, tokens = self.accelerator.reduce(counts, reduction="sum").tolist()
        return Denominators(groups, sequences, tokens, self.max_completion_length)

    def utility_std(self, batch: Batch) -> Tensor:
        """The sample standard deviation of the utilities over all ranks: what ``scale_rewards="batch"`` divides by."""
        utilities = self.accelerator.gather(batch.utilities)
        return utilities.std(correction=min(1, utilities.numel() - 1))

    def forward(self, batch: Batch, *, last: bool = True) -> Forward:
        """The policy's log-probs of the batch's completion tokens, with gradient, and their entropy.

        ``last`` marks the last micro-batch before `update`: its backward completes the gradients over all ranks.
        Every rank must run the same number of micro-batches.
        """
        self.strategy.expect(last=last)
        with self.accelerator.autocast():
            return self.strategy.module(
                batch,
                temperature=self.temperature,
                entropy="differentiate" if self.differentiate_entropy else "measure",
                shared_prefix=self.shared_prefix,
            )

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradient. The loss carries global denominators, and ranks' gradients are averaged.

        A non-finite loss leaves a non-finite gradient, so that `update` refuses it on every rank.
        """
        if not bool(torch.isfinite(loss)):
            loss = loss * torch.nan
        self.strategy.backward(loss * self.accelerator.num_processes)

    def gathered(self, signal: Signal) -> Signal:
        """The signal of the groups of all ranks, in rank order."""
        gather = self.accelerator.gather
        return Signal(
            advantages=gather(signal.advantages),
            weights=None if signal.weights is None else gather(signal.weights),
            log_q=None if signal.log_q is None else gather(signal.log_q),
            reference_scores=None if signal.reference_scores is None else gather(signal.reference_scores),
        )

    def from_first_rank(self, numbers: Sequence[float]) -> list[float]:
        """The first rank's ``numbers``, on every rank."""
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        return [float(number) for number in broadcast(tensor, from_process=0)]

    def update(self, step: int) -> Update:
        """Clip and step the optimiser, with the learning rate of optimiser step ``step`` (from 0).

        A non-finite loss or gradient steps nothing: parameters and optimiser state stay as they were.

        Raises:
            RunError: the ranks hold different gradients.
        """
        rate = self.learning_rate.base * self.learning_rate.factor(step)
        norm = self.strategy.update(rate, self.max_grad_norm)
        self._refuse_unsynchronised(norm, step)
        applied = math.isfinite(norm)
        metrics = {"learning_rate": rate, "update_skipped": float(not applied)}
        return Update(applied, metrics | ({"grad_norm": norm} if applied else {}))

    def _refuse_unsynchronised(self, norm: float, step: int) -> None:
        """Each rank computes the norm from the gradients that it holds: equal gradients, equal norms."""
        if self.accelerator.num_processes == 1:
            return
        mine = torch.tensor([norm], dtype=torch.float64, device=self.device)
        norms = self.accelerator.gather(mine).tolist()
        for rank, other in enumerate(norms):
            both_lost = not math.isfinite(norms[0]) and not math.isfinite(other)
            if not both_lost and not math.isclose(norms[0], other, rel_tol=SAME_NORM):
                raise RunError(
                    f"step {step + 1}: the gradients of ranks 0 and {rank} are not synchronised (norms {norms[0]:.6g} "
                    f"and {other:.6g}); nothing that they learn from here on would be one policy"
                )


@torch.no_grad()
def with_reference(batch: Batch, reference: nn.Module, learner: Learner, micro_groups: int) -> Batch:
    """The batch with the frozen reference policy's log-probs [B, T] of its completions.

    ``reference`` is called like `maxent_grpo.models.policy.PolicyForward`.
    """
    width = batch.completion_ids.shape[1]
    parts = []
    for micro in batch.split(micro_groups):
        with learner.accelerator.autocast():
            logps = reference(micro, temperature=learner.temperature).logps
        parts.append(torch.nn.functional.pad(logps, (0, width - logps.shape[1])))
    return replace(batch, reference_logps=torch.cat(parts))


def make_optimizer(
    parameters: Sequence[nn.Parameter], optimizer_class: type[Optimizer], options: dict, weight_decay: float
) -> Optimizer:
    """An optimiser that decays matrices and leaves vectors (norms and biases) alone."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return optimizer_class([group for group in groups if group["params"]], **options)
