"""DeepSpeed's ZeRO: optimiser state and gradients sharded (stage 2), parameters too (stage 3).

What was left out: offloading, and DeepSpeed's own optimisers and schedules. Clipping, the refusal of non-finite
gradients and the sharded checkpoint are DeepSpeed's; it reads checkpoints by unpickling them, so resume only from
folders that you wrote.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from maxent_grpo.errors import UsageError
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.train.sampling_copy import SamplingCopy
from maxent_grpo.train.strategy import OptimizerFactory

TAG = "zero"
"""Folder of a checkpoint that DeepSpeed writes."""
NEVER = 1_000_000_000


class ZeroStrategy:
    """See `Strategy`. ``stage`` is 2 or 3."""

    def __init__(
        self,
        policy: PolicyForward,
        make_optimizer: OptimizerFactory,
        accelerator: Accelerator,
        *,
        stage: int,
        max_grad_norm: float,
    ) -> None:
        self.kind = f"zero{stage}"
        self.reads = frozenset({self.kind})
        self.policy = policy
        self._model = policy.model
        self._copy = SamplingCopy(policy.model) if stage == 3 else None
        self.sampling_model = policy.model if self._copy is None else self._copy.model
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
        self.module: nn.Module = self._engine
        if stage == 3:
            read_outside_its_own_forward(policy)

    def expect(self, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def update(self, learning_rate: float, max_grad_norm: float) -> float:
        """See `Strategy.update`; the norm to clip to was given to DeepSpeed at the start."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return float("nan") if self._engine.optimizer.overflow else float(self._engine.get_global_grad_norm())

    @contextmanager
    def full_weights(self) -> Iterator[PreTrainedModel]:
        if self._copy is None:
            yield self._model
            return
        for name, parameter in self.gathered():
            self._copy.fill(name, parameter)
        try:
            yield self._copy.model
        finally:
            self._copy.release()

    def gathered(self) -> Iterator[tuple[str, Tensor]]:
        if self._copy is None:
            yield from self._model.named_parameters()
            return
        from deepspeed.runtime.zero import GatheredParameters

        for name, parameter in self._model.named_parameters():
            with GatheredParameters([parameter]):
                yield name, parameter

    def save(self, directory: Path, *, main: bool) -> None:
        self._engine.save_checkpoint(str(directory), tag=TAG, save_latest=False)

    def load(self, directory: Path) -> None:
        path, _ = self._engine.load_checkpoint(str(directory), tag=TAG, load_lr_scheduler_states=False)
        if path is None:
            raise UsageError(
                f"resume_from_checkpoint: DeepSpeed finds no state in {directory / TAG}; use an earlier checkpoint"
            )


def read_outside_its_own_forward(policy: PolicyForward) -> None:
    """Tell DeepSpeed that the policy's forward reads the head's parameters itself, so that they are gathered for it."""
    from deepspeed.runtime.zero import register_external_parameter

    for parameter in policy.language_model.get_output_embeddings().parameters():
        register_external_parameter(policy, parameter)


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
