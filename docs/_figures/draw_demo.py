"""Draw the landing page's two curves from what `make demo` leaves: python docs/_figures/draw_demo.py var/demo"""

import sys
from pathlib import Path

import numpy as np
from themes import THEMES, Theme, figure_for

from maxent_grpo.observe.charts import EndLabel, draw_line, label_ends
from maxent_grpo.observe.run_files import RunFiles, load_run

ARMS = (("Dr. GRPO", "grpo"), ("MaxEnt-GRPO", "maxent-grpo"))
PANELS = {
    "demo-right": ("Right answers", "share of completions", "train/reward", "eval/mean_at_8"),
    "demo-different": (
        "Different right answers",
        "share of all that a prompt has",
        "train/coverage",
        "eval/coverage_at_8",
    ),
}
"""Figure → title, unit, metric of the line, metric of the points."""


def draw(theme: Theme, name: str, runs: list[tuple[str, RunFiles]]) -> None:
    title, unit, trained, held_out = PANELS[name]
    with figure_for(theme, name, 4.3, 3.2) as figure:
        axes = figure.subplots()
        ends = []
        for (label, run), colour in zip(runs, theme.lines, strict=False):
            last = draw_line(axes, run.series(trained), colour)
            points = run.series(held_out)
            axes.errorbar(
                points.steps,
                points.values,
                yerr=points.errors,
                fmt="o",
                markersize=5,
                color=colour,
                elinewidth=1.3,
                zorder=4,
            )
            ends.append(EndLabel(last, label, colour))
        axes.set_title(title, fontweight="bold")
        axes.set_ylabel(unit)
        axes.set_xlabel("optimiser step")
        axes.set_xticks(np.arange(0, 101, 25))
        axes.set_ylim(0, None)
        label_ends(axes, ends)
        figure.tight_layout()


if __name__ == "__main__":
    demo = Path(sys.argv[1])
    loaded = [(label, load_run(demo / folder)) for label, folder in ARMS]
    for each in THEMES:
        for figure_name in PANELS:
            draw(each, figure_name, loaded)
