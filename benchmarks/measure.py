"""Clocks, peak memory, and medians. Times are in seconds: of the CPU over all threads, and of the wall."""

import json
import math
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.workload import Workload


@dataclass(frozen=True)
class Cost:
    """What a piece of work took."""

    cpu: float = 0.0  # seconds of this process, all threads
    wall: float = 0.0  # seconds

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.cpu + other.cpu, self.wall + other.wall)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.cpu - other.cpu, self.wall - other.wall)


@dataclass(frozen=True)
class Measured:
    """One repeat of one system."""

    phases: dict[str, Cost]  # sample, score, update: those that ran
    tokens: int  # completion tokens worked on
    loss: float = math.nan  # of updates; nan where there was none
    grad_norm: float = math.nan  # before clipping

    @property
    def total(self) -> Cost:
        return sum(self.phases.values(), Cost())


@dataclass
class Clock:
    """Adds up named stretches of work, also inside other code by way of `timed`."""

    device: str
    spent: dict[str, Cost] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = self._now()
        yield
        self.spent[name] = self.spent.get(name, Cost()) + (self._now() - begin)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, with the time of every call added to ``name``."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return call

    def take(self) -> dict[str, Cost]:
        """What was spent since the last call."""
        spent, self.spent = self.spent, {}
        return spent

    def _now(self) -> Cost:
        if self.device == "cuda":
            torch.cuda.synchronize()  # a phase ends when its kernels have
        return Cost(time.process_time(), time.perf_counter())


def alternate(
    actions: Sequence[Callable[[], Measured]], repeats: int, report: Callable[[str], None] = lambda line: None
) -> list[list[Measured]]:
    """Run the actions in turn ``repeats`` times, after one turn that is not counted.

    Whoever went first goes last in the next turn, so that a machine that grows slower or faster favours nobody.
    """
    results: list[list[Measured]] = [[] for _ in actions]
    for turn in range(repeats + 1):
        order = range(len(actions)) if turn % 2 else reversed(range(len(actions)))
        for i in order:
            measured = actions[i]()
            if turn:
                results[i].append(measured)
        report(f"turn {turn} of {repeats}" if turn else "warmed up")
    return results


def median_cost(costs: Sequence[Cost]) -> Cost:
    return Cost(statistics.median(c.cpu for c in costs), statistics.median(c.wall for c in costs))


def peak_memory(system: str, action: str, workload: Workload) -> dict[str, float]:
    """MiB of ``system`` alone in a process of its own: ``idle`` once built, and the ``peak`` of two runs of ``action``.

    Resident memory of the process on a CPU; memory allocated by torch on a GPU. The peak is infinite where the kernel
    killed the process, as it does when memory runs out.
    """
    command = [sys.executable, "-m", "benchmarks.alone", system, action, json.dumps(workload.as_dict())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGKILL:
        return {"idle": math.nan, "peak": math.inf}
    if done.returncode:
        raise SystemExit(f"measuring the memory of {system} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def resident_mib(high_water: bool = False) -> float:
    """Resident memory of this process in MiB, now or at its highest since `reset_high_water`. Linux only."""
    name = "VmHWM" if high_water else "VmRSS"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def reset_high_water() -> None:
    """Forget the highest resident memory so far."""
    Path("/proc/self/clear_refs").write_text("5")
