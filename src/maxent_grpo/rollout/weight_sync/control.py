"""The endpoints that steer a vLLM server: pause, weights, resume. It opens them with VLLM_SERVER_DEV_MODE=1.

Written against vLLM 0.30 (`vllm/entrypoints/serve/dev`).
"""

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from maxent_grpo.errors import UsageError
from maxent_grpo.http import Answer, Fault, excerpt, fetch, read_json, redacted

Result = TypeVar("Result")

ANSWER_SECONDS = 300.0
"""Time that one call may take: reloading a large model from a slow disk does."""
HEALTH_SECONDS = 2.0
"""Between two looks at a server that is not there yet."""


class SyncFailed(Exception):
    """One attempt to bring weights failed; another may not. The message is one line: what, where, what to do."""


class VLLMControl:
    """One server. Every call raises `SyncFailed` where it does not answer, or answers with an error."""

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, secrets: Sequence[str] = ()
    ) -> None:
        self.url = url.rstrip("/")
        self._headers, self._secrets = dict(headers or {}), secrets

    def pause(self) -> None:
        """Let running requests finish, hold back new ones, and drop what was cached of the old weights."""
        self._call("POST", "/pause", params={"mode": "wait", "clear_cache": "true"})

    def resume(self) -> None:
        self._call("POST", "/resume")

    def reset_prefix_cache(self) -> None:
        """Forget keys and values of earlier prompts. Raises `SyncFailed` where the server could not."""
        if not self._call("POST", "/reset_prefix_cache").get("success"):
            raise SyncFailed(f"{self.url} could not reset its prefix cache: requests are still running")

    def rpc(self, method: str, **kwargs: str) -> None:
        """Call ``method`` of every worker."""
        self._call("POST", "/collective_rpc", json={"method": method, "kwargs": kwargs})

    def version(self) -> str:
        """The name of the weights; ``default`` where none were named since the start."""
        return str(self._call("GET", "/weight_info")["weight_version"])

    def set_version(self, version: str) -> None:
        self._call("POST", "/update_weight_version", json={"new_version": version})

    def workers(self) -> int:
        """Processes that hold weights, over tensor, pipeline and data parallelism."""
        return int(self._call("GET", "/get_world_size")["world_size"])

    def settings(self) -> dict[str, Any]:
        """Its configuration, as ``vllm.config.VllmConfig`` writes it."""
        return dict(self._call("GET", "/server_info", params={"config_format": "json"})["vllm_config"])

    def is_proxy(self) -> bool:
        """True for ``maxent-grpo-vllm-proxy``, which passes orders on to all servers behind it."""
        return self._send("GET", "/proxy/status").status == 200

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("POST", "/init_weight_transfer_engine", json={"init_info": init_info})

    def start_weight_update(self) -> None:
        self._call("POST", "/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._call("POST", "/update_weights", json={"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        body = {} if weight_version is None else {"weight_version": weight_version}
        self._call("POST", "/finish_weight_update", json=body)

    def wait_until_healthy(self, seconds: float) -> None:
        """Return once it answers. Raises `SyncFailed` if it has not after ``seconds``."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(SyncFailed):  # not there, or not yet
                if self._send("GET", "/health", timeout=5.0).status == 200:
                    return
            if time.monotonic() >= deadline:
                raise SyncFailed(
                    f"no vLLM server at {self.url} within {seconds:g} s (vllm_server_timeout); start it, or correct "
                    "vllm_server_base_url"
                )
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

    def _send(self, method: str, path: str, timeout: float = ANSWER_SECONDS, **request: Any) -> Answer:
        try:
            return fetch(self.url + path, method, timeout=timeout, headers=self._headers, **request)
        except Fault as fault:
            raise SyncFailed(redacted(f"{self.url}{path}: {fault}", self._secrets)) from fault


def on_all(servers: Sequence[VLLMControl], call: Callable[[VLLMControl], Result]) -> list[Result]:
    """The call's result on every server, at the same time; raises what the first failing one raised."""
    with ThreadPoolExecutor(max_workers=max(1, len(servers))) as pool:
        return list(pool.map(call, servers))


def address_towards(host: str, port: int) -> str:
    """The address of this machine on the interface that leads to ``host``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing
        return str(probe.getsockname()[0])
