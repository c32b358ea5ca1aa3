"""Rewards that run the code of a completion: in an interpreter of its own that may do little, and not for long.

What it may not: run longer than `SECONDS` in all, use more than `MEMORY_MB`, write files of more than `FILE_MB`, open
many files, start processes (as long as the user is not root), reach the network (where the kernel grants namespaces
to users; a container may not), import what is not Python's own, or outlive the call. What it may: read what the user
may read. It is a fence against accidents and idle tricks, not against an attacker: train on code that you would not
run yourself in a container or virtual machine.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maxent_grpo.rewards.completions import Completion, text_of

SECONDS = 6.0
"""Wall clock for all cases of a completion together."""

MEMORY_MB = 512
FILE_MB = 1
BINARY_THRESHOLD = 0.99

_LANGUAGES = frozenset({"", "python", "python3", "py"})

# Read from a file that is gone before the program starts, so that it cannot look up the word of success.
_RUNNER = r"""
import ctypes, json, os, resource, signal, sys
with open("case.json", encoding="utf-8", errors="surrogatepass") as file:
    case = json.load(file)
os.unlink("case.json")
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(1, signal.SIGKILL)
libc.unshare(0x10000000 | 0x40000000)  # user and network namespace
for name, limit in case["limits"].items():
    resource.setrlimit(getattr(resource, name), (limit, limit))
done = os.dup(1)
word = case["word"].encode()
reads_input = case["reads_input"]
program = compile(case["program"], "completion.py", "exec")
del case, file, libc, resource, ctypes, json
def _run(program, done, word, reads_input, write=os.write, exit=sys.exit, flush=sys.stdout.flush):
    try:
        exec(program, {"__name__": "__main__", "exit": exit, "quit": exit})
    except SystemExit as ended:  # how a program that answers may end, and one that is to pass asserts may not
        if not reads_input or ended.code not in (None, 0):
            raise
    flush()
    write(done, word)
_run(program, done, word, reads_input)
"""

Case = tuple[str, str | None, str | None]
"""What follows the program, the input, and the expected output; None: success is that nothing raises."""


def python_unit_tests(
    completions: Sequence[Completion],
    test_list: Sequence[Sequence[str]] | None = None,
    test: Sequence[str] | None = None,
    entry_point: Sequence[str] | None = None,
    input_output: Sequence[str | Mapping[str, Any]] | None = None,
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
    for row, completion in enumerate(completions):
        if test_list is not None:
            cases: list[Case] = [(statement, None, None) for statement in test_list[row]]
        elif test is not None and entry_point is not None:
            cases = [(f"{test[row]}\ncheck({entry_point[row]})", None, None)]
        elif input_output is not None:
            cases = _standard_input_cases(input_output[row])
        else:
            raise TypeError("code rewards need a column test_list, test and entry_point, or input_output")
        rewards.append(passed_share(program_in(text_of(completion)), cases))
    return rewards


def binary_code(
    completions: Sequence[Completion],
    test_list: Sequence[Sequence[str]] | None = None,
    test: Sequence[str] | None = None,
    entry_point: Sequence[str] | None = None,
    input_output: Sequence[str | Mapping[str, Any]] | None = None,
    **columns: Any,
) -> list[float]:
    """1.0 where `python_unit_tests` gives more than 0.99, else 0.0."""
    shares = python_unit_tests(completions, test_list, test, entry_point, input_output)
    return [float(share > BINARY_THRESHOLD) for share in shares]


def program_in(text: str) -> str:
    """The last fenced block of a completion, else the whole of it."""
    fenced = text.split("```")[1:-1:2]  # what stands behind an opening fence and before a closing one
    if not fenced:
        return text
    language, _, body = fenced[-1].partition("\n")
    return body if language.strip().lower() in _LANGUAGES else fenced[-1]


def passed_share(program: str, cases: Sequence[Case], seconds: float = SECONDS) -> float:
    """The share of ``cases`` that ``program`` passes within ``seconds``; 0.0 where there are none."""
    deadline = time.monotonic() + seconds
    passed = sum(_passes(program, case, deadline) for case in cases)
    return passed / len(cases) if cases else 0.0


def _standard_input_cases(column: str | Mapping[str, Any]) -> list[Case]:
    given = json.loads(column) if isinstance(column, str) else column
    return [("", str(i), str(o)) for i, o in zip(given["inputs"], given["outputs"], strict=True)]


def _passes(program: str, case: Case, deadline: float) -> bool:
    tail, given, expected = case
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        return False
    word = secrets.token_hex(16)
    output = _run(f"{program}\n{tail}\n", given, word, seconds)
    if not output.endswith(word):
        return False
    return expected is None or _lines(output.removesuffix(word)) == _lines(expected)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _run(program: str, given: str | None, word: str, seconds: float) -> str:
    """What the program wrote to its output, with ``word`` at the end if it came to its end."""
    with tempfile.TemporaryDirectory(prefix="maxent-code-", ignore_cleanup_errors=True) as folder:
        limits = {
            "RLIMIT_CPU": int(seconds) + 1,
            "RLIMIT_DATA": MEMORY_MB << 20,
            "RLIMIT_FSIZE": FILE_MB << 20,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_NPROC": 0,
            "RLIMIT_CORE": 0,
        }
        here = Path(folder)
        case = json.dumps(
            {"program": program, "word": word, "limits": limits, "reads_input": given is not None}
        )
        (here / "case.json").write_text(case, encoding="utf-8")
        (here / "input").write_text(given or "", encoding="utf-8", errors="surrogatepass")
        with (here / "input").open("rb") as stdin, (here / "output").open("w+b") as stdout:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _RUNNER],
                cwd=folder,
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={"PATH": os.defpath, "PYTHONHASHSEED": "0", "HOME": folder},
            )
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                pass  # it has not passed
            finally:
                with contextlib.suppress(ProcessLookupError):  # nothing of it is left
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            stdout.seek(0)
            return stdout.read().decode("utf-8", errors="replace")
