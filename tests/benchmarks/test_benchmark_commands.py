"""Every benchmark runs on a tiny policy, checks its systems against each other, and prints its table."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import memory, profile, sampler, step, update

TINY = [
    "--size",
    "tiny",
    "--prompt",
    "12",
    "--completion",
    "6",
    "--group",
    "4",
    "--prompts",
    "2",
    "--repeats",
    "1",
]
needs_torchrl = pytest.mark.skipif(
    importlib.util.find_spec("torchrl") is None, reason="torchrl (extra parity) is not installed"
)


def cells(table: str) -> list[list[str]]:
    """The cells of a Markdown table's rows, without its rule."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return [row for row in rows if set(row) != {"---"}]


@pytest.mark.parametrize("peer", ["trl", pytest.param("torchrl", marks=needs_torchrl)])
@pytest.mark.parametrize("lengths", ["full", "geometric"])
def test_a_step_is_compared_phase_by_phase(
    peer: str, lengths: str, capsys: pytest.CaptureFixture[str]
) -> None:
    step.main([*TINY, "--peer", peer, "--lengths", lengths, "--micro-prompts", "1", "--no-memory"])
    shown = capsys.readouterr()
    head, *rows = cells(shown.out)
    assert [row[0] for row in rows] == ["sample", "score", "update", "whole step"]
    assert head[-2:] == ["ratio, CPU", "ratio, wall"]
    assert all(float(cell) >= 0 for row in rows for cell in row[1:])
    assert float(rows[-1][-2]) > 0
    assert f"{peer} and ours agree" in shown.err
    if lengths == "full":
        assert f"ours 48, {peer} 48" in shown.out


@pytest.mark.nightly
def test_several_workloads_are_rows_of_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    sampler.main([*TINY, "--peer", "none", "--precision", "float32", "bf16"])
    head, *rows = cells(capsys.readouterr().out)
    assert [row[5] for row in rows] == ["float32", "bf16"]
    assert head[-1] == "ours sample, CPU s"


def test_an_update_alone_is_compared_and_every_repeat_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    update.main([*TINY, "--peer", "trl", "--no-memory", "--csv", str(tmp_path / "repeats.csv")])
    assert [row[0] for row in cells(capsys.readouterr().out)[1:]] == ["update"]
    lines = (tmp_path / "repeats.csv").read_text().splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("system,repeat,phase,cpu_s,wall_s,tokens")


@pytest.mark.nightly
def test_bf16_systems_agree() -> None:
    # The precision is a state of the process (Accelerate's), so that it is not mixed with float32 in one.
    command = [sys.executable, "-m", "benchmarks.update", *TINY, "--precision", "bf16", "--no-memory"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "trl and ours agree" in done.stderr


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    memory.main([*TINY, "--peer", "none"])
    _, row = cells(capsys.readouterr().out)
    completion, peak, above = map(float, row)
    assert completion == 6
    assert peak > 100
    assert 0 < above < peak


def test_profile_shows_floor_kinds_of_work_and_own_share(capsys: pytest.CaptureFixture[str]) -> None:
    profile.main(TINY)
    shown = capsys.readouterr().out
    rows = cells(shown)
    assert [row[0] for row in rows if row[0] in ("sample", "update")] == ["sample", "update"]
    shares = [float(row[1].rstrip("%")) for row in rows if len(row) == 2 and row[1].endswith("%")]
    assert sum(shares) == pytest.approx(200, abs=1)  # two tables of shares
    assert "Objective and controllers:" in shown


def test_a_gpu_is_asked_for_by_name() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="torch sees no GPU"):
        step.main(["--device", "cuda"])


@pytest.mark.slow
def test_ranks_hold_what_the_peers_ranks_hold() -> None:
    """Two ranks agree with TRL's two in log-probs, loss and gradient norm: the guard of every comparison."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*torchrun, "-m", "benchmarks.update", *TINY, "--strategy", "fsdp2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "on each of 2 ranks (fsdp2)" in done.stdout
    assert done.stderr.count("trl and ours agree") == 1
    assert [row[0] for row in cells(done.stdout)[1:]] == ["update"]


def test_several_workloads_and_memory_are_not_for_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for flags, named in (
        (["--grid"], "one workload at a time"),
        (["--memory"], "--memory"),
        (["--peer", "torchrl"], "compare with trl"),
    ):
        with pytest.raises(SystemExit, match=named):
            step.main(flags)
    with pytest.raises(SystemExit, match="only comparisons"):
        profile.main([])
    with pytest.raises(SystemExit, match="--memory"):
        memory.main([])
