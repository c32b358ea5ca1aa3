"""The whole policy on every rank: one process, or DDP over several. Nothing in its checkpoints is pickled."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from transformers import PreTrainedModel

from maxent_grpo.errors import UsageError, first_line
from maxent_grpo.models.loading import is_adapted, load_adapter
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.train.strategies.fsdp2 import SHARDS, load_sharded
from maxent_grpo.train.strategies.strategy import OptimizerFactory, Strategy

SEED_HEAD = "seed_head.safetensors"
"""InfoSeed's classifier, which is no part of the policy's own files."""


class Replicated(Strategy):
    """Resumes from an FSDP2 run's shards too."""

    kind = "replicated"
    reads = frozenset({"replicated", "fsdp2"})
    state_holds_parameters = False

    def __init__(
        self, policy: PolicyForward, make_optimizer: OptimizerFactory, accelerator: Accelerator
    ) -> None:
        super().__init__(policy)
        self.optimizer = make_optimizer(list(policy.parameters()))
        if accelerator.num_processes > 1:
            devices = [accelerator.device.index] if accelerator.device.type == "cuda" else None
            self.module = DistributedDataParallel(policy, device_ids=devices, gradient_as_bucket_view=True)

    def expect(self, *, last: bool) -> None:
        if isinstance(self.module, DistributedDataParallel):
            self.module.require_backward_grad_sync = last  # what its no_sync() sets

    def save(self, directory: Path, *, main: bool) -> str:
        if main:
            save_optimizer(self.optimizer, directory)
            if self.policy.seed_head is not None:
                save_file(self.policy.seed_head.state_dict(), directory / SEED_HEAD)
        return self.kind

    def load(self, directory: Path) -> None:
        if (directory / SHARDS).is_dir():
            load_sharded(self.policy, self.optimizer, directory)
            return
        load_policy_weights(self.sampling_model, directory)
        if self.policy.seed_head is not None:
            self.policy.seed_head.load_state_dict(load_file(directory / SEED_HEAD))
        load_optimizer(self.optimizer, directory)


def load_policy_weights(model: PreTrainedModel, directory: Path) -> None:
    """Put the policy that ``save_pretrained`` left in ``directory`` into ``model``; of a LoRA run, its adapter."""
    if is_adapted(model):
        load_adapter(model, directory)
        return
    saved = json.loads((directory / "config.json").read_text()).get("model_type")
    if saved != model.config.model_type:  # Transformers would fill in a model of its own default size
        raise UsageError(
            f"resume_from_checkpoint: {directory} holds a model of the kind {saved}, and model_name_or_path is of the "
            f"kind {model.config.model_type}; resume with the model that it was made with"
        )
    try:
        restored = type(model).from_pretrained(directory, dtype=model.dtype)
        model.load_state_dict(restored.state_dict())
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"resume_from_checkpoint: {directory} holds another model than model_name_or_path "
            f"({first_line(error)}); resume with the model that it was made with"
        ) from error


def save_optimizer(optimizer: Optimizer, directory: Path) -> None:
    """Tensors of the optimiser's state to safetensors, its groups and plain numbers to JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            (tensors if torch.is_tensor(value) else plain)[f"{index}.{name}"] = value
    save_file(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
        directory / "optimizer.safetensors",
    )
    write_json(directory / "optimizer.json", {"param_groups": state["param_groups"], "plain": plain})


def load_optimizer(optimizer: Optimizer, directory: Path) -> None:
    """Restore what `save_optimizer` wrote."""
    stored = json.loads((directory / "optimizer.json").read_text())
    entries: dict[int, dict[str, Any]] = {}
    for name, value in (load_file(directory / "optimizer.safetensors") | stored["plain"]).items():
        index, _, key = name.partition(".")
        entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": stored["param_groups"]})


def write_json(path: Path, value: Any) -> None:
    """JSON of optimiser groups and dataset columns: a tensor in them as its number, any other object as its text."""
    plain = lambda other: other.item() if isinstance(other, torch.Tensor) else str(other)  # noqa: E731
    path.write_text(json.dumps(value, indent=1, default=plain))
