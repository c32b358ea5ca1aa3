"""Weights on their way to paused servers: by disk, and by vLLM's own transfer engines. `gloo` has one more way."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from maxent_grpo.errors import UsageError
from maxent_grpo.rollout.settings import SyncSettings
from maxent_grpo.rollout.weight_sync.control import (
    SyncFailed,
    VLLMControl,
    broken_off,
    init_transfer,
    post_all,
    workers_before,
)
from maxent_grpo.rollout.weight_sync.weights import WeightInfo
from maxent_grpo.waiting import Late, within

SHARD_BYTES = 2**30
"""Parameters held in memory before they are written: one file's worth."""


class Transport:
    """One way for weights to reach servers, used by the sending rank. This one does nothing: for the other ranks."""

    def prepare(self, weights: Iterator[tuple[str, Tensor]], version: str) -> None:
        """Do what can be done while the servers still generate."""

    def send(
        self,
        servers: Sequence[VLLMControl],
        description: Sequence[WeightInfo],
        weights: Iterator[tuple[str, Tensor]],
    ) -> None:
        """Load the weights into the paused servers."""

    def reset(self) -> None:
        """Forget connections: a server may have been started again."""

    def close(self) -> None:
        """Give up connections and files."""
        self.reset()


class DiskTransport(Transport):
    """Weights by a directory of safetensors that the servers load again: works everywhere, at the speed of the disk.

    The servers see the directory under the same path.
    """

    def __init__(self, settings: SyncSettings, shard_bytes: int = SHARD_BYTES) -> None:
        self._directory = Path(settings.directory).absolute()
        self._shard_bytes = shard_bytes
        self._written: Path | None = None

    def prepare(self, weights: Iterator[tuple[str, Tensor]], version: str) -> None:
        """Write ``weights`` aside and rename the directory into place, so that nobody finds half of it."""
        final = self._directory / f"weights-{version}"
        partial = self._directory / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_shards(weights, partial, self._shard_bytes)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        self._written = final

    def send(
        self,
        servers: Sequence[VLLMControl],
        description: Sequence[WeightInfo],
        weights: Iterator[tuple[str, Tensor]],
    ) -> None:
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(self._written)}}
        post_all(servers, "/collective_rpc", json=reload)
        for old in self._directory.glob("weights-*"):
            if old != self._written:
                shutil.rmtree(old)

    def close(self) -> None:
        """Remove the files: the trained policy is saved elsewhere."""
        if self._written is not None:
            shutil.rmtree(self._written, ignore_errors=True)


def write_shards(weights: Iterator[tuple[str, Tensor]], directory: Path, shard_bytes: int) -> None:
    """Write parameters to ``model-<n>.safetensors`` files of about ``shard_bytes``, holding one file's at a time."""
    held: dict[str, Tensor] = {}
    size = files = 0
    for name, tensor in weights:
        held[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += held[name].nbytes
        if size >= shard_bytes:
            files += 1
            save_file(held, directory / f"model-{files:05d}.safetensors")
            held, size = {}, 0
    if held:
        save_file(held, directory / f"model-{files + 1:05d}.safetensors")


class NCCLTransport(Transport):
    """Weights by vLLM's own engine for servers on other GPUs.

    Written against vLLM 0.30 (`vllm/distributed/weight_transfer`). ``settings.port`` of this machine is where the
    group's members meet.

    Raises:
        UsageError: vLLM is not installed here.
    """

    backend = "nccl"

    def __init__(self, settings: SyncSettings) -> None:
        try:
            from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        except ImportError as error:
            raise UsageError(
                f"vllm_sync_backend: {self.backend} needs vLLM where training runs too: pip install "
                "'maxent-grpo[vllm]'; or use disk or gloo"
            ) from error
        self._start = WeightTransferTrainerFactory.trainer_init
        self._port, self._seconds = settings.port, settings.timeout
        self._engine: Any = None
        self._source: Any = None

    def send(
        self,
        servers: Sequence[VLLMControl],
        description: Sequence[WeightInfo],
        weights: Iterator[tuple[str, Tensor]],
    ) -> None:
        device = torch.cuda.current_device() if torch.cuda.is_available() else None

        def transfer() -> None:
            if device is not None:  # a thread starts on device 0
                torch.cuda.set_device(device)
            if self._engine is None:
                self._source = _source()
                self._source.use(description, weights)
                init = self.init_info(servers)
                self._engine = self._start(init, client=AllServers(servers), source=self._source)
            self._source.use(description, weights)
            self._engine.send_weights()

        # NCCL's calls know no deadline, and a server that failed never comes to them.
        try:
            within(self._seconds, transfer, self._abort)
        except (RuntimeError, Late) as error:  # of NCCL, of the rendezvous, or nobody's
            raise SyncFailed(broken_off(servers, error)) from error

    def _abort(self) -> None:
        """Make a transfer that hangs in the communicator return, where there is one yet."""
        communicator = getattr(self._engine, "model_update_group", None)
        if communicator is not None:
            communicator.destroy()

    def init_info(self, servers: Sequence[VLLMControl]) -> Any:
        """The trainer's place in the group, as vLLM's own class."""
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        size = 1 + workers_before(servers)[-1]
        return NCCLTrainerInitInfo(servers[0].own_address(), self._port, size, rank=0)

    def reset(self) -> None:
        self._engine = None

    def close(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None


class IPCTransport(NCCLTransport):
    """The same by CUDA IPC, to a server on the trainer's GPU."""

    backend = "ipc"

    def init_info(self, servers: Sequence[VLLMControl]) -> Any:
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return IPCTrainerInitInfo(rank=0, packed=True)


class AllServers:
    """vLLM's ``VLLMWeightSyncClient`` for several servers at once: in NCCL's group their workers follow one another."""

    def __init__(self, servers: Sequence[VLLMControl]) -> None:
        self._servers = list(servers)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        before = workers_before(self._servers)[:-1]
        init_transfer(self._servers, [with_offset(init_info, count) for count in before])

    def start_weight_update(self) -> None:
        post_all(self._servers, "/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        from vllm.distributed.weight_transfer.clients import _json_safe_update_payload

        update = {"update_info": _json_safe_update_payload(update_info)}
        post_all(self._servers, "/update_weights", json=update)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        post_all(self._servers, "/finish_weight_update", json={})


def with_offset(init_info: Mapping[str, Any], workers_before: int) -> dict[str, Any]:
    """``init_info`` of one server, whose workers' ranks follow those of the servers before it."""
    if "rank_offset" not in init_info:  # IPC has no group
        return dict(init_info)
    return {**init_info, "rank_offset": init_info["rank_offset"] + workers_before}


def _source() -> Any:
    """vLLM's ``WeightSource`` over weights that are given anew for every round."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):
        def use(self, description: Sequence[WeightInfo], weights: Iterator[tuple[str, Tensor]]) -> None:
            self._metadata = [ParamMeta(info.name, info.dtype, info.shape) for info in description]
            self._weights = weights

        def metadata(self) -> list[ParamMeta]:
            return self._metadata

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return self._weights

    return Source()
