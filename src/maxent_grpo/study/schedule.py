"""Trains and evaluates what is missing: every run in processes of its own, several side by side, one thread each.

The study holds no state that its files do not hold: killed at any moment and started again, it goes on with the runs
that were under way (each resumes from its checkpoint) and with those that are missing.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

from maxent_grpo.config.loading import RunConfig
from maxent_grpo.files import JsonlFile
from maxent_grpo.observe import names
from maxent_grpo.study.cells import Cell
from maxent_grpo.study.estimate import Forecast
from maxent_grpo.study.plan import EvaluationPlan, Plan
from maxent_grpo.study.store import (
    LOG,
    RECIPE,
    State,
    drop_checkpoints,
    open_cell,
    record_duration,
    state_of,
    try_lock,
)

HEARTBEAT = 60.0  # seconds between two lines of progress
POLL = 0.1  # seconds between two looks at the processes


@dataclass
class Worker:
    """A run under way: its present process, what comes after it, and the lock that all of them hold."""

    cell: Cell
    stages: Iterator[tuple[str, list[str]]]
    lock: int
    log: IO[bytes]
    resumed: bool
    stage: str = ""
    process: subprocess.Popen[bytes] | None = None
    stage_started: float = 0.0

    def next_stage(self) -> bool:
        """Start the run's next process; False where nothing is left to do."""
        following = next(self.stages, None)
        if following is None:
            return False
        self.stage, command = following
        self.stage_started = time.monotonic()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={k: v for k, v in os.environ.items() if k != "GRPO_RECIPE"} | one_thread(),
            pass_fds=(self.lock,),
        )
        return True

    def stage_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def take_result(self) -> str | None:
        """Keep how long the ended process took; the last line of its log where it failed."""
        assert self.process is not None
        directory = self.cell.directory
        if self.process.returncode < 0:
            return f"{self.stage} was ended by signal {-self.process.returncode} (log: {directory / LOG})"
        if self.process.returncode > 0:
            lines = (directory / LOG).read_text(errors="replace").strip().splitlines()
            return f"{lines[-1] if lines else 'no output'} (log: {directory / LOG})"
        if not (self.stage == "train" and self.resumed):
            record_duration(directory, self.stage, time.monotonic() - self.stage_started)
        return None

    def close(self) -> None:
        """Release the run; a process that still works on it is killed."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()
        os.close(self.lock)


def one_thread() -> dict[str, str]:
    """The environment of a process that shares the machine with others like it."""
    return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def train_command(cell: Cell) -> list[str]:
    """The training command line of a run, as a user would type it."""
    section = cell.arm.command.removeprefix("train-")
    recipe = f"{section}.recipe='{cell.directory / RECIPE}'"
    return [sys.executable, "-m", "maxent_grpo.cli.main", f"command={cell.arm.command}", recipe]


def evaluate_command(cell: Cell, evaluation: EvaluationPlan) -> list[str]:
    """The command line that evaluates a run's final policy."""
    arguments = [str(cell.directory), json.dumps(asdict(evaluation))]
    return [sys.executable, "-m", "maxent_grpo.study.evaluation", *arguments]


def run_cells(
    plan: Plan,
    cells: Sequence[Cell],
    configs: Mapping[int, RunConfig],
    processes: int,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Bring all ``cells`` to their end, ``processes`` at a time. Returns run name → last line of those that failed.

    A failed run does not stop the others: it goes on from its checkpoint the next time.
    """
    pending = [cell for cell in cells if state_of(cell.directory) is not State.DONE]
    forecast = Forecast(plan, cells)
    workers: list[Worker] = []
    failed: dict[str, str] = {}
    waited: set[int] = set()
    spoke = time.monotonic()
    try:
        while pending or workers:
            for worker in [w for w in workers if w.stage_ended()]:
                problem = worker.take_result()
                if problem is None and worker.next_stage():
                    continue
                workers.remove(worker)
                worker.close()
                left = len(pending) + len(workers)
                if problem is not None:
                    failed[worker.cell.name] = problem
                    say(f"failed    {worker.cell.name}: {problem}")
                else:
                    drop_checkpoints(worker.cell.directory)
                    say(f"done      {worker.cell.name}  ({_progress(forecast, cells, left, processes)})")
            _fill(plan, pending, workers, configs, processes, waited, say)
            if time.monotonic() - spoke > HEARTBEAT:
                spoke = time.monotonic()
                now = ", ".join(f"{w.cell.name} {_position(w, plan)}" for w in workers)
                progress = _progress(forecast, cells, len(pending) + len(workers), processes)
                say(f"running   {now or 'waiting for runs of an earlier process'}  ({progress})")
            time.sleep(POLL)
    finally:
        for worker in workers:
            worker.close()
    return failed


def _fill(
    plan: Plan,
    pending: list[Cell],
    workers: list[Worker],
    configs: Mapping[int, RunConfig],
    processes: int,
    waited: set[int],
    say: Callable[[str], None],
) -> None:
    """Start pending runs while there is room. A run that a process of a killed study still trains is left to it."""
    for cell in list(pending):
        if len(workers) >= processes:
            return
        lock = try_lock(cell.directory)
        if lock is None:
            if cell.index not in waited:
                say(f"waiting   {cell.name}: a process of an earlier start is still at it")
            waited.add(cell.index)
            continue
        pending.remove(cell)
        state = state_of(cell.directory)
        if state is State.DONE:  # by the process that was waited for
            drop_checkpoints(cell.directory)
            os.close(lock)
            continue
        open_cell(cell, configs[cell.index])
        stages = [("train", train_command(cell))] if state is not State.TRAINED else []
        stages.append(("evaluate", evaluate_command(cell, plan.evaluation)))
        resumed = (cell.directory / names.METRICS_FILE).is_file()
        worker = Worker(cell, iter(stages), lock, (cell.directory / LOG).open("ab"), resumed)
        worker.next_stage()
        workers.append(worker)
        say(f"{'resumed ' if resumed else 'started '}  {cell.name}")


def _progress(forecast: Forecast, cells: Sequence[Cell], left: int, processes: int) -> str:
    text = f"{len(cells) - left} of {len(cells)} runs ended"
    seconds = forecast.seconds_left(processes)
    if not left or seconds is None:
        return text
    ready = datetime.now() + timedelta(seconds=seconds)
    return f"{text}, about {duration_text(seconds)} left, until {ready:%H:%M}"


def _position(worker: Worker, plan: Plan) -> str:
    if worker.stage != "train":
        return "evaluating"
    path = Path(worker.cell.directory / names.METRICS_FILE)
    records = JsonlFile.read(path) if path.is_file() else []
    return f"step {records[-1]['step'] if records else 0} of {plan.budget.steps}"


def duration_text(seconds: float) -> str:
    """``seconds`` for a reader: 50 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
