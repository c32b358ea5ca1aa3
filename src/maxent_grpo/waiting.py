"""What this process waits for, said on standard error while a wait takes long, and waits that end at a deadline."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")

FIRST_WORD = 60.0
"""Seconds after which a wait is told; then after twice as many, and so on."""
LOOK_EVERY = 1.0
GRACE = 10.0
"""Seconds for a call that was given up to notice."""


class Late(Exception):
    """A call that had not returned at its deadline."""


class _Waits:
    """The waits of this process that are under way, and the thread that looks at them."""

    def __init__(self) -> None:
        self._waits: dict[int, tuple[str, float, float]] = {}
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None

    def begin(self, what: str, first_word: float) -> int:
        with self._lock:
            key = max(self._waits, default=0) + 1
            self._waits[key] = (what, time.monotonic(), first_word)
            if self._watcher is None or not self._watcher.is_alive():  # a fork leaves threads behind
                self._watcher = threading.Thread(target=self._watch, name="waits", daemon=True)
                self._watcher.start()
            return key

    def end(self, key: int) -> None:
        with self._lock:
            del self._waits[key]

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_EVERY)
            with self._lock:
                now = time.monotonic()
                late = [(key, wait) for key, wait in self._waits.items() if now - wait[1] >= wait[2]]
                for key, (what, began, word) in late:
                    self._waits[key] = (what, began, 2 * word)
            for _, (what, began, _) in late:
                print(f"{_who()}waiting since {now - began:.0f} s for {what}", file=sys.stderr, flush=True)


_WAITS = _Waits()


def _who() -> str:
    return f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""


@contextmanager
def waiting(what: str, first_word: float = FIRST_WORD) -> Iterator[None]:
    """Around a call that others may keep waiting: ``what`` it waits for is told after ``first_word`` seconds."""
    key = _WAITS.begin(what, first_word)
    try:
        yield
    finally:
        _WAITS.end(key)


def within(seconds: float, call: Callable[[], Result], give_up: Callable[[], None]) -> Result:
    """``call``'s result, or what it raised; after ``seconds`` without either, `Late`.

    The call runs in a thread of its own. One that is late is left behind after ``give_up``, which should make it
    return: what blocks in a library cannot be interrupted from outside, and ends with the process at the latest.

    Raises:
        Late: it had not returned.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001  raised again below, in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=work, name="within a deadline", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        give_up()
        thread.join(GRACE)
        raise Late(f"no answer within {seconds:g} s")
    if errors:
        raise errors[0]
    return results[0]
