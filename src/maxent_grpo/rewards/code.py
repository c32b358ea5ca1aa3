"""Rewards that run the code of a completion: in confined interpreters, judged from outside.

The program runs in a process of its own, its tests in another (`code_sandbox`): expected values and the verdict are
never where the completion's code could read or write them. The Linux kernel confines both (Landlock and seccomp): they
read Python's own files and compute; they write no file, start no process, send no signal, open no socket, and see
neither the user's files nor the environment. They have `SECONDS` in all, `MEMORY_MB` each, and `OUTPUT_MB` of output.
Where the kernel cannot do that, code rewards are refused unless ``code_confinement: none`` asks for bare interpreters
with limits of time and memory, which are a fence against accidents only.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maxent_grpo.errors import UsageError
from maxent_grpo.rewards.code_sandbox import missing_confinement
from maxent_grpo.rewards.completions import Completion, text_of

SECONDS = 6.0
"""Wall clock for all cases of a completion together."""

MEMORY_MB = 512
OUTPUT_MB = 1
BINARY_THRESHOLD = 0.99

_LANGUAGES = frozenset({"", "python", "python3", "py"})
_SANDBOX = str(Path(__file__).with_name("code_sandbox.py"))


def check_confinement(code_confinement: str = "kernel") -> None:
    """Raise `UsageError` where ``code_confinement`` asks the kernel for what it has not, or is no choice."""
    if code_confinement not in ("kernel", "none"):
        raise UsageError(f"code_confinement: {code_confinement!r} is not one of kernel, none")
    missing = missing_confinement() if code_confinement == "kernel" else ""
    if missing:
        raise UsageError(
            f"reward code: completions cannot be confined here ({missing}); train in a container or virtual "
            "machine that holds nothing of value and set code_confinement=none there"
        )


def python_unit_tests(
    completions: Sequence[Completion],
    test_list: Sequence[Sequence[str]] | None = None,
    test: Sequence[str] | None = None,
    entry_point: Sequence[str] | None = None,
    input_output: Sequence[str | Mapping[str, Any]] | None = None,
    code_confinement: str = "kernel",
    **columns: Any,
) -> list[float]:
    """The share of a problem's cases that the completion's Python program passes, 0 … 1.

    The program is the last fenced block of the completion, else all of its text. The cases come from the columns of
    one of three well-known sets: ``test_list``, assert statements, each a case (MBPP); ``test`` and ``entry_point``, a
    function ``check(candidate)``, one case (HumanEval); or ``input_output``, JSON with ``inputs`` and ``outputs``, the
    text on standard input and what must come out, compared line by line without white space at the ends (APPS). The
    cases share `SECONDS` of time; what has not passed by then has failed.
    """
    rewards = []
    confined = code_confinement == "kernel"
    for row, completion in enumerate(completions):
        program = program_in(text_of(completion))
        if test_list is not None:
            rewards.append(share_of_tests(program, test_list[row], confined=confined))
        elif test is not None and entry_point is not None:
            check = f"{test[row]}\ncheck({entry_point[row]})"
            rewards.append(share_of_tests(program, [check], confined=confined))
        elif input_output is not None:
            column = input_output[row]
            given = json.loads(column) if isinstance(column, str) else column
            cases = [(str(i), str(o)) for i, o in zip(given["inputs"], given["outputs"], strict=True)]
            rewards.append(share_of_outputs(program, cases, confined=confined))
        else:
            raise TypeError("code rewards need a column test_list, test and entry_point, or input_output")
    return rewards


def binary_code(
    completions: Sequence[Completion],
    test_list: Sequence[Sequence[str]] | None = None,
    test: Sequence[str] | None = None,
    entry_point: Sequence[str] | None = None,
    input_output: Sequence[str | Mapping[str, Any]] | None = None,
    code_confinement: str = "kernel",
    **columns: Any,
) -> list[float]:
    """1.0 where `python_unit_tests` gives more than 0.99, else 0.0."""
    shares = python_unit_tests(completions, test_list, test, entry_point, input_output, code_confinement)
    return [float(share > BINARY_THRESHOLD) for share in shares]


def program_in(text: str) -> str:
    """The last fenced block of a completion, else the whole of it."""
    fenced = text.split("```")[1:-1:2]  # what stands behind an opening fence and before a closing one
    if not fenced:
        return text
    language, _, body = fenced[-1].partition("\n")
    return body if language.strip().lower() in _LANGUAGES else fenced[-1]


def share_of_tests(
    program: str, tests: Sequence[str], seconds: float = SECONDS, *, confined: bool = True
) -> float:
    """The share of ``tests`` that raise nothing after ``program``, which is executed anew for each; 0.0 for no tests.

    A program that exits, crashes or hangs fails the test at hand; one that used up ``seconds`` all further ones.
    """
    deadline = time.monotonic() + seconds
    passed = done = 0
    while done < len(tests) and time.monotonic() < deadline:
        verdicts = _judged(program, tests[done:], list(tests), deadline, confined)
        passed += sum(verdicts)
        done += len(verdicts) + 1  # the one without a verdict has failed
    return passed / len(tests) if tests else 0.0


def share_of_outputs(
    program: str, cases: Sequence[tuple[str, str]], seconds: float = SECONDS, *, confined: bool = True
) -> float:
    """The share of ``cases`` (input, expected output) that ``program`` answers, line by line without outer blanks."""
    deadline = time.monotonic() + seconds
    passed = 0
    for given, expected in cases:
        if time.monotonic() >= deadline:
            break
        with _running("program", {"program": program}, deadline, confined) as process:
            output = _output(process, given.encode("utf-8", "surrogatepass"), deadline)
            ended = output is not None and _ended_well(process, deadline)
        passed += ended and _lines((output or b"").decode("utf-8", "replace")) == _lines(expected)
    return passed / len(cases) if cases else 0.0


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _judged(
    program: str, tests: Sequence[str], all_tests: list[str], deadline: float, confined: bool
) -> list[bool]:
    """The verdicts of a judge on ``tests``, up to the one at which the program was lost or the time was up."""
    asked, asks = os.pipe()
    answered, answers = os.pipe()
    told, tells = os.pipe()
    work = {"tests": list(tests), "all_tests": all_tests}
    try:
        with (
            _running("candidate", {"program": program}, deadline, confined, line=(asked, answers)),
            _running("judge", work, deadline, confined, line=(answered, asks), verdicts=tells),
        ):
            for end in (asked, asks, answered, answers, tells):
                os.close(end)  # so that each process sees the other's end
            said = _read(told, deadline)
    finally:
        os.close(told)
    return [line.endswith(b"1") for line in said.splitlines()]


@contextlib.contextmanager
def _running(
    role: str,
    work: Mapping[str, Any],
    deadline: float,
    confined: bool,
    line: tuple[int, int] | None = None,
    verdicts: int | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of `code_sandbox`, killed at the end with all that it started. Without a ``line`` it has pipes."""
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(work).encode("ascii"))
        file.seek(0)
        handed = os.dup(file.fileno())
    limits = {
        "RLIMIT_CPU": int(max(0.0, deadline - time.monotonic())) + 1,
        "RLIMIT_DATA": MEMORY_MB << 20,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
    }
    told = {"work": handed, "line": line, "verdicts": verdicts, "limits": limits, "confined": confined}
    ends = [end for end in (handed, *(line or ()), verdicts) if end is not None]
    stream = subprocess.PIPE if line is None else subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", _SANDBOX, role, json.dumps(told)],
        pass_fds=ends,
        cwd="/",
        start_new_session=True,
        bufsize=0,
        env={"PATH": os.defpath, "PYTHONHASHSEED": "0", "HOME": "/"},
        stdin=stream,
        stdout=stream,
        stderr=subprocess.DEVNULL,
    )
    os.close(handed)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _ended_well(process: "subprocess.Popen[bytes]", deadline: float) -> bool:
    try:
        return process.wait(max(0.0, deadline - time.monotonic())) == 0
    except subprocess.TimeoutExpired:
        return False


