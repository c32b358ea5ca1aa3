"""The generation: every row of a data set completed once, resumable row by row.

Read `generate` top to bottom: check everything, lock the file, complete what is missing, report what failed, export.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxent_grpo.data.sources import load_rows
from maxent_grpo.errors import RunError
from maxent_grpo.files import RowFile, read_rows, replace_file
from maxent_grpo.generate.engine import Completed, Engine, Prompted, engine_of
from maxent_grpo.generate.export import export, plain_row, refuse_bad_columns, refuse_unreachable_hub
from maxent_grpo.generate.prompts import EmptyPrompt, Prompts
from maxent_grpo.generate.settings import GenerateSettings
from maxent_grpo.observe.console import Ticker

if TYPE_CHECKING:
    from datasets import Dataset

START_OVER = "generate.args.resume=false starts it over, another generate.args.output_dir keeps both"
ROWS_FILE, FAILURES_FILE = "rows.jsonl", "failures.jsonl"
FAILED_IN_A_ROW = 32
"""Consecutive rows without an answer after which the server counts as gone."""
SHOWN_FAILURES = 3  # in the last line; all of them are in FAILURES_FILE


@dataclass(frozen=True)
class Report:
    """How a generation ended."""

    rows: int  # asked for
    generated: int  # in this call
    kept: int  # from earlier calls
    failures: dict[int, str]  # row → why
    tokens: int  # of the completions of this call, as far as the server counts them
    seconds: float
    paths: Sequence[Path]  # what there is to read

    def summary(self) -> str:
        """One line."""
        rate = f", {self.tokens / self.seconds:.0f} tokens/s" if self.tokens and self.seconds > 0 else ""
        kept = f", {self.kept} were there" if self.kept else ""
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return (
            f"{self.generated} of {self.rows} rows generated in {self.seconds:.1f} s{rate}{kept}{failed}: "
            f"{', '.join(map(str, self.paths))}"
        )


@dataclass
class _Tally:
    """What the rows of one call came to."""

    generated: int = 0
    tokens: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    passing: list[int] = field(default_factory=list)  # failed rows that may be answered later
    in_a_row: int = 0
    started: float = field(default_factory=time.monotonic)

    def rate(self) -> str:
        seconds = time.monotonic() - self.started
        failed = f"  {len(self.failures)} failed" if self.failures else ""
        return (f"{self.tokens / seconds:.0f} tokens/s" if self.tokens and seconds > 0 else "") + failed


def generate(settings: GenerateSettings, *, engine: Engine | None = None, progress: bool = True) -> Report:
    """Complete the rows that ``settings`` name and leave them in its folder.

    Args:
        engine: completes rows in place of the one that ``settings`` name.

    Raises:
        UsageError: settings that cannot work, or a folder that holds another generation.
        RunError: the endpoint cannot be used, or rows have no completion and ``allow_failed_rows`` is not set. What
            was completed is kept: the same call goes on with the rest.
    """
    settings.check()
    refuse_unreachable_hub(settings)
    all_rows = load_rows(
        settings.hf_dataset, config=settings.hf_dataset_config, split=settings.hf_dataset_split
    )
    refuse_bad_columns(settings, all_rows)
    prompts = Prompts(settings, all_rows)
    sender = engine or engine_of(settings)
    wanted = range(min(len(all_rows), settings.limit or len(all_rows)))
    folder = Path(settings.folder)
    tally = _Tally()
    with RowFile(folder / ROWS_FILE, elsewhere="output_dir", start_over=START_OVER) as file:
        file.begin(fingerprint(settings, prompts), settings.resume)
        done = set(rows_done(settings, file.path))
        pending = [index for index in wanted if index not in done]
        with Ticker("generate", len(pending), enabled=progress and bool(pending)) as ticker:
            try:
                _complete(settings, all_rows, prompts, sender, pending, file, tally, ticker)
                again, tally.passing = sorted(tally.passing), []
                if again:
                    _complete(settings, all_rows, prompts, sender, again, file, tally, ticker, counted=True)
            finally:
                _write_failures(folder / FAILURES_FILE, tally.failures)
        seconds = time.monotonic() - tally.started
        if tally.failures and not settings.allow_failed_rows:
            raise RunError(_failed_line(settings, tally.failures, len(wanted)))
        paths = [file.path, *export(settings, all_rows, file.path, wanted, tally.failures)]
    if tally.failures:
        paths.append(folder / FAILURES_FILE)
    kept = len(done.intersection(wanted))
    return Report(len(wanted), tally.generated, kept, tally.failures, tally.tokens, seconds, paths)


def _complete(
    settings: GenerateSettings,
    rows: "Dataset",
    prompts: Prompts,
    engine: Engine,
    indices: Iterable[int],
    file: RowFile,
    tally: _Tally,
    ticker: Ticker,
    *,
    counted: bool = False,  # the ticker has counted these rows before
) -> None:
    """Complete ``indices``. Each row is on the disk before it counts."""

    def prompted() -> Iterator[Prompted]:
        for index in indices:
            try:
                yield Prompted(index, prompts[index])
            except EmptyPrompt as error:
                tally.failures[index] = str(error)

    for completed in engine.complete(prompted()):
        if completed.error is None:
            file.append(plain_row(settings, rows[completed.index], completed))
            tally.failures.pop(completed.index, None)
            tally.generated += 1
            tally.tokens += sum(reply.tokens for reply in completed.replies)
            tally.in_a_row = 0
        else:
            _note_failure(completed, tally)
        ticker.advance(0 if counted else 1, tally.rate())


def _note_failure(completed: Completed, tally: _Tally) -> None:
    tally.failures[completed.index] = str(completed.error)
    if completed.passing:
        tally.passing.append(completed.index)
    tally.in_a_row += 1
    if tally.in_a_row >= FAILED_IN_A_ROW:
        raise RunError(
            f"{FAILED_IN_A_ROW} rows in a row have no completion, last row {completed.index}: {completed.error}; "
            "what was completed is kept: start the same command again once the server is well"
        )


def rows_done(settings: GenerateSettings, path: Path) -> Iterator[int]:
    """The rows that ``path`` holds. Raises `UsageError` for a damaged line."""
    key = f"{settings.output_column}_row"

    def is_row(row: Any) -> bool:
        return isinstance(row, dict) and isinstance(row.get(key), int) and settings.output_column in row

    for row in read_rows(path, key, is_row, no_row="is no generated row", called="row"):
        yield row[key]


def fingerprint(settings: GenerateSettings, prompts: Prompts) -> dict[str, Any]:
    """Everything that decides what a row's completions are."""
    return {
        "model": settings.model,
        "prompts": "sha256:" + prompts.digest(),
        "prompt_template": settings.prompt_template,
        "prompt_column": prompts.column,
        "system_prompt": settings.system_prompt,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_new_tokens": settings.max_new_tokens,
        "num_generations": settings.num_generations,
        "seed": settings.seed,
        "output_column": settings.output_column,
        **({} if settings.engine == "builtin" else {"engine": settings.engine}),
    }


def _write_failures(path: Path, failures: dict[int, str]) -> None:
    """One line per failed row; no file where there are none."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    lines = [json.dumps({"row": row, "error": error}) for row, error in sorted(failures.items())]
    replace_file(path, "\n".join(lines) + "\n")


def _failed_line(settings: GenerateSettings, failures: dict[int, str], rows: int) -> str:
    shown = [f"row {row}: {error}" for row, error in sorted(failures.items())[:SHOWN_FAILURES]]
    more = [f"{len(failures) - len(shown)} more"] if len(failures) > len(shown) else []
    return (
        f"{len(failures)} of {rows} rows have no completion ({'; '.join(shown + more)}), all in "
        f"{Path(settings.folder) / FAILURES_FILE}; the others are kept: start the same command again to retry, or add "
        "allow_failed_rows=true to finish without them"
    )
