"""What it saves to score completions while others are still sampled: ``python -m benchmarks.reward_overlap``.

A 4 M-parameter random policy samples completions of geometric length, one thread, and a reward function in two worker
processes takes ``--milliseconds`` for each of them, waiting, as for a sandbox or an endpoint. Printed are wall seconds
of sampling and scoring together, one after the other and overlapped, median of alternating turns; the scores are equal.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.workload import Workload
from maxent_grpo.rewards.isolation import Isolation, IsolationSettings
from maxent_grpo.rewards.registry import Location, RewardFunction
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.types import Prompt

COMPLETION = 128


def waits(completions: Sequence[str], milliseconds: Sequence[int], **columns: Any) -> list[float]:
    """A reward that takes its time."""
    time.sleep(milliseconds[0] / 1000)
    return [float(len(completions[0]))]


def seconds(sampler: LocalSampler, milliseconds: int, turn: int, overlapped: bool) -> tuple[float, list[Any]]:
    """Wall seconds and utilities of one rollout of 8 prompts × 8, with no verdict kept from before."""
    reward = RewardFunction("waits", waits, 1.0, Location(f"{__spec__.name}:waits"), rowwise=True)
    scorer = Scorer([reward], isolation=Isolation(IsolationSettings()))
    prompts = [Prompt(i, f"{i}", (i + 1,) * 64, {"milliseconds": milliseconds}) for i in range(8)]
    settings = SamplingSettings(num_generations=8, max_completion_length=COMPLETION)
    try:
        scorer.score(sampler.sample(prompts, SamplingSettings(8, 1), (-1,), 0), 1)  # starts both workers
        began = time.perf_counter()
        begin = partial(scorer.begin, step=1) if overlapped else None
        rollouts = sampler.sample(prompts, settings, (turn,), 0, finished=begin)
        groups, _ = scorer.score(rollouts, 1)
        return time.perf_counter() - began, [group.utilities for group in groups]
    finally:
        scorer.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--milliseconds", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--repeats", type=int, default=5, help="counted turns (5)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    workload = Workload(size="4m", completion=COMPLETION, lengths="geometric")
    sampler = LocalSampler(workload.model(), workload.tokenizer())
    print("| ms a completion | one after the other, s | overlapped, s | saved |\n|---|---|---|---|")
    for milliseconds in arguments.milliseconds:
        taken: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(arguments.repeats + 1):
            scores = {}
            for overlapped in (False, True) if turn % 2 else (True, False):
                spent, scores[overlapped] = seconds(sampler, milliseconds, turn, overlapped)
                taken[overlapped] += [spent] if turn else []
            assert scores[False] == scores[True]
        after, during = statistics.median(taken[False]), statistics.median(taken[True])
        print(f"| {milliseconds} | {after:.2f} | {during:.2f} | {1 - during / after:.0%} |", flush=True)


if __name__ == "__main__":
    main()
