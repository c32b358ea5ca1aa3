"""The learner: forward, backward and update of the policy, with all that ranks must agree on."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, get_scheduler

from maxent_grpo.config.plan import BatchPlan
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.models.lm_head import EntropyMode
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.objectives.advantages import std_over_batch
from maxent_grpo.train.micro_batches import MicroBatch, scoring_batches
from maxent_grpo.train.strategies.strategy import Strategy
from maxent_grpo.types import Batch, Denominators, Forward, Signal
from maxent_grpo.waiting import waiting

Reference = Callable[[Batch], tuple[Tensor, ...]]
"""What scores the reference: a batch → log-probs [B, T] first. A `PolicyForward` of a frozen model, or a call of the
policy with its adapters switched off."""
SAME_NORM = 1e-5
"""Ranks whose gradient norms differ relatively by more than this hold different gradients."""


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


@dataclass(frozen=True)
class Update:
    """What an optimiser step did."""

    applied: bool
    """False: the loss or a gradient was not finite, and nothing was stepped."""
    metrics: dict[str, float]


@dataclass
class Learner:
    """Forward, backward, update. The interface is that of many ranks; a micro-batch is a number of whole groups."""

    strategy: Strategy
    learning_rate: LearningRate
    accelerator: Accelerator
    max_grad_norm: float
    max_completion_length: int
    differentiate_entropy: bool

    @property
    def model(self) -> PreTrainedModel:
        """The policy's model; its weights are whole where the strategy keeps them so, else in ``full_weights``."""
        return self.strategy.sampling_model

    @property
    def policy(self) -> PolicyForward:
        """What is trained."""
        return self.strategy.policy

    @property
    def seeds(self) -> int | None:
        """How many seeds InfoSeed's classifier of pooled states tells apart, where its loss has one."""
        head = self.strategy.policy.seed_head
        return None if head is None else head.out_features

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def denominators(self, batch: Batch) -> Denominators:
        """Counts over all ranks: what every micro-batch's loss is divided by."""
        local = [batch.utilities.shape[0], batch.utilities.numel(), int(batch.completion_mask.sum())]
        counts = torch.tensor(local, dtype=torch.float64, device=self.accelerator.device)
        with self._for_ranks("the completions of the other ranks"):
            groups, sequences, tokens = self.accelerator.reduce(counts, reduction="sum").tolist()
        return Denominators(groups, sequences, tokens, self.max_completion_length)

    def utility_std(self, batch: Batch) -> Tensor:
        """The sample standard deviation of the utilities over all ranks: what ``scale_rewards="batch"`` divides by."""
        with self._for_ranks("the utilities of the other ranks"):
            return std_over_batch(self.accelerator.gather(batch.utilities))

    def forward(self, batch: Batch, *, last: bool = True, entropy: bool = True) -> Forward:
        """The policy's view of the batch's completions: log-probs, entropy if asked for, and what InfoSeed reads.

        ``last`` marks the last micro-batch with a backward pass before `update`: it completes the gradients over all
        ranks. Every rank must run the same number of micro-batches.
        """
        if torch.is_grad_enabled():
            self.strategy.expect(last=last)
        measured: EntropyMode = "differentiate" if self.differentiate_entropy else "measure"
        return self._completions(batch, measured if entropy else "none")

    @torch.no_grad()
    def logps(self, batch: Batch) -> Tensor:
        """The policy's log-probs [B, T] of a small batch's completions, without gradient and dropout."""
        was_training = self.policy.training
        self.policy.eval()
        logps = self._completions(batch, "none").logps
        self.policy.train(was_training)
        return logps

    @torch.no_grad()
    def pooled(self, batch: Batch, parts: Sequence[MicroBatch]) -> Tensor:
        """The pooled states [B, D] of a whole batch, bit for bit those of `forward` on its ``parts``.

        The generators of dropout are put back, so that the forwards that follow drop the same units.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        states: list[Tensor] = [torch.empty(0)] * batch.utilities.shape[0]
        with torch.random.fork_rng(devices=devices):
            for part in parts:  # one that only keeps step with other ranks repeats a group's states
                pooled = self._completions(batch.select(part.groups), "none").pooled
                assert pooled is not None, "the policy pools where an objective contrasts"
                for group, rows in zip(part.groups, pooled.split(batch.group_size), strict=True):
                    states[group] = rows
        return torch.cat(states)

    def _completions(self, batch: Batch, entropy: EntropyMode) -> Forward:
        with self.accelerator.autocast():
            return Forward(*self.strategy.module(batch, entropy))

    def backward(self, loss: Tensor, forward: Forward) -> None:
        """Add this micro-batch's gradient. The loss carries global denominators, and ranks' gradients are averaged.

        A non-finite loss leaves a non-finite gradient, so that `update` refuses it on every rank: through the log-probs
        of its ``forward``, as the loss itself may have no gradient where it is not finite.
        """
        if not bool(torch.isfinite(loss)):
            loss = loss + (forward.logps * torch.nan).sum()
        self.strategy.backward(loss * self.accelerator.num_processes)

    def max_over_ranks(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over all ranks."""
        tensor = torch.tensor([numbers], device=self.device)
        with self._for_ranks("the micro-batches of the other ranks"):
            return [int(number) for number in self.accelerator.gather(tensor).amax(dim=0)]

    def gathered(self, signal: Signal) -> Signal:
        """The signal of the groups of all ranks, in rank order."""
        gather = self.accelerator.gather
        return Signal(
            advantages=gather(signal.advantages),
            weights=None if signal.weights is None else gather(signal.weights),
            log_q=None if signal.log_q is None else gather(signal.log_q),
            reference_scores=None if signal.reference_scores is None else gather(signal.reference_scores),
            tau_factor=None if signal.tau_factor is None else gather(signal.tau_factor),
            scored=None if signal.scored is None else gather(signal.scored),
        )

    def from_first_rank(self, numbers: Sequence[float]) -> list[float]:
        """The first rank's ``numbers``, on every rank."""
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        with self._for_ranks("the first rank"):
            return [float(number) for number in broadcast(tensor, from_process=0)]

    def _for_ranks(self, what: str) -> AbstractContextManager[None]:
        """Around a collective: one that takes long is told."""
        return waiting(what) if self.accelerator.num_processes > 1 else nullcontext()

    def update(self, step: int) -> Update:
        """Clip and step the optimiser, with the learning rate of optimiser step ``step`` (from 0).

        A non-finite loss or gradient steps nothing: parameters and optimiser state stay as they were.

        Raises:
            RunError: the ranks hold different gradients.
        """
        rate = self.learning_rate.base * self.learning_rate.factor(step)
        with self._for_ranks(f"the gradients of the other ranks, optimiser step {step + 1}"):
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
def with_reference(batch: Batch, reference: Reference, learner: Learner, plan: BatchPlan) -> Batch:
    """The batch with the frozen reference policy's log-probs [B, T] of its completions."""
    shape = (*batch.utilities.shape, batch.completion_ids.shape[1])
    logps = torch.zeros(shape, device=learner.device)
    for part in scoring_batches(batch, plan, learner.max_over_ranks):
        with learner.accelerator.autocast():
            scored = reference(batch.select(part.groups))[0]
        logps[part.groups, :, : scored.shape[1]] = scored.view(len(part.groups), batch.group_size, -1).to(
            logps
        )
    return replace(batch, reference_logps=logps.flatten(0, 1))


def make_optimizer(
    parameters: Sequence[nn.Parameter], optimizer_class: type[Optimizer], options: dict, weight_decay: float
) -> Optimizer:
    """An optimiser that decays matrices and leaves vectors (norms and biases) alone.

    Raises `UsageError` where every parameter is frozen.
    """
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        raise UsageError(
            "model: none of its parameters asks for a gradient, so that nothing would be trained; unfreeze it, or load "
            "its adapter with is_trainable=True"
        )
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return optimizer_class([group for group in groups if group["params"]], **options)
