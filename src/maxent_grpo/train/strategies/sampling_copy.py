"""A whole policy to sample with, where training keeps only shards of it."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel


class SamplingCopy:
    """A copy of the policy for sampling, which owns memory only while it is filled."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._parameters = dict(self.model.named_parameters())
        self._bytes = {name: p.untyped_storage().nbytes() for name, p in self._parameters.items()}
        self._release()

    @contextmanager
    def filled(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[PreTrainedModel]:
        """The copy with ``weights`` of all its parameters, until the context ends."""
        for name, value in weights:
            self._fill(name, value)
        try:
            yield self.model
        finally:
            self._release()

    @torch.no_grad()
    def _fill(self, name: str, value: Tensor) -> None:
        """Give parameter ``name`` its memory and its value."""
        parameter = self._parameters[name]
        parameter.untyped_storage().resize_(self._bytes[name])
        parameter.copy_(value)

    def _release(self) -> None:
        """Give the memory back."""
        for parameter in self._parameters.values():
            parameter.untyped_storage().resize_(0)
