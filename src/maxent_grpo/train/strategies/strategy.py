"""The strategies' common part: `Learner` trains through a `Strategy` and knows no more of it."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from maxent_grpo.models.policy import PolicyForward

NO_STATE = "none"
"""Kind of training state of a checkpoint that was told to hold none."""

OptimizerFactory = Callable[[Sequence[nn.Parameter]], Optimizer]


class Strategy(ABC):
    """One way for ranks to hold the policy. Every method but `backward` is called by all ranks together."""

    kind: str
    """The training state that `save` writes unless told otherwise, as checkpoints name it."""
    reads: frozenset[str]
    """Kinds of training state that `load` can read."""
    state_holds_parameters = True
    """False: a checkpoint cannot be resumed without the policy's own files."""
    module: nn.Module
    """`policy`, or what wraps it: called for the forward of a micro-batch."""
    optimizer: Optimizer

    def __init__(self, policy: PolicyForward, *, sampling_copy: bool = False) -> None:
        self.policy = self.module = policy
        self._copy = SamplingCopy(policy.model) if sampling_copy else None
        self.sampling_model = policy.model if self._copy is None else self._copy.model
        """The model that samples: whole, inside `full_weights`."""

    def expect(self, *, last: bool) -> None:  # noqa: B027  most have nothing to do
        """Called before each micro-batch's forward; gradients need not be reduced before the ``last`` backward."""

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient, averaged over ranks once the last micro-batch is through."""
        loss.backward()

    def update(self, learning_rate: float, max_grad_norm: float) -> float:
        """Clip to the global norm (0: never), step and clear the gradients; returns the norm before clipping.

        Where that is not finite nothing is stepped: parameters and optimiser state stay as they were. Sharded
        parameters (DTensor) count with all their shards.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), max_grad_norm or float("inf"))
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        if bool(torch.isfinite(norm)):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    @contextmanager
    def full_weights(self) -> Iterator[PreTrainedModel]:
        """`sampling_model` with the current weights, whole on every rank while the context lasts."""
        if self._copy is None:
            yield self.sampling_model
            return
        with self._copy.filled(self.gathered()) as model:
            yield model

    def gathered(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's parameters by name, each whole on every rank until the next is asked for."""
        yield from self.policy.model.named_parameters()

    @abstractmethod
    def save(self, directory: Path, *, main: bool) -> str:
        """Write what a resume needs beside the full policy: the optimiser's state, and sharded parameters.

        Returns the kind of what was written, `NO_STATE` where nothing was to be.
        """

    @abstractmethod
    def load(self, directory: Path) -> None:
        """Restore what `save` wrote, and the policy's parameters. Raises `UsageError` where it cannot."""


class SamplingCopy:
    """A whole policy to sample with, where training keeps shards of it. It owns memory only while it is filled."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._parameters = dict(self.model.named_parameters())
        self._bytes = {name: p.untyped_storage().nbytes() for name, p in self._parameters.items()}
        self._release()

    @contextmanager
    def filled(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[PreTrainedModel]:
        """The copy with ``weights`` of all its parameters, until the context ends."""
        for name, value in weights:
            self._fill(self._parameters[name], self._bytes[name], value)
        try:
            yield self.model
        finally:
            self._release()

    @torch.no_grad()
    def _fill(self, parameter: Tensor, size: int, value: Tensor) -> None:
        parameter.untyped_storage().resize_(size)
        parameter.copy_(value)

    def _release(self) -> None:
        for parameter in self._parameters.values():
            parameter.untyped_storage().resize_(0)
