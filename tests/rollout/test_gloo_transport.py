"""Weights by gloo between two processes, without a server."""

import multiprocessing
from pathlib import Path
from typing import Any

import torch

from maxent_grpo.rollout.weight_sync.gloo import GlooGroup, GlooUpdate, free_port
from maxent_grpo.rollout.weight_sync.weights import WeightInfo


def receive(port: int, answers: Any) -> None:
    group = GlooGroup("127.0.0.1", port, 1, 2, "127.0.0.1")
    tensor = torch.empty(3, dtype=torch.bfloat16)
    group.broadcast(tensor)
    answers.put(tensor.float().tolist())


def test_a_broadcast_arrives() -> None:
    context = multiprocessing.get_context("fork")
    answers, port = context.Queue(), free_port()
    other = context.Process(target=receive, args=(port, answers))
    other.start()
    group = GlooGroup("127.0.0.1", port, 0, 2, "127.0.0.1")
    listening = {line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line}
    everywhere = Path("/proc/net/tcp6").read_text() if Path("/proc/net/tcp6").is_file() else ""
    assert f"0100007F:{port:04X}" in listening  # on the address that peers use, and on no other
    assert f"00000000:{port:04X}" not in "".join(listening) + everywhere
    group.broadcast(torch.tensor([1.0, 2.5, -3.0], dtype=torch.bfloat16))
    assert answers.get(timeout=30) == [1.0, 2.5, -3.0]
    other.join(timeout=30)
    assert other.exitcode == 0


def test_the_message_describes_the_parameters() -> None:
    update = GlooUpdate.of([WeightInfo("a", torch.bfloat16, (2, 3)), WeightInfo("b", torch.float32, ())])
    assert (update.names, update.dtype_names, update.shapes) == (
        ["a", "b"],
        ["bfloat16", "float32"],
        [[2, 3], []],
    )
