"""Artifacts: one line per prompt with its samples under one seed and what they are worth, resumable line by line.

``seed_0.jsonl`` holds the lines, ``seed_0.fingerprint.json`` beside it what they depend on (`maxent_grpo.files`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from maxent_grpo.evaluate.passk import RIGHT, ScoredSamples
from maxent_grpo.files import Fingerprint, RowFile, read_rows, replace_file

Record = Mapping[str, Any]
"""One line. Its keys are documented in docs/guides/evaluation.md."""

_THINKING = re.compile(r"(?:.*?<think>)?(?P<think>.*?)</think>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Samples:
    """The completions of one question, as a backend gives them."""

    index: int  # of the question
    prompt: str  # what the model read, as far as the backend knows
    completions: tuple[str, ...]
    finish_reasons: tuple[str, ...]  # "stop", or "length" where the completion was cut off


@dataclass(frozen=True)
class Unanswered:
    """A question that has no samples, and why."""

    index: int  # of the question
    error: str


@dataclass(frozen=True)
class Grade:
    """One completion, judged."""

    score: float  # 1 for a right answer, else 0
    extracted: str | None  # the answer as it was read; None where none was found
    mode: str | None = None  # the key of the right answer that it is, for tasks that have such keys


def graded(samples: Samples, grades: Sequence[Grade], mode_count: int | None) -> dict[str, Any]:
    """The part of a record that says what ``samples`` are and what they are worth."""
    right = [grade.score >= RIGHT for grade in grades]
    parts = [split_thinking(text) for text in samples.completions]
    return {
        "generations": list(samples.completions),
        "think_generations": [think for think, _ in parts],
        "answer_generations": [answer for _, answer in parts],
        "answer_extracted": [grade.extracted for grade in grades],
        "answer_modes": [grade.mode for grade in grades],
        "mode_count": mode_count,
        "finish_reasons": list(samples.finish_reasons),
        "scores": [grade.score for grade in grades],
        "pass_at_1_ok": right[0],
        "pass_at_k_ok": any(right),
        "correct": right[0],
        "correct_k": sum(right),
    }


def split_thinking(text: str) -> tuple[str, str]:
    """The thought inside ``<think>…</think>`` and what follows it; ("", text) where no thought is closed."""
    found = _THINKING.match(text)
    return (found["think"], text[found.end() :]) if found else ("", text)


def scored_samples(records: Sequence[Record]) -> ScoredSamples:
    """The records of one seed, one row each."""
    enumerated = records[0]["mode_count"] is not None
    keyed = enumerated or any(mode is not None for record in records for mode in record["answer_modes"])
    return ScoredSamples(
        scores=np.array([record["scores"] for record in records], dtype=np.float64),
        modes=tuple(tuple(record["answer_modes"]) for record in records) if keyed else None,
        mode_counts=tuple(record["mode_count"] for record in records) if enumerated else None,
        answers=tuple(tuple(record["answer_extracted"]) for record in records)
        if all("answer_extracted" in record for record in records)  # files of other programs may lack it
        else None,
    )


class Answers:
    """The records of one benchmark under one seed, by prompt: in the artifact file ``path``, or in memory (None).

    The file is locked from opening to closing. Use as a context manager; `load` before anything else.

    Raises:
        RunError: another process has the file.
        UsageError: it cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: dict[int, Record] = {}
        self._file: RowFile | None = None
        if path is not None:
            start_over = (
                "inference.artifacts.resume=false starts it over, "
                "another inference.artifacts.root_dir keeps both"
            )
            self._file = RowFile(path, elsewhere="inference.artifacts.root_dir", start_over=start_over)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.__exit__(*error)

    def load(self, fingerprint: Fingerprint, resume: bool) -> None:
        """Read what the file holds, if it was made under the same ``fingerprint``; with ``resume`` false, drop it.

        Raises:
            UsageError: lines made under another fingerprint or none, a line that is no record, or a prompt that is
                there twice.
        """
        if self._file is not None:
            self._file.begin(fingerprint, resume)
            self.records = read_records(self._file.path)

    def append(self, record: Record) -> None:
        """Add a prompt that is not there yet; its line is on the disk when this returns."""
        if self._file is not None:
            self._file.append(record)
        self.records[record["prompt_index"]] = record

    def write_errors(self, errors: Mapping[int, str]) -> None:
        """Leave the prompts without an answer beside the artifact, in ``errors_<name>.jsonl``; no file for none."""
        if self.path is None:
            return
        path = self.path.with_name(f"errors_{self.path.name}")
        if not errors:
            path.unlink(missing_ok=True)
            return
        rows = [{"prompt_index": index, "error": error} for index, error in sorted(errors.items())]
        replace_file(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_records(path: Path) -> dict[int, Record]:
    """The lines of an artifact by prompt; a torn last line is left out.

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
