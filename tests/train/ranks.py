"""Several processes of a run, forked from one that has imported everything: launching costs no second import."""

import multiprocessing
import os
import runpy
import socket
import sys
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

HERE = str(Path(__file__).parent)
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["maxent_grpo.grpo", "maxent_grpo.train.run", "maxent_grpo.train.strategies.fsdp2", "peft", "deepspeed"]
)


@dataclass(frozen=True)
class Ended:
    """How a launched command ended."""

    codes: list[int]  # exit code of each rank
    errors: list[str]  # what each rank wrote to stderr


def start_ranks(
    directory: Path,
    arguments: list[str],
    processes: int = 2,
    environ: dict[str, str] | None = None,
    program: Path | None = None,
) -> list[BaseProcess]:
    """``python -m maxent_grpo.grpo arguments`` in each of ``processes`` ranks, with torchrun's environment.

    ``environ`` is added to it. ``program``: a file to run instead.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stderr = str(directory / "stderr-")
    given = (port, arguments, stderr, environ or {}, None if program is None else str(program))
    ranks = [SERVER.Process(target=_rank, args=(rank, processes, *given)) for rank in range(processes)]
    for process in ranks:
        process.start()
    return ranks


def run_ranks(
    directory: Path,
    arguments: list[str],
    processes: int = 2,
    timeout: float = 600,
    environ: dict[str, str] | None = None,
    program: Path | None = None,
) -> Ended:
    """The same, waiting for their end; after ``timeout`` seconds they are killed."""
    ranks = start_ranks(directory, arguments, processes, environ, program)
    for process in ranks:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
    errors = [(directory / f"stderr-{rank}").read_text() for rank in range(processes)]
    return Ended([-1 if process.exitcode is None else process.exitcode for process in ranks], errors)


def _rank(
    rank: int,
    processes: int,
    port: int,
    arguments: list[str],
    stderr: str,
    environ: dict[str, str],
    program: str | None,
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    } | environ
    sys.path.append(HERE)
    with open(f"{stderr}{rank}", "w") as file, open(os.devnull, "w") as nowhere:
        os.dup2(file.fileno(), 2)
        os.dup2(nowhere.fileno(), 1)
        if program is None:
            from maxent_grpo.grpo import main

            code = main(arguments)
        else:
            sys.argv = [program, *arguments]
            runpy.run_path(program, run_name="__main__")  # what it raises ends this rank with 1
            code = 0
        sys.stderr.flush()
    os._exit(code)  # without the teardown of libraries, which may wait for other ranks
