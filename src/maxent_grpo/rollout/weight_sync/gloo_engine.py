"""The server's half of weights by gloo. Imported by vLLM alone, when a server asks for it by name.

Written against vLLM 0.30: its NCCL engine does the same with another communicator.
"""

from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from maxent_grpo.rollout.weight_sync.control import address_towards
from maxent_grpo.rollout.weight_sync.gloo import GlooGroup, GlooInit, GlooUpdate


class InitInfo(GlooInit, WeightTransferInitInfo):
    """`GlooInit` as vLLM's own class: vLLM dispatches on the type."""


class UpdateInfo(GlooUpdate, WeightTransferUpdateInfo):
    """`GlooUpdate` as vLLM's own class."""


class GlooEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Receives checkpoint-format parameters, one broadcast each, and loads them layer by layer."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    _group: GlooGroup | None = None

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Join the trainer's group. A group of an earlier trainer is given up."""
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        trainer, port = init_info.master_address, init_info.master_port
        own = address_towards(trainer, port)
        self._group = GlooGroup(trainer, port, rank, init_info.world_size, own, init_info.seconds)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class, without waiting for an accelerator: there may be none."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: UpdateInfo) -> None:
        if self._group is None:
            raise RuntimeError("weights by gloo: no trainer has connected; call init_transfer_engine first")
        for name, dtype, shape in zip(
            update_info.names, update_info.dtype_names, update_info.shapes, strict=True
        ):
            weight = torch.empty(shape, dtype=getattr(torch, dtype))
            self._group.broadcast(weight)
            self.model.load_weights([(name, weight)])

    def shutdown(self) -> None:
        self._group = None
