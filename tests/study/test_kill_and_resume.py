"""The shipped smoke study for real: whole, and killed with one of its runs and started again. Same numbers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAN = ROOT / "configs" / "study" / "smoke.yaml"


def command(output_dir: Path, *options: str) -> list[str]:
    start = [sys.executable, "-m", "maxent_grpo.cli.main", "command=study", f"study.plan={PLAN}"]
    return [*start, f"study.output_dir={output_dir}", *options]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def finish(output_dir: Path, *options: str) -> str:
    done = subprocess.run(
        command(output_dir, *options),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_in_the_middle(output_dir: Path) -> None:
    """SIGKILL to the study and to one of the two runs under way; the other run goes on, an orphan."""
    with subprocess.Popen(
        command(output_dir), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 240
        first = output_dir / "runs" / "graph_coloring" / "dr_grpo" / "seed-0"
        while not any(first.glob("checkpoint-*")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
        os.kill(int(children[0]), signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_numbers(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(whole)
    kill_in_the_middle(cut)
    assert not (cut / "effects.csv").exists()
    finish(cut)
    assert (cut / "effects.csv").read_bytes() == (whole / "effects.csv").read_bytes()
    pd.testing.assert_frame_equal(
        pd.read_parquet(cut / "runs.parquet"), pd.read_parquet(whole / "runs.parquet")
    )
    for run in ("dr_grpo/seed-0", "tilted/seed-0", "tilted/seed-1"):
        for name in ("metrics.jsonl", "model.safetensors"):
            path = Path("runs/graph_coloring") / run / name
            assert (cut / path).read_bytes() == (whole / path).read_bytes(), path
    # A finished run is never repeated.
    dates = {path: path.stat().st_mtime_ns for path in cut.rglob("runs/**/*") if path.is_file()}
    assert "started" not in finish(cut)
    assert dates == {path: path.stat().st_mtime_ns for path in cut.rglob("runs/**/*") if path.is_file()}
    # Nor is a changed plan mixed in.
    plan = tmp_path / "changed.yaml"
    plan.write_text(PLAN.read_text().replace("steps: 3\n", "steps: 4\n", 1))
    refused = subprocess.run(
        [*command(cut), f"study.plan={plan}"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "max_steps: 3 → 4" in refused.stderr
