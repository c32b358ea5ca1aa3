"""Weights by gloo, parameter by parameter, into the engine that `vllm_plugin` registers: for CPUs, or without NCCL."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import accumulate

from torch import Tensor

from maxent_grpo.rollout.publish.control import VLLMControl
from maxent_grpo.rollout.publish.gloo_group import GlooGroup
from maxent_grpo.rollout.publish.gloo_messages import GlooInit, GlooUpdate
from maxent_grpo.rollout.publish.publisher import PublishFailed, WeightInfo
from maxent_grpo.rollout.publish.server_publisher import on_all
from maxent_grpo.rollout.vllm.process import free_port


class GlooTransport:
    """See `Transport`. ``port`` of this machine is where the workers meet the trainer; 0 takes a free one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._group: GlooGroup | None = None

    def prepare(self, weights: Iterator[tuple[str, Tensor]], version: str) -> None:
        """Nothing: parameters are sent as they are gathered."""

    def send(
        self,
        servers: Sequence[VLLMControl],
        description: Sequence[WeightInfo],
        weights: Iterator[tuple[str, Tensor]],
    ) -> None:
        group = self._group = self._group or self._connected(servers)
        on_all(servers, VLLMControl.start_weight_update)
        update = asdict(GlooUpdate.of(description))
        # The workers receive while this process sends: both are inside the same broadcasts.
        with ThreadPoolExecutor(max_workers=1) as pool:
            received = pool.submit(on_all, servers, lambda server: server.update_weights(update))
            try:
                for _, tensor in weights:
                    group.broadcast(tensor.detach().to("cpu").contiguous())
            except RuntimeError as error:
                raise PublishFailed(f"a server broke off while it received weights: {error}") from error
            received.result()
        on_all(servers, VLLMControl.finish_weight_update)

    def _connected(self, servers: Sequence[VLLMControl]) -> GlooGroup:
        """The group of this process, rank 0, and the workers of all servers, in their order."""
        workers = on_all(servers, VLLMControl.workers)
        size = 1 + sum(workers)
        first_ranks = [1 + before for before in accumulate(workers[:-1], initial=0)]
        port = self._port or free_port()
        inits = {
            server.url: asdict(GlooInit(server.own_address(), port, rank, size))
            for server, rank in zip(servers, first_ranks, strict=True)
        }
        with ThreadPoolExecutor(max_workers=1) as pool:
            joined = pool.submit(
                on_all, servers, lambda server: server.init_weight_transfer_engine(inits[server.url])
            )
            own = servers[0].own_address()
            group = GlooGroup(own, port, 0, size, own)
            joined.result()
        return group

    def reset(self) -> None:
        self._group = None

    def close(self) -> None:
        self._group = None
