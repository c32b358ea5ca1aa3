"""Progress on the console: a live panel on a terminal, one plain line per update in a log file."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TextIO

from maxent_grpo.observe import names

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

MISSING: Final = "–"
HEADING_EVERY: Final = 20  # plain lines between two headings, so that any screenful of a log has one
TICKER_SECONDS: Final = 5.0  # a loop shorter than this says nothing in a log file


def fixed(value: float) -> str:
    return f"{value:.3f}"


def compact(value: float) -> str:
    """At most seven characters for a positive number: three digits, or two and an exponent."""
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


def whole(value: float) -> str:
    return f"{value:.0f}" if value < 99_999 else f"{value / 1000:.0f}k"


def duration(seconds: float) -> str:
    """Two units at most: ``45s``, ``1m20``, ``5h09``, ``2d03``."""
    whole_seconds = round(seconds)
    if whole_seconds < 60:
        return f"{whole_seconds}s"
    minutes, rest = divmod(whole_seconds, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}"


class Column(NamedTuple):
    heading: str
    name: str
    width: int  # of a plain line, in characters
    show: Callable[[float], str]


# With "step", "elapsed" and "left" a plain line is 79 characters wide.
COLUMNS: Final = (
    Column("reward", names.REWARD, 6, fixed),
    Column("pass", names.PASS, 5, fixed),
    Column("cover", names.COVERAGE, 5, fixed),
    Column("τ", names.TAU, 7, compact),
    Column("β", names.BETA, 7, compact),
    Column("KL", names.KL, 7, compact),
    Column("entr", names.TOKEN_ENTROPY, 5, compact),
    Column("tok/s", names.TOKENS_PER_SECOND, 5, whole),
)
STEP_WIDTH: Final = 11
TIME_WIDTH: Final = 5


def is_live(stream: TextIO) -> bool:
    """True for a terminal that can redraw: control codes go nowhere else."""
    if not stream.isatty():
        return False
    from rich.console import Console

    return Console(file=stream).is_interactive


class Progress:
    """The state of a run, updated once per logged step. Use as a context manager.

    ``total_steps`` and ``start_step`` are optimiser steps; a resumed run starts at its checkpoint's step,
    so that the time left is estimated from the steps of this process alone. ``enabled=False``
    (``disable_tqdm``, or any rank but the first) prints nothing at all. ``stream`` is stderr by default:
    stdout stays free for results.
    """

    def __init__(
        self,
        total_steps: int,
        title: str,
        enabled: bool = True,
        *,
        start_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_steps
        self._title = title
        self._enabled = enabled
        self._start_step = start_step
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._started = clock()
        self._lines = 0
        self._live: _LivePanel | None = None

    def __enter__(self) -> Self:
        self._started = self._clock()
        if not self._enabled:
            return self
        if is_live(self._stream):
            self._live = _LivePanel(self._total, self._start_step, self._title, self._stream)
        else:
            self._print(f"{self._title}: {self._total} steps")
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, step: int, metrics: Mapping[str, float | None], timing: Mapping[str, float]) -> None:
        """Show ``step``. Metrics go by their full names; one that is absent or None shows as "–"."""
        if not self._enabled:
            return
        elapsed, left = self._elapsed_and_left(step)
        measured = {**metrics, **timing}
        cells = [_cell(column, measured) for column in COLUMNS]
        if self._live is not None:
            parts = [f"{column.heading} {cell}" for column, cell in zip(COLUMNS, cells, strict=True)]
            self._live.show(step, "  ".join([*parts, f"elapsed {elapsed}", f"left {left}"]))
            return
        if self._lines % HEADING_EVERY == 0:
            self._print(_plain_line("step", [column.heading for column in COLUMNS], "time", "left"))
        self._lines += 1
        self._print(_plain_line(f"{step}/{self._total}", cells, elapsed, left))

    def note(self, text: str) -> None:
        """A line of its own, above the live panel if there is one."""
        if not self._enabled:
            return
        if self._live is not None:
            self._live.note(text)
        else:
            self._print(text)

    def loop(self, title: str, total: int) -> "Ticker":
        """Progress of a loop inside the run, such as an evaluation; it borrows the live panel's text line."""
        return Ticker(
            title, total, self._enabled, stream=self._stream, clock=self._clock, borrowed=self._live
        )

    def _elapsed_and_left(self, step: int) -> tuple[str, str]:
        elapsed = self._clock() - self._started
        done = step - self._start_step
        left = duration(elapsed / done * (self._total - step)) if done > 0 else MISSING
        return duration(elapsed), left

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def _cell(column: Column, measured: Mapping[str, float | None]) -> str:
    value = measured.get(column.name)
    return MISSING if value is None else column.show(value)


def _plain_line(step: str, cells: list[str], elapsed: str, left: str) -> str:
    middle = [f"{cell:>{column.width}}" for column, cell in zip(COLUMNS, cells, strict=True)]
    return " ".join([f"{step:>{STEP_WIDTH}}", *middle, f"{elapsed:>{TIME_WIDTH}}", f"{left:>{TIME_WIDTH}}"])


class _LivePanel:
    """A bar and, below it, the metrics of the last update, wrapped to the terminal's width."""

    def __init__(self, total: int, start: int, title: str, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._bar, self._task = _bar(total, start, title)
        self._view = Live(self._bar, console=Console(file=stream), refresh_per_second=4)
        self._view.start()

    def show(self, step: int, line: str) -> None:
        self._bar.update(self._task, completed=step)
        self.say(line)

    def say(self, line: str) -> None:
        """Show ``line`` below the bar, which stays where it is."""
        from rich.console import Group
        from rich.text import Text

        self._view.update(Group(self._bar, Text(line)))

    def note(self, text: str) -> None:
        self._view.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        self._view.stop()


def _bar(total: int, start: int, title: str) -> "tuple[RichProgress, TaskID]":
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    title_column = TextColumn("{task.description}", markup=False)
    bar = RichProgress(title_column, BarColumn(bar_width=None), MofNCompleteColumn(), expand=True)
    return bar, bar.add_task(title, total=total, completed=start)


class Ticker:
    """Progress of a plain loop such as an evaluation: a bar on a terminal, else a line every few seconds.

    In a log file a loop that ends within `TICKER_SECONDS` leaves no line.
    """

    def __init__(
        self,
        title: str,
        total: int,
        enabled: bool = True,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        borrowed: "_LivePanel | None" = None,
    ) -> None:
        self._title = title
        self._total = total
        self._enabled = enabled
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._borrowed = borrowed
        self._started = self._spoke = clock()
        self._done = 0
        self._live: _LivePanel | None = None

    def __enter__(self) -> Self:
        self._started = self._spoke = self._clock()
        if self._enabled and self._borrowed is None and is_live(self._stream):
            self._live = _LivePanel(self._total, 0, self._title, self._stream)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def advance(self, count: int = 1, detail: str = "") -> None:
        """``count`` more of the total are done; ``detail`` is shown behind the times."""
        self._done += count
        now = self._clock()
        elapsed = now - self._started
        left = duration(elapsed / self._done * (self._total - self._done)) if self._done else MISSING
        times = f"elapsed {duration(elapsed)}  left {left}" + (f"  {detail}" if detail else "")
        if self._borrowed is not None:
            self._borrowed.say(f"{self._title} {self._done}/{self._total}  {times}")
        elif self._live is not None:
            self._live.show(self._done, times)
        elif self._enabled and now - self._spoke >= TICKER_SECONDS:
            self._spoke = now
            print(f"{self._title} {self._done}/{self._total}  {times}", file=self._stream, flush=True)
