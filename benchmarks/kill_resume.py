"""Kill runs at random moments, resume them, and compare every byte with a run that was never interrupted.

    python -m benchmarks.kill_resume --runs 20

Each run trains the bundled policy with MaxEnt-GRPO, controllers moving, two updates per rollout, past its first epoch,
and is killed (SIGKILL) up to three times at moments drawn uniformly over the duration of an uninterrupted run: during
start-up, sampling, an update or a save. What must be equal: records, sample table, final policy, and the last
checkpoint's parameters, optimiser, controllers and position.
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from maxent_grpo.randomness import generator

RECORDS = ("metrics.jsonl", "completions.jsonl", "controller_state.json", "model.safetensors")
KILLS_PER_RUN = 3


def settings(steps: int) -> dict[str, object]:
    return {
        "maxent.model.model_name_or_path": "bundled:tiny-policy",
        "maxent.script.dataset_name": "task:graph_coloring",
        "maxent.script.dataset_config": "'train_size=24'",
        "maxent.script.reward_funcs": "[task_reward]",
        "maxent.training.objective": "maxent",
        "maxent.training.maxent_tau": 0.01,
        "maxent.training.beta": 0.09,
        "maxent.training.controller_meta_enabled": "true",
        "maxent.training.controller_meta_lr": 0.001,
        "maxent.training.controller_meta_optimizer": "adam",
        "maxent.training.maxent_target_weight_entropy": 1.5,
        "maxent.training.kl_target": 0.05,
        "maxent.training.per_device_train_batch_size": 32,
        "maxent.training.steps_per_generation": 2,
        "maxent.training.num_generations": 8,
        "maxent.training.max_completion_length": 16,
        "maxent.training.learning_rate": 1e-4,
        "maxent.training.max_steps": steps,
        "maxent.training.save_steps": 3,
        "maxent.training.save_total_limit": 2,
        "maxent.training.use_cpu": "true",
        "maxent.training.disable_tqdm": "true",
        "maxent.training.resume_from_checkpoint": "true",
    }


def command(directory: Path, steps: int) -> list[str]:
    pairs = [f"{key}={value}" for key, value in settings(steps).items()]
    start = [sys.executable, "-m", "maxent_grpo.cli.main", "command=train-maxent"]
    return [*start, f"maxent.training.output_dir={directory}", *pairs]


def run(directory: Path, steps: int, kill_after: float | None) -> bool:
    """Start or resume the run in ``directory``; True if it ended by itself before ``kill_after`` seconds."""
    # The commit is part of the records' header: pinned, so that a commit made meanwhile is no difference.
    pinned = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MAXENT_GIT_SHA": "benchmark"}
    environment = os.environ | pinned
    process = subprocess.Popen(
        command(directory, steps), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        raise SystemExit(f"the run in {directory} failed: {errors.decode(errors='replace').strip()}")
    return True


def digests(directory: Path, steps: int) -> dict[str, str]:
    checkpoint = directory / f"checkpoint-{steps}"
    files = [*(directory / name for name in RECORDS), *sorted(p for p in checkpoint.iterdir() if p.is_file())]
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--directory", type=Path, default=Path("var/benchmarks/kill_resume"))
    options = parser.parse_args()
    shutil.rmtree(options.directory, ignore_errors=True)
    started = time.monotonic()
    run(options.directory / "whole", options.steps, None)
    duration = time.monotonic() - started
    expected = digests(options.directory / "whole", options.steps)
    print(f"uninterrupted: {options.steps} steps in {duration:.1f} s, {len(expected)} files", flush=True)

    equal = kills = 0
    for number in range(options.runs):
        directory = options.directory / f"killed-{number}"
        moments = sorted(generator(options.seed, "kill", number).uniform(0, duration, KILLS_PER_RUN))
        ended, killed = False, 0
        for moment in moments:
            ended = run(directory, options.steps, moment)
            killed += not ended
            if ended:
                break
        if not ended:
            run(directory, options.steps, None)
        found = digests(directory, options.steps)
        differing = [name for name in expected if found.get(name) != expected[name]] + sorted(
            found.keys() - expected.keys()
        )
        equal += not differing
        kills += killed
        verdict = "identical" if not differing else f"DIFFERS: {', '.join(differing)}"
        left = (time.monotonic() - started - duration) / (number + 1) * (options.runs - number - 1)
        print(
            f"run {number + 1:2d}/{options.runs}  {killed} kills  {verdict}  ({left:.0f} s left)", flush=True
        )
        shutil.rmtree(directory)
    print(
        f"{equal} of {options.runs} runs, killed {kills} times, ended bit-identical to the uninterrupted run"
    )
    raise SystemExit(equal != options.runs)


if __name__ == "__main__":
    main()
