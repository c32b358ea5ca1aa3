"""The end of exceptions: one line on stderr and an exit code. Nothing below prints them.

Exit codes: 0 done, 1 the run failed (`RunError`, or a fault of ours), 2 the request is wrong (`UsageError`),
130 interrupted.
"""

import logging
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from maxent_grpo.errors import RunError, UsageError

PROGRAM = "maxent-grpo"
INTERRUPTED = 130
_CHATTY = "transformers datasets accelerate trl httpx urllib3 filelock fsspec matplotlib".split()  # noqa: SIM905


@dataclass
class ErrorContext:
    """A command and its recipe, for the front of its error line; filled in as they become known.

    Used with ``with``, it ends every exception of the block, but SystemExit: its line is printed, below a traceback if
    debugging, and its code is ``exit_code``.
    """

    command: str = ""
    recipe: str = ""
    ends_interrupts: bool = True
    """False for a job of a sweep, which an interrupt ends as a whole."""
    exit_code: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, KeyboardInterrupt) and self.ends_interrupts:
            self.exit_code = INTERRUPTED
            print(self.line(str(error) or "interrupted"), file=sys.stderr)
            return True
        if not isinstance(error, Exception):
            return False
        self.exit_code = getattr(error, "exit_code", RunError.exit_code)
        if isinstance(error, UsageError):
            if int(os.environ.get("LOCAL_RANK", "0")) != 0:  # all processes of a machine find the same
                return True
            message = str(error)
        elif isinstance(error, RunError):
            message = f"{_rank(os.environ)}{error}"
        else:
            advice = "" if debugging(os.environ) else " (set MAXENT_LOG_LEVEL=DEBUG for the traceback)"
            text = " ".join(str(error).split())
            message = f"{_rank(os.environ)}internal error: {type(error).__name__}: {text}{advice}"
        if debugging(os.environ):
            traceback.print_exception(error)
        sys.stdout.flush()
        print(self.line(message), file=sys.stderr, flush=True)
        return True

    def line(self, message: str) -> str:
        """``maxent-grpo: command | recipe: message``; a place or recipe that the message opens with stays once."""
        front = " | ".join(part for part in (self.command, self.recipe) if part)
        if not front or message.startswith(front):
            return f"{PROGRAM}: {message}"
        if self.recipe and message.startswith(f"Recipe {self.recipe} "):
            front = self.command
        return f"{PROGRAM}: {front}: {message}"


def _rank(environ: Mapping[str, str]) -> str:
    """``"rank r: "`` in one of several processes: what fails there need not fail elsewhere."""
    return f"rank {environ['RANK']}: " if environ.get("WORLD_SIZE", "1") != "1" and "RANK" in environ else ""


def show(text: str) -> None:
    """Print ``text`` to a reader who may leave early (``| head``)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # else Python complains again at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def log_level(environ: Mapping[str, str]) -> str:
    """The log level that the environment asks for; "" for none."""
    return environ.get("MAXENT_LOG_LEVEL") or environ.get("MAXENT_GRPO_LOGLEVEL") or ""


def debugging(environ: Mapping[str, str]) -> bool:
    """True if the environment asks for tracebacks."""
    names = ("MAXENT_LOG_LEVEL", "MAXENT_GRPO_LOGLEVEL")
    return any(environ.get(name, "").upper() == "DEBUG" for name in names)


def configure_logging(level: str) -> None:
    """Log in one plain format on stderr, from other people's libraries at warning.

    Args:
        level: as ``log_level``: debug, info, warning, error, critical; ``passive`` is warning.
    """
    wanted = logging.getLevelNamesMapping().get(level.upper(), logging.WARNING)
    logging.basicConfig(level=wanted, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(wanted, logging.WARNING))
    # Transformers imports DeepSpeed, where installed, to save a model; on a CPU it then warns that it found no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.msg)
