"""The learner: the one place that holds the policy's parameters, their gradients and their optimiser."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from maxent_grpo.config.plan import BatchPlan
from maxent_grpo.models.lm_head import EntropyMode
from maxent_grpo.train.micro_batches import MicroBatch, scoring_batches
from maxent_grpo.train.schedule import LearningRate
from maxent_grpo.types import Batch, Denominators, Forward, Signal

Reference = Callable[[Batch], tuple[Tensor, ...]]
"""What scores the reference: a batch → log-probs [B, T] first. A `PolicyForward` of a frozen model, or a call of the
policy with its adapters switched off."""


@dataclass(frozen=True)
class Update:
    """What an optimiser step did."""

    applied: bool  # False: the loss or a gradient was not finite, and nothing was stepped
    metrics: dict[str, float]


@dataclass
class Learner:
    """Forward, backward, update. The interface is that of many ranks; a micro-batch is a number of whole groups."""

    model: PreTrainedModel  # what is saved and sampled from
    policy: nn.Module  # what runs: `models.policy.PolicyForward` of the model, or a wrapper of it
    optimizer: Optimizer
    learning_rate: LearningRate
    accelerator: Accelerator
    max_grad_norm: float
    max_completion_length: int
    differentiate_entropy: bool
    seed_head: nn.Linear | None = (
        None  # InfoSeed's classifier of pooled states: trained here, no part of the policy
    )
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

    def parameters(self) -> Iterator[nn.Parameter]:
        """All that is trained."""
        yield from self.model.parameters()
        if self.seed_head is not None:
            yield from self.seed_head.parameters()

    def forward(self, batch: Batch) -> Forward:
        """The policy's view of the batch's completions, with gradient: log-probs, entropy, and what InfoSeed reads."""
        forward = self._completions(batch, "differentiate" if self.differentiate_entropy else "measure")
        if self.seed_head is None or forward.pooled is None:
            return forward
        return replace(forward, seed_logits=self.seed_head(forward.pooled.to(self.seed_head.weight.dtype)))

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
            return Forward(*self.policy(batch, entropy))

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradient. The loss carries global denominators, and ranks' gradients are averaged."""
        self._loss_is_finite &= bool(torch.isfinite(loss))
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def most(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over all ranks."""
        tensor = torch.tensor([numbers], device=self.device)
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
        )

    def from_first_rank(self, numbers: Sequence[float]) -> list[float]:
        """The first rank's ``numbers``, on every rank."""
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        return [float(number) for number in broadcast(tensor, from_process=0)]

    def update(self, step: int) -> Update:
        """Clip and step the optimiser, with the learning rate of optimiser step ``step`` (from 0).

        A non-finite loss or gradient steps nothing: parameters and optimiser state stay as they were.
        """
        self._average_head_gradient()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.max_grad_norm or float("inf"))
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

    def _average_head_gradient(self) -> None:
        """Average the seed head's gradients over ranks, as the policy's are in its backward pass."""
        if self.seed_head is not None:
            for parameter in self.seed_head.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")


@torch.no_grad()
def with_reference(batch: Batch, reference: Reference, learner: Learner, plan: BatchPlan) -> Batch:
    """The batch with the frozen reference policy's log-probs [B, T] of its completions."""
    shape = (*batch.utilities.shape, batch.completion_ids.shape[1])
    logps = torch.zeros(shape, device=learner.device)
    for part in scoring_batches(batch, plan, learner.most):
        with learner.accelerator.autocast():
            scored = reference(batch.select(part.groups))[0]
        logps[part.groups, :, : scored.shape[1]] = scored.view(len(part.groups), batch.group_size, -1).to(
            logps
        )
    return replace(batch, reference_logps=logps.flatten(0, 1))


def make_optimizer(
    model: PreTrainedModel,
    optimizer_class: type[Optimizer],
    options: dict,
    weight_decay: float,
    seed_head: nn.Linear | None = None,
) -> Optimizer:
    """An optimiser that decays matrices and leaves vectors (norms and biases) alone."""
    head = [] if seed_head is None else list(seed_head.parameters())
    trained = [p for p in [*model.parameters(), *head] if p.requires_grad]
    return optimizer_class(
        [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ],
        **options,
    )
