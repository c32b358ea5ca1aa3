"""Ending a run early on request: a file named ``stop`` in the output directory.

A file reaches a trainer through whatever started it (srun, torchrun, a Ray driver), where a signal would first end the
processes in between. It is looked for after every step, and gone once the checkpoint is written.

The driver of a run on Ray is one process with nothing in between, and alone knows the output directory: it makes the
file itself when SIGUSR1 arrives.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from accelerate import Accelerator

from maxent_grpo.errors import RunError
from maxent_grpo.observe.names import STOP_FILE
from maxent_grpo.train.ranks import gathered


class Stopped(RunError):
    """The run was asked to end, saved what it had and ended: not done, and not failed. Exit code 75 (EX_TEMPFAIL)."""

    exit_code = 75


def stop_asked(output_dir: Path, accelerator: Accelerator) -> bool:
    """True if the first rank sees the file now; all ranks get its answer."""
    seen = accelerator.is_main_process and (output_dir / STOP_FILE).exists()
    return any(gathered([seen], accelerator))


@contextmanager
def stopping_on_signal(output_dir: Path) -> Iterator[None]:
    """Make the file when SIGUSR1 arrives. Afterwards it is gone, and what handled the signal before is put back.

    Python handles signals in its main thread alone: in any other this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    file, asked = output_dir / STOP_FILE, threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        file.touch()

    before = signal.signal(signal.SIGUSR1, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
        if asked.is_set():  # nobody may have seen it: the requeued run must not
            file.unlink(missing_ok=True)


def stopped(output_dir: Path, accelerator: Accelerator, step: int) -> Stopped:
    """The error to raise once the checkpoint of ``step`` is there; the request is answered and removed."""
    forget_request(output_dir, accelerator)
    return Stopped(
        f"stopped after step {step}, as {output_dir / STOP_FILE} asked; resume_from_checkpoint=true goes on"
    )


def forget_request(output_dir: Path, accelerator: Accelerator) -> None:
    """Remove the file, so that a later run does not find it."""
    if accelerator.is_main_process:
        (output_dir / STOP_FILE).unlink(missing_ok=True)
