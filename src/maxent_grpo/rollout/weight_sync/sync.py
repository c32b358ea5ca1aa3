"""Weight sync: every copy of the policy gets the learner's weights, whole, and is known to have them.

vLLM servers are paused, updated and resumed; the way of the weights to them is a `Transport`'s business.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.named import find_named
from maxent_grpo.rollout.settings import TRANSPORTS, ServerSettings, SyncSettings
from maxent_grpo.rollout.weight_sync.control import SyncFailed, VLLMControl, on_all, post_all
from maxent_grpo.rollout.weight_sync.transports import Transport
from maxent_grpo.rollout.weight_sync.weights import WeightInfo, Weights
from maxent_grpo.waiting import waiting

UNNAMED = "default"
"""vLLM's name for the weights that it was started with."""
PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)
"""From the finest to the coarsest."""


class WeightSync(Protocol):
    """Puts weights into a sampler that keeps a copy of its own. All ranks call every method together."""

    dtype: torch.dtype
    """The precision that the sampler computes in."""

    def sync(self, weights: Weights, version: str) -> None:
        """Make every copy sample from ``weights`` and know them as ``version``.

        No completion is generated from half-loaded weights, and none continues from keys and values of older ones.

        Raises:
            SyncFailed: a copy could not be reached or refused; the next call starts anew, from the connection on.
        """
        ...

    def holds(self, version: str) -> bool:
        """True if every copy still has ``version``: a server that was started again has not.

        Raises:
            SyncFailed: a copy does not answer.
            RunError: a copy has the weights of another run.
        """
        ...

    def close(self) -> None:
        """Give up connections and files."""
        ...


class ServerWeightSync:
    """See `WeightSync`. Several servers are the ones behind a proxy: all of them get the weights.

    Args:
        servers: all that may be asked to generate.
        transport: the way that the weights travel.
        patience: seconds that a server may stay away before a sync fails.
        is_sender: true on the rank that sends; the others only help it to gather.
    """

    def __init__(
        self,
        servers: Sequence[VLLMControl],
        transport: Transport,
        *,
        patience: float,
        is_sender: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        self._servers, self._transport = list(servers), transport
        self._patience, self._is_sender = patience, is_sender

    def sync(self, weights: Weights, version: str) -> None:
        stream = iter(weights)
        try:
            if self._is_sender:
                with waiting(
                    f"weights {version} to reach {', '.join(server.url for server in self._servers)}"
                ):
                    self._send(weights.description(), stream, version)
        except SyncFailed:
            self._transport.reset()
            raise
        finally:
            for _ in stream:  # the others can gather only while every rank runs through the rest
                pass

    def _send(
        self, description: Sequence[WeightInfo], stream: Iterator[tuple[str, Tensor]], version: str
    ) -> None:
        on_all(self._servers, lambda server: server.wait_until_healthy(self._patience))
        self._transport.prepare(stream, version)
        # Running requests finish, new ones are held back, and what was cached of the old weights is dropped.
        post_all(self._servers, "/pause", params={"mode": "wait", "clear_cache": "true"})
        # Nothing resumes a server whose update broke off: it would generate from half-loaded weights.
        self._transport.send(self._servers, description, stream)
        on_all(self._servers, VLLMControl.reset_prefix_cache)
        post_all(self._servers, "/update_weight_version", json={"new_version": version})
        post_all(self._servers, "/resume")

    def holds(self, version: str) -> bool:
        if not self._is_sender:
            return True
        for server, found in zip(self._servers, on_all(self._servers, VLLMControl.version), strict=True):
            if found not in (version, UNNAMED):
                raise RunError(
                    f"{server.url} has the weights {found!r} and not {version!r}: another run syncs to it; give "
                    "every run servers of its own"
                )
            if found != version:
                return False
        return True

    def close(self) -> None:
        self._transport.close()


def server_weight_sync(
    server: ServerSettings, sync: SyncSettings, *, is_sender: bool, ranks: int
) -> ServerWeightSync:
    """The sync to the servers of ``sync``, which are asked for what they can.

    Raises:
        UsageError: they cannot take weights the way that ``vllm_sync_backend`` says.
        RunError: they do not answer.
    """
    if not is_sender:
        return ServerWeightSync([], Transport(), patience=0.0, is_sender=False)
    servers = [
        VLLMControl(url, server.headers, server.secrets, sync.timeout)
        for url in sync.urls or [server.base_url]
    ]
    try:
        found = [one.settings() for one in servers]
        proxied = any(one.is_proxy() for one in servers)
    except SyncFailed as error:
        raise RunError(f"vllm_sync_weights: {error}") from error
    backends = {(one.get("weight_transfer_config") or {}).get("backend") for one in found}
    started_with = backends.pop() if len(backends) == 1 else None
    backend = _backend(sync.backend, started_with, servers[0].url if proxied else None, servers[0].url)
    if backend == "ipc" and ranks > 1:
        raise UsageError("vllm_sync_backend: ipc is for one trainer process; use nccl or disk")
    make = find_named("vllm_sync_backend", backend, TRANSPORTS, "a function", callable)
    dtypes = [getattr(torch, one["model_config"]["dtype"].removeprefix("torch.")) for one in found]
    return ServerWeightSync(
        servers,
        make(sync),
        patience=server.startup_timeout,
        is_sender=True,
        dtype=max(dtypes, key=PRECISIONS.index),
    )


def _backend(asked: str, started_with: str | None, proxy: str | None, first: str) -> str:
    """The backend to use, where servers were started with one and may stand behind a proxy."""
    direct = ("gloo", "nccl", "ipc")
    if asked == "auto":
        return str(started_with) if started_with in direct and proxy is None else "disk"
    if asked in direct and proxy is not None:
        raise UsageError(
            f"vllm_sync_backend: {asked} needs a connection to each server, and {proxy} is a proxy; list the "
            "servers behind it in vllm_sync_urls, or use disk"
        )
    if asked in direct and started_with != asked:
        raise UsageError(
            f"vllm_sync_backend: {asked} is not what {first} was started with; start every vllm serve with "
            f'--weight-transfer-config \'{{"backend": "{asked}"}}\', or use disk'
        )
    return asked
