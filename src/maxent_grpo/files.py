"""Files that survive a kill: whole or not at all (`replace_file`), or one JSON object a line (`JsonlFile`, `RowFile`).

A process may die while it writes a line. A last line without its newline that does not parse is torn: it is never read,
and is cut off before the next line is written. One that parses is whole, since a proper prefix of a JSON object is
never a JSON value.
"""

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from maxent_grpo.errors import RunError, UsageError

Fingerprint = Mapping[str, Any]
"""Dotted name → JSON value."""


def replace_file(path: Path, contents: str | bytes, *, shared: bool = False) -> None:
    """Put ``contents`` at ``path``, on the disk: a reader sees the old file or the new one, also after a crash.

    Text is written as UTF-8, a lone surrogate as an escape. What is unfinished lies beside ``path`` under one name,
    which the next call takes again; ``shared``: under a name of this process, as others may write the same file at the
    same time.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial" if shared else f".{path.name}.partial")
    with unfinished.open("wb") as file:
        file.write(utf8(contents) if isinstance(contents, str) else contents)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def utf8(text: str) -> bytes:
    """``text`` in UTF-8. A lone surrogate, which a model's text may hold, has no such form and becomes ``\\udc80``."""
    return text.encode("utf-8", "backslashreplace")


def escaped(value: Any) -> Any:
    """``value``, text or lists and mappings of it, with every lone surrogate as an escape: for those who need UTF-8."""
    if isinstance(value, str):
        return value if value.isascii() else utf8(value).decode()
    if isinstance(value, Mapping):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [escaped(item) for item in value]
    return value


def strict_json(value: Any) -> Any:
    """``value`` with every NaN and infinity replaced by None, which strict JSON writes as ``null``."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    return value


class JsonlFile:
    """An append-only record of steps, one JSON object a line, that can be cut back to a checkpoint.

    Equal records give equal bytes, so that a run that was killed, cut back and resumed leaves the file of an
    uninterrupted one. Floats are written by ``repr`` and read back as the same float64.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Write ``record`` as one line and flush it. Non-finite numbers become ``null``."""
        with self.path.open("ab") as file:
            file.write(_line(record))

    def cut_back(self, step: int) -> None:
        """Atomically drop the records whose step is greater than ``step``, and a torn last line.

        What stays keeps its bytes. A file that does not exist has nothing to cut; below 0 nothing of it is read.
        """
        if not self.path.exists():
            return
        lines = _step_lines(self.path) if step >= 0 else iter(())
        kept = b"".join(line + b"\n" for line, record in lines if record["step"] <= step)
        if kept != self.path.read_bytes():
            replace_file(self.path, kept)

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """The records of ``path``; a torn last line is left out.

        Raises `RunError` where any other line is not a JSON object with a step.
        """
        return [record for _, record in _step_lines(path)]


class RowFile(JsonlFile, AbstractContextManager["RowFile"]):
    """One JSON object per row of work, each on the disk before it counts, and never two writers in one file.

    ``NAME.fingerprint.json`` beside ``NAME.jsonl`` holds what the lines depend on: they are reused only where all of
    that is the same. The file is locked from opening to closing, by a lock of the kernel that a killed process cannot
    leave behind. Use as a context manager; `begin` before anything else.

    Args:
        elsewhere: the setting that names another place, for messages.
        start_over: how to go on where the file was made otherwise, for messages.

    Raises:
        RunError: another process has the file.
        UsageError: it cannot be written.
    """

    def __init__(self, path: Path, *, elsewhere: str, start_over: str) -> None:
        super().__init__(path)
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

    def __exit__(self, *error: object) -> None:
        """A file without a line, after an error, is taken away again."""
        if any(error) and self._file.seek(0, os.SEEK_END) == 0:
            self.path.unlink(missing_ok=True)
            fingerprint_path(self.path).unlink(missing_ok=True)
        self._file.close()  # which also gives the lock back

    def begin(self, fingerprint: Fingerprint, resume: bool) -> None:
        """Keep the whole lines that are there, if they have the same ``fingerprint``; with ``resume`` false, none.

        Raises `UsageError` for lines made under another fingerprint or none.
        """
        if resume:
            self._cut_torn_line()
        else:
            self._file.truncate(0)
        saved_at, now = fingerprint_path(self.path), json.dumps(dict(fingerprint), indent=1, sort_keys=True)
        if self._file.seek(0, os.SEEK_END) == 0:
            replace_file(saved_at, now + "\n")
            return
        if not saved_at.is_file():
            raise UsageError(
                f"{self.path} has lines, and no {saved_at.name} says what they were made with: {self._start_over}"
            )
        changed = differences(json.loads(saved_at.read_text(encoding="utf-8")), json.loads(now))
        if changed:
            raise UsageError(
                f"{self.path} was made with other settings ({'; '.join(changed)}): {self._start_over}"
            )

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line; it is on the disk when this returns."""
        self._write(_line(record))

    def _write(self, contents: bytes) -> None:
        self._file.write(contents)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _cut_torn_line(self) -> None:
        self._file.seek(0)
        whole, line = 0, b"\n"
        for line in self._file:
            whole += len(line) if line.endswith(b"\n") else 0
        if line.endswith(b"\n"):
            return
        try:
            json.loads(line)
        except ValueError:
            self._file.truncate(whole)
            os.fsync(self._file.fileno())
        else:
            self._write(b"\n")


def fingerprint_path(path: Path) -> Path:
    """The file beside the row file ``path`` that holds its fingerprint."""
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
    """The lines of a row file in order; a torn last line is left out.

    Raises `UsageError` for any other line that is no row, and for a ``key`` that is there twice.
    """
    seen: set[Any] = set()
    for number, (_, row) in enumerate(_lines(path, is_row, no_row, UsageError), start=1):
        if row[key] in seen:
            raise UsageError(
                f"{path}: line {number}: {called} {row[key]} is there twice: delete one of its lines"
            )
        seen.add(row[key])
        yield row


def _line(record: Mapping[str, Any]) -> bytes:
    return utf8(json.dumps(strict_json(record), ensure_ascii=False, allow_nan=False) + "\n")


def _step_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    def has_step(record: Any) -> bool:
        return isinstance(record, dict) and type(record.get("step")) is int

    return _lines(path, has_step, "is not a record with a step", RunError)


def _lines(
    path: Path, is_record: Callable[[Any], bool], no_record: str, error_kind: type[Exception]
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line as its bytes, without the newline, and its record; a torn last line is left out."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    return
                raise error_kind(
                    f"{path}: line {number} is not JSON ({error}): restore the file or delete the line"
                ) from error
            if not is_record(record):
                raise error_kind(f"{path}: line {number} {no_record}: restore the file or delete the line")
            yield line.removesuffix(b"\n"), record
