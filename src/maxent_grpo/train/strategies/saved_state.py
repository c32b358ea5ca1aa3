"""Parameters and optimiser state in a checkpoint folder, where every rank holds them whole. Nothing is pickled."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from maxent_grpo.models.adapters import is_adapted, load_adapter

SEED_HEAD = "seed_head.safetensors"


def load_policy_weights(model: PreTrainedModel, directory: Path) -> None:
    """Put the policy that ``save_pretrained`` left in ``directory`` into ``model``; of a LoRA run, its adapter."""
    if is_adapted(model):
        load_adapter(model, directory)
        return
    restored = type(model).from_pretrained(directory, dtype=model.dtype)
    model.load_state_dict(restored.state_dict())


def save_seed_head(head: nn.Linear | None, directory: Path) -> None:
    """InfoSeed's classifier, which is no part of the policy's own files."""
    if head is not None:
        save_file(head.state_dict(), directory / SEED_HEAD)


def load_seed_head(head: nn.Linear | None, directory: Path) -> None:
    """Restore what `save_seed_head` wrote."""
    if head is not None:
        head.load_state_dict(load_file(directory / SEED_HEAD))


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
    path.write_text(json.dumps(value, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    """JSON for what optimiser groups and dataset columns hold beside JSON's own types."""
    if isinstance(value, torch.Tensor):
        return value.item()
    return str(value)
