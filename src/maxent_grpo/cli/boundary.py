"""Where exceptions end: one line on stderr and an exit code. Nothing below prints them.

Exit codes: 0 done, 1 the run failed (`RunError`, or a fault of ours), 2 the request is wrong (`UsageError`),
130 interrupted.
"""

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from maxent_grpo.errors import RunError, UsageError

PROGRAM = "maxent-grpo"
INTERRUPTED = 130


@dataclass
class Place:
    """Where a run is, for the front of its error line. Filled in as it becomes known."""

    command: str = ""
    recipe: str = ""

    def line(self, message: str) -> str:
        """``maxent-grpo: command | recipe: message``; a message that opens with its place keeps it once."""
        front = " | ".join(part for part in (self.command, self.recipe) if part)
        return (
            f"{PROGRAM}: {message}"
            if not front or message.startswith(front)
            else f"{PROGRAM}: {front}: {message}"
        )


def exit_code_of(body: Callable[[], None], place: Place) -> int:
    """Run ``body``; 0, or the exit code of its failure, its line printed (below a traceback if debugging).

    ``KeyboardInterrupt`` and ``SystemExit`` pass through.
    """
    try:
        body()
    except UsageError as error:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # all processes of a machine find the same
            _print_failure(place.line(str(error)))
        return error.exit_code
    except RunError as error:
        _print_failure(place.line(f"{_rank(os.environ)}{error}"))
        return error.exit_code
    except Exception as error:  # noqa: BLE001  the outermost frame: whatever is left becomes a line and a code
        advice = "" if debugging(os.environ) else " (set MAXENT_LOG_LEVEL=DEBUG for the traceback)"
        _print_failure(
            place.line(
                f"{_rank(os.environ)}internal error: {type(error).__name__}: {_single_line(error)}{advice}"
            )
        )
        return RunError.exit_code
    return 0


def _rank(environ: Mapping[str, str]) -> str:
    """``"rank r: "`` in one of several processes: what fails there need not fail elsewhere."""
    return f"rank {environ['RANK']}: " if environ.get("WORLD_SIZE", "1") != "1" and "RANK" in environ else ""


def show(text: str) -> None:
    """Print ``text`` to a reader who may leave early (``| head``)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # else Python complains again at its exit


def debugging(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for tracebacks."""
    return any(
        environ.get(name, "").upper() == "DEBUG" for name in ("MAXENT_LOG_LEVEL", "MAXENT_GRPO_LOGLEVEL")
    )


def _print_failure(line: str) -> None:
    """Called while the exception is being handled."""
    if debugging(os.environ):
        traceback.print_exc()
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)


def _single_line(error: Exception) -> str:
    return " ".join(str(error).split())
