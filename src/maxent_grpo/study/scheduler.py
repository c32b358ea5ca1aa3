"""Trains and evaluates what is missing: every run in processes of its own, several side by side, one thread each.

The study holds no state that its files do not hold: killed at any moment and started again, it goes on with the runs
that were under way (each resumes from its checkpoint) and with those that are missing.
"""

import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Lock
from typing import Any

from maxent_grpo.config.loading import RunConfig, write_resolved
from maxent_grpo.errors import RunError
from maxent_grpo.files import JsonlFile
from maxent_grpo.observe import names
from maxent_grpo.study.plan import EvaluationPlan, StudyPlan
from maxent_grpo.study.runs import (
    LOG,
    RECIPE,
    State,
    StudyRun,
    config_of,
    drop_checkpoints,
    open_run,
    prompt_digests,
    runs_of,
    try_lock,
)

HEARTBEAT = 60.0
"""Seconds between two lines of progress."""

POLL = 0.1
"""Seconds between two looks at a process or a lock."""

OPENING = Lock()
"""Held while a run's identity is taken, which reads tokenizers and data sets in this process."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""The environment of a process that shares the machine with others like it."""


def train_command(run: StudyRun) -> list[str]:
    """The training command line of a run, as a user would type it."""
    section = run.arm.command.removeprefix("train-")
    recipe = f"{section}.recipe='{run.directory / RECIPE}'"
    return [sys.executable, "-m", "maxent_grpo.cli.main", f"command={run.arm.command}", recipe]


def evaluate_command(run: StudyRun, evaluation: EvaluationPlan) -> list[str]:
    """The command line that evaluates a run's final policy."""
    arguments = [str(run.directory), json.dumps(asdict(evaluation))]
    return [sys.executable, "-m", "maxent_grpo.study.final_policy", *arguments]


@dataclass
class Worker:
    """Takes one run to its end, in a thread that waits for the run's processes."""

    run: StudyRun
    config: RunConfig
    plan: StudyPlan
    stopped: Event
    say: Callable[[str], None]
    fits: Callable[[StudyRun], bool] = lambda run: True
    """Whether there is time to begin a run."""
    stage: str = field(default="", init=False)

    def __call__(self) -> bool:
        """Train and evaluate what is missing; False where a process of an earlier study did, or the study was stopped.

        False too where no time is left to begin.
        Raises `RunError` with the last line of the log where a process fails.
        """
        run, directory = self.run, self.run.directory
        if not self.fits(run):
            return False
        lock = try_lock(directory)
        if lock is None:
            self.say(f"waiting   {run.name}: a process of an earlier start is still at it")
        while lock is None:
            if self.stopped.wait(POLL):
                return False
            lock = try_lock(directory)
        try:
            if run.state is State.DONE:
                drop_checkpoints(run)
                return False
            with OPENING:
                open_run(run, self.config)
            resumed = (directory / names.METRICS_FILE).is_file()
            self.say(f"{'resumed ' if resumed else 'started '}  {run.name}")
            if run.trains and run.state is not State.TRAINED:
                self._finish("train", train_command(run), lock, timed=not resumed)
            self._finish("evaluate", evaluate_command(run, self.plan.evaluation), lock, timed=True)
            drop_checkpoints(run)
            return True
        finally:
            self.stage = ""
            os.close(lock)

    def _finish(self, stage: str, command: list[str], lock: int, *, timed: bool) -> None:
        self.stage, log, began = stage, self.run.directory / LOG, time.monotonic()
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={k: v for k, v in os.environ.items() if k != "GRPO_RECIPE"} | ONE_THREAD,
                pass_fds=(lock,),
            )
        while process.poll() is None:
            if self.stopped.wait(POLL):
                process.kill()
        if process.returncode < 0:
            raise RunError(f"{stage} was ended by signal {-process.returncode} (log: {log})")
        if process.returncode > 0:
            raise RunError(f"{_last_line(log.read_text(errors='replace'))} (log: {log})")
        if timed:
            self.run.record_duration(stage, time.monotonic() - began)

    @property
    def position(self) -> str:
        if self.stage != "train":
            return "evaluating"
        path = self.run.directory / names.METRICS_FILE
        records = JsonlFile.read(path) if path.is_file() else []
        return f"step {records[-1]['step'] if records else 0} of {self.plan.budget.steps}"


