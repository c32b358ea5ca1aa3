"""Rows of a data set: their prompts, and what was generated as lines, as a folder of `datasets`, and on the hub."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from maxent_grpo.data.templates import EndlessTemplateError, rendered
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.files import escaped
from maxent_grpo.generate.client import Reply
from maxent_grpo.generate.settings import PROMPT_COLUMNS, GenerateSettings

if TYPE_CHECKING:
    from datasets import Dataset

INSTRUCTION = "instruction"
"""A template's name for the prompt column."""


class EmptyPrompt(Exception):
    """A row that asks for nothing, or cannot be rendered; the message says which."""


class Prompts:
    """The rendered prompt of each row.

    Raises:
        UsageError: a column that the rows do not have, or a template that cannot work.
    """

    def __init__(self, settings: GenerateSettings, rows: "Dataset") -> None:
        self.column = prompt_column(settings, rows.column_names)
        # The template comes from the user, the values from strangers: neither gets at Python's internals.
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        try:
            self._template = environment.from_string(settings.prompt_template)
            variables = meta.find_undeclared_variables(environment.parse(settings.prompt_template))
        except TemplateSyntaxError as error:
            raise UsageError(f"prompt_template: not a Jinja template ({error})") from error
        if not variables:
            raise UsageError(
                f"prompt_template={settings.prompt_template!r} reads nothing of a row, so that all prompts would be "
                "the same: write {{ instruction }} where the prompt goes"
            )
        unknown = sorted(variables - {INSTRUCTION, *rows.column_names})
        if unknown:
            raise UsageError(
                f"prompt_template: there is no {', '.join(unknown)}; it may read {INSTRUCTION} and the columns "
                f"{', '.join(rows.column_names)}"
            )
        read = {self.column if name == INSTRUCTION else name for name in variables}
        self._rows = rows.select_columns(sorted(read))

    def __getitem__(self, index: int) -> str:
        """Raises `EmptyPrompt`."""
        row: dict[str, Any] = self._rows[index]
        value = row.get(self.column)
        if self.column in row and not isinstance(value, str):
            raise EmptyPrompt(f"column {self.column} holds no text but {type(value).__name__}")
        try:
            text = rendered(partial(self._template.render, row | {INSTRUCTION: value}))
        except (TemplateError, TypeError, ValueError, EndlessTemplateError) as error:
            raise EmptyPrompt(f"prompt_template: {type(error).__name__}: {error}") from error
        if not text.strip():
            raise EmptyPrompt("the prompt is empty")
        return text

    def digest(self) -> str:
        """SHA-256 of everything that prompts are made of, all rows."""
        digest = hashlib.sha256()
        for row in self._rows:
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()


def prompt_column(settings: GenerateSettings, columns: Sequence[str]) -> str:
    """The column that holds the prompts. Raises `UsageError` where there is none."""
    wanted = PROMPT_COLUMNS if settings.prompt_column is None else (settings.prompt_column,)
    found = next((name for name in wanted if name in columns), None)
    if found is None:
        raise UsageError(
            f"prompt_column: dataset '{settings.hf_dataset}' has no {' or '.join(wanted)}; it has {', '.join(columns)}"
        )
    return found


DATASET_FOLDER = "dataset"
SUFFIXES = ("", "_row", "_prompt", "_finish_reasons", "_tokens", "_model")
"""Of ``output_column``: the columns that a generation adds."""


def plain_row(
    settings: GenerateSettings, row: Mapping[str, Any], index: int, prompt: str, replies: Sequence[Reply]
) -> dict[str, Any]:
    """The line of one row: its columns, and what was generated."""
    stem = settings.output_column
    return {name: _plain(value) for name, value in row.items()} | {
        stem: [reply.text for reply in replies],
        f"{stem}_row": index,
        f"{stem}_prompt": prompt,
        f"{stem}_finish_reasons": [reply.finish_reason for reply in replies],
        f"{stem}_tokens": [reply.tokens for reply in replies],
        f"{stem}_model": settings.model,
    }


