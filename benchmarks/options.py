"""The flags that all benchmarks share, and the workloads that they ask for."""

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace

import torch

from benchmarks.models import SIZES
from benchmarks.systems import PEERS
from benchmarks.workload import Workload

BASE = Workload()
ALTERNATIVES = {
    "prompt": (32, 256),
    "completion": (32, 128),
    "group": (16,),
    "lengths": ("geometric",),
    "precision": ("bf16",),
}
"""What ``--grid`` varies, one at a time, around prompt 128, completion 64, group 8, full lengths, float32."""
CPU_SIZES, GPU_SIZES = ("0.5m", "4m", "30m", "151k"), ("0.5b", "1.5b")
AXES = ("size", "prompt", "completion", "group", "lengths", "precision")
EPILOG = """
Examples:
  python -m benchmarks.step --peer trl --size 4m --prompt 128 --completion 64 --group 8
  python -m benchmarks.step --peer trl --grid --size 4m 30m          the table's rows of two sizes
  python -m benchmarks.update --peer none --size 4m --prompt 32 128  several values: every combination
  python -m benchmarks.step --device cuda --size 0.5b --prompt 512 --completion 1024 --micro-prompts 1 --precision bf16
  torchrun --nproc-per-node 2 -m benchmarks.step --size 4m           two ranks; --prompts is what each of them works on

On a GPU machine without a network: build a wheelhouse where there is one (pip download -d wheels -c
configs/constraints.txt '.[dev]' with the CUDA build of torch), copy it with the repository, then
  python -m venv env && env/bin/pip install --no-index --find-links wheels -e '.[dev]'
  env/bin/python -m benchmarks.step --device cuda --grid
Models are random and made on the spot: no hub is asked for anything. OMP_NUM_THREADS=1 keeps a CPU run to --threads.
"""


def parser(description: str, peers: bool = True) -> argparse.ArgumentParser:
    """The shared flags under a benchmark's own description."""
    flags = argparse.ArgumentParser(
        description=description, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if peers:
        flags.add_argument(
            "--peer",
            choices=(*PEERS, "none"),
            default="trl",
            help="what to compare with (trl; torchrl needs the extra `parity`; none: this package alone)",
        )
        flags.add_argument(
            "--strategy",
            choices=("ddp", "fsdp2", "zero2", "zero3"),
            default="ddp",
            help="under torchrun: how this package's ranks hold the policy (ddp); a peer runs ddp",
        )
    several = "; several values run every combination"
    flags.add_argument("--size", nargs="+", choices=SIZES, help=f"policy size (4m){several}")
    flags.add_argument("--prompt", nargs="+", type=int, help="prompt tokens (128; GPU 512)")
    flags.add_argument("--completion", nargs="+", type=int, help="completion tokens at most (64; GPU 1024)")
    flags.add_argument("--group", nargs="+", type=int, help="completions per prompt (8)")
    flags.add_argument(
        "--lengths",
        nargs="+",
        choices=("full", "geometric"),
        help="full: every completion runs to its limit (default); geometric: each token stops with "
        "probability 2/completion",
    )
    flags.add_argument(
        "--precision", nargs="+", choices=("float32", "bf16"), help="bf16 is autocast (float32)"
    )
    flags.add_argument("--prompts", type=int, help="prompts per step (8; 2 for the 151k vocabulary)")
    flags.add_argument("--micro-prompts", type=int, help="prompts per forward and backward pass (all)")
    flags.add_argument("--repeats", type=int, default=5, help="counted turns of each system (5)")
    flags.add_argument("--threads", type=int, default=1, help="CPU threads of torch (1)")
    flags.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    flags.add_argument("--seed", type=int, default=0, help="of weights, prompts and completions (0)")
    flags.add_argument("--grid", action="store_true", help="the standard table, one thing varied at a time; "
                       "flags given keep only the rows that match")  # fmt: skip
    flags.add_argument("--csv", metavar="PATH", help="also write every repeat here")
    flags.add_argument(
        "--memory",
        action=argparse.BooleanOptionalAction,
        help="measure peak memory, each system alone in a process (on, except for grids)",
    )
    return flags


def workloads(options: argparse.Namespace) -> list[Workload]:
    """The rows that the flags ask for. Exits with a message where they cannot run here."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU here; leave it out to run on the CPU")
    gpu = options.device == "cuda"
    ranks, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
    base = replace(BASE, device=options.device, threads=options.threads, seed=options.seed)
    if ranks > 1:
        _refuse_on_ranks(options)
        base = replace(base, ranks=ranks, rank=rank, strategy=options.strategy)
    base = replace(base, size="0.5b", prompt=512, completion=1024, precision="bf16") if gpu else base
    given = {axis: getattr(options, axis) for axis in AXES if getattr(options, axis)}
    rows = _grid(base, given) if options.grid else _product(base, given)
    if ranks > 1 and len(rows) > 1:
        raise SystemExit(
            "under torchrun: one workload at a time, as each of a table's has a process of its own"
        )
    return [_sized(row, options.prompts, options.micro_prompts) for row in rows]


def _refuse_on_ranks(options: argparse.Namespace) -> None:
    """Exit with a message for what is measured of one process."""
    if "strategy" not in options:
        raise SystemExit("under torchrun: only comparisons run (benchmarks.step, .sampler, .update)")
    if options.memory:
        raise SystemExit("--memory: not under torchrun; it measures one process")
    if options.peer == "torchrl":
        raise SystemExit("--peer torchrl: its parts run in one process; under torchrun compare with trl")


def _product(base: Workload, given: dict[str, list]) -> list[Workload]:
    combinations = itertools.product(*given.values())
    return [replace(base, **dict(zip(given, values, strict=True))) for values in combinations]


def _grid(base: Workload, given: dict[str, list]) -> list[Workload]:
    sizes: Sequence[str] = given.get("size", GPU_SIZES if base.device == "cuda" else CPU_SIZES)
    rows = []
    for size in sizes:
        centre = replace(base, size=size)
        rows.append(centre)
        if base.device == "cpu":
            rows += [replace(centre, **{axis: v}) for axis, values in ALTERNATIVES.items() for v in values]
        else:
            rows.append(replace(centre, lengths="geometric"))
    return [row for row in rows if all(getattr(row, axis) in values for axis, values in given.items())]


def _sized(row: Workload, prompts: int | None, micro: int | None) -> Workload:
    prompts = prompts or (2 if row.size == "151k" else BASE.prompts)
    micro = micro or (1 if row.device == "cuda" else prompts)
    if prompts % micro:
        raise SystemExit(f"--micro-prompts {micro} does not divide --prompts {prompts}")
    return replace(row, prompts=prompts, micro_prompts=micro)


def describe(row: Workload) -> str:
    """One line that says what a table's figures are of."""
    micro = "" if row.micro_prompts == row.prompts else f", {row.micro_prompts} prompts per pass"
    ranks = f" on each of {row.ranks} ranks ({row.strategy})" if row.ranks > 1 else ""
    return (
        f"{row.size}: prompt {row.prompt}, completion {row.completion} ({row.lengths}), {row.prompts} prompts × group "
        f"{row.group}{micro}, {row.precision}, {row.device}, {row.threads} thread{'s' * (row.threads > 1)}{ranks}"
    )


def note(line: str) -> None:
    """Progress, on stderr: stdout is the table. The first rank speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


FIELDS = [f.name for f in fields(Workload)]
