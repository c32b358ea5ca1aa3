"""A ZeRO run's training state without DeepSpeed's own files: whole tensors by name, saved by Accelerate.

`accelerate.Accelerator.save_state` writes the folder; its hook for models writes the float32 parameters and the
optimiser's state, gathered tensor by tensor to the first rank, as safetensors. Such a state resumes on any number of
ranks, and on either stage.
"""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from maxent_grpo.errors import RunError

WHOLE = "accelerate"
"""Kind of this training state, and its folder in a checkpoint."""
STATE, COUNTERS = "state.safetensors", "counters.json"
PARAMETER = "parameter"


def save_whole_state(engine: Any, policy: nn.Module, accelerator: Accelerator, directory: Path) -> None:
    """Write the state of DeepSpeed's ``engine``; called by all ranks.

    Raises `RunError` for an optimiser whose state is more than moments of its parameters and common counters.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    moments, counters = optimizer_keys(engine)

    def write(_models: Any, _weights: Any, folder: str) -> None:
        _link_moments(engine)
        tensors: dict[str, Tensor] = {}
        for name, parameter in _trained(policy):
            whole = {PARAMETER: safe_get_full_fp32_param(parameter)}
            whole |= {key: safe_get_full_optimizer_state(parameter, key) for key in moments}
            if accelerator.is_main_process:
                shape = getattr(parameter, "ds_shape", parameter.shape)
                tensors |= {f"{key}.{name}": t.detach().view(shape).cpu().clone() for key, t in whole.items()}
        if accelerator.is_main_process:
            save_file(tensors, Path(folder, STATE))
            Path(folder, COUNTERS).write_text(json.dumps({"moments": moments, "counters": counters}))

    _with_hook(accelerator.register_save_state_pre_hook(write), accelerator.save_state, directory / WHOLE)


def load_whole_state(engine: Any, policy: nn.Module, accelerator: Accelerator, directory: Path) -> None:
    """Put what `save_whole_state` wrote into ``engine``; called by all ranks."""

    def read(_models: Any, folder: str) -> None:
        keys = json.loads(Path(folder, COUNTERS).read_text())
        for flat, state in _flat_states(engine):  # empty until the first step
            state |= {key: torch.zeros_like(flat) for key in keys["moments"]}
            state |= {key: torch.tensor(value) for key, value in keys["counters"].items()}
        _link_moments(engine)
        with safe_open(Path(folder, STATE), framework="pt") as tensors:
            for name, parameter in _trained(policy):
                _set_parameter(parameter, tensors.get_tensor(f"{PARAMETER}.{name}"))
                for key in keys["moments"]:
                    _set_moment(parameter, key, tensors.get_tensor(f"{key}.{name}"))

    _with_hook(accelerator.register_load_state_pre_hook(read), accelerator.load_state, directory / WHOLE)


def optimizer_keys(engine: Any) -> tuple[list[str], dict[str, float]]:
    """Names of the optimiser's tensors that are as large as its parameters, and its counters (``step``) by value."""
    states = [(flat, state) for flat, state in _flat_states(engine) if state]
    moments: list[str] = []
    counters: dict[str, float] = {}
    for flat, state in states:
        moments = sorted(key for key, value in state.items() if _is_moment(value, flat))
        others = {key: value for key, value in state.items() if key not in moments}
        for key, value in others.items():
            is_counter = torch.is_tensor(value) and value.numel() == 1
            if not is_counter or counters.setdefault(key, float(value)) != float(value):
                raise RunError(
                    f"optim: Accelerate cannot save the state {key!r} of this optimiser under ZeRO; use "
                    "adamw_torch, or DeepSpeed's own state"
                )
    return moments, counters


def _is_moment(value: Any, flat: Tensor) -> bool:
    return torch.is_tensor(value) and value.shape == flat.shape


def _flat_states(engine: Any) -> list[tuple[Tensor, dict[str, Any]]]:
    """The flat tensors that the optimiser steps on this rank, each with its state."""
    zero = engine.optimizer
    # The optimiser's own groups hold them only while it steps.
    partitioned = engine.zero_optimization_stage() == 3
    flats = zero.fp32_partitioned_groups_flat if partitioned else zero.single_partition_of_fp32_groups
    return [(flat, zero.optimizer.state[flat]) for flat in flats]


def _link_moments(engine: Any) -> None:
    """Tell DeepSpeed's stage 2 where each parameter's moments lie in the flat ones; it looks once, before any exist."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    zero = engine.optimizer
    if engine.zero_optimization_stage() == 2:
        for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, zero.optimizer.state)


def _with_hook(handle: Any, call: Any, folder: Path) -> None:
    try:
        call(str(folder))
    finally:
        handle.remove()


def _trained(policy: nn.Module) -> list[tuple[str, Any]]:
    """Parameters under the names that the model's own files give them."""
    named = ((name.removeprefix("model."), parameter) for name, parameter in policy.named_parameters())
    return [(name, parameter) for name, parameter in named if parameter.requires_grad]


@torch.no_grad()
def _set_parameter(parameter: Any, value: Tensor) -> None:
    """The float32 weights that the optimiser steps, and the copy that the forward reads."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if _is_partitioned(parameter):
        own = _own_part(parameter, value)
        safe_set_local_fp32_param(parameter, own)
        parameter.ds_tensor.copy_(own)
    else:
        whole = value.to(parameter.device)
        safe_set_full_fp32_param(parameter, whole)
        parameter.copy_(whole)


def _set_moment(parameter: Any, key: str, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if _is_partitioned(parameter):
        safe_set_local_optimizer_state(parameter, _own_part(parameter, value), key)
    else:
        safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)


def _is_partitioned(parameter: Any) -> bool:
    """Whether ranks hold a part of it each, as in stage 3."""
    return hasattr(parameter, "ds_tensor")


def _own_part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's consecutive part of ``value``, the last one padded with zeros to the size of the others."""
    size = parameter.ds_tensor.numel()
    part = value.flatten()[size * torch.distributed.get_rank() :][:size]
    padded = torch.nn.functional.pad(part, (0, size - part.numel()))
    return padded.to(parameter.ds_tensor.device)
