"""The gloo group of a trainer and the workers of its vLLM servers: one sender, rank 0, and receivers.

It is apart from PyTorch's default group, which belongs to the trainer's ranks, or to vLLM's.
"""

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(seconds=300)


class GlooGroup:
    """One member. Rank 0 keeps the meeting point, at ``address`` and ``port``; all members must come within `TIMEOUT`.

    ``own_address`` is that of this machine's interface towards the others.
    """

    def __init__(self, address: str, port: int, rank: int, size: int, own_address: str) -> None:
        self._store = dist.TCPStore(address, port, size, rank == 0, TIMEOUT, wait_for_workers=False)
        gloo: Any = dist.ProcessGroupGloo  # PyTorch's types do not know it whole
        options = gloo._Options()
        options._timeout = TIMEOUT
        options._devices = [gloo.create_device(hostname=own_address)]
        prefixed = dist.PrefixStore("weights", self._store)
        self._group = gloo(prefixed, rank, size, options)

    def broadcast(self, tensor: Tensor) -> None:
        """Send ``tensor`` (rank 0), or fill it. Raises `RuntimeError` where a member is gone."""
        self._group.broadcast(tensor, 0).wait()
