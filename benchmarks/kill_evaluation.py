"""Kill an evaluation at random moments, start it again each time, and compare it with one that was left alone.

    python -m benchmarks.kill_evaluation --kills 10

The command is `maxent-grpo-math-eval` on the bundled policy, graph colouring, 8 samples per prompt under two seeds.
Each start is killed (SIGKILL) after a random number of new lines and a random part of the time that a line takes, or,
where that number is 0, at a random moment of the start-up. What must be equal at the end: every line but for the time
that it was written, each prompt exactly once, and the bytes of summary.json and summary.csv.
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


def finish(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the end; it must be a good one."""
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the evaluation failed: {errors.decode(errors='replace').strip()}")


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def wait_for_lines(process: "subprocess.Popen[bytes]", root: Path, lines: int) -> bool:
    """True once there are ``lines`` lines; False if the process has ended before."""
    while lines_written(root) < lines:
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    return True


def lines_written(root: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in root.rglob("seed_*.jsonl"))


def whole_run(root: Path, limit: int) -> tuple[float, float]:
    """Run uninterrupted: seconds until the first line, and in all."""
    began = time.monotonic()
    process = start(root, limit)
    wait_for_lines(process, root, 1)
    first = time.monotonic() - began
    finish(process)
    return first, time.monotonic() - began


def killed_run(root: Path, limit: int, kills: int, seed: int, first_line: float, whole: float) -> list[int]:
    """Start again until done, killing the first ``kills`` starts; the number of lines after each kill."""
    total = len(SEEDS) * limit
    after_kill: list[int] = []
    for number in range(kills):
        random = generator(seed, "kill", number)
        ahead = int(random.integers(0, 2 * total // (kills + 1), endpoint=True))
        pause = random.uniform(0, (whole - first_line) / total if ahead else first_line)
        process = start(root, limit)
        if not wait_for_lines(process, root, lines_written(root) + ahead):
            break  # it has come to its end
        time.sleep(pause)
        kill(process)
        after_kill.append(lines_written(root))
        print(f"kill {number + 1}: {after_kill[-1]} lines on disk", flush=True)
    finish(start(root, limit))
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
    problems = differences(whole, killed, options.limit)
    verdict = "every prompt exactly once; answers and figures equal the uninterrupted run's"
    print(f"killed {len(after)} times: {'; '.join(problems) or verdict}")
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
