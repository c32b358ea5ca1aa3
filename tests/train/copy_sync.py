"""A weight sync to a copy of the model in this process, which can be made to fail."""

import copy
from typing import Any

import torch

from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.samplers import SamplerParts
from maxent_grpo.rollout.weight_sync.control import SyncFailed
from maxent_grpo.rollout.weight_sync.weights import Weights


class CopySync:
    """Fills a copy of the model. The events happen at the sync of their number, counted from 1."""

    dtype = torch.float32

    def __init__(self, model: Any, lost_after: int = 0, failing: int = 0, forgets: str = "") -> None:
        self.model = model
        self.versions: list[str] = []
        self._initial = {name: value.clone() for name, value in model.state_dict().items()}
        self._lost_after, self._failing, self._forgets = lost_after, failing, forgets

    def sync(self, weights: Weights, version: str) -> None:
        self.versions.append(version)
        own = dict(self.model.named_parameters())
        for name, value in weights:
            if name != self._forgets:
                own[name].data.copy_(value)
        if len(self.versions) == self._failing:
            raise SyncFailed("the connection broke")

    def holds(self, version: str) -> bool:
        if len(self.versions) != self._lost_after:
            return True
        self.model.load_state_dict(self._initial)  # as a server that is started again
        return False

    def close(self) -> None:
        """Nothing is open."""


def sampler_of_a_copy(parts: SamplerParts, **events: Any) -> tuple[LocalSampler, CopySync]:
    """A sampler factory: a local sampler of a copy that begins with random weights."""
    model = copy.deepcopy(parts.model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return LocalSampler(model, parts.tokenizer), CopySync(model, **events)
