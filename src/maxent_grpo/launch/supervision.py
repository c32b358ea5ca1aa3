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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.http import Fault, fetch
from maxent_grpo.launch.plan_text import without_values

LOGS = Path("var/artifacts/logs")
TAIL_LINES = 200
POLL_SECONDS = 0.5
HEALTH_SECONDS = 2.0
GRACE_SECONDS = 20.0
"""From SIGTERM to SIGKILL; less than Slurm's usual KillWait of 30 seconds."""

CACHES = {
    "HF_HOME": "cache/huggingface",
    "TORCH_HOME": "cache/torch",
    "TORCHINDUCTOR_CACHE_DIR": "cache/torchinductor",
    "TRITON_CACHE_DIR": "cache/triton",
    "VLLM_CACHE_ROOT": "cache/vllm",
    "XDG_CACHE_HOME": "cache/xdg",
    "PIP_CACHE_DIR": "cache/pip",
    "WANDB_DIR": "artifacts/wandb",
    "WANDB_CACHE_DIR": "cache/wandb",
    "TMPDIR": "tmp",
}
"""Variable → its place under ``var/``. One that is set already stays as it is."""


@dataclass(frozen=True)
class Step:
    """One process to start: a command, its log, and the variables that it finds besides the job's."""

    name: str
    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    """Variables that it must not inherit."""


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


class Ended(Exception):
    """SIGTERM or SIGINT arrived: stop everything and exit with 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Supervisor:
    """The processes of a job, under the signals that this process gets since `watching` began.

    Args:
        hint: what a later start does, for a job that is told to end.
        leftovers: what a process that ended has left in its group is killed too.
    """

    def __init__(self, environment: Mapping[str, str], hint: str = "", *, leftovers: bool = False) -> None:
        self.environment = environment
        self.exit_code = 0
        self._hint = hint
        self._leftovers = leftovers
        self.started: list[Running] = []
        self.stop_asked = False  # SIGUSR1
        self._ended_by: int | None = None  # SIGTERM or SIGINT

    @contextmanager
    def watching(self) -> Iterator["Supervisor"]:
        """Take SIGUSR1, SIGTERM and SIGINT; at the end processes are ended and signals are handled as before.

        `Ended` ends the context, with its exit code in `exit_code`.
        """

        def note(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGUSR1:
                self.stop_asked = True
            else:
                self._ended_by = number

        before = {n: signal.signal(n, note) for n in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        except Ended as end:
            say(f"{end}{self._hint}")
            self.exit_code = end.exit_code
        finally:
            self.end_all()
            for number, handler in before.items():
                signal.signal(number, handler)

    def start(self, step: Step) -> Running:
        """Start ``step``; the supervisor ends it."""
        self.started.append(Running(step, self.environment))
        return self.started[-1]

    def end_all(self) -> None:
        """End what runs, the newest first."""
        for process in reversed(self.started):
            if self._leftovers or process.exit_code is None:
                process.end()
        self.started.clear()

    def requeue(self, job: str) -> None:
        """Put the job back into the queue under its number. Raises `RunError` where Slurm refuses."""
        command = ["scontrol", "requeue", job]
        answer = subprocess.run(
            command, env=dict(self.environment), capture_output=True, text=True, check=False
        )
        if answer.returncode:
            raise RunError(
                f"scontrol requeue {job} failed ({answer.stderr.strip()}); submit the job again with --resume"
            )

    def raise_if_ended(self) -> None:
        """Raise `Ended` where the job is told to end."""
        if self._ended_by is not None:
            raise Ended(self._ended_by)

    def wait_until(
        self, ready: Callable[[], bool], what: str, deadline: float, every: float = HEALTH_SECONDS
    ) -> None:
        """Wait for ``ready``, at most ``deadline`` seconds, while all that was started lives.

        Raises:
            RunError: when a process ends first, or the deadline passes; the message has the tail of its log.
            Ended: when the job is told to end.
        """
        began = time.monotonic()
        while not ready():
            self.raise_if_ended()
            for process in self.started:
                if process.exit_code is not None:
                    raise RunError(
                        f"{process.step.name} ended with exit code {process.exit_code} before {what}\n{process.tail()}"
                    )
            if time.monotonic() - began > deadline:
                tails = "\n".join(process.tail() for process in self.started)
                raise RunError(f"waited {deadline:g} s for {what}: not there\n{tails}".rstrip())
            time.sleep(every)

    def follow(self, step: Step, on_stop: Callable[[Running], None], every: float = POLL_SECONDS) -> Running:
        """Start ``step`` and wait for its end.

        Args:
            on_stop: called with it at the first SIGUSR1.

        Raises:
            RunError: when a process ends first that was started before: it needs them all.
            Ended: when the job is told to end.
        """
        beside = list(self.started)
        main = self.start(step)
        told = False
        while main.exit_code is None:
            self.raise_if_ended()
            if self.stop_asked and not told:
                told = True
                on_stop(main)
            for process in beside:
                if process.exit_code is not None:
                    raise RunError(
                        f"{process.step.name} ended with exit code {process.exit_code} while {step.name} needed it\n"
                        f"{process.tail()}"
                    )
            time.sleep(every)
        return main


def answers(url: str) -> bool:
    """True if ``url`` answers with a success now. Proxies of the environment are not asked: it is the job's own."""
    try:
        return 200 <= fetch(url, timeout=HEALTH_SECONDS).status < 300
    except Fault:
        return False


def say(text: str) -> None:
    """A line of the job's own log, in order with what its processes write."""
    print(text, file=sys.stderr, flush=True)


def job_environment(environ: Mapping[str, str], root: Path) -> dict[str, str]:
    """``environ`` with every cache under ``root/var``, shallow checkpoints, and nothing of the user's site-packages.

    A token that `hf auth login` stored under the home directory is found although HF_HOME moves.
    """
    result = dict(environ)
    for variable, place in CACHES.items():
        result.setdefault(variable, str(root / "var" / place))
    own = Path(environ.get("HOME", "~")).expanduser() / ".cache" / "huggingface"
    stored = Path(environ.get("HF_HOME") or own) / "token"
    if "HF_TOKEN" not in environ and stored.is_file():
        result.setdefault("HF_TOKEN_PATH", str(stored))
    result.setdefault("MAXENT_CHECKPOINT_METADATA_MODE", "shallow")
    result |= {"PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1"}
    return result


def carry_out(
    plan: str, environ: Mapping[str, str], run: Callable[[Mapping[str, str]], int], *, dry_run: bool
) -> int:
    """Print ``plan``, and unless this is a dry run ``run`` it in the environment of a job; its exit code."""
    print(plan, flush=True)
    if dry_run:
        return 0
    environment = job_environment(environ, Path.cwd())
    for variable in CACHES:
        Path(environment[variable]).mkdir(parents=True, exist_ok=True)
    return run(environment)
