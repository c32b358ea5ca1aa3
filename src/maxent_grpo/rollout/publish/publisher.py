"""What carries the learner's weights to a sampler that keeps a copy of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightInfo:
    """One parameter as it is published."""

    name: str  # as in a checkpoint of the model: without wrappers and adapters
    dtype: torch.dtype
    shape: tuple[int, ...]


class Weights(Protocol):
    """The policy's parameters, whole, one at a time.

    Where ranks hold shards, iterating is collective: every rank runs through all of them, in the same order.
    """

    def description(self) -> Sequence[WeightInfo]:
        """What iterating gives, in its order; gathers nothing."""
        ...

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """A fresh pass. A tensor is valid until the next one is asked for."""
        ...


class Publisher(Protocol):
    """Puts weights into a sampler. All ranks call every method together."""

    def publish(self, weights: Weights, version: str) -> None:
        """Make every copy sample from ``weights`` and know them as ``version``.

        No completion is generated from half-loaded weights, and none continues from keys and values of older ones.

        Raises:
            PublishFailed: a copy could not be reached or refused; the next call starts anew, from the connection on.
        """
        ...

    def holds(self, version: str) -> bool:
        """Whether every copy still has ``version``: a server that was started again has not.

        Raises:
            PublishFailed: a copy does not answer.
            RunError: a copy has the weights of another run.
        """
        ...

    def close(self) -> None:
        """Give up connections and files."""
        ...


class PublishFailed(Exception):
    """One attempt to publish failed; another may not. The message is one line: what, where, what to do."""


def drained(weights: Iterator[tuple[str, Tensor]]) -> None:
    """Run through the rest of ``weights``: what a rank does that has nothing to send, so that the others can gather."""
    for _ in weights:
        pass
