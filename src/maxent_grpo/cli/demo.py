"""The demo: Dr. GRPO and MaxEnt-GRPO on graph colouring, same prompts and seeds, side by side, then compared.

Each method is an ordinary run in a process of its own, whose files are read while it works.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maxent_grpo.config.shipped import shipped
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.files import JsonlFile
from maxent_grpo.observe import names
from maxent_grpo.observe.report import SummaryTable, write_report

METHODS = {"Dr. GRPO": ("train-baseline", "grpo"), "MaxEnt-GRPO": ("train-maxent", "maxent-grpo")}
"""Label → command, folder of the recipe."""

MEASURES = ("mean_at_8", "pass_at_8", "distinct_at_8", "coverage_at_8")
DEFAULTS: dict[str, Any] = {"steps": 100, "seed": 0, "output_dir": "var/demo"}
SHOWN = (
    ("reward", names.REWARD),
    ("pass", names.PASS),
    ("coverage", names.COVERAGE),
    ("τ", names.TAU),
    ("β", names.BETA),
    ("KL", names.KL),
    ("entropy", names.TOKEN_ENTROPY),
    ("tokens/s", names.TOKENS_PER_SECOND),
)


@dataclass
class DemoRun:
    """One method's run, as seen from outside."""

    label: str
    directory: Path
    process: subprocess.Popen[bytes]
    started: float

    def cells(self, steps: int) -> list[str]:
        """Step, the newest value of every shown metric, and the time left."""
        latest: dict[str, Any] = {}
        for file in (names.METRICS_FILE, names.TIMINGS_FILE):
            path = self.directory / file
            for record in JsonlFile.read(path) if path.is_file() else []:
                latest |= record
        step = latest.get("step", 0)
        elapsed = time.monotonic() - self.started
        left = f"{elapsed / step * (steps - step):.0f} s" if step else "starting"
        values = [latest.get(name) for _, name in SHOWN]
        return [f"{step}/{steps}", *("–" if v is None else f"{v:.4g}" for v in values), left]

    def works(self) -> bool:
        """True while it is under way. Raises `RunError` if it failed."""
        log = self.directory / "train.log"
        if self.process.poll() not in (None, 0):
            lines = log.read_text(errors="replace").strip().splitlines()
            raise RunError(f"{self.label} failed: {lines[-1] if lines else 'no output'} (log: {log})")
        return self.process.returncode is None


def run_demo(options: Mapping[str, Any]) -> None:
    """Train both methods, print the comparison, and write plot and report.

    ``options``: ``steps`` (100), ``seed`` (0), ``output_dir`` (var/demo, whose earlier demo is replaced).
    Raises `UsageError` on an unknown option and `RunError` if a run fails.
    """
    settings = checked(DEFAULTS, options)
    directory, steps = Path(str(settings["output_dir"])), settings["steps"]
    print(
        f"Training the bundled tiny policy (1 M parameters) on graph colouring: {' and '.join(METHODS)}, {steps} steps "
        f"each, same prompts and seed. Files: {directory}/",
        flush=True,
    )
    runs = [start_run(label, directory, steps, settings["seed"]) for label in METHODS]
    watch_to_the_end(runs, steps)
    table = comparison(runs)
    show_table(table.columns, table.rows, table.caption)
    report = write_report(
        [(run.label, run.directory) for run in runs],
        directory,
        title="Graph colouring: Dr. GRPO against MaxEnt-GRPO",
        table=table,
    )
    for figure in report.figures:
        print(f"plot    {figure}")
    print(f"report  {report.html}")


def checked(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` over ``defaults``. Raises `UsageError` for one that is unknown, or no sensible number."""
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise UsageError(
            f"demo.{unknown[0]}: unknown; the demo takes {', '.join(f'demo.{k}' for k in defaults)}"
        )
    settings = {**defaults, **options}
    for name, default in defaults.items():
        least = 0 if name == "seed" else 1
        if isinstance(default, int) and (not isinstance(settings[name], int) or settings[name] < least):
            raise UsageError(f"demo.{name}: {settings[name]!r} is not an integer of at least {least}")
    return settings


def start_run(label: str, directory: Path, steps: int, seed: int) -> DemoRun:
    """Start one method's training command, on its share of the cores."""
    command, folder = METHODS[label]
    settings = {
        "command": command,
        f"{command.removeprefix('train-')}.recipe": shipped(
            f"configs/recipes/tiny/{folder}/config_graph_coloring.yaml"
        ),
        "training.max_steps": steps,
        "training.seed": seed,
    }
    return launch(label, directory / folder, settings, share=1 / len(METHODS))


def launch(label: str, output_dir: Path, settings: Mapping[str, Any], share: float) -> DemoRun:
    """Start a training command in ``output_dir``, which is emptied, on its ``share`` of the cores."""
    shutil.rmtree(output_dir, ignore_errors=True)
    output_dir.mkdir(parents=True)
    settings = {**settings, "training.output_dir": output_dir, "training.disable_tqdm": "true"}
    threads = max(1, int((os.cpu_count() or 1) * share))
    with (output_dir / "train.log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "maxent_grpo.cli.main",
                *(f"{key}={value}" for key, value in settings.items()),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        )
    return DemoRun(label, output_dir, process, time.monotonic())


def watch_to_the_end(runs: Sequence[DemoRun], steps: int) -> None:
    """`watch`; whatever ends it, none of the runs is left behind."""
    try:
        watch(runs, steps)
    finally:
        for run in runs:
            run.process.kill()
            run.process.wait()


def watch(runs: Sequence[DemoRun], steps: int) -> None:
    """Show progress until every run has ended: a live table on a terminal, else a line per run now and then."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    def progress() -> Table:
        table = Table("method", "step", *(heading for heading, _ in SHOWN), "left")
        for run in runs:
            table.add_row(run.label, *run.cells(steps))
        return table

    console = Console()
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            while sum(run.works() for run in runs):
                live.update(progress())
                time.sleep(0.5)
            live.update(progress())
        return
    while sum(run.works() for run in runs):
        time.sleep(10)
        for run in runs:
            step, *values, left = run.cells(steps)
            shown = "  ".join(f"{heading} {value}" for (heading, _), value in zip(SHOWN, values, strict=True))
            print(f"{run.label:12} {step:>8}  {shown}  left {left}", flush=True)


def comparison(runs: Sequence[DemoRun]) -> SummaryTable:
    """Each measure before and after training, with its standard error over prompts."""
    rows = []
    for run in runs:
        records = JsonlFile.read(run.directory / names.METRICS_FILE)
        evaluated = [record for record in records if f"eval/{MEASURES[0]}" in record]
        for when, record in (("before", evaluated[0]), ("after", evaluated[-1])):
            cells = [f"{record[f'eval/{m}']:.3f}±{record[f'eval/{m}_se']:.3f}" for m in MEASURES]
            rows.append((run.label, when, *cells))
    columns = ("method", "", *(m.replace("_at_", "@") for m in MEASURES))
    caption = (
        "Held-out prompts, 8 samples each at temperature 1, the same draws in every row; ± is the standard error over "
        "prompts. One seed: the spread between seeds is not in it."
    )
    return SummaryTable(columns, tuple(rows), caption)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=SIMPLE, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table, caption, sep="")
