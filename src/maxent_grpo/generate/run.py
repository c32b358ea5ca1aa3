"""The generation: every row of a data set completed once, resumable row by row.

Read `generate` top to bottom: check everything, lock the file, complete what is missing, report what failed, export.
"""

import importlib.util
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxent_grpo.data.sources import load_rows
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.files import RowFile, read_rows, replace_file
from maxent_grpo.generate.client import Reply, RequestFailed
from maxent_grpo.generate.engine import BuiltinEngine, Engine, Job
from maxent_grpo.generate.rows import (
    EmptyPrompt,
    Prompts,
    export,
    plain_row,
    refuse_bad_columns,
    refuse_unreachable_hub,
)
from maxent_grpo.generate.settings import GenerateSettings
from maxent_grpo.observe.console import Ticker

if TYPE_CHECKING:
    from datasets import Dataset

START_OVER = "generate.args.resume=false starts it over, another generate.args.output_dir keeps both"
ROWS_FILE, FAILURES_FILE = "rows.jsonl", "failures.jsonl"
FAILED_IN_A_ROW = 32
"""Consecutive rows without an answer after which the server counts as gone."""
SHOWN_FAILURES = 3
"""In the last line; all of them are in FAILURES_FILE."""


@dataclass(frozen=True)
class Report:
    """The end of a generation."""

    rows: int
    """Asked for."""
    generated: int
    """In this call."""
    kept: int
    """From earlier calls."""
    failures: dict[int, str]
    """Row → why."""
    tokens: int
    """Of the completions of this call, as far as the server counts them."""
    seconds: float
    paths: Sequence[Path]
    """All that there is to read."""

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
class _Generation:
    """The rows of one call, and what they came to."""

    settings: GenerateSettings
    rows: "Dataset"
    prompts: Prompts
    engine: Engine
    file: RowFile
    ticker: Ticker
    generated: int = 0
    tokens: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    passing: list[int] = field(default_factory=list)
    """Failed rows that may be answered later."""
    in_a_row: int = 0
    started: float = field(default_factory=time.monotonic)

    def complete(self, indices: Iterable[int], *, counted: bool = False) -> None:
        """Complete the rows ``indices``; ``counted``: the ticker has counted them before."""
        replies: dict[int, dict[int, Reply | RequestFailed]] = defaultdict(dict)
        for job, outcome in self.engine.outcomes(self._jobs(indices)):
            replies[job.row][job.number] = outcome
            if len(replies[job.row]) == self.settings.num_generations:
                found = replies.pop(job.row)
                self._take(job, [found[number] for number in sorted(found)])
                self.ticker.advance(0 if counted else 1, self._rate())

    def _jobs(self, indices: Iterable[int]) -> Iterator[Job]:
        for index in indices:
            try:
                prompt = self.prompts[index]
            except EmptyPrompt as error:
                self.failures[index] = str(error)
                continue
            for number in range(self.settings.num_generations):
                yield Job(index, number, prompt)

    def _take(self, job: Job, outcomes: Sequence[Reply | RequestFailed]) -> None:
        """A row is on the disk before it counts."""
        failed = [outcome for outcome in outcomes if isinstance(outcome, RequestFailed)]
        if not failed:
            replies = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
            self.file.append(plain_row(self.settings, self.rows[job.row], job.row, job.prompt, replies))
            self.failures.pop(job.row, None)
            self.generated += 1
            self.tokens += sum(reply.tokens for reply in replies)
            self.in_a_row = 0
            return
        self.failures[job.row] = str(failed[0])
        if all(failure.passing for failure in failed):
            self.passing.append(job.row)
        self.in_a_row += 1
        if self.in_a_row >= FAILED_IN_A_ROW:
            raise RunError(
                f"{FAILED_IN_A_ROW} rows in a row have no completion, last row {job.row}: {failed[0]}; "
                "what was completed is kept: start the same command again once the server is well"
            )

    def _rate(self) -> str:
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
    rows = load_rows(settings.hf_dataset, config=settings.hf_dataset_config, split=settings.hf_dataset_split)
    refuse_bad_columns(settings, rows)
    prompts = Prompts(settings, rows)
    sender = engine or engine_of(settings)
    wanted = range(min(len(rows), settings.limit or len(rows)))
    folder = Path(settings.folder)
    failed_path = folder / FAILURES_FILE
    with RowFile(folder / ROWS_FILE, elsewhere="output_dir", start_over=START_OVER) as file:
        file.begin(fingerprint(settings, prompts), settings.resume)
        done = set(rows_done(settings, file.path))
        pending = [index for index in wanted if index not in done]
        with Ticker("generate", len(pending), enabled=progress and bool(pending)) as ticker:
            work = _Generation(settings, rows, prompts, sender, file, ticker)
            try:
                work.complete(pending)
                again, work.passing = sorted(work.passing), []
                if again:
                    work.complete(again, counted=True)
            finally:
                _write_failures(failed_path, work.failures)
        seconds = time.monotonic() - work.started
        if work.failures and not settings.allow_failed_rows:
            raise RunError(_failed_line(failed_path, work.failures, len(wanted)))
        paths = [file.path, *export(settings, rows, file.path, wanted, work.failures)]
    if work.failures:
        paths.append(failed_path)
    kept = len(done.intersection(wanted))
    return Report(len(wanted), work.generated, kept, work.failures, work.tokens, seconds, paths)


def engine_of(settings: GenerateSettings) -> Engine:
    """The engine that ``settings`` name. Raises `UsageError` where it is not installed or cannot do what they ask."""
    if settings.engine == "builtin":
        return BuiltinEngine(settings)
    if importlib.util.find_spec("distilabel") is None:
        raise UsageError(
            "engine=distilabel: not installed; pip install 'maxent-grpo[distilabel]', or leave engine out"
        )
    with warnings.catch_warnings():  # pydantic's, about how distilabel declares its fields
        warnings.filterwarnings("ignore", message="The 'default' attribute")
        from maxent_grpo.generate.distilabel_engine import DistilabelEngine

    return DistilabelEngine(settings)


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


def _failed_line(path: Path, failures: dict[int, str], rows: int) -> str:
    shown = [f"row {row}: {error}" for row, error in sorted(failures.items())[:SHOWN_FAILURES]]
    more = [f"{len(failures) - len(shown)} more"] if len(failures) > len(shown) else []
    return (
        f"{len(failures)} of {rows} rows have no completion ({'; '.join(shown + more)}), all in "
        f"{path}; the others are kept: start the same command again to retry, or add "
        "allow_failed_rows=true to finish without them"
    )
