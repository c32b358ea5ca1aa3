"""Ratios of medians, and the Markdown and CSV that show them."""

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Cost, Measured, median_cost
from benchmarks.options import FIELDS
from benchmarks.workload import Workload

PHASES = ("sample", "score", "update")


@dataclass(frozen=True)
class Comparison:
    """All repeats of one row of a table."""

    workload: Workload
    peer: str | None
    ours: list[Measured]
    theirs: list[Measured]  # empty without a peer
    memory: dict[str, dict[str, float]]  # system → idle and peak MiB; empty where not measured


def cost(repeats: Sequence[Measured], phase: str) -> Cost:
    """The median over repeats; phase "step" is the sum of all phases."""
    return median_cost([m.total if phase == "step" else m.phases[phase] for m in repeats])


def ratio(ours: Sequence[Measured], theirs: Sequence[Measured], phase: str) -> Cost:
    """Theirs over ours, of medians of the time per completion token: above 1, ours is faster.

    Per token, because geometric lengths are drawn anew in every system and turn. With full lengths it changes nothing.
    """
    medians = [
        (
            statistics.median(
                (m.total if phase == "step" else m.phases[phase]).cpu / m.tokens for m in repeats
            ),
            statistics.median(
                (m.total if phase == "step" else m.phases[phase]).wall / m.tokens for m in repeats
            ),
        )
        for repeats in (ours, theirs)
    ]
    (our_cpu, our_wall), (their_cpu, their_wall) = medians
    return Cost(their_cpu / our_cpu, their_wall / our_wall)


def phases_of(comparison: Comparison) -> list[str]:
    ran = [phase for phase in PHASES if phase in comparison.ours[0].phases]
    return ran if len(ran) == 1 else [*ran, "step"]


def detail(comparison: Comparison) -> str:
    """One workload: a row per phase."""
    peer = comparison.peer
    head = ["phase", "ours, CPU s", "ours, wall s"]
    if peer:
        head += [f"{peer}, CPU s", f"{peer}, wall s", "ratio, CPU", "ratio, wall"]
    lines = [_row(head), _row(["---"] * len(head))]
    for phase in phases_of(comparison):
        mine = cost(comparison.ours, phase)
        cells = ["whole step" if phase == "step" else phase, f"{mine.cpu:.3f}", f"{mine.wall:.3f}"]
        if peer:
            other, times = (
                cost(comparison.theirs, phase),
                ratio(comparison.ours, comparison.theirs, phase),
            )
            cells += [f"{other.cpu:.3f}", f"{other.wall:.3f}", f"{times.cpu:.2f}", f"{times.wall:.2f}"]
        lines.append(_row(cells))
    tokens = [f"ours {statistics.mean(m.tokens for m in comparison.ours):.0f}"]
    if peer:
        tokens.append(f"{peer} {statistics.mean(m.tokens for m in comparison.theirs):.0f}")
    lines += ["", f"Completion tokens per repeat: {', '.join(tokens)}."]
    for system, mib in comparison.memory.items():
        lines.append(
            f"Peak memory of {system}: {mib['peak']:.0f} MiB ({mib['peak'] - mib['idle']:.0f} above idle)."
        )
    return "\n".join(lines)


GRID_HEAD = ("size", "prompt", "completion", "group", "lengths", "precision")


def grid_head(comparison: Comparison) -> str:
    names = [("step" if p == "step" else p) for p in phases_of(comparison)]
    head = [*GRID_HEAD, *(f"ours {name}, CPU s" for name in names)]
    if comparison.peer:
        head += [f"{comparison.peer} {names[-1]}, CPU s", *(f"{name} ×, CPU" for name in names)]
        head.append(f"{names[-1]} ×, wall")
    if comparison.memory:
        head += [f"{system}, peak MiB" for system in comparison.memory]
    return _row(head) + "\n" + _row(["---"] * len(head))


def grid_row(comparison: Comparison) -> str:
    """One workload as a row: our seconds per phase, and peer over ours."""
    phases = phases_of(comparison)
    cells = [str(getattr(comparison.workload, axis)) for axis in GRID_HEAD]
    cells += [f"{cost(comparison.ours, phase).cpu:.3f}" for phase in phases]
    if comparison.peer:
        cells.append(f"{cost(comparison.theirs, phases[-1]).cpu:.3f}")
        times = [ratio(comparison.ours, comparison.theirs, phase) for phase in phases]
        cells += [f"{t.cpu:.2f}" for t in times] + [f"{times[-1].wall:.2f}"]
    cells += [f"{mib['peak']:.0f}" for mib in comparison.memory.values()]
    return _row(cells)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write_csv(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Every repeat of every system: one line per phase."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*FIELDS, "system", "repeat", "phase", "cpu_s", "wall_s", "tokens"])
        for comparison in comparisons:
            settings = list(comparison.workload.as_dict().values())
            for system, repeats in (("ours", comparison.ours), (comparison.peer, comparison.theirs)):
                for number, measured in enumerate(repeats):
                    for phase, spent in measured.phases.items():
                        writer.writerow(
                            [*settings, system, number, phase, spent.cpu, spent.wall, measured.tokens]
                        )
