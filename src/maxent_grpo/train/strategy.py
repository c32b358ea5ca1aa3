"""How the policy's parameters lie on the ranks. `Learner` trains through a `Strategy` and knows no more of it.

This module has the strategy that keeps them whole on every rank (one process, or DDP); `train.fsdp2` and
`train.zero` shard them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, Protocol

from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from transformers import PreTrainedModel

from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.train.saved_state import (
    clip_and_step,
    load_optimizer,
    load_policy_weights,
    save_optimizer,
)

Distributed = Literal["ddp", "fsdp2", "zero2", "zero3"]
SHARDS = "sharded"
"""Folder of a checkpoint that holds parameters and optimiser state in PyTorch's distributed format."""

NO_STATE = "none"
"""Kind of training state of a checkpoint that was told to hold none."""

OptimizerFactory = Callable[[Sequence[nn.Parameter]], Optimizer]


class Strategy(Protocol):
    """Every method but `backward` is called by all ranks together."""

    policy: PolicyForward
    """What is trained."""
    module: nn.Module
    """``policy``, or what wraps it: called for the forward of a micro-batch."""
    sampling_model: PreTrainedModel
    """What samples: whole, inside `full_weights`."""
    reads: frozenset[str]
    """Kinds of training state (`kind`) that `load` can read."""
    kind: str
    """What `save` writes unless told otherwise, as checkpoints name it."""
    state_holds_parameters: bool
    """Whether a checkpoint can be resumed without the policy's own files."""

    def expect(self, *, last: bool) -> None:
        """Called before each micro-batch's forward; gradients need not be reduced before the ``last`` backward."""

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient, averaged over ranks once the last micro-batch is through."""

    def update(self, learning_rate: float, max_grad_norm: float) -> float:
        """Clip to the global norm (0: never) and step; returns the norm before clipping.

        Where that is not finite nothing is stepped: parameters and optimiser state stay as they were.
        """

    def full_weights(self) -> AbstractContextManager[PreTrainedModel]:
        """`sampling_model` with the current weights, whole on every rank while the context lasts."""

    def gathered(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's parameters by name, each whole on every rank until the next is asked for."""

    def save(self, directory: Path, *, main: bool) -> str:
        """Write what a resume needs beside the full policy: the optimiser's state, and sharded parameters.

        Returns the kind of what was written, `NO_STATE` where nothing was to be.
        """

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote, and the policy's parameters. Raises `UsageError` where it cannot."""


class Replicated:
    """All parameters on every rank: one process, or DDP over several."""

    kind = "replicated"
    reads = frozenset({"replicated", "fsdp2"})
    state_holds_parameters = False

    def __init__(
        self, policy: PolicyForward, make_optimizer: OptimizerFactory, accelerator: Accelerator
    ) -> None:
        self.policy = policy
        self.sampling_model = policy.model
        self.optimizer = make_optimizer(list(policy.parameters()))
        self.module: nn.Module = policy
        if accelerator.num_processes > 1:
            devices = [accelerator.device.index] if accelerator.device.type == "cuda" else None
            self.module = DistributedDataParallel(policy, device_ids=devices, gradient_as_bucket_view=True)

    def expect(self, *, last: bool) -> None:
        if isinstance(self.module, DistributedDataParallel):
            self.module.require_backward_grad_sync = last  # what its no_sync() sets

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self, learning_rate: float, max_grad_norm: float) -> float:
        return clip_and_step(self.optimizer, self.policy.parameters(), learning_rate, max_grad_norm)

    @contextmanager
    def full_weights(self) -> Iterator[PreTrainedModel]:
        yield self.sampling_model

    def gathered(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.sampling_model.named_parameters()

    def save(self, directory: Path, *, main: bool) -> str:
        if main:
            save_optimizer(self.optimizer, directory)
        return self.kind

    def load(self, directory: Path) -> None:
        if (directory / SHARDS).is_dir():
            from maxent_grpo.train.fsdp2 import load_sharded

            load_sharded(self.sampling_model, self.optimizer, directory)
            return
        load_policy_weights(self.sampling_model, directory)
        load_optimizer(self.optimizer, directory)
