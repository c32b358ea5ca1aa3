"""Scheduling, with commands of milliseconds in place of training: what is started, waited for and left alone."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from forked import finish, start
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.study import command as study
from maxent_grpo.study import scheduler
from maxent_grpo.study.plan import read_plan
from maxent_grpo.study.runs import State, config_of, open_run, runs_of, try_lock
from maxent_grpo.study.scheduler import duration_text, run_all, seconds_left, train_command

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "configs" / "study" / "smoke.yaml"


@pytest.fixture
def smoke(tmp_path, monkeypatch):
    """The smoke plan; training leaves an empty policy, evaluation an empty file, at once."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(scheduler, "train_command", lambda cell: touch(cell.directory / "model.safetensors"))
    monkeypatch.setattr(
        scheduler, "evaluate_command", lambda cell, evaluation: touch(cell.directory / "evaluation.parquet")
    )
    return replace(read_plan(SMOKE), output_dir=tmp_path / "study")


def touch(path):
    return [sys.executable, "-c", f"open({str(path)!r}, 'w')"]


def run(plan, cells, processes=2):
    lines: list[str] = []
    failed = run_all(plan, cells, configs(plan, cells), processes, lines.append)
    return failed, lines


def configs(plan, cells):
    return {cell.index: config_of(plan, cell) for cell in cells}


def test_every_missing_run_is_trained_and_evaluated_and_a_finished_one_left_alone(smoke):
    cells = runs_of(smoke)
    cells[0].directory.mkdir(parents=True)
    (cells[0].directory / "evaluation.parquet").write_text("kept")
    failed, lines = run(smoke, cells)
    assert failed == {}
    assert all(cell.state is State.DONE for cell in cells)
    assert (cells[0].directory / "evaluation.parquet").read_text() == "kept"
    assert sum(line.startswith("started") for line in lines) == 3
    assert "4 of 4 runs ended" in lines[-1]
    assert cells[1].durations.keys() == {"train", "evaluate"}


def test_a_trained_run_is_only_evaluated(smoke):
    cell = runs_of(smoke)[0]
    open_run(cell, configs(smoke, [cell])[0])
    (cell.directory / "model.safetensors").write_text("trained")
    run(smoke, [cell])
    assert (cell.directory / "model.safetensors").read_text() == "trained"
    assert cell.state is State.DONE


def test_a_failed_run_is_told_with_its_log_and_stops_no_other(smoke, monkeypatch):
    def command(cell):
        if cell.arm.name == "tilted" and cell.seed == 0:
            return [sys.executable, "-c", "import sys; sys.exit('out of luck')"]
        return touch(cell.directory / "model.safetensors")

    monkeypatch.setattr(scheduler, "train_command", command)
    cells = runs_of(smoke)
    failed, _ = run(smoke, cells)
    assert failed.keys() == {"graph_coloring/tilted/seed-0"}
    assert failed["graph_coloring/tilted/seed-0"].startswith("out of luck (log: ")
    assert [cell.state is State.DONE for cell in cells] == [True, False, True, True]
    monkeypatch.setattr(study, "report_study", lambda *_: [])
    with pytest.raises(RunError, match=r"1 run\(s\) failed: graph_coloring/tilted/seed-0: out of luck"):
        study.run_study({"plan": str(SMOKE), "output_dir": str(smoke.output_dir), "index": 1}, lambda _: None)


def test_a_run_whose_process_outlived_its_study_is_waited_for(smoke):
    cell = runs_of(smoke)[0]
    open_run(cell, configs(smoke, [cell])[0])
    lock = try_lock(cell.directory)
    assert lock is not None
    left = cell.directory / "evaluation.parquet"
    orphan = subprocess.Popen(
        [sys.executable, "-c", f"import time; time.sleep(1); open({str(left)!r}, 'w').write('orphan')"],
        pass_fds=(lock,),
    )
    os.close(lock)  # the study is gone; its process still holds the lock
    started = time.monotonic()
    failed, lines = run(smoke, [cell])
    orphan.wait()
    assert failed == {}
    assert time.monotonic() - started > 0.5
    assert lines == ["waiting   graph_coloring/dr_grpo/seed-0: a process of an earlier start is still at it"]
    assert left.read_text() == "orphan"


