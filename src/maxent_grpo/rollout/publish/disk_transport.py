"""Weights by a directory of safetensors that the servers load again: works everywhere, at the speed of the disk."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from maxent_grpo.rollout.publish.control import VLLMControl
from maxent_grpo.rollout.publish.publisher import WeightInfo
from maxent_grpo.rollout.publish.server_publisher import on_all

SHARD_BYTES = 2**30
"""Parameters held in memory before they are written: one file's worth."""


class DiskTransport:
    """See `Transport`. ``directory`` is one that the servers see under the same path."""

    def __init__(self, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._directory = directory.absolute()
        self._shard_bytes = shard_bytes
        self._written: Path | None = None

    def prepare(self, weights: Iterator[tuple[str, Tensor]], version: str) -> None:
        """Write ``weights`` aside and rename the directory into place, so that nobody finds half of it."""
        final = self._directory / f"weights-{version}"
        partial = self._directory / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_shards(weights, partial, self._shard_bytes)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        self._written = final

    def send(
        self,
        servers: Sequence[VLLMControl],
        description: Sequence[WeightInfo],
        weights: Iterator[tuple[str, Tensor]],
    ) -> None:
        assert self._written is not None, "prepare has written"
        path = str(self._written)
        on_all(servers, lambda server: server.rpc("reload_weights", weights_path=path))
        for old in self._directory.glob("weights-*"):
            if old != self._written:
                shutil.rmtree(old)

    def reset(self) -> None:
        """There is no connection."""

    def close(self) -> None:
        """Remove the files: the trained policy is saved elsewhere."""
        if self._written is not None:
            shutil.rmtree(self._written, ignore_errors=True)


def write_shards(weights: Iterator[tuple[str, Tensor]], directory: Path, shard_bytes: int) -> None:
    """Write parameters to ``model-<n>.safetensors`` files of about ``shard_bytes``, holding one file's at a time."""
    held: dict[str, Tensor] = {}
    size = files = 0
    for name, tensor in weights:
        held[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += held[name].nbytes
        if size >= shard_bytes:
            files += 1
            save_file(held, directory / f"model-{files:05d}.safetensors")
            held, size = {}, 0
    if held:
        save_file(held, directory / f"model-{files + 1:05d}.safetensors")
