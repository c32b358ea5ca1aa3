"""Artifact files: one line per prompt, on disk before the next prompt counts (`maxent_grpo.files` says how).

``seed_0.jsonl`` holds the lines, ``seed_0.fingerprint.json`` beside it what they depend on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from maxent_grpo.evaluate.records import Record
from maxent_grpo.files import Fingerprint, RowFile, read_rows

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


class AnswerFile(RowFile):
    """One artifact file, locked from opening to closing. Use as a context manager; `load` before anything else.

    Raises on opening: `RunError` where another process has the file, `UsageError` where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, elsewhere="inference.artifacts.root_dir", start_over=START_OVER)
        self.records: dict[int, Record] = {}

    def load(self, fingerprint: Fingerprint, resume: bool) -> None:
        """Read what is there, if it was made under the same ``fingerprint``; with ``resume`` false, drop it.

        Raises:
            UsageError: lines made under another fingerprint or none, a line that is no record, or a prompt that is
                there twice.
        """
        self.begin(fingerprint, resume)
        self.records = read_records(self.path)

    def append(self, record: Record) -> None:
        """Write one line; it is on the disk when this returns."""
        super().append(record)
        self.records[record["prompt_index"]] = record


def read_records(path: Path) -> dict[int, Record]:
    """The lines of an artifact by prompt; a last line without its end is left out.

    Raises `UsageError` for any other line that is no record, and for a prompt that is there twice.
    """
    no_row = "is no record of a prompt with its scores"
    rows = read_rows(path, "prompt_index", _is_record, no_row=no_row, called="prompt")
    return {row["prompt_index"]: row for row in rows}


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