def refuse_bad_columns(settings: GenerateSettings, rows: "Dataset") -> None:
    """Raise `UsageError` for a column that would be overwritten, or that JSON cannot say."""
    added = {settings.output_column + suffix for suffix in (*SUFFIXES, "_error")}
    for name in rows.column_names:
        if name in added:
            raise UsageError(
                f"dataset '{settings.hf_dataset}' has a column {name!r} already: set output_column to another name"
            )
    for name, value in rows[0].items():
        try:
            json.dumps(_plain(value))
        except TypeError as error:
            raise UsageError(
                f"dataset '{settings.hf_dataset}': column {name!r} cannot be written as JSON ({error}): save the "
                "data set without it"
            ) from error


def refuse_unreachable_hub(settings: GenerateSettings) -> None:
    """Raise `UsageError` where ``hf_output_dataset`` could not be pushed after hours of generating."""
    if settings.hf_output_dataset is None:
        return
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UsageError("hf_output_dataset: HF_HUB_OFFLINE is set; unset it, or leave hf_output_dataset out")
    if get_token() is None:
        raise UsageError("hf_output_dataset: no access to the hub; run `hf auth login` or export HF_TOKEN")


def export(
    settings: GenerateSettings,
    rows: "Dataset",
    path: Path,
    wanted: Sequence[int],
    failures: Mapping[int, str],
) -> list[Path]:
    """Write the folder and push the data set, as far as ``settings`` ask for them; returns what was written.

    Raises:
        RunError: the hub does not take it.
    """
    if settings.output_format != "dataset" and settings.hf_output_dataset is None:
        return []
    cache = path.parent / ".cache"
    shutil.rmtree(cache, ignore_errors=True)  # a killed call may have left one
    try:
        return _export(settings, rows, path, wanted, failures, cache)
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _export(
    settings: GenerateSettings,
    rows: "Dataset",
    path: Path,
    wanted: Sequence[int],
    failures: Mapping[int, str],
    cache: Path,
) -> list[Path]:
    from datasets import concatenate_datasets, disable_progress_bars

    disable_progress_bars()
    generated = _generated(settings, path, wanted, failures, cache)
    whole = concatenate_datasets([rows.select(wanted), generated], axis=1)
    written = []
    if settings.output_format == "dataset":
        folder, partial = path.parent / DATASET_FOLDER, path.parent / f"{DATASET_FOLDER}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        whole.save_to_disk(str(partial))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        written.append(folder)
    if settings.hf_output_dataset is not None:
        try:
            whole.push_to_hub(settings.hf_output_dataset, private=settings.private)
        except OSError as error:  # the hub's HTTP errors are of this kind, too
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunError(
                f"hf_output_dataset: {settings.hf_output_dataset} was not pushed ({reason}); the rows are in {path}: "
                "the same command pushes them without generating again"
            ) from error
    return written


def _generated(
    settings: GenerateSettings, path: Path, wanted: Sequence[int], failures: Mapping[int, str], cache: Path
) -> "Dataset":
    """The columns that were generated, in the order of the rows; what failed has empty lists and its error."""
    from datasets import Dataset, Features, List, Value

    stem = settings.output_column
    offsets = _line_offsets(path, f"{stem}_row")

    def one_by_one() -> Iterator[dict[str, Any]]:
        with path.open("rb") as file:
            for index in wanted:
                line: dict[str, Any] = {}
                if index not in failures:
                    file.seek(offsets[index])
                    line = escaped(json.loads(file.readline()))
                row = {stem + suffix: line.get(stem + suffix) for suffix in SUFFIXES}
                yield row | {f"{stem}_row": index, f"{stem}_error": failures.get(index)}

    features = Features(
        {
            stem: List(Value("string")),
            f"{stem}_row": Value("int64"),
            f"{stem}_prompt": Value("string"),
            f"{stem}_finish_reasons": List(Value("string")),
            f"{stem}_tokens": List(Value("int64")),
            f"{stem}_model": Value("string"),
            f"{stem}_error": Value("string"),
        }
    )
    generated: Dataset = Dataset.from_generator(one_by_one, features=features, cache_dir=str(cache))
    return generated if failures else generated.remove_columns(f"{stem}_error")


def _line_offsets(path: Path, key: str) -> dict[int, int]:
    """Row → where its line starts, in bytes."""
    offsets, position = {}, 0
    with path.open("rb") as file:
        for line in file:
            offsets[json.loads(line)[key]] = position
            position += len(line)
    return offsets


def _plain(value: Any) -> Any:
    """``value`` in terms of JSON, dates as ISO 8601 text; what has no such form is left for JSON to refuse."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