def _read(end: int, deadline: float) -> bytes:
    """What comes until the other side closes or the time is up."""
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(end, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            part = os.read(end, 1 << 16)
            if not part:
                break
            said += part
    return said


def _output(process: "subprocess.Popen[bytes]", given: bytes, deadline: float) -> bytes | None:
    """What the process writes while it reads ``given``; None where it is too much or takes too long."""
    assert process.stdin is not None
    assert process.stdout is not None
    reads, writes = process.stdout.fileno(), process.stdin.fileno()
    os.set_blocking(writes, False)
    output, left = bytearray(), memoryview(given)
    with selectors.DefaultSelector() as selector:
        selector.register(reads, selectors.EVENT_READ)
        selector.register(writes, selectors.EVENT_WRITE)
        while ready := selector.select(max(0.0, deadline - time.monotonic())):
            for key, _ in ready:
                if key.fd == reads:
                    part = os.read(reads, 1 << 16)
                    output += part
                    if not part:
                        return bytes(output)
                    if len(output) > OUTPUT_MB << 20:
                        return None
                    continue
                try:
                    left = left[os.write(writes, left[: 1 << 16]) :]
                except BrokenPipeError:
                    left = left[:0]
                if not left:
                    selector.unregister(writes)
                    process.stdin.close()
    return None
