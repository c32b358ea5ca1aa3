"""Ending a run early on request: a file named ``stop`` in the output directory.

A file reaches a trainer through whatever started it (srun, torchrun, a Ray driver), where a signal would first end the
processes in between. It is looked for after every step, and gone once the checkpoint is written.

A run of one process, and the driver of a run on Ray, have nothing in between: they make the file themselves when a
signal arrives, with its name in it.
"""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from accelerate import Accelerator

from maxent_grpo.errors import RunError
from maxent_grpo.observe.names import STOP_FILE
from maxent_grpo.train.ranks import gathered

ASKED_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h: the run is to be started again."""
EXIT_CODES: Mapping[str, int] = {"SIGTERM": 128 + signal.SIGTERM, "SIGHUP": 128 + signal.SIGHUP}
"""Of a run that a signal ended; ASKED_AGAIN for any other request."""
LOCAL_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a run of one process."""


class Stopped(RunError):
    """The run was asked to end, saved what it had and ended: not done, and not failed."""

    exit_code = ASKED_AGAIN


def stop_asked(output_dir: Path, accelerator: Accelerator) -> bool:
    """True if the first rank sees the file now; all ranks get its answer."""
    seen = accelerator.is_main_process and (output_dir / STOP_FILE).exists()
    return any(gathered([seen], accelerator))


@contextmanager
def stopping_on_signal(output_dir: Path, *signals: signal.Signals) -> Iterator[None]:
    """Make the file when one of ``signals`` arrives. Afterwards it is gone, and signals are handled as before.

    What was ignored before (SIGHUP under nohup) stays ignored. Python handles signals in its main thread alone: in any
    other this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    file, asked = output_dir / STOP_FILE, threading.Event()
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def ask(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGHUP:  # the terminal may be gone, and writing to it an error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for descriptor in terminals:
                os.dup2(nowhere, descriptor)
            os.close(nowhere)
        if not asked.is_set():
            os.write(2, f"{name}: saving a checkpoint after the step in hand, then ending\n".encode())
        asked.set()
        file.write_text(name)

    taken = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if asked.is_set():  # nobody may have seen it: the requeued run must not
            file.unlink(missing_ok=True)


def stopped(output_dir: Path, accelerator: Accelerator, step: int) -> Stopped:
    """The error to raise once the checkpoint of ``step`` is there; the request is answered and removed."""
    file = output_dir / STOP_FILE
    said = file.read_text(errors="replace").strip() if accelerator.is_main_process and file.is_file() else ""
    name = next(filter(None, gathered([said], accelerator)), "")
    forget_request(output_dir, accelerator)
    asked = f"as {name} asked" if name in signal.Signals.__members__ else f"as {file} asked"
    error = Stopped(
        f"stopped after step {step}, {asked}: checkpoint-{step} is saved, and resume_from_checkpoint=true goes on"
    )
    error.exit_code = EXIT_CODES.get(name, ASKED_AGAIN)
    return error


def forget_request(output_dir: Path, accelerator: Accelerator) -> None:
    """Remove the file, so that a later run does not find it."""
    if accelerator.is_main_process:
        (output_dir / STOP_FILE).unlink(missing_ok=True)
