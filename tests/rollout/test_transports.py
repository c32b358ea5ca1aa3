"""Weights as files that a server loads."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from maxent_grpo.rollout.settings import SyncSettings
from maxent_grpo.rollout.weight_sync.transports import DiskTransport, write_shards


def four() -> Iterator[tuple[str, Tensor]]:
    """Four parameters of 400 bytes each, in one buffer that is used again, as a gathered one may be."""
    buffer = torch.empty(100)
    for i in range(4):
        yield f"p{i}", buffer.fill_(i)


def test_shards_hold_everything_and_no_more_than_they_may(tmp_path: Path) -> None:
    write_shards(four(), tmp_path, shard_bytes=800)
    files = sorted(tmp_path.glob("*.safetensors"))
    shards = [load_file(file) for file in files]
    assert [sorted(shard) for shard in shards] == [["p0", "p1"], ["p2", "p3"]]
    assert all(bool((value == int(name[1])).all()) for shard in shards for name, value in shard.items())


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    transport = DiskTransport(SyncSettings(directory=str(tmp_path)), shard_bytes=400)
    seen: list[list[str]] = []

    def watched() -> Iterator[tuple[str, Tensor]]:
        for item in four():
            seen.append([path.name for path in tmp_path.glob("weights-*")])
            yield item

    transport.prepare(watched(), "run-1")
    assert seen == [[]] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["weights-run-1"]
    transport.prepare(four(), "run-2")
    transport.send([], [], iter(()))
    assert [path.name for path in tmp_path.iterdir()] == ["weights-run-2"]  # what no server needs is removed
    transport.close()
    assert not list(tmp_path.iterdir())
