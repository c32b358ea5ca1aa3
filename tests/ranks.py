"""Several processes of a run, as torchrun starts them."""

import runpy
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from forked import start
from maxent_grpo.grpo import main


@dataclass(frozen=True)
class Ended:
    """How a launched command ended."""

    codes: list[int]  # exit code of each rank
    errors: list[str]  # what each rank wrote


def start_ranks(
    directory: Path,
    arguments: list[str],
    processes: int = 2,
    environ: dict[str, str] | None = None,
    call: Callable[[list[str]], int] = main,
) -> list[BaseProcess]:
    """``call(arguments)`` in each of ``processes`` ranks, with torchrun's environment; ``environ`` is added to it.

    The call is that of ``python -m maxent_grpo.grpo`` where none is named.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    return [
        start(
            call,
            arguments,
            directory / f"written-{rank}",
            torchrun | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | (environ or {}),
        )
        for rank in range(processes)
    ]


def run_ranks(
    directory: Path,
    arguments: list[str],
    processes: int = 2,
    timeout: float = 600,
    environ: dict[str, str] | None = None,
    call: Callable[[list[str]], int] = main,
) -> Ended:
    """The same, waiting for their end; after ``timeout`` seconds they are killed."""
    ranks = start_ranks(directory, arguments, processes, environ, call)
    for process in ranks:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
    errors = [(directory / f"written-{rank}").read_text() for rank in range(processes)]
    return Ended([-1 if process.exitcode is None else process.exitcode for process in ranks], errors)


def running(program: Path) -> Callable[[list[str]], int]:
    """The call that runs a file with the arguments; what it raises ends the rank with 1."""
    return partial(_run_file, str(program))


def _run_file(program: str, arguments: list[str]) -> int:
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")
    return 0