FIVE_STEPS = """
import pathlib, sys, time
run = pathlib.Path(sys.argv[1])
log = run / "metrics.jsonl"
done = len(log.read_text().splitlines()) if log.exists() else 0
for step in range(done, 5):
    with log.open("a") as file:
        file.write(f"{step}\\n")
    time.sleep(0.2)
(run / "model.safetensors").touch()
"""


def study_of_five_steps(arguments: list[str]) -> int:
    """A study, its runs in five steps of a fifth of a second that go on where their records end."""
    scheduler.train_command = lambda cell: [sys.executable, "-c", FIVE_STEPS, str(cell.directory)]
    scheduler.evaluate_command = lambda cell, evaluation: touch(cell.directory / "evaluation.parquet")
    plan = replace(read_plan(SMOKE), output_dir=Path(arguments[0]))
    failed, lines = run(plan, runs_of(plan))
    print("\n".join(lines))
    return len(failed)


@pytest.mark.xdist_group("forked")
def test_a_killed_study_goes_on_with_the_runs_that_were_under_way(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    output = tmp_path / "study"
    first, second, *_ = runs_of(replace(read_plan(SMOKE), output_dir=output))
    killed = start(study_of_five_steps, [str(output)], tmp_path / "killed")
    while not all((cell.directory / "metrics.jsonl").exists() for cell in (first, second)):
        assert killed.is_alive(), (tmp_path / "killed").read_text()
        time.sleep(0.01)
    children = Path(f"/proc/{killed.pid}/task").glob("*/children")  # a thread of the study waits for each
    process = next(pid for path in sorted(children) for pid in path.read_text().split())
    killed.kill()
    os.kill(int(process), signal.SIGKILL)  # one of the two runs; the other goes on, an orphan
    killed.join()
    said = finish(study_of_five_steps, [str(output)], tmp_path / "said")
    assert f"resumed   {first.name}" in said
    assert said.count("started") == 2
    for cell in runs_of(replace(read_plan(SMOKE), output_dir=output)):
        assert cell.state is State.DONE
        assert (cell.directory / "metrics.jsonl").read_text().split() == ["0", "1", "2", "3", "4"]
    assert "done" not in finish(study_of_five_steps, [str(output)], tmp_path / "again")


def test_an_index_runs_one_run_and_no_report(smoke):
    lines: list[str] = []
    study.run_study({"plan": str(SMOKE), "output_dir": str(smoke.output_dir), "index": 2}, lines.append)
    cells = runs_of(smoke)
    assert [cell.state for cell in cells].count(State.DONE) == 1
    assert cells[2].state is State.DONE
    assert not (smoke.output_dir / "report.html").exists()
    with pytest.raises(UsageError, match="no such run"):
        study.run_study({"plan": str(SMOKE), "output_dir": str(smoke.output_dir), "index": 4}, lines.append)


def test_the_forecast_is_the_median_of_an_arm_over_the_processes(smoke):
    cells = runs_of(smoke)
    for cell, seconds in zip(cells[:2], (60, 100), strict=True):
        cell.directory.mkdir(parents=True)
        (cell.directory / "evaluation.parquet").touch()
        (cell.directory / "durations.json").write_text(f'{{"train": {seconds - 10}, "evaluate": 10}}')
    assert seconds_left(cells, 2) == 80
    assert seconds_left(cells, 1) == 160
    assert seconds_left(cells[2:], 2) is None


def test_the_training_command_is_the_one_a_user_would_type(tmp_path):
    cell = runs_of(read_plan(SMOKE))[1]
    assert train_command(cell)[2:] == [
        "maxent_grpo.cli.main",
        "command=train-maxent",
        "maxent.recipe='var/studies/smoke/runs/graph_coloring/tilted/seed-0/recipe.yaml'",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(30, "30 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_read_well(seconds, text):
    assert duration_text(seconds) == text
