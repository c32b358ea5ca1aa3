"""The shipped smoke study for real: whole, and killed with one of its runs and started again. Same numbers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.study.command import run_study

ROOT = Path(__file__).resolve().parents[2]
PLAN = ROOT / "configs" / "study" / "smoke.yaml"


def finish(output_dir: Path, plan: Path = PLAN) -> str:
    """Run the study to its end; what it said."""
    lines: list[str] = []
    run_study({"plan": str(plan), "output_dir": str(output_dir)}, lines.append)
    return "\n".join(lines)


def thread_of(children: Path) -> int:
    return int(children.parent.name)


def kill_in_the_middle(output_dir: Path) -> None:
    """SIGKILL to the study and to one of the two runs under way; the other run goes on, an orphan."""
    command = [sys.executable, "-m", "maxent_grpo.cli.main", "command=study", f"study.plan={PLAN}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, f"study.output_dir={output_dir}"], **quiet) as process:
        first = output_dir / "runs" / "graph_coloring" / "dr_grpo" / "seed-0"
        deadline = time.monotonic() + 240
        while not any(first.glob("checkpoint-*")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task").glob(
            "*/children"
        )  # a thread of the study waits for each
        child = next(pid for path in sorted(children, key=thread_of) for pid in path.read_text().split())
        process.send_signal(signal.SIGKILL)
        os.kill(int(child), signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def records(directory: Path) -> bytes:
    """The records of a run without their header, which names the recipe's path."""
    return (directory / "metrics.jsonl").read_bytes().partition(b"\n")[2]


@pytest.mark.nightly
def test_a_killed_study_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(whole)
    kill_in_the_middle(cut)
    assert not (cut / "effects.csv").exists()
    assert "resumed   graph_coloring/dr_grpo/seed-0" in finish(cut)
    assert (cut / "effects.csv").read_bytes() == (whole / "effects.csv").read_bytes()
    pd.testing.assert_frame_equal(
        pd.read_parquet(cut / "runs.parquet"), pd.read_parquet(whole / "runs.parquet")
    )
    for run in ("dr_grpo/seed-0", "tilted/seed-0", "tilted/seed-1"):
        one, other = (study / "runs" / "graph_coloring" / run for study in (cut, whole))
        assert records(one) == records(other), run
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes(), run
    files = [path for path in (cut / "runs").rglob("*") if path.is_file()]
    dates = [path.stat().st_mtime_ns for path in files]
    said = finish(cut)  # a finished run is never repeated
    assert "started" not in said
    assert "resumed" not in said
    assert [path.stat().st_mtime_ns for path in files] == dates
    longer = tmp_path / "changed.yaml"
    longer.write_text(PLAN.read_text().replace("steps: 3\n", "steps: 4\n", 1))
    with pytest.raises(UsageError, match="max_steps: 3 → 4"):  # nor is a changed plan mixed in
        finish(cut, longer)
