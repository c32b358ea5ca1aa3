"""A whole policy to sample with, where training keeps only shards of it."""

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel


class SamplingCopy:
    """A copy of the policy for sampling, which owns memory only while it is filled."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._parameters = dict(self.model.named_parameters())
        self._bytes = {name: p.untyped_storage().nbytes() for name, p in self._parameters.items()}
        self.release()

    @torch.no_grad()
    def fill(self, name: str, value: Tensor) -> None:
        """Give parameter ``name`` its memory and its value."""
        parameter = self._parameters[name]
        parameter.untyped_storage().resize_(self._bytes[name])
        parameter.copy_(value)

    def release(self) -> None:
        """Give the memory back."""
        for parameter in self._parameters.values():
            parameter.untyped_storage().resize_(0)
