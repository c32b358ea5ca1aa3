"""The whole policy on every rank: one process, or DDP over several."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.train.strategies.fsdp2 import SHARDS, load_sharded
from maxent_grpo.train.strategies.saved_state import (
    load_optimizer,
    load_policy_weights,
    load_seed_head,
    save_optimizer,
    save_seed_head,
)
from maxent_grpo.train.strategies.strategy import OptimizerFactory, clip_and_step


class Replicated:
    """See `Strategy`. It resumes from an FSDP2 run's shards too."""

    kind = "replicated"
    reads = frozenset({"replicated", "fsdp2"})
    state_holds_parameters = False

    def __init__(
        self, policy: PolicyForward, make_optimizer: OptimizerFactory, accelerator: Accelerator
    ) -> None:
        self.policy = policy
        self.sampling_model = policy.model
        self.optimizer = make_optimizer(list(policy.parameters()))
        self.module: nn.Module = policy
        if accelerator.num_processes > 1:
            devices = [accelerator.device.index] if accelerator.device.type == "cuda" else None
            self.module = DistributedDataParallel(policy, device_ids=devices, gradient_as_bucket_view=True)

    def expect(self, *, last: bool) -> None:
        if isinstance(self.module, DistributedDataParallel):
            self.module.require_backward_grad_sync = last  # what its no_sync() sets

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self, learning_rate: float, max_grad_norm: float) -> float:
        return clip_and_step(self.optimizer, self.policy.parameters(), learning_rate, max_grad_norm)

    @contextmanager
    def full_weights(self) -> Iterator[PreTrainedModel]:
        yield self.sampling_model

    def gathered(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.sampling_model.named_parameters()

    def save(self, directory: Path, *, main: bool) -> str:
        if main:
            save_optimizer(self.optimizer, directory)
            save_seed_head(self.policy.seed_head, directory)
        return self.kind

    def load(self, directory: Path) -> None:
        if (directory / SHARDS).is_dir():
            load_sharded(self.policy, self.optimizer, directory)
            return
        load_policy_weights(self.sampling_model, directory)
        load_seed_head(self.policy.seed_head, directory)
        load_optimizer(self.optimizer, directory)
