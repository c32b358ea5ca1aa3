"""The order of calls by which servers get weights, against a scripted server; `tests/vllm_live` has the real one."""

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
import torch
from torch import Tensor

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.rollout.weight_sync.control import SyncFailed, VLLMControl
from maxent_grpo.rollout.weight_sync.sync import ServerWeightSync
from maxent_grpo.rollout.weight_sync.transports import Transport, with_offset
from maxent_grpo.rollout.weight_sync.weights import WeightInfo


class Scripted(ThreadingHTTPServer):
    """Answers the endpoints that steer vLLM, and remembers what it was asked."""

    def __init__(self, failing: str = "", missing: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.version = "default"
        self.failing, self.missing = failing, missing
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_GET(self) -> None:
        self._answer({"weight_version": self.server.version})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        self.server.version = body.get("new_version", self.server.version)
        self._answer({"success": True})

    def _answer(self, answer: dict[str, object]) -> None:
        path = urlsplit(self.path).path
        if path != "/health":
            self.server.asked.append(path)
        code = 500 if path == self.server.failing else 404 if path == self.server.missing else 200
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


class Recording(Transport):
    """Notes when it was called."""

    def __init__(self, servers: Sequence[Scripted]) -> None:
        self._servers = servers
        self.resets = 0

    def prepare(self, weights: Iterator[tuple[str, Tensor]], version: str) -> None:
        self._note("prepare")

    def send(
        self,
        servers: Sequence[VLLMControl],
        description: Sequence[WeightInfo],
        weights: Iterator[tuple[str, Tensor]],
    ) -> None:
        self._note(f"send {next(weights)[0]}")
        for server in servers:
            server.post("/collective_rpc", json={"method": "reload_weights"})

    def reset(self) -> None:
        self.resets += 1

    def _note(self, what: str) -> None:
        for server in self._servers:
            server.asked.append(what)


class Two:
    """Two parameters; ``given`` counts those that were asked for."""

    given = 0

    def description(self) -> list[WeightInfo]:
        return [WeightInfo(name, torch.float32, (1,)) for name in "ab"]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name in "ab":
            self.given += 1
            yield name, torch.zeros(1)


def sync_of(servers: Sequence[Scripted]) -> tuple[ServerWeightSync, Recording]:
    transport = Recording(servers)
    controls = [VLLMControl(server.url) for server in servers]
    return ServerWeightSync(controls, transport, patience=1.0, is_sender=True), transport


def test_every_server_is_paused_updated_and_resumed() -> None:
    servers = [Scripted(), Scripted()]
    weight_sync, _ = sync_of(servers)
    weights = Two()
    weight_sync.sync(weights, "run-3")
    for server in servers:
        assert server.asked == [
            "prepare",
            "/pause",
            "send a",
            "/collective_rpc",
            "/reset_prefix_cache",
            "/update_weight_version",
            "/resume",
        ]
        assert server.version == "run-3"
    assert weight_sync.holds("run-3")
    assert weights.given == 2  # other ranks gather every parameter, whatever the sender reads


def test_half_loaded_servers_are_not_resumed() -> None:
    servers = [Scripted(), Scripted(failing="/collective_rpc")]
    weight_sync, transport = sync_of(servers)
    weights = Two()
    with pytest.raises(SyncFailed, match="/collective_rpc: HTTP 500"):
        weight_sync.sync(weights, "run-3")
    assert not any("/resume" in server.asked for server in servers)
    assert (transport.resets, weights.given) == (1, 2)
    servers[1].failing = ""
    weight_sync.sync(Two(), "run-3")
    assert all(server.asked[-1] == "/resume" for server in servers)


def test_a_server_that_was_started_again_is_noticed() -> None:
    servers = [Scripted(), Scripted()]
    weight_sync, _ = sync_of(servers)
    weight_sync.sync(Two(), "run-3")
    servers[1].version = "default"
    assert not weight_sync.holds("run-3")


def test_weights_of_another_run_end_the_run() -> None:
    server = Scripted()
    weight_sync, _ = sync_of([server])
    weight_sync.sync(Two(), "run-3")
    server.version = "other-1"
    with pytest.raises(RunError, match="another run syncs to it"):
        weight_sync.holds("run-3")


def test_a_server_without_the_endpoints_is_named_with_the_remedy() -> None:
    weight_sync, _ = sync_of([Scripted(missing="/pause")])
    with pytest.raises(UsageError, match="VLLM_SERVER_DEV_MODE=1"):
        weight_sync.sync(Two(), "run-1")


def test_a_server_that_is_not_there_is_named() -> None:
    server = Scripted()
    server.shutdown()
    server.server_close()
    weight_sync, _ = sync_of([server])
    with pytest.raises(SyncFailed, match=r"no vLLM server at .* within 1 s"):
        weight_sync.sync(Two(), "run-1")


def test_ranks_that_do_not_send_still_gather() -> None:
    weights = Two()
    ServerWeightSync([], Transport(), patience=0.0, is_sender=False).sync(weights, "run-1")
    assert weights.given == 2


def test_workers_of_several_servers_follow_one_another() -> None:
    assert with_offset({"rank_offset": 1, "world_size": 5}, 2) == {"rank_offset": 3, "world_size": 5}
    assert with_offset({"packed": True}, 2) == {"packed": True}
