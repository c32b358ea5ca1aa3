"""Workers and drivers that are killed at work: no prompt is lost, and none trained on twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from maxent_grpo.config.loading import write_resolved
from runs import train

pytest.importorskip("ray")

pytestmark = pytest.mark.xdist_group("ray")  # one worker, one cluster

STALENESS = 2


def records(directory: Path, name: str) -> list[dict]:
    path = directory / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def at_work(call: str) -> list[psutil.Process]:
    """The Ray workers below this process that are in ``call`` right now: Ray names the process after it."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] == [f"ray::{call}"]:
                found.append(process)
        except psutil.Error:  # it ended between the two calls
            continue
    return found


class Chaos(threading.Thread):
    """Strikes workers while they work, each blow once the run has trained on so many rollouts."""

    def __init__(self, directory: Path, plan: list[tuple[int, str, int, signal.Signals]]) -> None:
        super().__init__(daemon=True)
        self._directory = directory
        self._plan = plan
        self.struck: Counter[str] = Counter()

    def run(self) -> None:
        for rollouts, call, blows, blow in self._plan:
            while len(records(self._directory, "tickets.jsonl")) < rollouts:
                time.sleep(0.05)
            hit: set[int] = set()
            while len(hit) < blows:
                for process in at_work(call)[: blows - len(hit)]:
                    if process.pid not in hit:
                        process.send_signal(blow)
                        hit.add(process.pid)
                        self.struck[f"{blow.name} {call}"] += 1


def assert_every_prompt_is_accounted_for(directory: Path, steps: int) -> None:
    """Trained on once, or still in the last checkpoint's buffer; and never by weights too old."""
    rollouts = records(directory, "tickets.jsonl")
    trained = [number for rollout in rollouts for number in rollout["tickets"]]
    buffer = json.loads((directory / f"checkpoint-{steps}" / "buffer.json").read_text())
    left = [*buffer["waiting"], *(held["number"] for held in buffer["ready"])]
    assert sorted(trained + left) == list(range(buffer["drawn"]))
    assert [rollout["step"] for rollout in rollouts] == list(range(1, steps + 1))
    ages = [r["step"] - 1 - version for r in rollouts for version in r["versions"]]
    assert 0 <= min(ages) <= max(ages) <= STALENESS


KILL, HANG = signal.SIGKILL, signal.SIGSTOP
PLANS = {
    "two kills": [(1, "RolloutWorker.sample", 1, KILL), (3, "LearnerWorker.learn", 1, KILL)],
    "ten kills and a hang": [
        (1, "RolloutWorker.sample", 2, KILL),
        (3, "LearnerWorker.learn", 1, KILL),
        (5, "RolloutWorker.sample", 2, KILL),
        (7, "RolloutWorker.sample", 2, KILL),
        (9, "LearnerWorker.learn", 1, KILL),
        (10, "RolloutWorker.sample", 2, KILL),
        (12, "RolloutWorker.sample", 1, HANG),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "workers", "steps"),
    [("two kills", 1, 6), pytest.param("ten kills and a hang", 2, 15, marks=pytest.mark.nightly)],
)
def test_workers_that_are_struck_at_work_lose_no_prompt(
    ray_here, configure_tiny, tmp_path, plan, workers, steps
):
    chaos = Chaos(tmp_path / "run", PLANS[plan])
    chaos.start()
    config = configure_tiny(
        "run",
        driver="async",
        max_steps=steps,
        save_steps=1,
        save_total_limit=2,
        max_staleness=STALENESS,
        rollout_workers=workers,
        worker_timeout=45,
    )
    result = train(config)
    blows = Counter[str]()
    for _, call, count, blow in PLANS[plan]:
        blows[f"{blow.name} {call}"] += count
    assert chaos.struck == blows
    assert result.global_step == steps
    assert_every_prompt_is_accounted_for(tmp_path / "run", steps)
    last = records(tmp_path / "run", "metrics.jsonl")[-1]
    for role, call in (("rollout_workers", "RolloutWorker.sample"), ("learners", "LearnerWorker.learn")):
        struck = sum(count for name, count in blows.items() if name.endswith(call))
        assert last[f"train/buffer/{role}_replaced"] == struck
    if PLANS[plan][-1][1] == "RolloutWorker.sample":  # a learner that goes back forgets what was lost since
        assert last["train/buffer/lost"] > 0
    assert last["train/buffer/policy_age_max"] <= STALENESS


@pytest.fixture
def two_nodes() -> Iterator[str]:
    """The address of a Ray cluster of two nodes on this machine, one processor each."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    from ray.cluster_utils import Cluster

    session = tempfile.mkdtemp(prefix="ray-")
    cluster = Cluster()
    node = {"num_cpus": 1, "include_dashboard": False, "temp_dir": session}
    cluster.add_node(node_ip_address="127.0.0.2", **node)
    cluster.add_node(node_ip_address="127.0.0.3", **node)
    yield cluster.address
    cluster.shutdown()
    shutil.rmtree(session, ignore_errors=True)


@pytest.mark.nightly
def test_a_killed_driver_resumes_on_two_nodes_to_the_parameters_of_the_inline_driver(
    two_nodes: str, configure_tiny: Callable, tmp_path: Path
):
    train(configure_tiny("inline", max_steps=6))
    recipe = tmp_path / "recipe.yaml"
    on_nodes = {"driver": "async", "max_staleness": 0, "ray_address": two_nodes}
    write_resolved(
        configure_tiny("run", max_steps=6, save_steps=1, resume_from_checkpoint=True, **on_nodes), recipe
    )
    command = [sys.executable, "-m", "maxent_grpo.cli.main", "command=train-baseline"]
    command.append(f"baseline.recipe={recipe}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    log = (tmp_path / "first.log").open("w")
    driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + 900
    while not (tmp_path / "run" / "checkpoint-2").is_dir() and time.monotonic() < deadline:
        assert driver.poll() is None, (tmp_path / "first.log").read_text()
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    final = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "inline")]
    assert final[0] == final[1]
    assert_every_prompt_is_accounted_for(tmp_path / "run", 6)
