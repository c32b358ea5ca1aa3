"""Kill an evaluation at random moments, start it again each time, and compare it with one that was left alone.

    python -m benchmarks.kill_evaluation --kills 10

The command is `maxent-grpo-math-eval` on the bundled policy, graph colouring, 8 samples per prompt under two seeds. It
is killed (SIGKILL) at moments drawn uniformly from the start of the process to a point where it has done its share of
the work: during start-up, sampling, or the writing of a line. What must be equal at the end: every line but for the
time that it was written, each prompt exactly once, and the bytes of summary.json and summary.csv.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from maxent_grpo.randomness import generator

SEEDS = (0, 1)


def command(root: Path, limit: int) -> list[str]:
    """The evaluation, writing below ``root``."""
    return [
        sys.executable,
        "-m",
        "maxent_grpo.cli.main",
        "command=math-eval",
        "inference.models=[bundled:tiny-policy]",
        "inference.dataset=graph_coloring",
        f"inference.seeds=[{','.join(map(str, SEEDS))}]",
        "inference.num_generations=8",
        "inference.temperature=1.0",
        f"inference.limit={limit}",
        f"inference.artifacts.root_dir={root}",
    ]


def start(root: Path, limit: int) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command(root, limit), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(process: "subprocess.Popen[bytes]", kill_after: float | None) -> bool:
    """True if the process ended by itself before ``kill_after`` seconds; killed else."""
    try:
        _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        raise SystemExit(f"the evaluation failed: {errors.decode(errors='replace').strip()}")
    return True


def lines_written(root: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in root.rglob("seed_*.jsonl"))


def whole_run(root: Path, limit: int) -> tuple[float, float]:
    """Run uninterrupted: seconds until the first line, and in all."""
    began, first = time.monotonic(), None
    process = start(root, limit)
    while first is None and process.poll() is None:
        time.sleep(0.05)
        if lines_written(root):
            first = time.monotonic() - began
    finish(process, None)
    whole = time.monotonic() - began
    return first or whole, whole


def killed_run(root: Path, limit: int, kills: int, seed: int, first_line: float, whole: float) -> list[int]:
    """Start again until done, killing the first ``kills`` starts; the number of lines after each kill."""
    after_kill: list[int] = []
    share = (whole - first_line) / (kills + 1)
    for kill in range(kills):
        moment = generator(seed, "kill", kill).uniform(0, first_line + 2 * share)
        if finish(start(root, limit), moment):
            break
        after_kill.append(lines_written(root))
    finish(start(root, limit), None)
    return after_kill


def differences(expected: Path, found: Path, limit: int) -> list[str]:
    """What is not as it was in the uninterrupted run, in words."""
    problems = []
    for path in sorted(expected.rglob("seed_*.jsonl")):
        other = found / path.relative_to(expected)
        lines = [json.loads(line) for line in other.read_text(encoding="utf-8").splitlines()]
        if sorted(line["prompt_index"] for line in lines) != list(range(limit)):
            problems.append(f"{other.name}: not every prompt exactly once")
        wanted = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for line in (*lines, *wanted):
            del line["completed_at"]
        if sorted(lines, key=_prompt) != sorted(wanted, key=_prompt):
            problems.append(f"{other.name}: other answers")
    for name in ("summary.json", "summary.csv"):
        for path in expected.rglob(name):
            if path.read_bytes() != (found / path.relative_to(expected)).read_bytes():
                problems.append(f"{name}: other figures")
    return problems


def _prompt(line: dict[str, int]) -> int:
    return line["prompt_index"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--limit", type=int, default=96, help="prompts")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--directory", type=Path, default=Path("var/benchmarks/kill_evaluation"))
    options = parser.parse_args()
    shutil.rmtree(options.directory, ignore_errors=True)
    whole, killed = options.directory / "whole", options.directory / "killed"
    first_line, duration = whole_run(whole, options.limit)
    print(
        f"uninterrupted: {lines_written(whole)} lines in {duration:.1f} s, the first after {first_line:.1f} s",
        flush=True,
    )
    after = killed_run(killed, options.limit, options.kills, options.seed, first_line, duration)
    print(f"killed {len(after)} times, with {', '.join(map(str, after))} lines on disk")
    problems = differences(whole, killed, options.limit)
    print(
        "; ".join(problems) or "every prompt exactly once; answers and figures equal the uninterrupted run's"
    )
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
