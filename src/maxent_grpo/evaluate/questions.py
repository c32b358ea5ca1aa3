"""The questions of a benchmark: rows with their columns found, golds read, duplicates refused."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maxent_grpo.data.sources import load_rows
from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.presets import ID_COLUMNS, Benchmark
from maxent_grpo.tasks.answers import extract_answer

SOLUTION_COLUMNS = ("solution", "reference_solution")
"""Columns that hold a worked solution: the gold is what stands in its last box."""

TASK_COLUMNS = ("task", "facts", "modes")


@dataclass(frozen=True)
class Question:
    """One row of a benchmark."""

    index: int  # row in the data set: its identity in keys, artifacts and tables
    text: str  # the problem, as the user says it
    gold: Any  # as the data set has it, a final answer or several alternatives; JSON values only
    task: str | None = None  # procedural tasks: name, facts for the verifier, number of right answers
    facts: str | None = None
    mode_count: int | None = None


def load_questions(benchmark: Benchmark) -> list[Question]:
    """All questions of ``benchmark``, in the data set's order.

    Raises:
        UsageError: no such data, no rows, a missing column, a row without problem or gold, or an id that is there
            twice.
        RunError: the hub cannot be reached.
    """
    rows = load_rows(benchmark.dataset_name, config=benchmark.dataset_config, split=benchmark.split)
    available = list(rows.column_names)
    name = f"dataset '{benchmark.dataset_name}'"
    prompt = _column(available, (benchmark.prompt_column, *benchmark.prompt_fallbacks), "prompt_column", name)
    answer = _column(available, (benchmark.answer_column, *benchmark.answer_fallbacks), "answer_column", name)
    if benchmark.grader == "task":
        for column in TASK_COLUMNS:
            _column(available, (column,), "grader=math unless it has one", name)
    _refuse_duplicates(rows, available, benchmark, name)
    return [_question(index, row, prompt, answer, benchmark, name) for index, row in enumerate(rows)]


def content_digest(questions: Sequence[Question]) -> str:
    """SHA-256 of everything in ``questions`` that a model reads or a grader compares with."""
    digest = hashlib.sha256()
    for q in questions:
        digest.update(json.dumps([q.index, q.text, q.gold, q.task, q.facts], sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _column(available: Sequence[str], candidates: Sequence[str], setting: str, name: str) -> str:
    for column in candidates:
        if column in available:
            return column
    wanted = " or ".join(f"'{column}'" for column in candidates)
    raise UsageError(
        f"{name}: no column {wanted}; it has {', '.join(available)}: set inference.eval.{setting}"
    )


def _refuse_duplicates(rows: Any, available: Sequence[str], benchmark: Benchmark, name: str) -> None:
    column = benchmark.id_column
    if column == "auto":
        column = next((known for known in ID_COLUMNS if known in available), None)
    elif column is not None:
        _column(available, (column,), "id_column", name)
    if column is None:
        return
    first: dict[str, int] = {}
    for index, value in enumerate(rows[column]):
        key = json.dumps(value, default=str)
        if key in first:
            raise UsageError(
                f"{name}: rows {first[key]} and {index} both have {column}={key}: drop one, or set "
                "inference.eval.id_column=null if the column is no identity"
            )
        first[key] = index


def _question(
    index: int, row: Mapping[str, Any], prompt: str, answer: str, benchmark: Benchmark, name: str
) -> Question:
    text = row[prompt]
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"{name}: row {index}: column '{prompt}' holds no text but {_short(text)}")
    gold = _gold(row[answer], answer)
    if gold is None:
        raise UsageError(f"{name}: row {index}: column '{answer}' holds no answer but {_short(row[answer])}")
    if benchmark.grader == "math":
        return Question(index, text, gold)
    return Question(index, text, gold, row["task"], row["facts"], len(row["modes"]))


def _gold(value: Any, column: str) -> Any:
    """The final answer in a gold column; None where there is none.

    A worked solution answers in its last ``\\boxed{…}``; GSM8K's answers after ``####``.
    """
    if isinstance(value, list):
        golds = [gold for item in value if (gold := _gold(item, column)) is not None]
        return golds or None
    if not isinstance(value, str):
        return value
    if column in SOLUTION_COLUMNS:
        return extract_answer(value) if "\\boxed" in value else None
    return value.rpartition("####")[2].strip() or None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
