"""The demo: Dr. GRPO and MaxEnt-GRPO on graph colouring, same prompts and seeds, side by side, then compared.

Each method is an ordinary run in a process of its own; this module starts them, reads their files while they work, and
reports. It knows nothing that a user's own two runs would not leave behind.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.files import JsonlFile
from maxent_grpo.observe import names
from maxent_grpo.observe.report import SummaryTable, write_report

METHODS = {
    "Dr. GRPO": ("train-baseline", "baseline", "grpo"),
    "MaxEnt-GRPO": ("train-maxent", "maxent", "maxent-grpo"),
}
"""Label → command, section of the command, folder of the recipe."""

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
class Arm:
    """One method's run, as seen from outside."""

    label: str
    directory: Path
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    started: float

    def latest(self) -> dict[str, Any]:
        """The newest value of every metric so far."""
        merged: dict[str, Any] = {}
        for file in (names.METRICS_FILE, names.TIMINGS_FILE):
            path = self.directory / file
            for record in JsonlFile.read(path) if path.is_file() else []:
                merged |= record
        return merged


def run_demo(options: Mapping[str, Any]) -> None:
    """Train both methods, print the comparison, and write plot and report.

    ``options``: ``steps`` (100), ``seed`` (0), ``output_dir`` (var/demo, whose earlier demo is replaced).
    Raises `UsageError` on an unknown option and `RunError` if a run fails.
    """
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise UsageError(
            f"demo.{unknown[0]}: unknown; the demo takes {', '.join(f'demo.{k}' for k in DEFAULTS)}"
        )
    settings = DEFAULTS | dict(options)
    for name, least in (("steps", 1), ("seed", 0)):
        if not isinstance(settings[name], int) or settings[name] < least:
            raise UsageError(f"demo.{name}: {settings[name]!r} is not an integer of at least {least}")
    directory, steps = Path(str(settings["output_dir"])), settings["steps"]
    print(
        f"Training the bundled tiny policy (1 M parameters) on graph colouring: {' and '.join(METHODS)}, {steps} steps "
        f"each, same prompts and seed. Files: {directory}/",
        flush=True,
    )
    arms = [start_arm(label, directory, steps, settings["seed"]) for label in METHODS]
    watch(arms, steps)
    table = comparison(arms)
    print_table(table)
    report = write_report(
        [(arm.label, arm.directory) for arm in arms],
        directory,
        title="Graph colouring: Dr. GRPO against MaxEnt-GRPO",
        table=table,
    )
    for figure in report.figures:
        print(f"plot    {figure}")
    print(f"report  {report.html}")


def start_arm(label: str, directory: Path, steps: int, seed: int) -> Arm:
    """Start one method's training command, on its share of the cores."""
    command, section, folder = METHODS[label]
    output_dir = directory / folder
    shutil.rmtree(output_dir, ignore_errors=True)
    output_dir.mkdir(parents=True)
    recipe = _recipes() / folder / "config_graph_coloring.yaml"
    arguments = [
        f"command={command}",
        f"{section}.recipe={recipe}",
        f"{section}.training.output_dir={output_dir}",
        f"{section}.training.max_steps={steps}",
        f"{section}.training.seed={seed}",
        f"{section}.training.disable_tqdm=true",
    ]
    threads = max(1, (os.cpu_count() or 1) // len(METHODS))
    log = (output_dir / "train.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "maxent_grpo.cli.main", *arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
    )
    return Arm(label, output_dir, process, log, time.monotonic())


def watch(arms: Sequence[Arm], steps: int) -> None:
    """Show progress until every run has ended; stop them all if one fails or the user interrupts."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    try:
        if console.is_terminal:
            with Live(console=console, refresh_per_second=4) as live:
                while _running(arms):
                    live.update(_progress_table(arms, steps))
                    time.sleep(0.5)
                live.update(_progress_table(arms, steps))
        else:
            while _running(arms):
                time.sleep(10)
                for arm in arms:
                    print(_progress_line(arm, steps), flush=True)
    finally:
        for arm in arms:
            arm.process.kill()
            arm.process.wait()
            arm.log.close()


def _running(arms: Sequence[Arm]) -> bool:
    for arm in arms:
        if arm.process.poll() not in (None, 0):
            lines = (arm.directory / "train.log").read_text(errors="replace").strip().splitlines()
            raise RunError(
                f"{arm.label} failed: {lines[-1] if lines else 'no output'} (log: {arm.directory}/train.log)"
            )
    return any(arm.process.poll() is None for arm in arms)


def _cells(arm: Arm, steps: int) -> list[str]:
    latest = arm.latest()
    step = latest.get("step", 0)
    elapsed = time.monotonic() - arm.started
    left = f"{elapsed / step * (steps - step):.0f} s" if step else "starting"
    values = [latest.get(name) for _, name in SHOWN]
    return [f"{step}/{steps}", *("–" if v is None else f"{v:.4g}" for v in values), left]


def _progress_table(arms: Sequence[Arm], steps: int) -> Any:
    from rich.table import Table

    table = Table("method", "step", *(heading for heading, _ in SHOWN), "left")
    for arm in arms:
        table.add_row(arm.label, *_cells(arm, steps))
    return table


def _progress_line(arm: Arm, steps: int) -> str:
    step, *values, left = _cells(arm, steps)
    shown = "  ".join(f"{heading} {value}" for (heading, _), value in zip(SHOWN, values, strict=True))
    return f"{arm.label:12} {step:>8}  {shown}  left {left}"


def comparison(arms: Sequence[Arm]) -> SummaryTable:
    """Each measure before and after training, with its standard error over prompts."""
    rows = []
    for arm in arms:
        evaluated = [
            r for r in JsonlFile.read(arm.directory / names.METRICS_FILE) if f"eval/{MEASURES[0]}" in r
        ]
        for when, record in (
            ("before", evaluated[0]),
            ("after", evaluated[-1]),
        ):
            cells = [f"{record[f'eval/{m}']:.3f}±{record[f'eval/{m}_se']:.3f}" for m in MEASURES]
            rows.append((arm.label, when, *cells))
    columns = ("method", "", *(m.replace("_at_", "@") for m in MEASURES))
    caption = (
        "Held-out prompts, 8 samples each at temperature 1, the same draws in every row; ± is the standard error over "
        "prompts. One seed: the spread between seeds is not in it."
    )
    return SummaryTable(columns, tuple(rows), caption)


def print_table(summary: SummaryTable) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(*summary.columns, box=SIMPLE, pad_edge=False)
    for row in summary.rows:
        table.add_row(*row)
    Console().print(table, summary.caption, sep="")


def _recipes() -> Path:
    """The tiny recipes of the checkout that this package runs from."""
    folder = Path(__file__).resolve().parents[3] / "configs" / "recipes" / "tiny"
    if not folder.is_dir():
        raise UsageError(
            f"the demo reads its recipes from a checkout of the project, and {folder} is not there"
        )
    return folder
