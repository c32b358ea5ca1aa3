"""The systems that are compared. Each offers the same actions on a `Workload`; see `System`."""

from typing import Protocol

from benchmarks.measure import Measured
from benchmarks.workload import Workload

PEERS = ("trl", "torchrl")


class System(Protocol):
    """A trainer under test."""

    name: str

    def step(self) -> Measured:
        """Sample, score and update once, as training does."""
        ...

    def sample(self) -> Measured:
        """Sample the group of every prompt once."""
        ...

    def update(self) -> Measured:
        """One optimiser step on the workload's completions."""
        ...

    def logps(self) -> list[list[float]]:
        """Log-probs of the workload's completions under the present weights, row by row."""
        ...


def build(name: str, workload: Workload) -> System:
    """The system called ``name``: "ours", "trl" or "torchrl". A peer is imported only when it is asked for."""
    if name == "ours":
        from benchmarks.systems.ours import Ours

        return Ours(workload)
    if name == "trl":
        from benchmarks.systems.trl import Trl

        return Trl(workload)
    if name == "torchrl":
        from benchmarks.systems.torchrl import TorchRl

        return TorchRl(workload)
    raise ValueError(f"unknown system {name!r}: ours, {', '.join(PEERS)}")
