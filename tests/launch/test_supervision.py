"""Real processes under supervision: health, exit codes, signals, secrets in tails."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from maxent_grpo.errors import RunError
from maxent_grpo.launch.allocation import Allocation
from maxent_grpo.launch.ray_cluster import STOPPED, RayPlan, run_ray
from maxent_grpo.launch.supervision import Ended, Running, Step, Supervisor, answers


def step(tmp_path: Path, code: str, name: str = "it", **environment: str) -> Step:
    return Step(
        name, (sys.executable, "-S", "-c", textwrap.dedent(code)), tmp_path / f"{name}.log", environment
    )


def test_a_server_is_waited_for_until_it_is_healthy(tmp_path: Path, free_port: int) -> None:
    code = f"""
        import http.server, time
        time.sleep(0.5)
        class H(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if self.path == "/health" else 404); self.end_headers()
        http.server.HTTPServer(("127.0.0.1", {free_port}), H).serve_forever()
    """
    url = f"http://127.0.0.1:{free_port}/health"
    with Supervisor(os.environ).watching() as job:
        server = job.start(step(tmp_path, code))
        assert not answers(url)
        job.wait_until(lambda: answers(url), "it answered", deadline=30, every=0.05)
        assert answers(url)
        assert not answers(f"http://127.0.0.1:{free_port}/elsewhere")
    assert server.exit_code == 128 + signal.SIGTERM


def test_a_server_that_dies_is_reported_with_its_log_and_without_secrets(tmp_path: Path) -> None:
    code = "import os, sys; print('no GPU for', os.environ['HF_TOKEN']); sys.exit(3)"
    environ = {**os.environ, "HF_TOKEN": "hf_ThisTokenIsNotReal"}
    job = Supervisor(environ)
    job.start(step(tmp_path, code, "the server"))
    with pytest.raises(RunError) as caught:
        job.wait_until(lambda: False, "it answered", deadline=30, every=0.05)
    text = str(caught.value)
    assert "the server ended with exit code 3 before it answered" in text
    assert "no GPU for ***" in text
    assert "hf_This" not in text


def test_a_deadline_says_what_was_waited_for(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"waited 0\.2 s for the moon"):
        Supervisor({}).wait_until(lambda: False, "the moon", deadline=0.2, every=0.05)


def test_the_exit_code_is_the_main_ones(tmp_path: Path) -> None:
    for code, expected in (("import sys; sys.exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)):
        main = Supervisor(os.environ).follow(step(tmp_path, code), lambda _: None, every=0.05)
        assert main.exit_code == expected


def test_a_server_that_dies_takes_the_job_with_it(tmp_path: Path) -> None:
    trainer = step(tmp_path, "import time; time.sleep(60)", "the trainer")
    with Supervisor(os.environ).watching() as job:
        job.start(step(tmp_path, "print('out of memory')", "the server"))
        with pytest.raises(
            RunError, match=r"(?s)the server ended .* while the trainer needed it.*out of memory"
        ):
            job.follow(trainer, lambda _: None, every=0.05)


def test_usr1_asks_once_and_term_ends(tmp_path: Path) -> None:
    asked: list[float] = []

    def send() -> None:
        for number, pause in ((signal.SIGUSR1, 0.3), (signal.SIGUSR1, 0.3), (signal.SIGTERM, 0.3)):
            time.sleep(pause)
            os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGUSR1)
    with Supervisor(os.environ).watching() as job, pytest.raises(Ended) as caught:  # noqa: PT012  the sender first
        threading.Thread(target=send).start()
        sleeper = step(tmp_path, "import time; time.sleep(60)")
        job.follow(sleeper, lambda _: asked.append(time.monotonic()), every=0.05)
    assert len(asked) == 1
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGUSR1) is before


def test_what_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    code = """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "60"])
        print(child.pid, flush=True)
        time.sleep(60)
    """
    running = Running(step(tmp_path, code), os.environ)
    log = tmp_path / "it.log"
    while not log.read_text().strip():
        time.sleep(0.05)
    running.end(grace=0.2)
    assert running.exit_code == 137
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", log.read_text().strip()], capture_output=True, text=True, check=False
    )
    assert state.stdout.strip()[:1] in ("", "Z")  # "ZN" where the tests run niced


def test_variables_that_a_step_must_not_see_are_gone(tmp_path: Path) -> None:
    code = "import os; print(os.environ.get('VLLM_PORT'), os.environ['MINE'])"
    wanted = Step("it", (sys.executable, "-S", "-c", code), tmp_path / "log", {"MINE": "1"}, ("VLLM_PORT",))
    Supervisor({**os.environ, "VLLM_PORT": "29525"}).follow(wanted, lambda _: None, every=0.05)
    assert wanted.log.read_text() == "None 1\n"


@pytest.mark.parametrize(
    "asks_back", [True, False], ids=["a driver that saves", "a driver that knows no signal"]
)
def test_usr1_reaches_the_driver_on_ray_which_saves_and_is_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], asks_back: bool
) -> None:
    """Ray itself and Slurm are stand-ins here; tests/slurm has the real ones."""
    requeued = tmp_path / "requeued"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {requeued}\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    handler = "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))" if asks_back else ""
    driver = step(
        tmp_path, f"import signal, sys, time; {handler}\nprint(1, flush=True); time.sleep(60)", "driver"
    )
    plan = RayPlan(
        program=("true",), allocation=Allocation(("n1",), (), "77"), addresses=("127.0.0.2",), port=1, deadline=30,
        head=step(tmp_path, "import time; time.sleep(60)", "head"), workers=(), probe=("true",), driver=driver,
        devices=(),
    )  # fmt: skip

    def send() -> None:
        while not driver.log.is_file() or not driver.log.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=send).start()
    assert run_ray(plan, os.environ) == 0
    assert requeued.read_text() == "requeue 77\n"
    saved = "at a checkpoint" if asks_back else "without a new checkpoint (exit code 138)"
    assert f"the driver ended {saved} after SIGUSR1; requeueing job 77" in capfd.readouterr().err


def test_a_node_that_is_too_slow_for_ray_is_started_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The head goes on to its end after the health check, as Ray's does: it is the wait for all nodes that sees it."""
    marker = tmp_path / "tried"
    head = f"""
        import pathlib, sys, time
        if not pathlib.Path({str(marker)!r}).exists():
            pathlib.Path({str(marker)!r}).touch()
            sys.exit("Exception: The current node timed out during startup. This could happen because …")
        time.sleep(60)
    """
    probe = ("test", "-e", str(tmp_path / "there"))
    plan = RayPlan(
        program=("true",), allocation=Allocation(("n1",), (), None), addresses=("127.0.0.2",), port=1, deadline=30,
        head=step(tmp_path, head, "head"), workers=(), probe=probe,
        driver=step(tmp_path, "import sys; sys.exit(3)", "driver"), devices=(),
    )  # fmt: skip

    def live() -> None:
        while "starts again" not in "".join(said):
            said.append(capfd.readouterr().err)
            time.sleep(0.05)
        (tmp_path / "there").touch()

    said: list[str] = []
    threading.Thread(target=live).start()
    assert run_ray(plan, os.environ) == 3
    assert "a node was too slow for Ray; the cluster starts again (2 of 3)" in "".join(said)


def test_the_exit_code_of_a_run_that_was_stopped_is_the_one_that_the_launcher_knows() -> None:
    from maxent_grpo.train.stopping import Stopped

    assert Stopped.exit_code == STOPPED
