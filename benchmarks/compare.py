"""What `benchmarks.step`, `.sampler` and `.update` have in common: build, check, alternate, print."""

import argparse
import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.guard import check_tokens, check_update
from benchmarks.measure import alternate, peak_memory
from benchmarks.options import describe, note, workloads
from benchmarks.systems import build
from benchmarks.tables import Comparison, detail, grid_head, grid_row, write_csv
from benchmarks.workload import Workload


def compare(action: str, workload: Workload, peer: str | None, repeats: int, memory: bool) -> Comparison:
    """Time ``action`` ("step", "sample" or "update") of ours and of ``peer``, in turn."""
    workload.use_threads()
    note(f"{describe(workload)}: building")
    systems = [build(name, workload) for name in ("ours", peer) if name]
    if peer:
        check_update(*systems, workload)
        note(f"{peer} and ours agree on log-probs, loss and gradient norm")
    actions = [getattr(system, action) for system in systems]
    results = alternate(actions, repeats, note)
    if peer:
        check_tokens(*results, workload)
    del systems, actions
    gc.collect()
    peaks = {}
    for name in ("ours", peer) if memory else ():
        if name:
            note(f"peak memory of {name}")
            peaks[name] = peak_memory(name, action, workload)
    return Comparison(replace(workload), peer, results[0], results[1] if peer else [], peaks)


def compare_apart(*arguments: Any) -> Comparison:
    """`compare` in a fresh process: rows share neither allocator nor precision, which Accelerate sets per process."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as executor:
        return executor.submit(compare, *arguments).result()


def run(action: str, options: argparse.Namespace) -> None:
    """All workloads of the command line: one as a detailed table, several as a row each."""
    rows = workloads(options)
    if not rows:
        raise SystemExit("--grid: no row of the table has all the values given")
    peer = None if options.peer == "none" else options.peer
    several = len(rows) > 1
    memory = options.memory if options.memory is not None else not several and rows[0].ranks == 1
    done: list[Comparison] = []
    for number, workload in enumerate(rows):
        note(f"[{number + 1}/{len(rows)}]")
        measure = compare_apart if several else compare
        comparison = measure(action, workload, peer, options.repeats, memory)
        if several:
            if not done:
                print(grid_head(comparison))
            print(grid_row(comparison), flush=True)
        elif workload.rank == 0:
            print(f"{describe(workload)}, median of {options.repeats}\n\n{detail(comparison)}")
        done.append(comparison)
        if options.csv and workload.rank == 0:
            write_csv(Path(options.csv), done)
