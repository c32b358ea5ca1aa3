"""Running a plan: processes with a log each, health checks, signals, and one exit code for the job.

Signals, as Slurm sends them. SIGUSR1 (``--signal=B:USR1@600``, before the time limit): the trainer is asked to save and
end, and the job is requeued. SIGTERM and SIGINT (``scancel``, preemption): everything ends now, and a later start goes
on from the newest checkpoint.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.http import Fault, fetch
from maxent_grpo.launch.environment import without_values

TAIL_LINES = 200
POLL_SECONDS = 0.5
HEALTH_SECONDS = 2.0
GRACE_SECONDS = 20.0
"""From SIGTERM to SIGKILL; less than Slurm's usual KillWait of 30 seconds."""


@dataclass(frozen=True)
class Step:
    """One process to start: a command, what it finds in its environment besides the job's, and its log."""

    name: str
    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()  # variables that it must not inherit


class Running:
    """A started step. Its output is appended to its log, as a requeued job goes on with the same file."""

    def __init__(self, step: Step, environment: Mapping[str, str]) -> None:
        self.step = step
        self._environment = environment
        step.log.parent.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in environment.items() if name not in step.without}
        if shutil.which(step.command[0], path=inherited.get("PATH")) is None:
            raise UsageError(
                f"{step.name}: there is no program {step.command[0]} here; activate the environment first"
            )
        with step.log.open("ab") as log:
            self._process = subprocess.Popen(
                step.command,
                env=inherited | dict(step.environment),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C of the terminal comes through here, and once
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 + n where signal n ended it."""
        code = self._process.poll()
        return None if code is None else code if code >= 0 else 128 - code

    def send(self, number: int) -> None:
        """Send a signal to the step's first process; a launcher passes it on to those that it started."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def end(self, grace: float = GRACE_SECONDS) -> None:
        """SIGTERM, and SIGKILL after ``grace`` seconds, to the step and all of its process group."""
        self.send(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(grace)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines of its log, secrets hidden."""
        text = self.step.log.read_text(errors="replace")
        kept = "\n".join(text.splitlines()[-lines:]) or "(empty)"
        return without_values(f"--- last lines of {self.step.log} ---\n{kept}\n---", self._environment)


class Signals:
    """The signals that this process got since `listening` began."""

    def __init__(self) -> None:
        self.stop_asked = False  # SIGUSR1
        self.ended_by: int | None = None  # SIGTERM or SIGINT

    @contextmanager
    def listening(self) -> Iterator["Signals"]:
        """Take SIGUSR1, SIGTERM and SIGINT; what handled them before is put back at the end."""

        def note(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGUSR1:
                self.stop_asked = True
            else:
                self.ended_by = number

        before = {n: signal.signal(n, note) for n in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Ended(Exception):
    """SIGTERM or SIGINT arrived: stop everything and exit with 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def wait_until(
    ready: Callable[[], bool],
    what: str,
    running: Sequence[Running],
    signals: Signals,
    deadline: float,
    every: float = HEALTH_SECONDS,
) -> None:
    """Wait for ``ready``, at most ``deadline`` seconds, while ``running`` processes live.

    Raises:
        RunError: when a process ends first, or the deadline passes; the message has the tail of its log.
        Ended: when the job is told to end.
    """
    started = time.monotonic()
    while not ready():
        if signals.ended_by is not None:
            raise Ended(signals.ended_by)
        for process in running:
            if process.exit_code is not None:
                raise RunError(
                    f"{process.step.name} ended with exit code {process.exit_code} before {what}\n{process.tail()}"
                )
        if time.monotonic() - started > deadline:
            tails = "\n".join(process.tail() for process in running)
            raise RunError(f"waited {deadline:g} s for {what}: not there\n{tails}".rstrip())
        time.sleep(every)


def answers(url: str) -> bool:
    """True if ``url`` answers with a success now. Proxies of the environment are not asked: it is the job's own."""
    try:
        return 200 <= fetch(url, timeout=HEALTH_SECONDS).status < 300
    except Fault:
        return False


def follow(
    main: Running,
    beside: Sequence[Running],
    signals: Signals,
    on_stop: Callable[[], None],
    every: float = POLL_SECONDS,
) -> int:
    """Wait for ``main``; its exit code.

    Args:
        beside: processes that it needs; one that ends takes the job with it.
        on_stop: called at the first SIGUSR1.

    Raises:
        RunError: when one of ``beside`` ends first.
        Ended: when the job is told to end.
    """
    told = False
    while main.exit_code is None:
        if signals.ended_by is not None:
            raise Ended(signals.ended_by)
        if signals.stop_asked and not told:
            told = True
            on_stop()
        for process in beside:
            if process.exit_code is not None:
                raise RunError(
                    f"{process.step.name} ended with exit code {process.exit_code} while {main.step.name} needed it\n"
                    f"{process.tail()}"
                )
        time.sleep(every)
    return main.exit_code


def say(text: str) -> None:
    """A line of the job's own log, in order with what its processes write."""
    print(text, file=sys.stderr, flush=True)


def requeue(job: str, environment: Mapping[str, str]) -> None:
    """Put the job back into the queue under its number. Raises `RunError` where Slurm refuses."""
    answer = subprocess.run(
        ["scontrol", "requeue", job], env=dict(environment), capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise RunError(
            f"scontrol requeue {job} failed ({answer.stderr.strip()}); submit the job again with --resume"
        )
