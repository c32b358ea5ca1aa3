"""Reward functions in worker processes, with a deadline per call and a memory limit each.

`Isolation` decides what is asked in one call, what is asked again and what is remembered; `Pool` owns the processes and
replaces those that hang or die. Each worker has a keeper thread here, which starts it, feeds it, and kills it: when it
overruns a deadline, or when the pool closes. Workers are plain ``python -c`` processes and not `multiprocessing`
children: those import the user's script again, and torch with it, and a script without an
``if __name__ == "__main__"`` guard could not train. `worker` is their side.
"""

import contextlib
import hashlib
import inspect
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
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from maxent_grpo.errors import RunError
from maxent_grpo.rewards.registry import (
    Arguments,
    CallContext,
    Location,
    MiscountedScoresError,
    RewardFunction,
    Scores,
    joined,
    miscounted,
    row_of,
)
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
class IsolationSettings:
    """Limits of reward functions that may not end. Scores do not depend on the number of workers."""

    timeout: float = 10.0
    """Seconds of wall clock for a completion."""
    memory_mb: int = 2048
    """Memory of a worker; 0: no limit."""
    workers: int = 2
    """Processes."""


class Pool:
    """Worker processes that score calls in the order of submission. Started on first use."""

    def __init__(self, settings: IsolationSettings) -> None:
        self.settings = settings
        self._tasks: queue.SimpleQueue[tuple[Call, Future[Scores]] | None] = queue.SimpleQueue()
        self._keepers: list[_Keeper] = []

    def submit(self, call: Call) -> "Future[Scores]":
        """The scores of a call's rows, to be waited for.

        The future raises `RewardTimeoutError`, `WorkerDiedError`, `RewardRaisedError` or `MiscountedScoresError`,
        which concern the call, or `RunError` where no worker can be started.
        """
        if not self._keepers:
            self._keepers = [_Keeper(self._tasks, self.settings) for _ in range(self.settings.workers)]
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
        self, tasks: "queue.SimpleQueue[tuple[Call, Future[Scores]] | None]", settings: IsolationSettings
    ) -> None:
        super().__init__(name="reward worker keeper", daemon=True)
        self._tasks = tasks
        self._settings = settings
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
            reply = worker.ask(call, self._settings.timeout)
        except TimeoutError:
            raise RewardTimeoutError(f"no score within {self._settings.timeout:g} s") from None
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
                self._worker = _Worker(self._settings)
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

    def __init__(self, settings: IsolationSettings) -> None:
        read_fd, write_fd = os.pipe()
        self._replies = read_fd
        self.loaded: set[Location] = set()
        self.alive = True
        self._killing = threading.Lock()
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _BOOT, json.dumps(sys.path)),
                    *(str(write_fd), str(os.getpid()), str(settings.memory_mb)),
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
            if self._process.returncode is None:  # the PID cannot be reused until the process has been reaped
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


LOST = (RewardTimeoutError, WorkerDiedError)
"""Why a completion may lose its score without a word from the function."""

CACHE_SIZE = 1 << 16
"""Verdicts kept, the least recently used given up first: about 20 MB."""


