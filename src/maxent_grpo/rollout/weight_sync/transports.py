"""Weights on their way to paused servers: by disk, and by vLLM's own transfer engines. `gloo` has one more way."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor

from maxent_grpo.errors import UsageError
from maxent_grpo.rollout.settings import SyncSettings
from maxent_grpo.rollout.weight_sync.control import SyncFailed, VLLMControl, on_all
from maxent_grpo.rollout.weight_sync.weights import WeightInfo

SHARD_BYTES = 2**30
"""Parameters held in memory before they are written: one file's worth."""


class DiskTransport:
    """Weights by a directory of safetensors that the servers load again: works everywhere, at the speed of the disk.

    See `sync.Transport`. ``directory`` is one that the servers see under the same path."""

    def __init__(self, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._directory = directory.absolute()
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
        assert self._written is not None, "prepare has written"
        path = str(self._written)
        on_all(servers, lambda server: server.rpc("reload_weights", weights_path=path))
        for old in self._directory.glob("weights-*"):
            if old != self._written:
                shutil.rmtree(old)

    def reset(self) -> None:
        """Do nothing: there is no connection."""

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


class VLLMTransport:
    """Weights by vLLM's own engines, NCCL to servers on other GPUs or CUDA IPC to one on the trainer's GPU.

    Written against vLLM 0.30 (`vllm/distributed/weight_transfer`); needs vLLM where training runs. See
    `sync.Transport`. ``port`` of this machine is where NCCL's members meet.

    Raises:
        UsageError: vLLM is not installed here.
    """

    def __init__(self, way: Literal["nccl", "ipc"], port: int) -> None:
        try:
            from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        except ImportError as error:
            raise UsageError(
                f"vllm_sync_backend: {way} needs vLLM where training runs too: pip install 'maxent-grpo[vllm]'; or "
                "use disk or gloo"
            ) from error
        self._start = WeightTransferTrainerFactory.trainer_init
        self._way = way
        self._port = port
        self._engine: Any = None
        self._source: Any = None

    def prepare(self, weights: Iterator[tuple[str, Tensor]], version: str) -> None:
        """Do nothing: parameters are sent as they are gathered."""

    def send(
        self,
        servers: Sequence[VLLMControl],
        description: Sequence[WeightInfo],
        weights: Iterator[tuple[str, Tensor]],
    ) -> None:
        try:
            if self._engine is None:
                self._source = _source()
                self._source.use(description, weights)
                self._engine = self._start(
                    self._init(servers), client=AllServers(servers), source=self._source
                )
            self._source.use(description, weights)
            self._engine.send_weights()
        except RuntimeError as error:  # of NCCL, or of the rendezvous
            raise SyncFailed(f"a server broke off while it received weights: {error}") from error

    def _init(self, servers: Sequence[VLLMControl]) -> Any:
        if self._way == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=0, packed=True)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        size = 1 + sum(on_all(servers, VLLMControl.workers))
        return NCCLTrainerInitInfo(servers[0].own_address(), self._port, size, rank=0)

    def reset(self) -> None:
        self._engine = None

    def close(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None


class AllServers:
    """vLLM's ``VLLMWeightSyncClient`` for several servers at once: in NCCL's group their workers follow one another."""

    def __init__(self, servers: Sequence[VLLMControl]) -> None:
        self._servers = list(servers)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        offsets = {server.url: offset for server, offset in zip(self._servers, self._offsets(), strict=True)}
        on_all(
            self._servers,
            lambda server: server.init_weight_transfer_engine(with_offset(init_info, offsets[server.url])),
        )

    def _offsets(self) -> list[int]:
        """Workers of the servers before each."""
        return list(accumulate(on_all(self._servers, VLLMControl.workers)[:-1], initial=0))

    def start_weight_update(self) -> None:
        on_all(self._servers, VLLMControl.start_weight_update)

    def update_weights(self, update_info: Any) -> None:
        from vllm.distributed.weight_transfer.clients import _json_safe_update_payload

        payload = _json_safe_update_payload(update_info)
        on_all(self._servers, lambda server: server.update_weights(payload))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        on_all(self._servers, VLLMControl.finish_weight_update)


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


def disk(settings: SyncSettings) -> DiskTransport:
    """The transport of ``vllm_sync_backend: disk``."""
    return DiskTransport(Path(settings.directory))


def nccl(settings: SyncSettings) -> VLLMTransport:
    """The transport of ``vllm_sync_backend: nccl``."""
    return VLLMTransport("nccl", settings.port)


def ipc(settings: SyncSettings) -> VLLMTransport:
    """The transport of ``vllm_sync_backend: ipc``."""
    return VLLMTransport("ipc", settings.port)
