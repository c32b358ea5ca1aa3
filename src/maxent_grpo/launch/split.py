"""Who serves and who trains: nodes and GPUs divided between the vLLM server and the trainer."""

from dataclasses import dataclass
from typing import Literal

from maxent_grpo.errors import UsageError
from maxent_grpo.launch.allocation import Allocation

Sampling = Literal["in-process", "server", "colocate"]
"""Who generates: the trainer's own sampler, a vLLM server beside it, or vLLM inside its processes."""


@dataclass(frozen=True)
class Share:
    """One node's part in one job."""

    node: str
    gpus: tuple[str, ...]  # none: it runs on the CPU
    processes: int


@dataclass(frozen=True)
class Split:
    """The division of an allocation."""

    serving: Share | None
    training: tuple[Share, ...]  # the same number of processes on each node
    idle: tuple[tuple[str, tuple[str, ...]], ...] = ()  # node → GPUs that nothing uses

    @property
    def world_size(self) -> int:
        """Processes that train."""
        return sum(share.processes for share in self.training)


def split(
    allocation: Allocation, sampling: Sampling, *, dp: int, tp: int, local_processes: int | None
) -> Split:
    """Divide ``allocation``.

    With a server: of several nodes the last serves; of a single one the first ``dp · tp`` GPUs do (one by default),
    and the rest train. Without GPUs, server and trainer share the node's CPUs.

    Args:
        dp: data-parallel replicas of the server.
        tp: GPUs of one replica.
        local_processes: training processes per node; None: one per GPU, or one on a CPU.

    Raises:
        UsageError: where the allocation cannot hold it, with the arithmetic.
    """
    nodes, gpus = allocation.nodes, allocation.gpus
    if sampling == "colocate" and len(nodes) > 1:
        raise UsageError(
            f"vllm_mode: colocate runs on one node and the job has {len(nodes)}; use vllm_mode: server, or --nodes=1"
        )
    if sampling != "server":
        return Split(None, tuple(_training(node, gpus, local_processes) for node in nodes))
    width = dp * tp
    if gpus and width > len(gpus):
        raise UsageError(
            f"--dp {dp} × --tp {tp} = {width} GPUs for the server, and a node has {len(gpus)}: make the product smaller"
        )
    serving = gpus[:width]
    if len(nodes) > 1:
        idle = ((nodes[-1], gpus[width:]),) if gpus[width:] else ()
        training = tuple(_training(node, gpus, local_processes) for node in nodes[:-1])
        return Split(Share(nodes[-1], serving, 1), training, idle)
    if gpus and width == len(gpus):
        raise UsageError(
            f"one node with {len(gpus)} GPU(s): the server takes {width} and none is left to train; "
            "ask for more GPUs or nodes, or use vllm_mode: colocate"
        )
    return Split(Share(nodes[0], serving, 1), (_training(nodes[0], gpus[width:], local_processes),))


def _training(node: str, gpus: tuple[str, ...], asked: int | None) -> Share:
    processes = max(1, len(gpus)) if asked is None else asked
    if gpus and processes > len(gpus):
        raise UsageError(
            f"TRAIN_LOCAL_PROCS={processes}: {node} has {len(gpus)} GPU(s) to train on; use at most that many"
        )
    return Share(node, gpus[:processes] if gpus else (), processes)
