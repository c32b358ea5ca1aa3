import io
import re
from collections.abc import Callable

import pytest

from maxent_grpo.observe.console import HEADING_EVERY, Progress, Ticker, compact, duration

METRICS = {
    "train/reward": 0.4213,
    "train/pass": 0.94,
    "train/coverage": 0.38,
    "train/tau": 0.05,
    "train/beta": 1.234e-5,
    "train/kl": 0.0123,
    "train/entropy": 1.234,
}


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(use: Callable[[Progress], None], clock: Clock, **settings) -> list[str]:
    stream = io.StringIO()
    with Progress(200, "maxent", stream=stream, clock=clock, **settings) as progress:
        use(progress)
    return stream.getvalue().splitlines()


def test_a_plain_update_is_one_line_with_every_number(clock):
    def use(progress):
        clock.now = 100.0
        progress.update(50, METRICS, {"tokens/s": 812.4})

    title, heading, line = printed(use, clock)
    assert title == "maxent: 200 steps"
    assert heading.split() == [
        "step",
        "reward",
        "pass",
        "cover",
        "τ",
        "β",
        "KL",
        "entr",
        "tok/s",
        "time",
        "left",
    ]
    assert line.split() == [
        "50/200",
        "0.421",
        "0.940",
        "0.380",
        "0.05",
        "1.2e-05",
        "0.0123",
        "1.23",
        "812",
        "1m40",
        "5m00",
    ]


def test_plain_lines_fit_80_columns_and_hold_no_control_codes(clock):
    def use(progress):
        clock.now = 200_000.0
        progress.update(150, METRICS, {"tokens/s": 123_456.0})

    for line in printed(use, clock):
        assert len(line) < 80
        assert not re.search(r"[\x00-\x1f\x7f]", line)


def test_missing_metrics_show_as_a_dash(clock):
    line = printed(lambda progress: progress.update(0, {"train/reward": None}, {}), clock)[-1]
    assert line.split() == ["0/200", *["–"] * 8, "0s", "–"]


def test_time_left_counts_the_steps_of_this_process_alone(clock):
    def use(progress):
        clock.now = 10.0
        progress.update(110, {}, {})

    assert printed(use, clock, start_step=100)[-1].split()[-2:] == ["10s", "1m30"]


def test_the_heading_comes_back_in_a_long_log(clock):
    lines = printed(lambda p: [p.update(s, METRICS, {}) for s in range(1, 2 * HEADING_EVERY + 1)], clock)
    assert sum("reward" in line for line in lines) == 2


def test_disabled_progress_prints_nothing(clock):
    def use(progress):
        progress.update(1, METRICS, {})
        progress.note("hello")

    assert printed(use, clock, enabled=False) == []


def test_a_terminal_gets_a_live_panel(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    with Progress(200, "max[ent]", stream=stream, clock=clock) as progress:
        progress.update(50, METRICS, {"tokens/s": 812.4})
        progress.note("resumed [from] step 40")
    text = stream.getvalue()
    assert "\x1b[" in text
    for part in ("max[ent]", "50/200", "reward 0.421", "resumed [from] step 40"):
        assert part in text


def test_a_short_loop_is_silent_and_a_long_one_speaks_every_few_seconds(clock):
    stream = io.StringIO()
    with Ticker("evaluation", 20, stream=stream, clock=clock) as ticker:
        for _ in range(20):
            clock.now += 1.0
            ticker.advance()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "evaluation 5/20  elapsed 5s  left 15s"
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m00"), (80, "1m20"), (18_540, "5h09"), (183_600, "2d03")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (1e-4, "1.0e-04"), (0.0512, "0.0512"), (12345.0, "1.2e+04")]
)
def test_compact_numbers(value, text):
    assert compact(value) == text
