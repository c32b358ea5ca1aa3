"""The endpoints that steer a vLLM server: pause, weights, resume. It opens them with VLLM_SERVER_DEV_MODE=1.

Written against vLLM 0.30 (`vllm/entrypoints/serve/dev`).
"""

import math
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate
from typing import Any, TypeVar
from urllib.parse import urlsplit

from maxent_grpo.errors import UsageError
from maxent_grpo.http import WAITING_EVERY, Answer, Fault, excerpt, fetch, read_json, redacted, say_waiting

Result = TypeVar("Result")

HEALTH_SECONDS = 2.0
"""Between two looks at a server that is not there yet."""


class SyncFailed(Exception):
    """One attempt to bring weights failed; another may not. The message is one line: what, where, what to do."""


class VLLMControl:
    """One server. Every call raises `SyncFailed` where it does not answer, or answers with an error."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        secrets: Sequence[str] = (),
        answer_seconds: float = 300.0,
    ) -> None:
        self.url = url.rstrip("/")
        self.answer_seconds = (
            answer_seconds  # of one call: reloading a large model from a slow disk takes long
        )
        self._headers, self._secrets = dict(headers or {}), secrets

    def post(self, path: str, **request: Any) -> dict[str, Any]:
        """The answer's JSON object; {} where there is none. ``request`` as httpx takes it."""
        return self._call("POST", path, **request)

    def get(self, path: str, **request: Any) -> dict[str, Any]:
        """See `post`."""
        return self._call("GET", path, **request)

    def reset_prefix_cache(self) -> None:
        """Forget keys and values of earlier prompts. Raises `SyncFailed` where the server could not."""
        if not self.post("/reset_prefix_cache").get("success"):
            raise SyncFailed(f"{self.url} could not reset its prefix cache: requests are still running")

    def version(self) -> str:
        """The name of the weights; ``default`` where none were named since the start."""
        return str(self.get("/weight_info")["weight_version"])

    def workers(self) -> int:
        """Processes that hold weights, over tensor, pipeline and data parallelism."""
        return int(self.get("/get_world_size")["world_size"])

    def settings(self) -> dict[str, Any]:
        """Its configuration, as ``vllm.config.VllmConfig`` writes it."""
        return dict(self.get("/server_info", params={"config_format": "json"})["vllm_config"])

    def is_proxy(self) -> bool:
        """True for ``maxent-grpo-vllm-proxy``, which passes orders on to all servers behind it."""
        return self._send("GET", "/proxy/status").status == 200

    def wait_until_healthy(self, seconds: float) -> None:
        """Return once it answers. Raises `SyncFailed` if it has not after ``seconds``."""
        deadline, told = time.monotonic() + seconds, -math.inf
        while True:
            with suppress(SyncFailed):  # not there, or not yet
                if self._send("GET", "/health", timeout=5.0).status == 200:
                    return
            if time.monotonic() >= deadline:
                raise SyncFailed(
                    f"no vLLM server at {self.url} within {seconds:g} s (vllm_server_timeout); start it, or correct "
                    "vllm_server_base_url"
                )
            if time.monotonic() - told >= WAITING_EVERY:
                told = time.monotonic()
                say_waiting(self.url, deadline - told)
            time.sleep(HEALTH_SECONDS)

    def own_address(self) -> str:
        """The address of this machine on the interface that leads to the server."""
        parts = urlsplit(self.url)
        return address_towards(str(parts.hostname), parts.port or 80)

    def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        answer = self._send(method, path, **request)
        if answer.status == 404:
            raise UsageError(
                f"vllm_sync_weights: {self.url} has no {path}; start its vllm serve with VLLM_SERVER_DEV_MODE=1 in the "
                "environment, name the servers behind a proxy in vllm_sync_urls, or set vllm_sync_weights=false"
            )
        if answer.status != 200:
            said = excerpt(answer.content, self._secrets)
            raise SyncFailed(f"{self.url}{path}: HTTP {answer.status}: {said}")
        try:
            return read_json(answer.content) if answer.content not in (b"", b"null") else {}
        except Fault as fault:
            raise SyncFailed(f"{self.url}{path}: {fault}") from fault

    def _send(self, method: str, path: str, timeout: float | None = None, **request: Any) -> Answer:
        seconds = self.answer_seconds if timeout is None else timeout
        try:
            return fetch(self.url + path, method, timeout=seconds, headers=self._headers, **request)
        except Fault as fault:
            raise SyncFailed(redacted(f"{self.url}{path}: {fault}", self._secrets)) from fault


def broken_off(servers: Sequence[VLLMControl], error: Exception) -> str:
    """The line for weights that did not arrive."""
    at = ", ".join(server.url for server in servers)
    return (
        f"weights did not reach {at} ({' '.join(str(error).split())}); the log of that vLLM server says why"
    )


def on_all(servers: Sequence[VLLMControl], call: Callable[[VLLMControl], Result]) -> list[Result]:
    """The call's result on every server, at the same time; raises what the first failing one raised."""
    with ThreadPoolExecutor(max_workers=max(1, len(servers))) as pool:
        return list(pool.map(call, servers))


def post_all(servers: Sequence[VLLMControl], path: str, **request: Any) -> None:
    """The same order to every server, at the same time."""
    on_all(servers, lambda server: server.post(path, **request))


def init_transfer(servers: Sequence[VLLMControl], inits: Sequence[Mapping[str, Any]]) -> None:
    """Have every server join a group, each as its own ``init_info`` says."""
    of = {server.url: {"init_info": dict(init)} for server, init in zip(servers, inits, strict=True)}
    on_all(servers, lambda server: server.post("/init_weight_transfer_engine", json=of[server.url]))


def workers_before(servers: Sequence[VLLMControl]) -> list[int]:
    """Workers of the servers before each one, and of all of them: in a group they follow one another."""
    return list(accumulate(on_all(servers, VLLMControl.workers), initial=0))


def address_towards(host: str, port: int) -> str:
    """The address of this machine on the interface that leads to ``host``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing
        return str(probe.getsockname()[0])
