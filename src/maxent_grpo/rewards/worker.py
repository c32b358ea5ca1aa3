"""The process in which a reward function runs that may hang, crash or eat memory. `pool` starts and kills it.

Imports no torch, and of the project only what calling a function needs. It speaks over two pipes in frames: eight
bytes of length, then a pickle.
"""

import ctypes
import functools
import hashlib
import importlib
import os
import pickle
import random
import resource
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from maxent_grpo.named import one_line
from maxent_grpo.rewards.registry import (
    Arguments,
    CallContext,
    Caller,
    Location,
    MiscountedScoresError,
    Scores,
)

LENGTH = struct.Struct("<Q")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Load:
    """Import a function and what it will need, outside the deadline of any completion."""

    location: Location


@dataclass(frozen=True)
class Call:
    """Score the rows of ``arguments``."""

    location: Location
    arguments: Arguments
    context: CallContext


@dataclass(frozen=True)
class Raised:
    """A call that raised; its exception may not survive a pickle, so it travels as text."""

    summary: str
    trace: str
    out_of_memory: bool = False


Reply = Scores | Raised | MiscountedScoresError | None


class RowError(Exception):
    """A row's error as text: exceptions of third parties need not survive a pickle."""


def frame(message: object) -> bytes:
    """``message`` as it goes over a pipe."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(body)) + body


def main() -> None:
    """Answer requests until the pipe closes. Arguments: the reply pipe, the parent's process id, memory in MB."""
    reply_fd, parent, memory_mb = (int(argument) for argument in sys.argv[2:5])
    die_with_parent(parent)
    if memory_mb:
        limit_memory(memory_mb << 20)
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(reply_fd, "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # a function that reads its input must not eat requests …
    os.dup2(2, 1)  # … nor what it prints be taken for output of the run
    caller = Caller()
    _reply(replies, None)
    while (body := _read(requests)) is not None:
        _seed(body)
        answer = _answer(pickle.loads(body), caller)
        _reply(replies, answer)
        if isinstance(answer, Raised) and answer.out_of_memory:
            os._exit(0)  # the heap is full of what did not fit: start afresh


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, whatever ends it (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it had ended before the call
            os._exit(1)


def limit_memory(size: int) -> None:
    """Bound heap and anonymous mappings (RLIMIT_DATA): the address space counts libraries that nobody touches."""
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@functools.cache
def loaded(location: Location) -> Callable[..., Any]:
    """The function at ``location``, with its options bound."""
    for module in location.preload:
        importlib.import_module(module)
    module, _, attribute = location.path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return functools.partial(function, **dict(location.options)) if location.options else function


def _answer(request: Load | Call, caller: Caller) -> Reply:
    try:
        function = loaded(request.location)
        if isinstance(request, Load):
            return None
        scores = caller.call(function, request.arguments, request.context)
    except MiscountedScoresError as error:
        return error
    # Somebody's module and function can raise anything; SystemExit ends this worker, as it asks for.
    except Exception as error:  # noqa: BLE001
        memory = isinstance(error, MemoryError)
        return Raised(one_line(error), "" if memory else traceback.format_exc(limit=-8)[-4000:], memory)
    errors: dict[int, Exception] = {row: RowError(one_line(error)) for row, error in scores.errors.items()}
    return Scores(scores.values, errors, scores.logged)


def _seed(body: bytes) -> None:
    """Seed what a function may draw from by the request: a score must not depend on which worker gave it, or when."""
    seed = int.from_bytes(hashlib.blake2b(body, digest_size=4).digest(), "little")
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _read(stream: BinaryIO) -> bytes | None:
    header = stream.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    return stream.read(LENGTH.unpack(header)[0])


def _reply(stream: BinaryIO, answer: Reply) -> None:
    stream.write(frame(answer))
    stream.flush()
