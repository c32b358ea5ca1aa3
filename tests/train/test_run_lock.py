"""One run at a time in an output directory, whatever happens to the process that holds it."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.observe.names import LOCK_FILE
from maxent_grpo.train import drivers, run_lock
from maxent_grpo.train.run_lock import locked
from runs import train

HOLDER = """
import os, pathlib, subprocess, sys, time
from maxent_grpo.train.run_lock import locked
with locked(pathlib.Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    subprocess.Popen(["sleep", "30"])
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the directory, with a forked and a spawned child that outlive it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_the_refusal_says_whose_run_it_is(tmp_path, holder):
    with pytest.raises(UsageError) as refused, locked(tmp_path):
        pass
    line = str(refused.value)
    assert f"{tmp_path} is in use by the run of" in line
    assert f"on {socket.gethostname()} (process {holder.pid}, started 20" in line
    assert "wait for that run, stop it, or choose another directory" in line


def test_kill_9_frees_it_although_children_live_on(tmp_path, holder):
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert (tmp_path / LOCK_FILE).read_text() == ""


@pytest.mark.parametrize("settings", [{}, {"resume_from_checkpoint": True}, {"overwrite_output_dir": True}])
@pytest.mark.parametrize(
    "route",
    [
        {},
        {"command": "train-baseline", "force_custom_loop": False},
        {"driver": "sync"},
    ],
)
def test_every_route_refuses_a_directory_in_use_and_touches_nothing(configure, tmp_path, settings, route):
    output = tmp_path / "run"
    (output / "checkpoint-1").mkdir(parents=True)
    with locked(output), pytest.raises(UsageError, match="is in use by the run of"):
        train(configure(**route, **settings))
    assert (output / "checkpoint-1").is_dir()


def test_a_run_holds_its_directory_while_it_trains(configure, tmp_path, monkeypatch):
    real, refused = drivers.step, []

    def step(run, groups):
        if not refused:
            with pytest.raises(UsageError, match="is in use") as error, locked(run.output_dir):
                pass
            refused.append(error)
        return real(run, groups)

    monkeypatch.setattr(drivers, "step", step)
    assert train(configure(max_steps=2)).global_step == 2
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [0, 1, 2]


def without_locks(monkeypatch):
    def flock(descriptor, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)


def left(tmp_path, **owner):
    own = {"user": "u", "host": socket.gethostname(), "pid": os.getpid(), "started": "then"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(own | owner))


def test_without_locks_of_the_kernel_the_line_decides(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    with (
        locked(tmp_path),
        pytest.raises(UsageError, match=r"this file system has no locks.*delete"),
        locked(tmp_path),
    ):
        pass
    dead = subprocess.Popen(["true"])
    dead.wait()
    left(tmp_path, pid=dead.pid)
    with locked(tmp_path):
        pass
    left(tmp_path, born=1)  # the number of this process, and the start of another
    with locked(tmp_path):
        pass
    left(tmp_path, host="elsewhere")
    with pytest.raises(UsageError, match=r"on elsewhere .*if that run is over, delete"), locked(tmp_path):
        pass


def test_a_free_lock_of_another_host_is_taken_with_a_word(tmp_path, caplog):
    left(tmp_path, host="elsewhere")
    with locked(tmp_path):
        pass
    assert "was held by the run of u on elsewhere" in caplog.text


@pytest.mark.parametrize("contents", ["", "{", "[]", "\0" * 100, '{"pid": "x"}'])
def test_a_broken_line_is_no_obstacle(tmp_path, monkeypatch, contents):
    (tmp_path / LOCK_FILE).write_text(contents)
    with locked(tmp_path):
        pass
    without_locks(monkeypatch)
    (tmp_path / LOCK_FILE).write_text(contents)
    if "pid" not in contents:
        with locked(tmp_path):
            pass


def test_the_birth_of_a_process_is_its_own():
    born = run_lock._birth(os.getpid())
    time.sleep(0.05)
    child = subprocess.Popen(["sleep", "5"])
    try:
        assert born is not None
        assert run_lock._birth(child.pid) > born
    finally:
        child.kill()
        child.wait()
