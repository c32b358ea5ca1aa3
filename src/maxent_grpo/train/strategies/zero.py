"""DeepSpeed's ZeRO: optimiser state and gradients sharded (stage 2), parameters too (stage 3).

What was left out: offloading, and DeepSpeed's own optimisers and schedules. Clipping, the refusal of non-finite
gradients and the sharded checkpoint are DeepSpeed's; it reads checkpoints by unpickling them, so resume only from
folders that you wrote.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel

from maxent_grpo.config.checkpointing import ALLOW, CheckpointSettings
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.train.strategies.sampling_copy import SamplingCopy
from maxent_grpo.train.strategies.strategy import NO_STATE, OptimizerFactory
from maxent_grpo.train.strategies.whole_state import WHOLE, load_whole_state, save_whole_state

logger = logging.getLogger(__name__)

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
        checkpoints: CheckpointSettings,
    ) -> None:
        self.kind = f"zero{stage}"
        self.reads = frozenset({self.kind, WHOLE})
        self._accelerator = accelerator
        self._checkpoints = checkpoints
        self.state_holds_parameters = checkpoints.deepspeed_state != "skip"
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
        # What zero_to_fp32 recovers then has the names that `from_pretrained` looks for.
        names = self._engine.param_names
        self._engine.param_names = {p: name.removeprefix("model.") for p, name in names.items()}
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
        with self._copy.filled(self.gathered()) as model:
            yield model

    def gathered(self) -> Iterator[tuple[str, Tensor]]:
        if self._copy is None:
            yield from self._model.named_parameters()
            return
        from deepspeed.runtime.zero import GatheredParameters

        for name, parameter in self._model.named_parameters():
            with GatheredParameters([parameter]):
                yield name, parameter

    def save(self, directory: Path, *, main: bool) -> str:
        """By DeepSpeed itself, or as the environment asks (`config.checkpointing`)."""
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
        """Why it failed on this rank, in a line. Whatever DeepSpeed meets here ends in a line of ours."""
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
