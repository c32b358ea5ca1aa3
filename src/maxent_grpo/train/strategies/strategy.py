"""What every strategy promises. `Learner` trains through a `Strategy` and knows no more of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from maxent_grpo.models.policy import PolicyForward

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


def clip_and_step(
    optimizer: Optimizer, parameters: Iterable[nn.Parameter], learning_rate: float, max_grad_norm: float
) -> float:
    """Clip the gradients to the global norm ``max_grad_norm`` (0: never), step, clear them; returns the norm before.

    Sharded parameters (DTensor) count with all their shards. A norm that is not finite steps nothing.
    """
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or float("inf"))
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    if bool(torch.isfinite(norm)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)
