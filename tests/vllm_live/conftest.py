"""A live `vllm serve` of the bundled tiny policy, one for the whole test session."""

import os

# vLLM compiles some functions of its sampler even where it is told to be eager: a minute of C++ on a fresh machine.
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from benchmarks.vllm_process import VLLMProcess

from maxent_grpo.rollout.weight_sync.gloo import free_port
from maxent_grpo.tasks.tiny_policy import bundled_policy_path

HERE = Path(__file__).parent
OPTIONS = (
    *("--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--no-enable-chunked-prefill"),
    *("--middleware", "maxent_grpo.rollout.vllm.client_tag.EchoMiddleware"),
    *("--weight-transfer-config", '{"backend": "gloo"}'),
)
"""Float32 and eager, the tag echo, and weights by gloo or by disk."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs vLLM, which has an environment of its own."""
    missing = importlib.util.find_spec("vllm") is None
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if missing:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed here: make test-vllm"))


@pytest.fixture(scope="session")
def vllm_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMProcess]:
    """The server's process. Its weights are whatever the last test left: use `vllm_server`."""
    log = tmp_path_factory.mktemp("vllm") / "serve.log"
    with VLLMProcess(bundled_policy_path(), log, options=OPTIONS) as process:
        yield process


@pytest.fixture
def vllm_server(vllm_process: VLLMProcess) -> VLLMProcess:
    """The server with the bundled policy's own weights; ``url``, ``port`` and ``model`` say how to reach it."""
    with httpx.Client(base_url=vllm_process.url, timeout=60) as client:
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(vllm_process.model)}}
        client.post("/resume").raise_for_status()
        client.post("/collective_rpc", json=reload).raise_for_status()
        client.post("/reset_prefix_cache").raise_for_status()
    return vllm_process


@pytest.fixture
def proxy(vllm_server: VLLMProcess) -> Iterator[str]:
    """The address of a maxent-grpo-vllm-proxy in front of the server."""
    port = free_port()
    command = [sys.executable, "-m", "maxent_grpo.vllm_proxy", vllm_server.url, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)