def run_all(
    plan: StudyPlan,
    runs: Sequence[StudyRun],
    configs: Mapping[int, RunConfig],
    processes: int,
    say: Callable[[str], None],
    hours: float | None = None,
) -> dict[str, str]:
    """Bring all ``runs`` to their end, ``processes`` at a time. Returns run name → last line of those that failed.

    A failed run does not stop the others: it goes on from its checkpoint the next time. Once the next run is not
    expected to end within ``hours``, no further one is begun; those under way end.
    """
    stopped, failed, spoke = Event(), dict[str, str](), time.monotonic()
    until, late = math.inf if hours is None else time.monotonic() + 3600 * hours, Event()

    def fits(run: StudyRun) -> bool:
        if time.monotonic() + (forecast(runs)(run) or 0.0) > until:
            late.set()
        return not late.is_set()

    todo = [run for run in runs if run.state is not State.DONE]
    with ThreadPoolExecutor(processes) as pool:
        workers: dict[Future[bool], Worker] = {}
        try:
            for run in todo:
                worker = Worker(run, configs[run.index], plan, stopped, say, fits)
                workers[pool.submit(worker)] = worker
            while workers:
                for future in wait(workers, timeout=HEARTBEAT / 4, return_when=FIRST_COMPLETED).done:
                    name = workers.pop(future).run.name
                    try:
                        if future.result():
                            say(f"done      {name}  ({_progress(runs, len(workers), processes)})")
                    except RunError as error:
                        failed[name] = str(error)
                        say(f"failed    {name}: {error}")
                if workers and time.monotonic() - spoke > HEARTBEAT:
                    spoke = time.monotonic()
                    now = ", ".join(f"{w.run.name} {w.position}" for w in workers.values() if w.stage)
                    progress = _progress(runs, len(workers), processes)
                    say(f"running   {now or 'waiting for runs of an earlier process'}  ({progress})")
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
    if late.is_set():
        left = sum(run.state is not State.DONE for run in runs)
        say(
            f"stopped   {left} runs are left for a later start: no further one would end within study.hours={hours:g}"
        )
    return failed


def _progress(runs: Sequence[StudyRun], left: int, processes: int) -> str:
    text = f"{len(runs) - left} of {len(runs)} runs ended"
    seconds = seconds_left(runs, processes)
    if not left or seconds is None:
        return text
    ready = datetime.now() + timedelta(seconds=seconds)
    return f"{text}, about {duration_text(seconds)} left, until {ready:%H:%M}"


