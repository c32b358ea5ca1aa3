"""The command: read the plan, run what is missing, analyse what is there, write the report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxent_grpo.config.shipped import shipped
from maxent_grpo.errors import RunError, UsageError, did_you_mean
from maxent_grpo.files import replace_file
from maxent_grpo.study.cells import Cell, only_arms, refused_arms
from maxent_grpo.study.plan import Plan
from maxent_grpo.study.plan_file import read_plan
from maxent_grpo.study.store import EVALUATION, State, refuse_changes, state_of

if TYPE_CHECKING:
    import pandas as pd

RUNS, EFFECTS, REPORT, PLAN = "runs.parquet", "effects.csv", "report.html", "plan.yaml"
STATES = {State.DONE: "●", State.TRAINED: "◕", State.STARTED: "◐", State.MISSING: "○"}


@dataclass(frozen=True)
class StudyOptions:
    """What ``study.*`` on the command line says."""

    plan: str
    output_dir: str | None = None  # instead of the plan's
    processes: int | None = None  # runs side by side, instead of the plan's
    arms: tuple[str, ...] = ()  # only these, and the baseline
    index: int | None = (
        None  # only the run at this position of the plan, and no report: a task of a job array
    )
    analyse: bool = False  # run nothing: report on what is there
    slurm: bool = False  # submit a job array instead of running here
    dry_run: bool = False  # print the matrix and an estimate; write nothing
    probe: bool = True  # with dry_run: time two steps for the estimate where no run is finished


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
    arms = values.pop("arms", ())
    chosen = arms.split(",") if isinstance(arms, str) else arms
    return StudyOptions(**values, arms=tuple(str(name) for name in chosen))


def run_study(given: Mapping[str, Any], say: Callable[[str], None] = print) -> None:
    """Do what ``given`` (``study.*`` by name) asks for.

    Raises `UsageError` for a wrong plan or option, or a plan that changed under runs that exist, and `RunError` where
    runs failed; the others are finished and reported first.
    """
    options = read_options(given)
    _require_statistics()
    plan_file = shipped(options.plan)
    plan = read_plan(plan_file)
    if options.output_dir is not None:
        plan = replace(plan, output_dir=Path(options.output_dir))
    processes = options.processes or plan.processes
    cells = only_arms(plan, options.arms)
    if options.slurm:
        if options.arms or options.index is not None:
            raise UsageError("study.slurm submits all runs of the plan; leave study.arms and study.index out")
        _slurm(plan_file, plan, cells, processes, options.dry_run, say)
        return
    if options.dry_run:
        say(matrix_text(plan, cells))
        say(estimate_text(plan, cells, processes, options.probe))
        return
    if options.index is not None:
        cells = [cell for cell in cells if cell.index == options.index]
        if not cells:
            raise UsageError(f"study.index={options.index}: the plan has no such run; see study.dry_run=true")
    failed: dict[str, str] = {}
    if options.analyse:
        refuse_changes(plan, [cell for cell in cells if state_of(cell.directory) is State.DONE])
    else:
        failed = _run(plan_file, plan, cells, processes, say)
    if options.index is None:
        for path in report_study(plan, plan_file, cells):
            say(f"wrote     {path}")
    if failed:
        raise RunError(
            f"study: {len(failed)} run(s) failed: {'; '.join(f'{n}: {m}' for n, m in failed.items())}"
        )


def _run(
    plan_file: Path,
    plan: Plan,
    cells: Sequence[Cell],
    processes: int,
    say: Callable[[str], None],
) -> dict[str, str]:
    from maxent_grpo.study.schedule import run_cells

    refused = {
        arm: why for arm, why in refused_arms(plan).items() if arm in {cell.arm.name for cell in cells}
    }
    if refused:
        left = ",".join(arm.name for arm in plan.arms if arm.name not in refused)
        raise UsageError(
            f"{len(refused)} arm(s) cannot run in this version: {'; '.join(refused.values())}; fix them, or run the "
            f"others with study.arms=[{left}]"
        )
    configs = refuse_changes(plan, cells)
    plan.output_dir.mkdir(parents=True, exist_ok=True)
    replace_file(plan.output_dir / PLAN, plan_file.read_text(encoding="utf-8"), shared=True)
    return run_cells(plan, cells, configs, processes, say)


def report_study(plan: Plan, plan_file: Path, cells: Sequence[Cell]) -> list[Path]:
    """Write ``runs.parquet``, ``effects.csv``, figures and ``report.html`` from the finished runs of ``cells``.

    Raises `UsageError` where no run is finished.
    """
    from maxent_grpo.study.effects import effects_table
    from maxent_grpo.study.figures import draw_figures
    from maxent_grpo.study.page import write_page

    rows = collect_rows(cells)
    rows.to_parquet(plan.output_dir / RUNS, index=False)
    table = effects_table(rows, plan)
    table.to_csv(plan.output_dir / EFFECTS, index=False)
    done = [cell for cell in cells if state_of(cell.directory) is State.DONE]
    figures = draw_figures(plan, rows, table, done, plan.output_dir / "figures")
    page = write_page(plan, plan_file, rows, table, figures, cells, plan.output_dir / REPORT)
    return [plan.output_dir / RUNS, plan.output_dir / EFFECTS, *(f.png for f in figures), page]


def collect_rows(cells: Sequence[Cell]) -> "pd.DataFrame":
    """The evaluation rows of all finished runs, in the plan's order. Raises `UsageError` where there are none."""
    import pandas as pd

    frames = [
        pd.read_parquet(cell.directory / EVALUATION)
        for cell in cells
        if state_of(cell.directory) is State.DONE
    ]
    if not frames:
        raise UsageError("study: no run is finished yet, so there is nothing to report; run the study first")
    return pd.concat(frames, ignore_index=True)


