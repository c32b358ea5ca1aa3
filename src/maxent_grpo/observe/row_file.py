"""Files of one JSON object per row of work: each on the disk before it counts, and never two writers in one file.

``NAME.jsonl`` holds the lines, ``NAME.fingerprint.json`` beside it what they depend on: lines are reused only where
all of that is the same. Only one process at a time has a file: a lock of the kernel, which a killed process cannot
leave behind.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.observe.metrics_log import strict_json
from maxent_grpo.whole_files import replace_file

Fingerprint = Mapping[str, Any]
"""Dotted name → JSON value."""


class RowFile:
    """One file, locked from opening to closing. Use as a context manager; `begin` before anything else.

    Args:
        elsewhere: the setting that names another place, for messages.
        start_over: how to go on where the file was made otherwise, for messages.

    Raises on opening: `RunError` where another process has the file, `UsageError` where it cannot be written.
    """

    def __init__(self, path: Path, *, elsewhere: str, start_over: str) -> None:
        self.path = path
        self._start_over = start_over
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written ({error.strerror}): choose another {elsewhere}"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise RunError(
                f"{path}: another process is writing it: wait for that one, or set another {elsewhere}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()  # which also gives the lock back

    @property
    def fingerprint_path(self) -> Path:
        return fingerprint_path(self.path)

    def begin(self, fingerprint: Fingerprint, resume: bool) -> None:
        """Keep the lines that are there, if they were made under the same ``fingerprint``; with ``resume`` false, none.

        A last line without its end was being written when a process died: it is cut off.

        Raises `UsageError` for lines made under another fingerprint or none.
        """
        if resume:
            self._cut_torn_line()
        else:
            self._file.truncate(0)
        if self._file.seek(0, os.SEEK_END) == 0:
            replace_file(self.fingerprint_path, _json(fingerprint) + "\n")
            return
        self._refuse_other(fingerprint)

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one line; it is on the disk when this returns."""
        line = json.dumps(strict_json(row), ensure_ascii=False, allow_nan=False) + "\n"
        # A lone surrogate, which a tokenizer may decode to, has no UTF-8 form; as an escape it is still JSON.
        self._file.write(line.encode("utf-8", "backslashreplace"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _cut_torn_line(self) -> None:
        self._file.seek(0)
        whole = length = 0
        for line in self._file:
            length += len(line)
            whole = length if line.endswith(b"\n") else whole
        if whole < length:
            self._file.truncate(whole)
            os.fsync(self._file.fileno())

    def _refuse_other(self, fingerprint: Fingerprint) -> None:
        if not self.fingerprint_path.is_file():
            raise UsageError(
                f"{self.path} has lines, and no {self.fingerprint_path.name} says what they were made with: "
                f"{self._start_over}"
            )
        saved = json.loads(self.fingerprint_path.read_text(encoding="utf-8"))
        changed = differences(saved, json.loads(_json(fingerprint)))
        if changed:
            raise UsageError(
                f"{self.path} was made with other settings ({'; '.join(changed)}): {self._start_over}"
            )


def fingerprint_path(path: Path) -> Path:
    """Where the fingerprint of the file ``path`` lies."""
    return path.with_suffix(".fingerprint.json")


def differences(saved: Fingerprint, now: Fingerprint) -> list[str]:
    """``name: SAVED in the file, NOW here`` for every field that differs."""
    missing = "unknown"
    return [
        f"{name}: {saved.get(name, missing)} in the file, {now.get(name, missing)} here"
        for name in dict.fromkeys((*saved, *now))
        if saved.get(name, missing) != now.get(name, missing)
    ]


def read_rows(
    path: Path, key: str, is_row: Callable[[Any], bool], *, no_row: str, called: str
) -> Iterator[dict[str, Any]]:
    """The lines of ``path`` in order; a last line without its end is left out.

    Raises `UsageError` for any other line that is no row, and for a ``key`` that is there twice.
    """
    seen: set[Any] = set()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UsageError(
                    f"{path}: line {number} is not JSON ({error}): restore the file or delete the line"
                ) from error
            if not is_row(row):
                raise UsageError(f"{path}: line {number} {no_row}: restore the file or delete the line")
            if row[key] in seen:
                raise UsageError(
                    f"{path}: line {number}: {called} {row[key]} is there twice: delete one of its lines"
                )
            seen.add(row[key])
            yield row


def _json(fingerprint: Fingerprint) -> str:
    return json.dumps(dict(fingerprint), indent=1, sort_keys=True)
