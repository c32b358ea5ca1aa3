"""The endpoints by which a vLLM server is steered: pause, weights, resume. It opens them with VLLM_SERVER_DEV_MODE=1.

Written against vLLM 0.30 (`vllm/entrypoints/serve/dev`).
"""

import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import httpx

from maxent_grpo.errors import UsageError
from maxent_grpo.rollout.publish.publisher import PublishFailed

ANSWER_SECONDS = 300.0
"""How long one call may take: reloading a large model from a slow disk does."""
HEALTH_SECONDS = 2.0
"""Between two looks at a server that is not there yet."""


class VLLMControl:
    """One server. Every call raises `PublishFailed` where it does not answer, or answers with an error."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.Client(
            base_url=self.url, headers=dict(headers or {}), timeout=ANSWER_SECONDS, trust_env=False
        )

    def pause(self) -> None:
        """Let running requests finish, hold back new ones, and drop what was cached of the old weights."""
        self._call("POST", "/pause", params={"mode": "wait", "clear_cache": "true"})

    def resume(self) -> None:
        self._call("POST", "/resume")

    def reset_prefix_cache(self) -> None:
        """Forget keys and values of earlier prompts. Raises `PublishFailed` where the server could not."""
        if not self._call("POST", "/reset_prefix_cache").get("success"):
            raise PublishFailed(f"{self.url} could not reset its prefix cache: requests are still running")

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
        info = self._call("GET", "/server_info", params={"config_format": "json"})
        return dict(info["vllm_config"])

    def is_proxy(self) -> bool:
        """Whether this is ``maxent-grpo-vllm-proxy``, which passes orders on to all servers behind it."""
        try:
            return self._client.get("/proxy/status").status_code == 200
        except httpx.HTTPError as error:
            raise PublishFailed(f"{self.url}: {type(error).__name__}: {error}") from error

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
        """Return once it answers. Raises `PublishFailed` if it has not after ``seconds``."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(httpx.TransportError):  # not there, or not yet
                if self._client.get("/health", timeout=5.0).status_code == 200:
                    return
            if time.monotonic() >= deadline:
                raise PublishFailed(
                    f"no vLLM server at {self.url} within {seconds:g} s (vllm_server_timeout); start it, or correct "
                    "vllm_server_base_url"
                )
            time.sleep(HEALTH_SECONDS)

    def own_address(self) -> str:
        """The address of this machine on the interface that leads to the server."""
        url = self._client.base_url
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((url.host, url.port or 80))  # sends nothing
            return str(probe.getsockname()[0])

    def close(self) -> None:
        self._client.close()

    def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            reply = self._client.request(method, path, **request)
        except httpx.HTTPError as error:
            raise PublishFailed(f"{self.url}{path}: {type(error).__name__}: {error}") from error
        if reply.status_code == 404:
            raise UsageError(
                f"vllm_sync_weights: {self.url} has no {path}; start its vllm serve with VLLM_SERVER_DEV_MODE=1 in the "
                "environment, name the servers behind a proxy in vllm_sync_urls, or set vllm_sync_weights=false"
            )
        if reply.status_code != 200:
            excerpt = " ".join(reply.text[:300].split())
            raise PublishFailed(f"{self.url}{path}: HTTP {reply.status_code}: {excerpt}")
        return dict(reply.json()) if reply.content and reply.content != b"null" else {}