class Isolation:
    """Scores completions in a pool of workers, so that a hang or a crash costs a completion its score and no more.

    A function whose scores do not depend on other completions (``rowwise``) is asked about one completion at a time,
    and its verdicts are kept: the same text and columns are never graded twice, a text that hangs hangs once. Any
    other function is asked about one group at a time, since it may compare. Where that fails in any way, each of the
    group's completions is asked about alone. Neither depends on the number of workers.
    """

    def __init__(self, settings: IsolationSettings) -> None:
        self._pool = Pool(settings)
        self._verdicts: OrderedDict[bytes, Future[Scores]] = OrderedDict()
        self._begun: set[bytes] = set()  # verdicts that nobody has waited for yet
        self.cache_hits = 0  # completions whose verdict was known, over the whole run

    def submit(
        self, reward: RewardFunction, arguments: Arguments, groups: Sequence[slice], context: CallContext
    ) -> "Pending":
        """Start scoring all rows; ``groups`` are the rows of each prompt, in order. Does not wait."""
        size = len(arguments["completions"])
        arguments = {name: arguments[name] for name in _read_by(reward, arguments)}
        parts = [slice(row, row + 1) for row in range(size)] if reward.rowwise else groups
        return Pending(
            self,
            reward,
            arguments,
            context,
            [(part, self._ask(reward, _rows(arguments, part), context)) for part in parts],
        )

    def begin(self, reward: RewardFunction, arguments: Arguments, context: CallContext) -> None:
        """Start on completions that will be submitted later, of a function that judges each by itself."""
        arguments = {name: arguments[name] for name in _read_by(reward, arguments)}
        for row in range(len(arguments["completions"])):
            call = self._call(reward, row_of(arguments, row), context)
            if (key := _verdict_key(call)) not in self._verdicts:
                self._remember(key, call)
                self._begun.add(key)

    def ask_again(
        self, reward: RewardFunction, arguments: Arguments, context: CallContext
    ) -> "Future[Scores]":
        """Score one row of a group that failed as a whole."""
        return self._pool.submit(self._call(reward, arguments, context))

    def close(self) -> None:
        """Kill the workers."""
        self._pool.close()

    def _ask(self, reward: RewardFunction, arguments: Arguments, context: CallContext) -> "Future[Scores]":
        call = self._call(reward, arguments, context)
        if not reward.rowwise:
            return self._pool.submit(call)
        key = _verdict_key(call)
        verdict = self._verdicts.get(key)
        if verdict is None:
            return self._remember(key, call)
        if key in self._begun:
            self._begun.remove(key)
        else:
            self.cache_hits += 1
        self._verdicts.move_to_end(key)
        return verdict

    def _remember(self, key: bytes, call: Call) -> "Future[Scores]":
        verdict = self._verdicts[key] = self._pool.submit(call)
        if len(self._verdicts) > CACHE_SIZE:
            given_up, _ = self._verdicts.popitem(last=False)
            self._begun.discard(given_up)
        return verdict

    @staticmethod
    def _call(reward: RewardFunction, arguments: Arguments, context: CallContext) -> Call:
        assert reward.location is not None, "a function without a location cannot be found by a worker"
        return Call(reward.location, arguments, context)


def _verdict_key(call: Call) -> bytes:
    told = (call.location, call.arguments, call.context.is_eval)
    return hashlib.blake2b(pickle.dumps(told), digest_size=16).digest()


class Pending:
    """Scores under way."""

    def __init__(
        self,
        isolation: Isolation,
        reward: RewardFunction,
        arguments: Arguments,
        context: CallContext,
        parts: "Sequence[tuple[slice, Future[Scores]]]",
    ) -> None:
        self._isolation = isolation
        self._reward = reward
        self._arguments = arguments
        self._context = context
        self._parts = parts

    def scores(self) -> Scores:
        """Wait for all rows.

        Raises:
            RunError: the function returned a wrong number of scores, or no worker could be started.
        """
        # All failed groups are asked about again at once, so that their hangs pass side by side.
        again = {
            part.start: [
                self._isolation.ask_again(self._reward, row_of(self._arguments, row), self._context)
                for row in range(part.start, part.stop)
            ]
            for part, future in self._parts
            if part.stop - part.start > 1 and self._failed(future)
        }
        return joined(
            scores
            for part, future in self._parts
            for scores in (
                [self._alone(f) for f in again[part.start]] if part.start in again else [self._alone(future)]
            )
        )

    def _failed(self, future: "Future[Scores]") -> bool:
        error = future.exception()
        if isinstance(error, MiscountedScoresError):
            raise miscounted(self._reward.name, error)
        return error is not None

    def _alone(self, future: "Future[Scores]") -> Scores:
        try:
            return future.result()
        except MiscountedScoresError as error:
            raise miscounted(self._reward.name, error) from error
        except (*LOST, RewardRaisedError) as error:
            return Scores(
                (math.nan,), {0: error.with_traceback(None)}
            )  # this process's part of it says nothing


def _rows(arguments: Arguments, part: slice) -> Arguments:
    return {name: column[part] for name, column in arguments.items()}


def _read_by(reward: RewardFunction, arguments: Arguments) -> Sequence[str]:
    """The arguments that a call needs, and a verdict depends on: of a built-in function those it names, else all."""
    if not reward.rowwise:
        return list(arguments)
    named = inspect.signature(reward.function).parameters
    return [name for name in arguments if name in named or name == "completions"]
