"""Artifact files: one line per prompt, on disk before the next prompt counts, and never two evaluations in one file.

``seed_0.jsonl`` holds the lines, ``seed_0.fingerprint.json`` beside it what they depend on. Only one process at a
time has a file: a lock of the kernel, which a killed process cannot leave behind.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.evaluate.fingerprint import Fingerprint, differences
from maxent_grpo.evaluate.records import Record
from maxent_grpo.observe.metrics_log import strict_json

START_OVER = (
    "inference.artifacts.resume=false starts it over, another inference.artifacts.root_dir keeps both"
)


class Answers(Protocol):
    """The answers to one benchmark under one seed, by prompt."""

    @property
    def records(self) -> Mapping[int, Record]:
        """prompt_index → its line."""
        ...

    def append(self, record: Record) -> None:
        """Add a prompt that is not there yet."""
        ...


class AnswersInMemory:
    """For evaluations that keep no artifacts."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}

    def append(self, record: Record) -> None:
        self.records[record["prompt_index"]] = record


class AnswerFile:
    """One artifact file, locked from opening to closing. Use as a context manager; `load` before anything else.

    Raises on opening: `RunError` where another process has the file, `UsageError` where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[int, Record] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written ({error.strerror}): choose another inference.artifacts.root_dir"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise RunError(
                f"{path}: another process is writing it: wait for that one, or set another inference.artifacts.root_dir"
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

    def load(self, fingerprint: Fingerprint, resume: bool) -> None:
        """Read what is there, if it was made under the same ``fingerprint``; with ``resume`` false, drop it.

        A last line without its end was being written when a process died: it is cut off and its prompt is asked again.

        Raises:
            UsageError: lines made under another fingerprint or none, a line that is no record, or a prompt that is
                there twice.
        """
        if resume:
            self._cut_torn_line()
        else:
            self._file.truncate(0)
        if self._file.seek(0, os.SEEK_END) == 0:
            _write_atomically(self.fingerprint_path, fingerprint)
            return
        self._refuse_other(fingerprint)
        self.records = read_records(self.path)

    def append(self, record: Record) -> None:
        """Write one line; it is on the disk when this returns."""
        line = json.dumps(strict_json(record), ensure_ascii=False, allow_nan=False) + "\n"
        # A lone surrogate, which a tokenizer may decode to, has no UTF-8 form; as an escape it is still JSON.
        self._file.write(line.encode("utf-8", "backslashreplace"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records[record["prompt_index"]] = record

    def _cut_torn_line(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
            os.fsync(self._file.fileno())

    def _refuse_other(self, fingerprint: Fingerprint) -> None:
        if not self.fingerprint_path.is_file():
            raise UsageError(
                f"{self.path} has lines, and no {self.fingerprint_path.name} says what they were made with: "
                f"{START_OVER}"
            )
        saved = json.loads(self.fingerprint_path.read_text(encoding="utf-8"))
        changed = differences(saved, json.loads(_json(fingerprint)))
        if changed:
            raise UsageError(f"{self.path} was made with other settings ({'; '.join(changed)}): {START_OVER}")


def fingerprint_path(path: Path) -> Path:
    """Where the fingerprint of the artifact ``path`` lies."""
    return path.with_suffix(".fingerprint.json")


def read_records(path: Path) -> dict[int, Record]:
    """The lines of an artifact by prompt; a last line without its end is left out.

    Raises `UsageError` for any other line that is no record, and for a prompt that is there twice.
    """
    records: dict[int, Record] = {}
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UsageError(
                f"{path}: line {number} is not JSON ({error}): restore the file or delete the line"
            ) from error
        if not _is_record(record):
            raise UsageError(
                f"{path}: line {number} is no record of a prompt with its scores: restore the file or delete the line"
            )
        index = record["prompt_index"]
        if index in records:
            raise UsageError(f"{path}: line {number}: prompt {index} is there twice: delete one of its lines")
        records[index] = record
    return records


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("prompt_index"), int):
        return False
    scores, samples = record.get("scores"), record.get("num_generations")
    return (
        isinstance(scores, list)
        and len(scores) == samples
        and len(scores) > 0
        and all(isinstance(score, int | float) for score in scores)
        and {"generations", "answer_modes", "mode_count", "pass_at_1_ok"} <= record.keys()
    )


def _write_atomically(path: Path, fingerprint: Fingerprint) -> None:
    replacement = path.with_name(path.name + ".new")
    with replacement.open("w", encoding="utf-8") as file:
        file.write(_json(fingerprint) + "\n")
        file.flush()
        os.fsync(file.fileno())
    replacement.replace(path)


def _json(fingerprint: Fingerprint) -> str:
    return json.dumps(dict(fingerprint), indent=1, sort_keys=True)
