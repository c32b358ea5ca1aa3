"""Before anything is timed: the systems compute the same thing, or the benchmark stops."""

import statistics

import torch
from torch import distributed

from benchmarks.measure import Measured
from benchmarks.systems import System
from benchmarks.workload import Workload

LOGP_TOLERANCE = {"float32": 1e-4, "bf16": 0.1}  # nats, the largest difference of any token
NORM_TOLERANCE = {"float32": 1e-3, "bf16": 0.1}  # of the gradient, relative
LOSS_TOLERANCE = {"float32": 1e-4, "bf16": 1e-2}
TOKEN_DEVIATIONS = 5.0  # standard errors that mean sampled lengths may differ by


class Disagreement(SystemExit):
    """Two systems that should do the same work do not: a comparison of their times would mean nothing."""


def check_update(ours: System, peer: System, workload: Workload) -> None:
    """On the workload's completions: equal log-probs per token, equal loss, equal gradient norm.

    Every system takes one optimiser step on the way. Raises `Disagreement`.
    """
    mine, theirs = ours.logps(), peer.logps()
    if [len(row) for row in mine] != [len(row) for row in theirs]:
        raise Disagreement(f"{peer.name} trains on other tokens than we do")
    apart = max(abs(a - b) for x, y in zip(mine, theirs, strict=True) for a, b in zip(x, y, strict=True))
    if apart > LOGP_TOLERANCE[workload.precision]:
        raise Disagreement(f"log-probs of {peer.name} and ours differ by up to {apart:.2g}")
    a, b = ours.update(), peer.update()
    losses = over_ranks(torch.tensor([a.loss, b.loss])).tolist()
    if abs(losses[0] - losses[1]) > LOSS_TOLERANCE[workload.precision]:
        raise Disagreement(f"losses differ: ours {losses[0]:.6g}, {peer.name} {losses[1]:.6g}")
    if abs(a.grad_norm / b.grad_norm - 1) > NORM_TOLERANCE[workload.precision]:
        raise Disagreement(f"gradient norms differ: ours {a.grad_norm:.6g}, {peer.name} {b.grad_norm:.6g}")


def over_ranks(numbers: torch.Tensor) -> torch.Tensor:
    """The mean of ``numbers`` over all ranks: some trainers report their own share's loss."""
    if distributed.is_initialized():
        distributed.all_reduce(numbers)
        numbers = numbers / distributed.get_world_size()
    return numbers


def check_tokens(ours: list[Measured], peer: list[Measured], workload: Workload) -> None:
    """Full lengths: equal token counts in every repeat. Geometric: equal means, up to chance. Raises `Disagreement`."""
    mine, theirs = [m.tokens for m in ours], [m.tokens for m in peer]
    if workload.lengths == "full":
        expected = workload.rows * workload.completion
        if {*mine, *theirs} != {expected}:
            raise Disagreement(f"sampled tokens: ours {mine}, the peer {theirs}, expected {expected} each")
        return
    # A geometric length with mean m has a standard deviation below m; a batch sums `rows` of them.
    mean = workload.rows * workload.completion / 2
    error = mean / (workload.rows * min(len(mine), len(theirs))) ** 0.5 * 2**0.5
    apart = abs(statistics.mean(mine) - statistics.mean(theirs))
    if apart > TOKEN_DEVIATIONS * error:
        raise Disagreement(f"sampled tokens differ by more than chance: ours {mine}, the peer {theirs}")
