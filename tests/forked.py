"""Processes of a command, forked from one that has imported everything: starting one costs no second import.

Tests that use it carry ``xdist_group("forked")``: on one worker, so that the import is made once.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["warm"])


def start(
    call: Callable[[list[str]], int],
    arguments: list[str],
    output: Path,
    environ: dict[str, str] | None = None,
) -> BaseProcess:
    """``call(arguments)`` in a process of its own, with this one's directory and environment, ``environ`` added.

    What the process writes to stdout and stderr goes to the file ``output``; its exit code is what ``call`` returns.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    _start_server()
    given = (call, arguments, str(output), os.getcwd(), dict(os.environ) | (environ or {}))
    process = SERVER.Process(target=_run, args=given)
    process.start()
    return process


def finish(call: Callable[[list[str]], int], arguments: list[str], output: Path) -> str:
    """The same, waiting for its end, which must be a good one; what it wrote."""
    process = start(call, arguments, output)
    process.join()
    written = output.read_text()
    assert process.exitcode == 0, written
    return written


def _start_server() -> None:
    """Start the process to fork from, if it is not there. Python 3.11 hands it no path: PYTHONPATH does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        forkserver.ensure_running()


def _run(
    call: Callable[[list[str]], int], arguments: list[str], output: str, cwd: str, environ: dict[str, str]
) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = call(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without the teardown of libraries, which may wait for other processes
