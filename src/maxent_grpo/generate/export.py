"""Generated rows as lines, as a folder of `datasets`, and on the hub."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.generate.engine import Completed
from maxent_grpo.generate.settings import GenerateSettings

if TYPE_CHECKING:
    from datasets import Dataset

DATASET_FOLDER = "dataset"
SUFFIXES = ("", "_row", "_prompt", "_finish_reasons", "_tokens", "_model")
"""Of ``output_column``: the columns that a generation adds."""


def plain_row(settings: GenerateSettings, row: Mapping[str, Any], completed: Completed) -> dict[str, Any]:
    """The line of one row: its columns, and what was generated."""
    stem = settings.output_column
    return {name: _plain(value) for name, value in row.items()} | {
        stem: [reply.text for reply in completed.replies],
        f"{stem}_row": completed.index,
        f"{stem}_prompt": completed.prompt,
        f"{stem}_finish_reasons": [reply.finish_reason for reply in completed.replies],
        f"{stem}_tokens": [reply.tokens for reply in completed.replies],
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

    Raises `RunError` where the hub does not take it.
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
                    line = json.loads(file.readline())
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