def matrix_text(plan: Plan, cells: Sequence[Cell]) -> str:
    """The runs as a table: arms down, seeds across, with what is done and what this version cannot do."""
    refused = refused_arms(plan)
    arms = [arm for arm in plan.arms if any(cell.arm is arm for cell in cells)]
    width = max(len(arm.label) for arm in arms) + 2
    lines = [f"study     {plan.question}", f"writes    {plan.output_dir}"]
    for task in plan.tasks:
        lines += ["", f"{task.label + ' ':{width}}  seeds {' '.join(str(seed) for seed in plan.seeds)}"]
        for arm in arms:
            mine = [cell for cell in cells if cell.arm is arm and cell.task is task]
            marks = " ".join(STATES[state_of(cell.directory)].ljust(len(str(cell.seed))) for cell in mine)
            note = "  baseline" if arm.name == plan.baseline else "  A/A" if arm.is_aa else ""
            note += "  cannot run, see below" if arm.name in refused else ""
            lines.append(f"{arm.label:{width}}        {marks}{note}")
    lines += ["", "● done  ◕ trained, not evaluated  ◐ begun  ○ to do"]
    lines += [f"cannot run {why}" for arm, why in refused.items() if arm in {a.name for a in arms}]
    return "\n".join(lines)


def estimate_text(plan: Plan, cells: Sequence[Cell], processes: int, probe: bool) -> str:
    """How many runs are left and how long they take."""
    from maxent_grpo.study.estimate import Forecast, probe_seconds
    from maxent_grpo.study.schedule import duration_text

    left = sum(state_of(cell.directory) is not State.DONE for cell in cells)
    text = f"{left} of {len(cells)} runs to do, {plan.budget.steps} steps each, {processes} at a time"
    if not left:
        return text
    seconds, source = Forecast(plan, cells).seconds_left(processes), "finished runs"
    if seconds is None and probe:
        seconds, source = probe_seconds(plan, cells, processes), "two steps of the baseline"
    return f"{text}: {'no estimate' if seconds is None else f'about {duration_text(seconds)}, judging by {source}'}"


def _slurm(
    plan_file: Path,
    plan: Plan,
    cells: Sequence[Cell],
    at_once: int,
    dry_run: bool,
    say: Callable[[str], None],
) -> None:
    from maxent_grpo.study.slurm import slurm_script, submit

    script = slurm_script(
        plan_file.absolute(), replace(plan, output_dir=plan.output_dir.absolute()), len(cells), at_once
    )
    say(script if dry_run else submit(script, plan.output_dir.absolute()))


def _require_statistics() -> None:
    missing = [name for name in ("scipy", "statsmodels") if find_spec(name) is None]
    if missing:
        raise UsageError(f"study: {' and '.join(missing)} not installed; pip install 'maxent-grpo[study]'")
