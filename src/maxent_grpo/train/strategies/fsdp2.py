"""FSDP2: every parameter, gradient and optimiser state is sharded over the ranks (PyTorch's ``fully_shard``).

Accelerate's FSDP leaves a model on the CPU unwrapped without a word, so PyTorch's own call is used, on every device.
Each decoder layer is gathered when it runs; embeddings, final norm and head stay gathered from the forward to the end
of the backward. Sampling fills a whole copy of the policy (`SamplingCopy`).
"""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from maxent_grpo.errors import UsageError
from maxent_grpo.models.policy import PolicyForward, decoder_layers
from maxent_grpo.train.strategies.strategy import OptimizerFactory, Strategy

SHARDS = "sharded"
"""Folder of a checkpoint that holds parameters and optimiser state in PyTorch's distributed format."""

DESCRIPTIONS = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "pathlib": ("PosixPath", "WindowsPath"),
    "collections": ("OrderedDict",),
}  # fmt: skip
"""Module → the names that the index of a sharded checkpoint may hold, beside PyTorch's dtypes."""


class FullyShardedStrategy(Strategy):
    """Every rank keeps its shards; each micro-batch reduces its gradients at once, so that only shards of them stay."""

    kind = "fsdp2"
    reads = frozenset({"fsdp2"})

    def __init__(
        self, policy: PolicyForward, make_optimizer: OptimizerFactory, accelerator: Accelerator
    ) -> None:
        super().__init__(policy, sampling_copy=True)
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        for layer in decoder_layers(policy.model):
            fully_shard(layer, mesh=mesh)
        self._sharded = fully_shard(policy, mesh=mesh)
        self.optimizer = make_optimizer(list(policy.parameters()))

    def update(self, learning_rate: float, max_grad_norm: float) -> float:
        # A forward without gradient leaves the root's parameters gathered: the next one must not read the old ones.
        self._sharded.reshard()
        return super().update(learning_rate, max_grad_norm)

    def gathered(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.policy.model.named_parameters():
            yield name, parameter.full_tensor() if isinstance(parameter, DTensor) else parameter

    def save(self, directory: Path, *, main: bool) -> str:
        dcp.save(training_state(self.policy, self.optimizer), checkpoint_id=directory / SHARDS)
        return self.kind

    def load(self, directory: Path) -> None:
        load_sharded(self.policy, self.optimizer, directory)


def training_state(policy: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Parameters and optimiser state by parameter name: tensors only, the same keys however they are sharded."""
    return {
        "policy": get_model_state_dict(policy),
        "optimizer": get_optimizer_state_dict(policy, optimizer)["state"],
    }


def load_sharded(policy: nn.Module, optimizer: Optimizer, directory: Path) -> None:
    """Restore a checkpoint of this strategy, on any number of ranks, sharded or not."""
    state = training_state(policy, optimizer)
    dcp.load(state, storage_reader=GuardedReader(directory / SHARDS))
    set_model_state_dict(policy, state["policy"])
    groups = get_optimizer_state_dict(policy, optimizer)["param_groups"]
    set_optimizer_state_dict(policy, optimizer, {"state": state["optimizer"], "param_groups": groups})


class GuardedReader(dcp.FileSystemReader):
    """Reads PyTorch's distributed format without trusting it.

    Its index is a pickle: only PyTorch's own descriptions of tensors are taken from it. The tensors themselves are read
    by PyTorch with ``weights_only``.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp.Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata: dcp.Metadata = _IndexUnpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    """Finds what describes tensors, and nothing that could do harm when called."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in DESCRIPTIONS.get(module, ()):
            raise UsageError(
                f"resume_from_checkpoint: the index of its sharded state names {module}.{name}: it is damaged or "
                "forged; use an earlier checkpoint"
            )
        return super().find_class(module, name)
