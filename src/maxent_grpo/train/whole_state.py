"""A ZeRO run's training state without DeepSpeed's own files: whole tensors by name, saved by Accelerate.

`accelerate.Accelerator.save_state` writes the folder; its hook for models writes the float32 parameters and the
optimiser's state, gathered tensor by tensor to the first rank, as safetensors. Such a state resumes on any number of
ranks, and either stage.
"""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

WHOLE = "accelerate"
"""Kind of this training state, and its folder in a checkpoint."""
STATE, COUNTERS = "state.safetensors", "counters.json"
PARAMETER = "parameter"


def save_whole_state(engine: Any, model: PreTrainedModel, accelerator: Accelerator, directory: Path) -> None:
    """Write the state of DeepSpeed's ``engine``; called by all ranks."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    def write(_models: Any, _weights: Any, folder: str) -> None:
        keys, counters = _optimizer_keys(engine)
        tensors: dict[str, Tensor] = {}
        for name, parameter in _trained(model):
            whole = {PARAMETER: safe_get_full_fp32_param(parameter)}
            whole |= {key: safe_get_full_optimizer_state(parameter, key) for key in keys}
            if accelerator.is_main_process:
                tensors |= {
                    f"{kind}.{name}": t.detach().view(_shape(parameter)).cpu().clone()
                    for kind, t in whole.items()
                }
        if accelerator.is_main_process:
            save_file(tensors, Path(folder, STATE))
            Path(folder, COUNTERS).write_text(json.dumps(counters))

    _with_hook(accelerator.register_save_state_pre_hook(write), accelerator.save_state, directory / WHOLE)


def load_whole_state(engine: Any, model: PreTrainedModel, accelerator: Accelerator, directory: Path) -> None:
    """Put what `save_whole_state` wrote into ``engine``; called by all ranks."""

    def read(_models: Any, folder: str) -> None:
        keys, _ = _optimizer_keys(engine)
        counters = json.loads(Path(folder, COUNTERS).read_text())
        with safe_open(Path(folder, STATE), framework="pt") as state:
            for name, parameter in _trained(model):
                _set_parameter(parameter, state.get_tensor(f"{PARAMETER}.{name}"))
                for key in keys:
                    _set_moment(parameter, key, state.get_tensor(f"{key}.{name}"))
        for group_state in engine.optimizer.optimizer.state.values():
            for key, value in counters.items():
                held = group_state[key]
                group_state[key] = torch.full_like(held, value) if torch.is_tensor(held) else value

    _with_hook(accelerator.register_load_state_pre_hook(read), accelerator.load_state, directory / WHOLE)


@torch.no_grad()
def _set_parameter(parameter: Any, value: Tensor) -> None:
    """The float32 weights that the optimiser steps, and the copy that the forward reads."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if is_partitioned(parameter):
        own = _own_part(parameter, value)
        safe_set_local_fp32_param(parameter, own)
        parameter.ds_tensor.copy_(own)
    else:
        whole = value.to(parameter.device)
        safe_set_full_fp32_param(parameter, whole)
        parameter.copy_(whole)


def _set_moment(parameter: Any, key: str, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if is_partitioned(parameter):
        safe_set_local_optimizer_state(parameter, _own_part(parameter, value), key)
    else:
        safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)


def is_partitioned(parameter: Any) -> bool:
    """Whether ranks hold a part of it each, as in stage 3."""
    return hasattr(parameter, "ds_tensor")


def _own_part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's consecutive part of ``value``, the last one padded with zeros to the size of the others."""
    size = parameter.ds_tensor.numel()
    part = value.flatten()[size * torch.distributed.get_rank() :][:size]
    padded = torch.nn.functional.pad(part, (0, size - part.numel()))
    return padded.to(parameter.ds_tensor.device)


def _with_hook(handle: Any, call: Any, folder: Path) -> None:
    try:
        call(str(folder))
    finally:
        handle.remove()


def _trained(model: PreTrainedModel) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _shape(parameter: Any) -> torch.Size:
    """Of the whole parameter, of which stage 3 keeps a part."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _optimizer_keys(engine: Any) -> tuple[list[str], dict[str, float]]:
    """The optimiser's tensors that are as large as its parameters, and its counters, such as ``step``, by value."""
    state = next(iter(engine.optimizer.optimizer.state.values()), {})
    keys = [key for key, value in state.items() if torch.is_tensor(value) and value.numel() > 1]
    counters = {key: float(value) for key, value in state.items() if key not in keys and value is not None}
    return sorted(keys), counters
