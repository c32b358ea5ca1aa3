"""Weights by gloo, parameter by parameter, into the engine that `vllm_plugin` registers: for CPUs, or without NCCL.

The server's half is `gloo_engine`; what both need imports no vLLM, as the trainer may have none.
"""

import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from maxent_grpo.rollout.settings import SyncSettings
from maxent_grpo.rollout.weight_sync.control import (
    SyncFailed,
    VLLMControl,
    broken_off,
    init_transfer,
    post_all,
    workers_before,
)
from maxent_grpo.rollout.weight_sync.transports import Transport
from maxent_grpo.rollout.weight_sync.weights import WeightInfo


class GlooGroup:
    """One member of the group of a trainer, rank 0 and sender, and the workers of its vLLM servers.

    It is apart from PyTorch's default group, which belongs to the trainer's ranks, or to vLLM's. Rank 0 keeps the
    meeting point, at ``address`` and ``port``; all members must come within ``seconds``, and each broadcast takes no
    longer. ``own_address`` is that of this machine's interface towards the others.
    """

    def __init__(
        self, address: str, port: int, rank: int, size: int, own_address: str, seconds: float
    ) -> None:
        timeout = timedelta(seconds=seconds)
        # By itself rank 0 would listen on all interfaces.
        listener = listening_at(address, port).detach() if rank == 0 else None
        self._store = dist.TCPStore(
            address, port, size, rank == 0, timeout, wait_for_workers=False, master_listen_fd=listener
        )
        gloo: Any = dist.ProcessGroupGloo  # PyTorch's types do not know it whole
        options = gloo._Options()
        options._timeout = timeout
        options._devices = [gloo.create_device(hostname=own_address)]
        prefixed = dist.PrefixStore("weights", self._store)
        self._group = gloo(prefixed, rank, size, options)

    def broadcast(self, tensor: Tensor) -> None:
        """Send ``tensor`` (rank 0), or fill it. Raises `RuntimeError` where a member is gone, or late."""
        self._group.broadcast(tensor, 0).wait()


@dataclass
class GlooInit:
    """The trainer's meeting point, and a server's place in the group."""

    master_address: str
    master_port: int
    rank_offset: int
    """Rank of the server's first worker."""
    world_size: int
    """The trainer and the workers of all servers."""
    seconds: float
    """That a broadcast may take."""


@dataclass
class GlooUpdate:
    """The parameters that follow, in their order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]

    @classmethod
    def of(cls, description: Sequence[WeightInfo]) -> "GlooUpdate":
        return cls(
            names=[info.name for info in description],
            dtype_names=[str(info.dtype).removeprefix("torch.") for info in description],
            shapes=[list(info.shape) for info in description],
        )


class GlooTransport(Transport):
    """``settings.port`` of this machine is where the workers meet the trainer; 0 takes a free one."""

    def __init__(self, settings: SyncSettings) -> None:
        self._port, self._seconds = settings.port, settings.timeout
        self._group: GlooGroup | None = None

    def send(
        self,
        servers: Sequence[VLLMControl],
        description: Sequence[WeightInfo],
        weights: Iterator[tuple[str, Tensor]],
    ) -> None:
        group = self._group = self._group or self._connected(servers)
        post_all(servers, "/start_weight_update")
        update = {"update_info": asdict(GlooUpdate.of(description))}
        # The workers receive while this process sends: both are inside the same broadcasts.
        with ThreadPoolExecutor(max_workers=1) as pool:
            received = pool.submit(post_all, servers, "/update_weights", json=update)
            try:
                for _, tensor in weights:
                    group.broadcast(tensor.detach().to("cpu").contiguous())
            except RuntimeError as error:
                raise SyncFailed(broken_off(servers, error)) from error
            received.result()
        post_all(servers, "/finish_weight_update", json={})

    def _connected(self, servers: Sequence[VLLMControl]) -> GlooGroup:
        """The group of this process, rank 0, and the workers of all servers, in their order."""
        *before, workers = workers_before(servers)
        port = self._port or free_port()
        inits = [
            asdict(GlooInit(server.own_address(), port, 1 + count, 1 + workers, self._seconds))
            for server, count in zip(servers, before, strict=True)
        ]
        with ThreadPoolExecutor(max_workers=1) as pool:
            joined = pool.submit(init_transfer, servers, inits)
            own = servers[0].own_address()
            group = GlooGroup(own, port, 0, 1 + workers, own, self._seconds)
            joined.result()
        return group

    def reset(self) -> None:
        self._group = None


def listening_at(address: str, port: int) -> socket.socket:
    """A socket that listens at this one address. Raises `SyncFailed` where the port is taken."""
    family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
    try:
        return socket.create_server((address, port), family=family, backlog=128)
    except OSError as error:
        raise SyncFailed(
            f"weights by gloo: cannot listen on {address}:{port} ({error}); set vllm_group_port"
        ) from error


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
