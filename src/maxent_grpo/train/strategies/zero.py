"""DeepSpeed's ZeRO: optimiser state and gradients sharded (stage 2), parameters too (stage 3).

What was left out: offloading, and DeepSpeed's own optimisers and schedules. Clipping, the refusal of non-finite
gradients and the sharded checkpoint are DeepSpeed's; it reads checkpoints by unpickling them, so resume only from
folders that you wrote.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from maxent_grpo.config.environment import ALLOW, CheckpointSettings
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.train.strategies.strategy import NO_STATE, OptimizerFactory, Strategy

logger = logging.getLogger(__name__)

TAG = "zero"
"""Folder of a checkpoint that DeepSpeed writes."""
NEVER = 1_000_000_000
WHOLE = "accelerate"
"""Kind of this training state, and its folder in a checkpoint."""
STATE, COUNTERS = "state.safetensors", "counters.json"
PARAMETER = "parameter"


class ZeroStrategy(Strategy):
    """DeepSpeed's engine around the policy; ``stage`` is 2 or 3."""

    def __init__(
        self,
        policy: PolicyForward,
        make_optimizer: OptimizerFactory,
        accelerator: Accelerator,
        *,
        stage: int,
        max_grad_norm: float,
        checkpoints: CheckpointSettings,
    ) -> None:
        super().__init__(policy, sampling_copy=stage == 3)
        self.kind = f"zero{stage}"
        self.reads = frozenset({self.kind, WHOLE})
        self._accelerator = accelerator
        self._checkpoints = checkpoints
        self.state_holds_parameters = checkpoints.deepspeed_state != "skip"
        autocast = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
        self._engine = _engine(
            policy,
            make_optimizer(list(policy.parameters())),
            accelerator,
            {
                "train_micro_batch_size_per_gpu": 1,  # of no consequence: micro-batches are cut by the step
                "gradient_accumulation_steps": 1,
                "gradient_clipping": max_grad_norm,
                "zero_optimization": {"stage": stage},
                "zero_allow_untested_optimizer": True,  # any of PyTorch's works
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": NEVER,
            }
            | (autocast if accelerator.mixed_precision == "bf16" else {}),
        )
        self.module = self._engine
        # What zero_to_fp32 recovers then has the names that `from_pretrained` looks for.
        names = self._engine.param_names
        self._engine.param_names = {p: name.removeprefix("model.") for p, name in names.items()}
        if stage == 3:
            from deepspeed.runtime.zero import register_external_parameter

            # The policy's forward reads the head's parameters itself: they are gathered for it.
            for parameter in policy.language_model.get_output_embeddings().parameters():
                register_external_parameter(policy, parameter)

    def expect(self, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def update(self, learning_rate: float, max_grad_norm: float) -> float:
        """DeepSpeed clips, to the norm that it was given at the start."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return float("nan") if self._engine.optimizer.overflow else float(self._engine.get_global_grad_norm())

    def gathered(self) -> Iterator[tuple[str, Tensor]]:
        if self._copy is None:
            yield from super().gathered()
            return
        from deepspeed.runtime.zero import GatheredParameters

        for name, parameter in self.policy.model.named_parameters():
            with GatheredParameters([parameter]):
                yield name, parameter

    def save(self, directory: Path, *, main: bool) -> str:
        """By DeepSpeed itself, or as the environment asks (`config.environment`)."""
        if self._checkpoints.deepspeed_state == "skip":
            return NO_STATE
        if self._checkpoints.deepspeed_state == "native":
            failures = [failure for failure in gather_object([self._save_natively(directory)]) if failure]
            if not failures:
                return self.kind
            if not self._checkpoints.accelerate_fallback:
                raise RunError(
                    f"DeepSpeed cannot save to {directory.parent} ({failures[0]}); {ALLOW}=true lets Accelerate save "
                    "the state instead"
                )
            logger.warning("DeepSpeed cannot save (%s): Accelerate saves the state instead", failures[0])
            if main:
                shutil.rmtree(directory / TAG, ignore_errors=True)
                (directory / "latest").unlink(missing_ok=True)
            self._accelerator.wait_for_everyone()
        save_whole_state(self._engine, self.policy, self._accelerator, directory)
        return WHOLE

    def _save_natively(self, directory: Path) -> str | None:
        """The reason why it failed on this rank, if it did: one line of ours, whatever DeepSpeed meets here."""
        try:
            self._engine.save_checkpoint(str(directory), tag=TAG)
        except Exception as error:  # noqa: BLE001  told to the other ranks, and raised or survived by `save`
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
        return None

    def load(self, directory: Path) -> None:
        if (directory / WHOLE).is_dir():
            load_whole_state(self._engine, self.policy, self._accelerator, directory)
            return
        path, _ = self._engine.load_checkpoint(str(directory), tag=TAG, load_lr_scheduler_states=False)
        if path is None:
            raise UsageError(
                f"resume_from_checkpoint: DeepSpeed finds no state in {directory / TAG}; use an earlier checkpoint"
            )


def _engine(
    policy: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, config: dict[str, Any]
) -> Any:
    if accelerator.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed takes a GPU that use_cpu leaves alone
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # Gloo carries the collectives; the shared-memory ones would be compiled at the start, for minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo" if accelerator.device.type == "cpu" else "nccl"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return deepspeed.initialize(model=policy, optimizer=optimizer, config=config)[0]


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
        moments = sorted(key for key, v in state.items() if torch.is_tensor(v) and v.shape == flat.shape)
        others = {key: value for key, value in state.items() if key not in moments}
        for key, value in others.items():
            is_counter = torch.is_tensor(value) and value.numel() == 1
            if not is_counter or counters.setdefault(key, float(value)) != float(value):
                raise RunError(
                    f"optim: Accelerate cannot save the state {key!r} of this optimiser under ZeRO; use "
                    "adamw_torch, or DeepSpeed's own state"
                )
    return moments, counters


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

    if hasattr(parameter, "ds_tensor"):  # stage 3: a part on each rank
        own = _own_part(parameter, value)
        safe_set_local_fp32_param(parameter, own)
        parameter.ds_tensor.copy_(own)
    else:
        whole = value.to(parameter.device)
        safe_set_full_fp32_param(parameter, whole)
        parameter.copy_(whole)


def _set_moment(parameter: Any, key: str, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if hasattr(parameter, "ds_tensor"):  # stage 3: a part on each rank
        safe_set_local_optimizer_state(parameter, _own_part(parameter, value), key)
    else:
        safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)


def _own_part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's consecutive part of ``value``, the last one padded with zeros to the size of the others."""
    size = parameter.ds_tensor.numel()
    part = value.flatten()[size * torch.distributed.get_rank() :][:size]
    padded = torch.nn.functional.pad(part, (0, size - part.numel()))
    return padded.to(parameter.ds_tensor.device)
