"""The sync driver against the async one on the same resources: a learner and a rollout worker, a core each.

    python -m benchmarks.async_gain --steps 100

Both train the bundled policy on graph colouring with Dr. GRPO, from the same seed, on the same prompts. The clock
starts after the first step, so that importing and loading do not count. Reward is the mean of the last ``--window``
steps. The table has the seconds for all steps, and those until a run first reaches the highest reward that *both*
reach: what asynchrony gains in time per step it may lose in reward per step, as its groups are a step old.

What the figures are: wall-clock times of two processes on this machine. They mean something only where the machine has
two idle cores; the load average is printed with them. ``wait`` is the share of the time in which the learner has no
groups to learn from.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DRIVERS = ("sync", "async")


@dataclass(frozen=True)
class Curve:
    """A run, step by step."""

    seconds: list[float]  # since the first step began
    rewards: list[float]  # mean of the last steps
    waited: float  # share of the time in which the learner waited
    age: float  # mean over steps of the groups' mean age, in optimiser steps

    def seconds_to(self, reward: float) -> float:
        """When the reward was first reached."""
        return next(s for s, r in zip(self.seconds, self.rewards, strict=True) if r >= reward)


def settings(directory: Path, driver: str, steps: int, seed: int) -> dict[str, object]:
    return {
        "model.model_name_or_path": "bundled:tiny-policy",
        "script.dataset_name": "task:graph_coloring",
        "script.reward_funcs": "[task_reward]",
        "training.objective": "dr_grpo",
        "training.driver": driver,
        "training.output_dir": directory,
        "training.per_device_train_batch_size": 64,
        "training.num_generations": 8,
        "training.max_completion_length": 24,
        "training.learning_rate": 2e-4,
        "training.max_steps": steps,
        "training.save_strategy": "no",
        "training.seed": seed,
        "training.use_cpu": "true",
        "training.disable_tqdm": "true",
        "training.overwrite_output_dir": "true",
        "training.worker_timeout": 1800,
    }


def run(directory: Path, driver: str, steps: int, seed: int) -> None:
    pairs = [f"baseline.{name}={value}" for name, value in settings(directory, driver, steps, seed).items()]
    command = [sys.executable, "-m", "maxent_grpo.cli.main", "command=train-baseline", *pairs]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{driver} failed: {done.stderr.strip()}")


def read(directory: Path, window: int) -> Curve:
    """The curve of the run in ``directory``."""

    def lines(name: str) -> list[dict[str, float]]:
        return [json.loads(line) for line in (directory / name).read_text().splitlines()]

    metrics, timings = lines("metrics.jsonl")[1:], lines("timings.jsonl")
    return curve(
        [record["train/reward"] for record in metrics],
        [record["train/buffer/policy_age_mean"] for record in metrics],
        [record["time/step"] for record in timings],
        [record.get("time/wait", 0.0) for record in timings],
        window,
    )


def curve(
    rewards: Sequence[float],
    ages: Sequence[float],
    times: Sequence[float],
    waits: Sequence[float],
    window: int,
) -> Curve:
    """From the numbers of each step. The first step's time holds the wait for the first groups: it is left out."""
    passed = [sum(times[1 : step + 1]) for step in range(len(times))]
    smooth = [
        sum(rewards[max(0, step + 1 - window) : step + 1]) / min(step + 1, window)
        for step in range(len(rewards))
    ]
    smooth[: window - 1] = [float("-inf")] * min(window - 1, len(smooth))  # too few steps to say
    return Curve(passed, smooth, sum(waits[1:]) / passed[-1], sum(ages) / len(ages))


def table(curves: dict[str, Curve]) -> str:
    """A row for each driver; the reward is the highest that all reach."""
    matched = min(max(curve.rewards) for curve in curves.values())
    steps = max(len(curve.seconds) for curve in curves.values())
    rows = [
        f"| driver | seconds for {steps} steps | seconds to reward {matched:.3f} | last reward | wait | age |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in curves.items():
        rows.append(
            f"| {name} | {one.seconds[-1]:.1f} | {one.seconds_to(matched):.1f} | {one.rewards[-1]:.3f} | "
            f"{one.waited:.0%} | {one.age:.2f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--window", type=int, default=10, help="steps over which the reward is averaged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, default=Path("var/benchmarks/async_gain"))
    options = parser.parse_args()
    shutil.rmtree(options.directory, ignore_errors=True)
    curves = {}
    for driver in DRIVERS:
        before = os.getloadavg()[0]
        run(options.directory / driver, driver, options.steps, options.seed)
        curves[driver] = read(options.directory / driver, options.window)
        print(f"{driver}: load average {before:.1f} before, {os.getloadavg()[0]:.1f} after", flush=True)
    print(table(curves))


if __name__ == "__main__":
    main()
