"""Weights by gloo between two processes, without a server."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from maxent_grpo.rollout.weight_sync.control import SyncFailed, VLLMControl
from maxent_grpo.rollout.weight_sync.gloo import GlooGroup, GlooUpdate, free_port
from maxent_grpo.rollout.weight_sync.transports import NCCLTransport
from maxent_grpo.rollout.weight_sync.weights import WeightInfo


def receive(port: int, answers: Any) -> None:
    group = GlooGroup("127.0.0.1", port, 1, 2, "127.0.0.1", 30.0)
    tensor = torch.empty(3, dtype=torch.bfloat16)
    group.broadcast(tensor)
    answers.put(tensor.float().tolist())


def test_a_broadcast_arrives() -> None:
    context = multiprocessing.get_context("fork")
    answers, port = context.Queue(), free_port()
    other = context.Process(target=receive, args=(port, answers))
    other.start()
    group = GlooGroup("127.0.0.1", port, 0, 2, "127.0.0.1", 30.0)
    listening = {line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line}
    everywhere = Path("/proc/net/tcp6").read_text() if Path("/proc/net/tcp6").is_file() else ""
    assert f"0100007F:{port:04X}" in listening  # on the address that peers use, and on no other
    assert f"00000000:{port:04X}" not in "".join(listening) + everywhere
    group.broadcast(torch.tensor([1.0, 2.5, -3.0], dtype=torch.bfloat16))
    assert answers.get(timeout=30) == [1.0, 2.5, -3.0]
    other.join(timeout=30)
    assert other.exitcode == 0


def receive_once(port: int, ready: Any) -> None:
    group = GlooGroup("127.0.0.1", port, 1, 2, "127.0.0.1", 30.0)
    group.broadcast(torch.empty(3))
    ready.set()
    time.sleep(60)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_peer_that_dies_or_stops_in_the_middle_is_an_error_in_time(how: signal.Signals) -> None:
    context = multiprocessing.get_context("fork")
    ready, port = context.Event(), free_port()
    other = context.Process(target=receive_once, args=(port, ready))
    other.start()
    group = GlooGroup("127.0.0.1", port, 0, 2, "127.0.0.1", 2.0)
    group.broadcast(torch.ones(3))
    assert ready.wait(30)
    assert other.pid is not None
    os.kill(other.pid, how)
    large = torch.ones(2**24)  # more than the sockets hold

    def send() -> None:
        for _ in range(4):
            group.broadcast(large)

    try:
        with pytest.raises(RuntimeError, match=r"(?i)timed out|closed|reset|broken"):
            send()
    finally:
        other.kill()
        other.join(30)


class HangingEngine:
    """vLLM's trainer engine in a transfer that its servers never join, until its communicator is destroyed."""

    def __init__(self) -> None:
        self.model_update_group = self
        self.destroyed = threading.Event()

    def send_weights(self) -> None:
        self.destroyed.wait()
        raise RuntimeError("NCCL error: communicator was aborted")

    def destroy(self) -> None:
        self.destroyed.set()


def test_an_nccl_transfer_that_hangs_is_aborted_and_names_the_server() -> None:
    transport = object.__new__(NCCLTransport)  # without vLLM, which this environment has not
    transport._seconds, transport._engine, transport._source = 0.2, HangingEngine(), Mock()
    with pytest.raises(SyncFailed, match=r"did not reach http://127\.0\.0\.1:9 \(no answer within 0\.2 s\)"):
        transport.send([VLLMControl("http://127.0.0.1:9")], [], iter(()))
    assert transport._engine.destroyed.is_set()


def test_the_message_describes_the_parameters() -> None:
    update = GlooUpdate.of([WeightInfo("a", torch.bfloat16, (2, 3)), WeightInfo("b", torch.float32, ())])
    assert (update.names, update.dtype_names, update.shapes) == (
        ["a", "b"],
        ["bfloat16", "float32"],
        [[2, 3], []],
    )
