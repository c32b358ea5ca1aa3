"""Loading rows: procedural tasks, local files and folders, and the Hugging Face hub."""

import gzip
import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.named import load_named

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

T = TypeVar("T")

TASK_PREFIX = "task:"
ENVIRONMENT_PREFIXES = ("verifiers:", "openenv:")
FILE_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
"""File suffix → the `datasets` builder that reads it."""


def file_suffix(name: str) -> str | None:
    """The key of `FILE_BUILDERS` that ``name`` ends with, compressed (``.jsonl.gz``) or not; None where it has none."""
    suffix = Path(name.removesuffix(".gz")).suffix
    return suffix if suffix in FILE_BUILDERS else None


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and how patiently, a download that failed for a passing reason is tried again."""

    retries: int = 6  # after the first attempt
    sleep: float = 2.0  # seconds before the first retry, doubled for each further one
    max_sleep: float = 60.0  # seconds; applies before jitter

    def delay(self, retry: int) -> float:
        """Seconds to wait before the ``retry``-th retry (from 1), without jitter."""
        return min(self.sleep * 2.0 ** (retry - 1), self.max_sleep)


def load_rows(
    name: str,
    *,
    config: str | None = None,
    split: str = "train",
    columns: Sequence[str] | None = None,
    retry: RetryPolicy | None = None,
) -> "Dataset":
    """The rows of one split of a dataset.

    Args:
        name: ``task:NAME`` for a procedural task; ``verifiers:TASKSET`` or ``openenv:URL`` for the episodes of an
            environment; else a local file (.jsonl, .json, .parquet, .csv, .tsv; also with
            .gz behind); else a local folder, either saved with ``save_to_disk`` or holding data files; else a
            dataset of the Hugging Face hub.
        config: the options of a procedural task, or the configuration of a hub dataset.
        split: a file, and a single dataset saved with ``save_to_disk``, hold one split called ``train``.
            Slices such as ``train[:100]`` work where `datasets.load_dataset` does the loading: files,
            folders of files and the hub.
        columns: keep only these.
        retry: patience with the hub; ``None`` for the defaults.

    Raises:
        UsageError: no such file, dataset, configuration, split or column; an unreadable file; no rows.
        RunError: the hub cannot be reached.
    """
    if name.startswith(TASK_PREFIX):
        rows = _task_rows(name, config or "", split)
    elif name.startswith(ENVIRONMENT_PREFIXES):
        rows = _environment_rows(name, config or "", split)
    elif Path(name).expanduser().is_file():
        rows = _file_rows(name, split)
    elif Path(name).expanduser().is_dir():
        rows = _folder_rows(name, config, split)
    elif file_suffix(name) or name.startswith((".", "/", "~")):
        raise UsageError(f"dataset '{name}': there is no such file or folder (looked from {Path.cwd()})")
    else:
        rows = _hub_rows(name, config, split, retry or RetryPolicy())
    if len(rows) == 0:
        raise UsageError(_no_rows(name, split))
    return rows if columns is None else _select(rows, name, columns)


def with_retries(
    load: Callable[[], T],
    name: str,
    retry: RetryPolicy,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """``load()``, tried again after connection errors and the HTTP statuses 429 and 5xx.

    Raises:
        RunError: every attempt failed for such a reason, or the hub is switched off. Any other exception
            passes through.
    """
    attempt = 0
    while True:
        try:
            return load()
        except OSError as error:
            if not _is_passing(error):
                raise
            if _is_offline() or attempt == retry.retries:
                raise RunError(_unreachable(name, attempt + 1, error)) from error
            attempt += 1
            # The system's randomness, not the run's: ranks that failed together must not come back together.
            delay = retry.delay(attempt) * random.SystemRandom().uniform(0.85, 1.15)
            logger.warning(
                "dataset '%s': attempt %d of %d failed (%s), trying again in %.1f s",
                name,
                attempt,
                retry.retries + 1,
                _first_line(error),
                delay,
            )
            sleep(delay)


def _task_rows(name: str, options: str, split: str) -> "Dataset":
    from datasets import Dataset

    from maxent_grpo.tasks import registry

    return Dataset.from_list(registry.load_rows(name.removeprefix(TASK_PREFIX), split, options))


def _environment_rows(name: str, options: str, split: str) -> "Dataset":
    from datasets import Dataset

    if split != "train":
        raise UsageError(f"dataset '{name}' has one split, train, and no {split!r}")
    rows = load_named("dataset_name", "maxent_grpo.rollout.environment:environment_rows")(name, options)
    return Dataset.from_list(rows)


def _file_rows(name: str, split: str) -> "Dataset":
    path = Path(name).expanduser()
    suffix = file_suffix(name)
    if suffix is None:
        known = ", ".join(FILE_BUILDERS)
        raise UsageError(
            f"dataset '{name}': files of type '{path.suffix}' are not read; use one of {known}, .gz behind it or not"
        )
    if path.stat().st_size == 0:
        raise UsageError(f"dataset '{name}': the file is empty")
    _refuse_other_encodings(path)
    options = {"sep": "\t"} if suffix == ".tsv" else {}
    return _load(name, FILE_BUILDERS[suffix], None, split, data_files={"train": str(path)}, **options)


def _refuse_other_encodings(path: Path) -> None:
    """Raise `UsageError` for a text file that is not UTF-8, which `datasets` finds at the first such row or never."""
    if file_suffix(path.name) in (None, ".parquet") or not path.is_file():
        return
    opened: Any = gzip.open if path.suffix == ".gz" else Path.open
    number = 0
    try:
        with opened(path, "rb") as file:
            for line in file:
                number += 1
                line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"dataset '{path}': line {number} is not UTF-8 ({error.reason} at byte {error.start}): convert the file, "
            "by `iconv -f LATIN1 -t UTF-8` if it is Latin-1"
        ) from error
    except OSError as error:  # also what gzip raises for a file that it did not write
        raise UsageError(f"dataset '{path}' cannot be read ({error})") from error


def _folder_rows(name: str, config: str | None, split: str) -> "Dataset":
    from datasets import load_from_disk

    path = Path(name).expanduser()
    splits_file = path / "dataset_dict.json"
    if splits_file.exists():  # a saved DatasetDict: one folder per split
        folders = {known: path / known for known in json.loads(splits_file.read_text())["splits"]}
    elif (path / "state.json").exists():  # a single saved Dataset
        folders = {"train": path}
    else:
        for file in path.rglob("*"):
            _refuse_other_encodings(file)
        return _load(name, str(path), config, split)
    if split not in folders:
        raise UsageError(f"dataset '{name}': there is no split '{split}'; it has {_quoted(list(folders))}")
    if not json.loads((folders[split] / "state.json").read_text())["_data_files"]:
        # `load_from_disk` stumbles over what `save_to_disk` writes for no rows.
        raise UsageError(_no_rows(name, split))
    return load_from_disk(str(folders[split]))


def _hub_rows(name: str, config: str | None, split: str, retry: RetryPolicy) -> "Dataset":
    return with_retries(lambda: _load(name, name, config, split), name, retry)


def _load(
    name: str,
    path: str,
    config: str | None,
    split: str,
    data_files: dict[str, str] | None = None,
    **options: Any,
) -> "Dataset":
    """`datasets.load_dataset`, with what is wrong about the request said in one line."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        return load_dataset(path, name=config, split=split, data_files=data_files, **options)
    except DatasetNotFoundError as error:
        raise UsageError(
            f"dataset '{name}': neither a local file or folder nor a dataset that the hub shows you "
            f"({_first_line(error)}); check the name, and run `hf auth login` if it is private or gated"
        ) from error
    # Besides its own errors: FileNotFoundError for a folder without data files, ValueError for an unknown
    # split or configuration, RuntimeError for a dataset that is a script.
    except (DatasetsError, FileNotFoundError, ValueError, RuntimeError) as error:
        if isinstance(error, OSError) and _is_passing(error):
            raise
        reason = _first_line(error) + (f": {_first_line(error.__cause__)}" if error.__cause__ else "")
        raise UsageError(f"dataset '{name}' (config {config!r}, split '{split}'): {reason}") from error


def _select(rows: "Dataset", name: str, columns: Sequence[str]) -> "Dataset":
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise UsageError(
            f"dataset '{name}': no column {_quoted(missing)}; it has {_quoted(rows.column_names)}"
        )
    return rows.select_columns(list(columns))


def _is_passing(error: OSError) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, ConnectionError | TimeoutError | LocalEntryNotFoundError)


def _is_offline() -> bool:
    from datasets import config

    return bool(config.HF_HUB_OFFLINE)


def _unreachable(name: str, attempts: int, error: OSError) -> str:
    tried = "offline mode is on" if _is_offline() else f"{attempts} attempts, last: {_first_line(error)}"
    return (
        f"dataset '{name}' cannot be fetched from the hub ({tried}): check the connection, or fetch it where "
        "there is one and give the path of the local copy instead"
    )


def _no_rows(name: str, split: str) -> str:
    return (
        f"dataset '{name}': split '{split}' has no rows; choose another split, or check how the data was made"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
