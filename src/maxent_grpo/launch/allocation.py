"""An allocation, by Slurm's variables or of this machine, and its division between server and trainer."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from maxent_grpo.errors import UsageError
from maxent_grpo.launch.flags import Values

NO_GPU = ("", "-1", "NoDevFiles")
"""Entries of CUDA_VISIBLE_DEVICES that name no device."""
NODE_RANK = "@node-rank@"
"""Stands for the node's position among the training nodes, which only the started process knows."""


@dataclass(frozen=True)
class Allocation:
    """Nodes and accelerators, the same on every node."""

    nodes: tuple[str, ...]
    gpus: tuple[str, ...]  # of each node, as CUDA_VISIBLE_DEVICES names them; none: a CPU run
    job: str | None = None  # Slurm's job id; None: no job, everything runs on this machine
    restarts: int = 0  # times that Slurm has requeued the job
    cpus_per_task: str | None = None  # as asked of Slurm; steps do not inherit it


def read_allocation(environ: Mapping[str, str], devices: Path = Path("/dev")) -> Allocation:
    """The allocation of the Slurm job that this process runs in, or this machine outside of one.

    Raises `UsageError` where GPUS_PER_NODE contradicts what the job sees.
    """
    gpus = visible_gpus(environ, devices)
    job = environ.get("SLURM_JOB_ID")
    if job is None:
        return Allocation(("localhost",), gpus)
    return Allocation(
        expand_hostlist(environ["SLURM_JOB_NODELIST"]),
        gpus,
        job,
        int(environ.get("SLURM_RESTART_COUNT", "0")),
        environ.get("SLURM_CPUS_PER_TASK"),
    )


def imagined(values: Values) -> Allocation | None:
    """The allocation of ``--nodes`` and ``--gpus-per-node``, to plan with before there is a job; None without them.

    Raises `UsageError` where this is no dry run.
    """
    if not (values["nodes"] or values["gpus-per-node"]):
        return None
    if not values.on("dry-run"):
        raise UsageError("--nodes and --gpus-per-node plan a job that is not there yet: add --dry-run")
    nodes = values.number("nodes") if values["nodes"] else 1
    gpus = values.number("gpus-per-node", least=0) if values["gpus-per-node"] else 0
    return Allocation(tuple(f"node{i}" for i in range(nodes)), tuple(map(str, range(gpus))), "JOB")


def visible_gpus(environ: Mapping[str, str], devices: Path = Path("/dev")) -> tuple[str, ...]:
    """The GPUs that a process of this node may use.

    CUDA_VISIBLE_DEVICES wins (on a shared node it says which), then Slurm's count, then the machine's device files.
    GPUS_PER_NODE keeps the first so many.
    """
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        gpus = tuple(name.strip() for name in listed.split(",") if name.strip() not in NO_GPU)
    elif "SLURM_GPUS_ON_NODE" in environ:
        gpus = tuple(map(str, range(int(environ["SLURM_GPUS_ON_NODE"]))))
    else:
        found = [m[1] for path in devices.glob("nvidia*") if (m := re.fullmatch(r"nvidia(\d+)", path.name))]
        gpus = tuple(sorted(found, key=int))
    asked = environ.get("GPUS_PER_NODE")
    if not asked:
        return gpus
    if not asked.isdecimal() or int(asked) > len(gpus):
        raise UsageError(
            f"GPUS_PER_NODE={asked}: this node shows {len(gpus)} GPU(s); ask Slurm for more (--gres=gpu:N), or unset it"
        )
    return gpus[: int(asked)]


def expand_hostlist(text: str) -> tuple[str, ...]:
    """Slurm's short form of node names, in its order: ``n[01-03,7],login`` → n01 n02 n03 n7 login."""
    parts = re.split(r",(?![^\[]*\])", text)  # at commas outside brackets
    return tuple(name for part in parts if part for name in _expand(part))


def _expand(text: str) -> Iterator[str]:
    found = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", text)
    if found is None:
        yield text
        return
    front, ranges, rest = found.groups()
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            for tail in _expand(rest):
                yield f"{front}{number:0{len(first)}d}{tail}"


Sampling = Literal["in-process", "server", "colocate"]
"""The place of generation: the trainer's own sampler, a vLLM server beside it, or vLLM inside its processes."""


@dataclass(frozen=True)
class NodeShare:
    """One node's part in one job."""

    node: str
    gpus: tuple[str, ...]  # none: it runs on the CPU
    processes: int


@dataclass(frozen=True)
class Split:
    """The division of an allocation."""

    serving: NodeShare | None
    training: tuple[NodeShare, ...]  # the same number of processes on each node
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
        return Split(NodeShare(nodes[-1], serving, 1), training, idle)
    if gpus and width == len(gpus):
        raise UsageError(
            f"one node with {len(gpus)} GPU(s): the server takes {width} and none is left to train; "
            "ask for more GPUs or nodes, or use vllm_mode: colocate"
        )
    return Split(NodeShare(nodes[0], serving, 1), (_training(nodes[0], gpus[width:], local_processes),))


def _training(node: str, gpus: tuple[str, ...], asked: int | None) -> NodeShare:
    processes = max(1, len(gpus)) if asked is None else asked
    if gpus and processes > len(gpus):
        raise UsageError(
            f"TRAIN_LOCAL_PROCS={processes}: {node} has {len(gpus)} GPU(s) to train on; use at most that many"
        )
    return NodeShare(node, gpus[:processes] if gpus else (), processes)


def on_nodes(command: Sequence[str], nodes: Sequence[str], allocation: Allocation) -> list[str]:
    """``command`` on each of ``nodes`` of a Slurm job, as one step whose end is that of its first failing task."""
    count = len(nodes)
    steps = f"srun --nodes={count} --ntasks={count} --ntasks-per-node=1 --nodelist={','.join(nodes)} --overlap".split()
    # One task holds all of its node's processes: binding it to a core would bind them all to that core.
    steps += ["--kill-on-bad-exit=1", "--cpu-bind=none", "--export=ALL"]
    if allocation.cpus_per_task:
        steps.append(f"--cpus-per-task={allocation.cpus_per_task}")
    return [*steps, *with_rank(command)]


def with_rank(command: Sequence[str]) -> list[str]:
    """``command`` with `NODE_RANK` read from Slurm's task number by a shell on the node."""
    if NODE_RANK not in command:
        return list(command)
    line = " ".join('"$SLURM_PROCID"' if word == NODE_RANK else shlex.quote(word) for word in command)
    return ["bash", "-c", f"exec {line}"]


def devices(gpus: Sequence[str]) -> dict[str, str]:
    """The variable that shows a process its GPUs; nothing where it runs on the CPU."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
