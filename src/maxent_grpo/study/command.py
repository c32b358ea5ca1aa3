"""The command: read the plan, run what is missing, analyse what is there, write the report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from maxent_grpo.config.shipped import shipped
from maxent_grpo.errors import RunError, UsageError, did_you_mean
from maxent_grpo.files import replace_file
from maxent_grpo.study.parts import parts_of, read_finished, taken_up, write_part
from maxent_grpo.study.plan import StudyPlan, read_plan
from maxent_grpo.study.runs import (
    Finished,
    State,
    StudyRun,
    refuse_changes,
    refused_arms,
    runs_of,
    untrained_of,
)

EFFECTS, REPORT, PLAN = "effects.csv", "report.html", "plan.yaml"
MARKS = {State.DONE: "●", State.TRAINED: "◕", State.STARTED: "◐", State.MISSING: "○"}


@dataclass(frozen=True)
class StudyOptions:
    """``study.*`` of the command line."""

    plan: str
    output_dir: str | None = None
    """Instead of the plan's."""
    processes: int | None = None
    """Runs side by side, instead of the plan's."""
    arms: tuple[str, ...] = ()
    """Only these, and the baseline."""
    tasks: tuple[str, ...] = ()
    """Only on these."""
    seeds: tuple[int, ...] = ()
    """Only with these."""
    hours: float | None = None
    """Begin no run that is not expected to end within this time."""
    index: int | None = None
    """Only the run at this position of the plan, and no report: a task of a job array."""
    analyse: bool = False
    """Run nothing: report on what is there."""
    slurm: bool = False
    """Submit a job array instead of running here."""
    dry_run: bool = False
    """Print the matrix and an estimate; write nothing."""
    probe: bool = True
    """With dry_run: time two steps for the estimate where no run is finished."""


def read_options(given: Mapping[str, Any]) -> StudyOptions:
    """``study.*`` checked. Raises `UsageError`."""
    known = [f.name for f in fields(StudyOptions)]
    for key in given:
        if key not in known:
            names = ", ".join(f"study.{name}" for name in known)
            raise UsageError(f"study.{key}: unknown{did_you_mean(key, known)}; the command takes {names}")
    values = {key: value for key, value in given.items() if value is not None}
    if not isinstance(values.get("plan"), str):
        raise UsageError("study needs a plan: study.plan=FILE (configs/study has some)")
    for key in ("analyse", "slurm", "dry_run", "probe"):
        if not isinstance(values.get(key, False), bool):
            raise UsageError(f"study.{key}={values[key]}: true or false")
    for key, least in (("processes", 1), ("index", 0)):
        value = values.get(key, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"study.{key}={value}: an integer of at least {least} is needed")
    hours = values.get("hours", 1)
    if isinstance(hours, bool) or not isinstance(hours, int | float) or not hours > 0:
        raise UsageError(f"study.hours={hours}: a number above 0 is needed")
    arms, tasks, seeds = (_several(values.pop(key, ())) for key in ("arms", "tasks", "seeds"))
    for seed in seeds:
        if not seed.isdecimal():
            raise UsageError(f"study.seeds: {seed!r} is not an integer; study.seeds=[0,1] is what is meant")
    return StudyOptions(**values, arms=arms, tasks=tasks, seeds=tuple(map(int, seeds)))


def _several(given: Any) -> tuple[str, ...]:
    """A list as the command line gives it: ``[a,b]``, ``a,b`` or one value."""
    names = given.split(",") if isinstance(given, str) else given if isinstance(given, Sequence) else [given]
    return tuple(str(name).strip() for name in names)


def run_study(given: Mapping[str, Any], say: Callable[[str], None] = print) -> None:
    """Do what ``given`` (``study.*`` by name) asks for.

    Raises `UsageError` for a wrong plan or option, or a plan that changed under runs that exist, and `RunError` where
    runs failed; the others are finished and reported first.
    """
    options = read_options(given)
    missing = [name for name in ("scipy", "statsmodels") if find_spec(name) is None]
    if missing:
        raise UsageError(f"study: {' and '.join(missing)} not installed; pip install 'maxent-grpo[study]'")
    plan_file = shipped(options.plan)
    plan = read_plan(plan_file)
    if options.output_dir is not None:
        plan = replace(plan, output_dir=Path(options.output_dir))
    processes = options.processes or plan.processes
    runs = runs_of(plan, options.arms, options.tasks, options.seeds)
    if options.slurm:
        if len(runs) < len(runs_of(plan)) or options.index is not None or options.hours is not None:
            raise UsageError(
                "study.slurm submits all runs of the plan; leave study.arms, study.tasks, study.seeds, study.hours and "
                "study.index out"
            )
        from maxent_grpo.study.scheduler import slurm_script, submit

        output_dir = plan.output_dir.absolute()
        script = slurm_script(
            plan_file.absolute(), replace(plan, output_dir=output_dir), len(runs), processes
        )
        say(script if options.dry_run else submit(script, output_dir))
        return
    starts = untrained_of(plan, options.tasks)
    parts = parts_of(plan)
    taken = taken_up([*starts, *runs], parts)
    starts, runs = ([_with_part(run, taken) for run in some] for some in (starts, runs))
    if options.dry_run:
        say(matrix_text(plan, runs))
        for directory, finished in parts.items():
            say(f"part      {directory}: {sum(run.name in taken for run in finished)} runs of this study")
        say(_estimate_text(plan, runs, processes, options.probe))
        return
    if options.index is not None:
        runs = [run for run in runs if run.index == options.index]
        if not runs:
            raise UsageError(f"study.index={options.index}: the plan has no such run; see study.dry_run=true")
    failed: dict[str, str] = {}
    if options.index:
        starts = []  # the first one's task evaluates them
    if options.analyse:
        refuse_changes(plan, [run for run in (*starts, *runs) if run.state is State.DONE])
    else:
        failed = _run(plan_file, plan, [*starts, *runs], processes, say, options.hours)
    if options.index is None:
        for path in report_study(plan, plan_file, runs, starts):
            say(f"wrote     {path}")
    if failed:
        problems = "; ".join(f"{name}: {problem}" for name, problem in failed.items())
        raise RunError(f"study: {len(failed)} run(s) failed: {problems}")


