"""Worker processes with a deadline per call and a memory limit each, killed and replaced as needed.

Every worker has a keeper thread here, which starts it, feeds it, and kills it: when it overruns a deadline, or when
the pool closes. Workers are plain ``python -c`` processes and not `multiprocessing` children: those import the
user's script again, and torch with it, and a script without an ``if __name__ == "__main__"`` guard could not train.
"""

import contextlib
import json
import math
import os
import pickle
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass

from maxent_grpo.errors import RunError
from maxent_grpo.rewards.calling import MiscountedScoresError, Scores
from maxent_grpo.rewards.registry import Location
from maxent_grpo.rewards.worker import LENGTH, Call, Load, Raised, Reply, frame

START_SECONDS = 120.0
"""Deadline for starting a worker and for importing a reward function in it."""

MAX_REPLY_BYTES = 64 << 20

_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from maxent_grpo.rewards.worker import main; main()"
)


class RewardTimeoutError(Exception):
    """The call overran its deadline, and its worker was killed."""


class WorkerDiedError(Exception):
    """The worker ended during the call: it crashed, called exit, or was killed for memory."""


class RewardRaisedError(Exception):
    """The function raised in its worker; the text is the exception's summary, the notes its traceback."""


@dataclass(frozen=True)
class Limits:
    """What one call may take."""

    seconds: float  # wall clock
    memory_mb: int = 2048  # of a worker; 0: no limit


class Pool:
    """``workers`` processes that score calls in the order of submission. Started on first use."""

    def __init__(self, workers: int, limits: Limits) -> None:
        self.workers = workers
        self.limits = limits
        self._tasks: queue.SimpleQueue[tuple[Call, Future[Scores]] | None] = queue.SimpleQueue()
        self._keepers: list[_Keeper] = []

    def submit(self, call: Call) -> "Future[Scores]":
        """The scores of a call's rows, to be waited for.

        The future raises `RewardTimeoutError`, `WorkerDiedError`, `RewardRaisedError` or `MiscountedScoresError`,
        which concern the call, or `RunError` where no worker can be started.
        """
        if not self._keepers:
            self._keepers = [_Keeper(self._tasks, self.limits) for _ in range(self.workers)]
            for keeper in self._keepers:
                keeper.start()
        future: Future[Scores] = Future()
        self._tasks.put((call, future))
        return future

    def close(self) -> None:
        """Kill all workers. Calls that were not answered raise `WorkerDiedError`."""
        for keeper in self._keepers:
            keeper.closing.set()
            self._tasks.put(None)
        for keeper in self._keepers:
            keeper.kill()
            keeper.join()
        self._keepers = []
        self._tasks = queue.SimpleQueue()


class _Keeper(threading.Thread):
    """Owns one worker process. As the thread that starts it, it also is what the worker's life is tied to."""

    def __init__(
        self, tasks: "queue.SimpleQueue[tuple[Call, Future[Scores]] | None]", limits: Limits
    ) -> None:
        super().__init__(name="reward worker keeper", daemon=True)
        self._tasks = tasks
        self._limits = limits
        self._worker: _Worker | None = None
        self._lock = threading.Lock()
        self.closing = threading.Event()

    def run(self) -> None:
        while (task := self._tasks.get()) is not None:
            call, future = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._scores(call))
            # Whatever it is belongs to whoever waits for the scores: this thread has nobody to tell.
            except Exception as error:  # noqa: BLE001
                future.set_exception(error)
        self.kill()

    def kill(self) -> None:
        with self._lock:
            if self._worker is not None:
                self._worker.kill()

    def _scores(self, call: Call) -> Scores:
        worker = self._ready(call.location)
        try:
            reply = worker.ask(call, self._limits.seconds)
        except TimeoutError:
            raise RewardTimeoutError(f"no score within {self._limits.seconds:g} s") from None
        if isinstance(reply, MiscountedScoresError):
            raise reply
        if isinstance(reply, Raised):
            raise _raised(reply)
        assert isinstance(reply, Scores)
        return reply

    def _ready(self, location: Location) -> "_Worker":
        """A live worker that has imported the function."""
        with self._lock:
            if self.closing.is_set():
                raise WorkerDiedError("the run ended")
            if self._worker is None or not self._worker.alive:
                self._worker = _Worker(self._limits)
        worker = self._worker
        if location not in worker.loaded:
            try:
                reply = worker.ask(Load(location), START_SECONDS)
            except TimeoutError:
                raise RewardTimeoutError(
                    f"importing {location.path} took more than {START_SECONDS:g} s"
                ) from None
            if isinstance(reply, Raised):
                raise _raised(reply)
            worker.loaded.add(location)
        return worker


