"""Weights into vLLM servers: pause, update, resume. How the weights travel is a `Transport`'s business."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from torch import Tensor

from maxent_grpo.errors import RunError
from maxent_grpo.rollout.publish.control import VLLMControl
from maxent_grpo.rollout.publish.publisher import PublishFailed, WeightInfo, Weights, drained

Result = TypeVar("Result")

UNNAMED = "default"
"""What vLLM calls the weights that it was started with."""


class Transport(Protocol):
    """One way for weights to reach servers. Used by the sending rank alone."""

    def prepare(self, weights: Iterator[tuple[str, Tensor]], version: str) -> None:
        """What can be done while the servers still generate."""

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


class Nothing:
    """The transport of ranks that send nothing."""

    def prepare(self, weights: Iterator[tuple[str, Tensor]], version: str) -> None: ...

    def send(
        self,
        servers: Sequence[VLLMControl],
        description: Sequence[WeightInfo],
        weights: Iterator[tuple[str, Tensor]],
    ) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


class ServerPublisher:
    """See `Publisher`. Several servers are the ones behind a proxy: all of them get the weights.

    Args:
        servers: all that may be asked to generate.
        transport: how the weights travel.
        patience: seconds that a server may stay away before a publication fails.
        is_sender: true on the rank that sends; the others only help it to gather.
    """

    def __init__(
        self, servers: Sequence[VLLMControl], transport: Transport, *, patience: float, is_sender: bool
    ) -> None:
        self._servers = list(servers)
        self._transport = transport
        self._patience = patience
        self._is_sender = is_sender

    def publish(self, weights: Weights, version: str) -> None:
        stream = iter(weights)
        try:
            if self._is_sender:
                self._publish(weights.description(), stream, version)
        except PublishFailed:
            self._transport.reset()
            raise
        finally:
            drained(stream)

    def _publish(
        self, description: Sequence[WeightInfo], stream: Iterator[tuple[str, Tensor]], version: str
    ) -> None:
        on_all(self._servers, lambda server: server.wait_until_healthy(self._patience))
        self._transport.prepare(stream, version)
        on_all(self._servers, VLLMControl.pause)
        # Nothing resumes a server whose update broke off: it would generate from half-loaded weights.
        self._transport.send(self._servers, description, stream)
        on_all(self._servers, VLLMControl.reset_prefix_cache)
        on_all(self._servers, lambda server: server.set_version(version))
        on_all(self._servers, VLLMControl.resume)

    def holds(self, version: str) -> bool:
        if not self._is_sender:
            return True
        for server, found in zip(self._servers, on_all(self._servers, VLLMControl.version), strict=True):
            if found not in (version, UNNAMED):
                raise RunError(
                    f"{server.url} has the weights {found!r} and not {version!r}: another run publishes to it; give "
                    "every run servers of its own"
                )
            if found != version:
                return False
        return True

    def close(self) -> None:
        self._transport.close()
        for server in self._servers:
            server.close()


def on_all(servers: Sequence[VLLMControl], call: Callable[[VLLMControl], Result]) -> list[Result]:
    """The call's result on every server, at the same time; raises what the first failing one raised."""
    with ThreadPoolExecutor(max_workers=max(1, len(servers))) as pool:
        return list(pool.map(call, servers))