def _with_part(run: StudyRun, taken: Mapping[str, Finished]) -> StudyRun:
    """The run, with what a part has of it unless it is finished here."""
    return run if run.is_here else replace(run, taken=taken.get(run.name))


def _run(
    plan_file: Path,
    plan: StudyPlan,
    runs: Sequence[StudyRun],
    processes: int,
    say: Callable[[str], None],
    hours: float | None,
) -> dict[str, str]:
    from maxent_grpo.study.scheduler import run_all

    wanted = {run.arm.name for run in runs}
    refused = {arm: why for arm, why in refused_arms(plan).items() if arm in wanted}
    if refused:
        left = ",".join(arm.name for arm in plan.arms if arm.name not in refused)
        raise UsageError(
            f"{len(refused)} arm(s) cannot run in this version: {'; '.join(refused.values())}; fix them, or run the "
            f"others with study.arms=[{left}]"
        )
    configs = refuse_changes(plan, runs)
    plan.output_dir.mkdir(parents=True, exist_ok=True)
    replace_file(plan.output_dir / PLAN, plan_file.read_text(encoding="utf-8"), shared=True)
    return run_all(plan, runs, configs, processes, say, hours)


def report_study(
    plan: StudyPlan, plan_file: Path, runs: Sequence[StudyRun], starts: Sequence[StudyRun] = ()
) -> list[Path]:
    """Write the tables, figures and ``report.html`` from the finished ones of ``runs`` and of
    ``starts``, the untrained policy.

    Raises `UsageError` where no run is finished.
    """
    import pandas as pd

    from maxent_grpo.study.effects import effects_table
    from maxent_grpo.study.figures import curve_metrics, draw_figures
    from maxent_grpo.study.report import write_report

    done = [run for run in (*starts, *runs) if run.state is State.DONE]
    if not any(run.trains for run in done):
        raise UsageError("study: no run is finished yet, so there is nothing to report; run the study first")
    finished = [run.taken or read_finished(run, curve_metrics()) for run in done]
    plan.output_dir.mkdir(parents=True, exist_ok=True)
    tables = write_part(finished, plan.output_dir)
    rows = pd.concat([run.rows for run in finished], ignore_index=True)
    table = effects_table(rows, plan)
    table.to_csv(plan.output_dir / EFFECTS, index=False)
    figures = draw_figures(plan, rows, table, finished, plan.output_dir / "figures")
    page = write_report(plan, plan_file, rows, table, figures, runs, finished, plan.output_dir / REPORT)
    return [*tables, plan.output_dir / EFFECTS, *(figure.png for figure in figures), page]


def matrix_text(plan: StudyPlan, runs: Sequence[StudyRun]) -> str:
    """The runs as a table: arms down, seeds across, with what is done and what this version cannot do."""
    refused = refused_arms(plan)
    arms = [arm for arm in plan.arms if any(run.arm is arm for run in runs)]
    width = max(len(arm.label) for arm in arms) + 2
    lines = [f"study     {plan.question}", f"writes    {plan.output_dir}"]
    for task in plan.tasks:
        lines += ["", f"{task.label + ' ':{width}}  seeds {' '.join(str(seed) for seed in plan.seeds)}"]
        for arm in arms:
            mine = [run for run in runs if run.arm is arm and run.task is task]
            marks = " ".join(MARKS[run.state].ljust(len(str(run.seed))) for run in mine)
            note = "  baseline" if arm.name == plan.baseline else "  A/A" if arm.is_aa else ""
            note += "  cannot run, see below" if arm.name in refused else ""
            lines.append(f"{arm.label:{width}}        {marks}{note}")
    lines += ["", "● done  ◕ trained, not evaluated  ◐ begun  ○ to do"]
    return "\n".join([*lines, *(f"cannot run {refused[arm.name]}" for arm in arms if arm.name in refused)])


def _estimate_text(plan: StudyPlan, runs: Sequence[StudyRun], processes: int, probe: bool) -> str:
    """The number of runs that are left, and the time they take."""
    from maxent_grpo.study.scheduler import duration_text, probe_seconds, seconds_left

    left = sum(run.state is not State.DONE for run in runs)
    text = f"{left} of {len(runs)} runs to do, {plan.budget.steps} steps each, {processes} at a time"
    if not left:
        return text
    seconds, source = seconds_left(runs, processes), "finished runs"
    if seconds is None and probe:
        seconds, source = probe_seconds(plan, runs, processes), "two steps of the baseline"
    return f"{text}: {'no estimate' if seconds is None else f'about {duration_text(seconds)}, judging by {source}'}"