def duration_text(seconds: float) -> str:
    """``seconds`` for a reader: 50 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def forecast(runs: Sequence[StudyRun]) -> Callable[[StudyRun], float | None]:
    """Run → the seconds that it is expected to take: the median of the most alike that ran through in one go.

    None before the first one is done.
    """
    done = [run for run in runs if run.state is State.DONE]
    known = [(run, run.durations) for run in done]
    took = [(run, sum(stages.values())) for run, stages in known if {"train", "evaluate"} <= stages.keys()]

    def expected(run: StudyRun) -> float | None:
        of_task = [(other, seconds) for other, seconds in took if other.task == run.task] or took
        of_arm = [seconds for other, seconds in of_task if other.arm == run.arm and other.task == run.task]
        return statistics.median(of_arm or [seconds for _, seconds in of_task]) if took else None

    return expected


def seconds_left(runs: Sequence[StudyRun], processes: int) -> float | None:
    """Wall-clock seconds until all runs are done; None before the first one is."""
    left = [run for run in runs if run.state is not State.DONE]
    seconds = [second for second in map(forecast(runs), left) if second is not None]
    return sum(seconds) / min(processes, max(1, len(left))) if len(seconds) == len(left) else None


def probe_seconds(plan: StudyPlan, runs: Sequence[StudyRun], processes: int) -> float:
    """An estimate before anything ran: two steps of the baseline on every task, for real, in a folder thrown away.

    A run is its start-up, its steps (the second step's time each), and its evaluations, whose samples cost what the
    samples of a step cost. Other arms are taken to cost what the baseline costs.
    Raises `RunError` where the probe fails.
    """
    left = [run for run in runs if run.state is not State.DONE]
    total = 0.0
    for task in plan.tasks:
        here = sum(run.task.name == task.name for run in left)
        total += here * _seconds_of_one(plan, task.name) if here else 0.0
    return total / min(processes, max(1, len(left)))


def _seconds_of_one(plan: StudyPlan, task: str) -> float:
    run = next(r for r in runs_of(plan) if r.task.name == task and r.arm.name == plan.baseline)
    with tempfile.TemporaryDirectory() as folder:
        trial = replace(run, directory=Path(folder))
        config = config_of(plan, trial)
        samples = _samples_of_evaluations(plan, config)
        training = config.training
        training.max_steps, training.eval_on_start, training.eval_strategy = 2, False, "no"
        write_resolved(config, trial.directory / RECIPE)
        began = time.monotonic()
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        done = subprocess.run(train_command(trial), env=os.environ | ONE_THREAD, check=False, **quiet)
        whole = time.monotonic() - began
        if done.returncode != 0:
            raise RunError(f"the probe of {run.arm.name} on {task} failed: {_last_line(done.stderr)}")
        timings = JsonlFile.read(trial.directory / names.TIMINGS_FILE)
    sample, step = timings[-1]["time/sample"], timings[-1]["time/step"]
    per_sample = sample / (training.per_device_train_batch_size * training.gradient_accumulation_steps)
    start_up = whole - sum(record["time/step"] for record in timings)
    return float(2 * start_up + plan.budget.steps * step + samples * per_sample)


def _samples_of_evaluations(plan: StudyPlan, config: RunConfig) -> int:
    """Of one run: while it trains, at its start and end, and of its final policy."""
    training, final = config.training, plan.evaluation
    by_steps = training.eval_strategy == "steps" and (training.eval_steps or 0) >= 1
    evaluations = 2 + (plan.budget.steps // int(training.eval_steps or 1) if by_steps else 0)
    held_out = prompt_digests(config)[2]
    during = evaluations * (training.num_generations_eval or training.num_generations)
    return int(held_out * (during + final.k * len(final.seeds) * len(final.temperatures)))


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no output"


def slurm_script(plan_file: Path, plan: StudyPlan, runs: int, at_once: int) -> str:
    """A Slurm job array, one task per run. Requeued tasks go on from their run's checkpoint: one line serves both."""
    files = {"study.plan": plan_file, "study.output_dir": plan.output_dir}
    command = " ".join(
        ["maxent-grpo-study", *(f"{key}={shlex.quote(str(path))}" for key, path in files.items())]
    )
    return f"""#!/bin/bash
#SBATCH --job-name=maxent-grpo-study
#SBATCH --array=0-{runs - 1}%{at_once}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={plan.output_dir}/slurm/%a.log
# {runs} runs, {at_once} at a time. After the last one:
#   {command} study.analyse=true
set -euo pipefail
export OMP_NUM_THREADS=1
{command} study.index="$SLURM_ARRAY_TASK_ID"
"""


def submit(script: str, output_dir: Path) -> str:
    """Write the script into the study's directory and hand it to ``sbatch``. Returns its answer.

    Raises `RunError` where there is no Slurm, or it refuses.
    """
    (output_dir / "slurm").mkdir(parents=True, exist_ok=True)
    path = output_dir / "study.sbatch"
    path.write_text(script, encoding="utf-8")
    if shutil.which("sbatch") is None:
        raise RunError(
            f"study.slurm: there is no sbatch here; submit {path} on a Slurm machine, or add study.dry_run=true"
        )
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"study.slurm: sbatch refused {path}: {' '.join(done.stderr.split())}")
    return done.stdout.strip()
