"""Benchmarks by name (``benchmarks.yaml``) and their questions: columns found, golds read, duplicates refused."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from maxent_grpo.data.prompts import chat_of, column_value
from maxent_grpo.data.sources import TASK_PREFIX, file_suffix, load_rows
from maxent_grpo.errors import UsageError, did_you_mean
from maxent_grpo.evaluate.settings import read_fields
from maxent_grpo.rewards.math import check_golds
from maxent_grpo.tasks.answers import extract_answer

MATH_SYSTEM_PROMPT = """\
You are an expert mathematician. Work through the problem step by step inside <think> and </think>, and check your
work before you finish. Then write the final answer, and nothing else, inside <answer> and </answer>.
Your whole reply has the form <think>reasoning</think><answer>final answer</answer>."""
"""The system prompt of the mathematics recipes, also in ``configs/prompts/math_system_prompt.txt``."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; every field but the last two can be overridden by ``inference.eval.FIELD``."""

    dataset_id: str  # its name in artifacts and tables
    dataset_name: str  # what `maxent_grpo.data.sources.load_rows` takes: a hub id, a file, ``task:NAME``
    dataset_config: str | None = None
    split: str = "test"
    prompt_column: str = "problem"
    answer_column: str = "answer"
    id_column: str | None = "auto"
    """Must be unique; auto: the first of `ID_COLUMNS` that the rows have; null: unchecked."""
    grader: Literal["math", "task"] = "math"
    grader_policy: Mapping[str, Any] = field(default_factory=dict)
    """Options of `math_answers.GraderPolicy`."""
    prompt_fallbacks: tuple[str, ...] = ()  # read, in this order, where prompt_column is missing
    answer_fallbacks: tuple[str, ...] = ()

    @property
    def system_prompt(self) -> str | None:
        """For models that bring none of their own: the mathematics prompt, or nothing for procedural tasks."""
        return MATH_SYSTEM_PROMPT if self.grader == "math" else None


ID_COLUMNS = ("unique_id", "id", "idx")
SOLUTION_COLUMNS = ("solution", "reference_solution")
"""Columns that hold a worked solution: the gold is what stands in its last box."""
TASK_COLUMNS = ("task", "facts", "modes")


def _shipped() -> tuple[dict[str, Benchmark], dict[str, str]]:
    presets: dict[str, Benchmark] = {}
    aliases: dict[str, str] = {}
    listed: dict[str, dict[str, Any]] = yaml.safe_load(
        Path(__file__).with_name("benchmarks.yaml").read_text(encoding="utf-8")
    )
    for name, entry in listed.items():
        aliases |= dict.fromkeys(entry.pop("aliases", ()), name)
        values: Any = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        presets[name] = Benchmark(name, **values)
    return presets, aliases


PRESETS, ALIASES = _shipped()
_OVERRIDE_ALIASES = {"dataset_split": "split", "solution_column": "answer_column", "name": "dataset_name"}
_OVERRIDABLE = tuple(f.name for f in fields(Benchmark) if not f.name.endswith("_fallbacks"))


@dataclass(frozen=True)
class Question:
    """One row of a benchmark."""

    index: int  # row in the data set: its identity in keys, artifacts and tables
    text: str  # the problem, as the user says it
    gold: Any  # as the data set has it, a final answer or several alternatives; JSON values only
    task: str | None = None  # procedural tasks: name, facts for the verifier
    facts: str | None = None
    mode_count: int | None = None  # different right answers, where the row has a column ``modes``
    turns: tuple[Mapping[str, str], ...] = ()  # of a chat: the messages before its last


def resolve_benchmark(name: str, overrides: Mapping[str, Any]) -> Benchmark:
    """The benchmark called ``name`` (a preset, an alias, or any name if ``dataset_name`` is overridden).

    A local file holds one split, called ``train``: that is the split of a ``dataset_name`` that is one, unless
    ``split`` is given as well.

    Raises:
        UsageError: an unknown preset or field, or a value of the wrong type.
    """
    changes = read_fields(Benchmark, overrides, "inference.eval", _OVERRIDE_ALIASES, _OVERRIDABLE)
    key = name.strip().lower().replace("-", "_")
    key = ALIASES.get(key, key)
    data = changes.get("dataset_name")
    if key in PRESETS:
        benchmark = PRESETS[key]
    elif data is not None:
        kind: Literal["math", "task"] = "task" if data.startswith(TASK_PREFIX) else "math"
        benchmark = Benchmark(name, data, grader=kind)
    else:
        hint = did_you_mean(key, [*PRESETS, *ALIASES])
        raise UsageError(
            f"Unknown inference dataset '{name}'{hint}. Supported presets: {', '.join(PRESETS)}; "
            "or name a data set with inference.eval.dataset_name"
        )
    if data is not None and file_suffix(data):
        # What the preset says about its own source does not hold for a file.
        changes = {"split": "train", "dataset_config": None} | changes
    return replace(benchmark, **changes)