class _Worker:
    """A running worker process and the pipes to it."""

    def __init__(self, limits: Limits) -> None:
        read_fd, write_fd = os.pipe()
        self._replies = read_fd
        self.loaded: set[Location] = set()
        self.alive = True
        self._killing = threading.Lock()
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _BOOT, json.dumps(sys.path)),
                    *(str(write_fd), str(os.getpid()), str(limits.memory_mb)),
                ],
                stdin=subprocess.PIPE,
                bufsize=0,
                pass_fds=(write_fd,),
                # A group of its own: Ctrl-C is the parent's business, and what the worker starts dies with it.
                start_new_session=True,
                # One thread each, and the same order of sets in all.
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            )
        except OSError as error:
            os.close(read_fd)
            raise RunError(f"cannot start a reward worker: {error.strerror}") from error
        finally:
            os.close(write_fd)
        try:
            self._receive(time.monotonic() + START_SECONDS)
        except (WorkerDiedError, TimeoutError) as error:
            self.kill()
            raise RunError(
                f"a reward worker did not start: {error or f'not within {START_SECONDS:g} s'}"
            ) from error

    def ask(self, request: Load | Call, seconds: float) -> Reply:
        """The answer to ``request``. A worker that gives none is killed; raises `TimeoutError` or `WorkerDiedError`."""
        deadline = time.monotonic() + seconds
        try:
            self._send(frame(request), deadline)
            return self._receive(deadline)
        except (TimeoutError, WorkerDiedError):
            self.kill()
            raise

    def kill(self) -> None:
        """End the worker and all that it started. May be called twice, and from another thread."""
        self.alive = False
        with self._killing:
            if self._process.returncode is None:  # until it is waited for, its number is nobody else's
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def __del__(self) -> None:
        os.close(self._replies)

    def _send(self, message: bytes, deadline: float) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        os.set_blocking(stdin.fileno(), False)
        view = memoryview(message)
        while view:
            _wait(stdin.fileno(), select.POLLOUT, deadline)
            try:
                view = view[os.write(stdin.fileno(), view[: 1 << 16]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._died() from None

    def _receive(self, deadline: float) -> Reply:
        size = LENGTH.unpack(self._read(LENGTH.size, deadline))[0]
        if size > MAX_REPLY_BYTES:
            raise WorkerDiedError(f"it answered with {size} bytes")
        reply: Reply = pickle.loads(self._read(size, deadline))
        return reply

    def _read(self, size: int, deadline: float) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            _wait(self._replies, select.POLLIN, deadline)
            part = os.read(self._replies, min(size - len(parts), 1 << 16))
            if not part:
                raise self._died()
            parts += part
        return bytes(parts)

    def _died(self) -> WorkerDiedError:
        # WNOWAIT leaves it to `kill`, which needs its process group.
        status = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        assert status is not None
        if status.si_code == os.CLD_EXITED:
            return WorkerDiedError(f"the worker exited with code {status.si_status}")
        return WorkerDiedError(f"the worker was killed by {signal.Signals(status.si_status).name}")


def _wait(fd: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(max(0, math.ceil((deadline - time.monotonic()) * 1000))):
        raise TimeoutError


def _raised(reply: Raised) -> RewardRaisedError:
    error = RewardRaisedError(reply.summary)
    if reply.trace:
        error.add_note(reply.trace)
    return error
