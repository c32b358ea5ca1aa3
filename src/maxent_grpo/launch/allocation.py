"""What a job was given: its nodes in order and the accelerators of each, by Slurm's variables or this machine."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from maxent_grpo.errors import UsageError
from maxent_grpo.launch.arguments import Values

NO_GPU = ("", "-1", "NoDevFiles")
"""Entries of CUDA_VISIBLE_DEVICES that name no device."""


@dataclass(frozen=True)
class Allocation:
    """Nodes and accelerators, the same on every node."""

    nodes: tuple[str, ...]
    gpus: tuple[str, ...]  # per node, as CUDA_VISIBLE_DEVICES names them; none: a CPU run
    job: str | None = None  # Slurm's job id; None: no job, everything runs on this machine
    restarts: int = 0  # how often Slurm has requeued the job
    cpus_per_task: str | None = None  # as asked of Slurm, which steps do not inherit


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
    return tuple(name for part in _split_outside_brackets(text) for name in _expand(part))


def _split_outside_brackets(text: str) -> Iterator[str]:
    return (part for part in re.split(r",(?![^\[]*\])", text) if part)


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