def load_questions(benchmark: Benchmark) -> list[Question]:
    """All questions of ``benchmark``, in the data set's order.

    Raises:
        UsageError: no such data, no rows, a missing column, a row without problem or gold, a gold that no answer
            equals, or an id that is there twice.
        RunError: the hub cannot be reached.
    """
    rows = load_rows(benchmark.dataset_name, config=benchmark.dataset_config, split=benchmark.split)
    available = [*rows.column_names, *_paths(rows[0])]
    name = f"dataset '{benchmark.dataset_name}'"
    prompt = _column(available, (benchmark.prompt_column, *benchmark.prompt_fallbacks), "prompt_column", name)
    answer = _column(available, (benchmark.answer_column, *benchmark.answer_fallbacks), "answer_column", name)
    if benchmark.grader == "task":
        for column in TASK_COLUMNS:
            _column(available, (column,), "grader=math unless it has one", name)
    _refuse_duplicates(rows, available, benchmark, name)
    questions = [_question(index, row, prompt, answer, benchmark, name) for index, row in enumerate(rows)]
    if benchmark.grader == "math":
        check_golds(((question.index, question.gold) for question in questions), answer)
    return questions


def content_digest(questions: Sequence[Question]) -> str:
    """SHA-256 of everything in ``questions`` that a model reads or a grader compares with."""
    digest = hashlib.sha256()
    for q in questions:
        said = [q.index, q.text, q.gold, q.task, q.facts, *q.turns]
        digest.update(json.dumps(said, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _column(available: Sequence[str], candidates: Sequence[str], setting: str, name: str) -> str:
    for column in candidates:
        if column in available:
            return column
    wanted = " or ".join(f"'{column}'" for column in candidates)
    raise UsageError(
        f"{name}: no column {wanted}; it has {', '.join(available)}: set inference.eval.{setting}"
    )


def _paths(row: Mapping[str, Any]) -> list[str]:
    """The paths into a row's mappings, such as ``data.problem``."""
    return [
        f"{name}.{path}"
        for name, value in row.items()
        if isinstance(value, Mapping)
        for path in (*value, *_paths(value))
    ]


def _refuse_duplicates(rows: Any, available: Sequence[str], benchmark: Benchmark, name: str) -> None:
    column = benchmark.id_column
    if column == "auto":
        column = next((known for known in ID_COLUMNS if known in available), None)
    elif column is not None:
        _column(available, (column,), "id_column", name)
    if column is None:
        return
    first: dict[str, int] = {}
    for index, row in enumerate(
        rows.select_columns([column.partition(".")[0] if column not in rows.column_names else column])
    ):
        value = column_value(row, column)
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
    asked = column_value(row, prompt)
    *turns, last = chat_of(asked, f"{name}: row {index}, column '{prompt}'") or [
        {"role": "user", "content": ""}
    ]
    text = last["content"]
    if not text.strip():
        raise UsageError(f"{name}: row {index}: column '{prompt}' holds no text but {_short(asked)}")
    if last["role"] != "user":
        raise UsageError(
            f"{name}: row {index}: the chat in column '{prompt}' does not end with the user's message"
        )
    found = column_value(row, answer)
    gold = _gold(found, answer.rpartition(".")[2])
    if gold is None:
        raise UsageError(f"{name}: row {index}: column '{answer}' holds no answer but {_short(found)}")
    if benchmark.grader == "math":
        listed = row.get("modes")
        count = len(listed) if isinstance(listed, list) and isinstance(gold, list) else None
        return Question(index, text, gold, mode_count=count, turns=tuple(turns))
    return Question(index, text, gold, row["task"], row["facts"], len(row["modes"]), tuple(turns))


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
