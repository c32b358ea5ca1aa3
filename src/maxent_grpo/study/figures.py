"""The figures of a study, each with one message, as PNG for reading and SVG for papers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd

from maxent_grpo.observe import charts, names
from maxent_grpo.study.cells import Cell
from maxent_grpo.study.conclusions import outcome_name
from maxent_grpo.study.curves import Curve, Records
from maxent_grpo.study.drawing import (
    Drawn,
    colour_of,
    draw_heading,
    drawn_at,
    label_room,
    marker_of,
    saved_figure,
)
from maxent_grpo.study.effects import measured_outcomes
from maxent_grpo.study.plan import Arm, Plan, StudyTask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS: Final = 4  # small multiples side by side

DIFFERENCE: Final = {
    "mean": "share of samples",
    "pass": "share of prompts",
    "distinct": "answers per prompt",
    "coverage": "share of modes",
}
"""Outcome → what its difference counts, for an axis."""


@dataclass(frozen=True)
class TrainingCurves:
    """A figure of one metric of the training batches over the steps, a panel per arm."""

    metric: str
    heading: str
    unit: str
    stem: str  # of the file's name, after the task's
    note: str = ""  # what a reader must know of it


TRAINING_CURVES: Final = (
    TrainingCurves(names.REWARD, "Reward while training", "mean reward", "reward"),
    TrainingCurves(
        names.COVERAGE,
        "Coverage while training",
        "share of modes",
        "coverage",
        "Coverage within a training group: different right answers found, over all that the prompt has.",
    ),
    TrainingCurves(
        "train/weight_entropy_norm",
        "Entropy of the weights",
        "H(w) / ln G",
        "weights",
        "1 weighs all completions of a group alike, 0 one alone; arms without weights are left out.",
    ),
    TrainingCurves(
        "train/grad_norm",
        "Gradient norm before clipping",
        "L2 norm",
        "gradient",
        "Arms whose norms differ by factors differ in step size as well as in method, unless the optimiser normalises "
        "it, as Adam does.",
    ),
)

SHADES: Final = ("#e8e8e8", "#c6dbef", "#9ecae1", "#6baed6", "#3182bd", "#08519c")  # one hue, light to dark


def draw_figures(
    plan: Plan, rows: pd.DataFrame, effects: pd.DataFrame, done: Sequence[Cell], out: Path
) -> list[Drawn]:
    """Every figure that the finished runs have data for, task by task."""
    records = Records(done)
    drawn: list[Drawn | None] = []
    for task in plan.tasks:
        if not (rows["task"] == task.name).any():
            continue
        here = rows[(rows["task"] == task.name) & (rows["temperature"] == plan.evaluation.temperatures[0])]
        drawn += [
            _forest(plan, task, effects, out),
            _trajectory(plan, task, records, out),
            _modes(plan, task, here, out),
            *(_curves(plan, task, records, shown, out) for shown in TRAINING_CURVES),
        ]
    return [figure for figure in drawn if figure is not None]


def _forest(plan: Plan, task: StudyTask, effects: pd.DataFrame, out: Path) -> Drawn | None:
    """Effect and interval of every arm (down) on every outcome (across)."""
    if effects.empty:
        return None
    table = effects[
        (effects["task"] == task.name) & (effects["temperature"] == plan.evaluation.temperatures[0])
    ]
    if table.empty:
        return None
    outcomes = [o for o in plan.judgement.outcomes if o in set(table["outcome"])]
    outcomes.sort(key=lambda outcome: outcome != plan.judgement.primary)
    arms = [arm for arm in plan.arms if arm.name in set(table["arm"])]
    left = label_room(arms)
    width, height = left + 2.35 * len(outcomes), 0.36 * len(arms) + 1.75
    with saved_figure(width, height, out / f"{task.name}_effects") as figure:
        grid = figure.subplots(1, len(outcomes), squeeze=False, sharey=True)[0]
        for axes, outcome in zip(grid, outcomes, strict=True):
            _forest_panel(axes, plan, table[table["outcome"] == outcome], arms)
            star = " (primary)" if outcome == plan.judgement.primary else ""
            axes.set_title(
                f"{outcome_name(outcome, plan.evaluation.k)}{star}", fontweight="bold", fontsize=10
            )
            axes.set_xlabel(f"difference, {DIFFERENCE[outcome]}", fontsize=8.5)
        grid[0].set_yticks(range(len(arms)), [arm.label for arm in arms], fontsize=9.5, color=charts.INK)
        grid[0].set_ylim(len(arms) - 0.5, -0.5)
        title = f"Effects on {task.label}, against {plan.arm(plan.baseline).label}"
        draw_heading(figure, title, left=0.1 / width)
        figure.subplots_adjust(
            left=left / width, right=0.985, top=1 - 0.78 / height, bottom=0.62 / height, wspace=0.14
        )
    caption = (
        f"{title}: mean of seed-paired differences with bootstrap intervals over runs. A filled marker: Holm p below "
        f"{plan.judgement.alpha:g}. The shaded band is the margin within which a difference would not matter. The grey "
        "A/A arm has the baseline's settings, so its truth is zero."
    )
    return drawn_at(out / f"{task.name}_effects", title, caption)


def _forest_panel(axes: "Axes", plan: Plan, table: pd.DataFrame, arms: Sequence[Arm]) -> None:
    from matplotlib.ticker import MaxNLocator

    margin = float(table["margin"].iloc[0])
    axes.axvspan(-margin, margin, color="#f0f0f0", zorder=0, linewidth=0)
    axes.axvline(0, color=charts.QUIET, linewidth=0.9, zorder=1)
    for height, arm in enumerate(arms):
        found = table[table["arm"] == arm.name]
        if found.empty:
            continue
        row, colour = found.iloc[0], colour_of(plan, arm)
        axes.plot([row["ci_low"], row["ci_high"]], [height, height], color=colour, linewidth=2.2, zorder=3)
        filled = row["p_holm"] < plan.judgement.alpha
        axes.plot(
            row["effect"],
            height,
            marker="o",
            markersize=7.5,
            color=colour,
            markerfacecolor=colour if filled else "white",
            markeredgewidth=1.8,
            linestyle="none",
            zorder=4,
        )
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -1.6 * margin), max(high, 1.6 * margin))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, symmetric=False))
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.spines["left"].set_visible(False)


def _trajectory(plan: Plan, task: StudyTask, records: Records, out: Path) -> Drawn | None:
    """Held-out coverage against held-out accuracy, from the first evaluation to the last, one path per arm."""
    paths: list[tuple[Arm, Curve, Curve]] = []
    for arm in plan.arms:
        accuracy = records.curve(task.name, arm.name, r"eval/mean_at_\d+")
        coverage = records.curve(task.name, arm.name, r"eval/coverage_at_\d+")
        if accuracy is not None and coverage is not None and len(accuracy.steps) > 1:
            paths.append((arm, accuracy, coverage))
    if not paths:
        return None
    width = 6.2 + label_room([arm for arm, *_ in paths])
    with saved_figure(width, 5.2, out / f"{task.name}_trajectory") as figure:
        axes = figure.subplots()
        for arm, accuracy, coverage in paths:
            colour = colour_of(plan, arm)
            axes.plot(
                accuracy.mean, coverage.mean, color=colour, linewidth=1.6, marker=".", markersize=5, zorder=2
            )
            axes.plot(
                [accuracy.low[-1], accuracy.high[-1]], [coverage.mean[-1]] * 2, color=colour, alpha=0.45
            )
            axes.plot(
                [accuracy.mean[-1]] * 2, [coverage.low[-1], coverage.high[-1]], color=colour, alpha=0.45
            )
            axes.plot(
                accuracy.mean[-1],
                coverage.mean[-1],
                marker=marker_of(plan, arm),
                markersize=9,
                color=colour,
                markeredgecolor="white",
                linestyle="none",
                zorder=4,
                label=arm.label,
            )
        start = paths[0]
        axes.plot(
            start[1].mean[0],
            start[2].mean[0],
            marker="o",
            markersize=10,
            markerfacecolor="white",
            markeredgecolor=charts.INK,
            markeredgewidth=1.6,
            linestyle="none",
            zorder=5,
            label="before training",
        )
        k = _k_of_training(plan, records, task)
        axes.set_xlabel(f"accuracy: mean@{k}, share of right answers")
        axes.set_ylabel(f"diversity: coverage@{k}, share of modes found")
        axes.grid(visible=True, axis="both")
        axes.margins(0.08)
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9.5)
        title = f"Accuracy and diversity on {task.label}"
        draw_heading(figure, title, left=0.015)
        figure.tight_layout(rect=(0, 0, 1, 0.93))
    caption = (
        f"{title}: each path is an arm's mean over seeds on held-out prompts, a dot per evaluation, from the start "
        "(open circle) to its last, whose crosses are 95% t intervals over runs. Samples are drawn at the arm's own "
        "training temperature. Right is more accurate, up is more diverse: exploring well goes right without falling."
    )
    return drawn_at(out / f"{task.name}_trajectory", title, caption)


def _k_of_training(plan: Plan, records: Records, task: StudyTask) -> int:
    """The k of the evaluations during training, which recipes set."""
    for k in (plan.evaluation.k, *range(1, 257)):
        if records.curve(task.name, plan.baseline, rf"eval/mean_at_{k}") is not None:
            return k
    return plan.evaluation.k


def _modes(plan: Plan, task: StudyTask, rows: pd.DataFrame, out: Path) -> Drawn | None:
    """How many different right answers a prompt gets, as shares of prompts per arm."""
    if "distinct" not in measured_outcomes(rows, plan):
        return None
    arms = [arm for arm in plan.arms if (rows["arm"] == arm.name).any()]
    top = len(SHADES) - 1
    left = label_room(arms)
    width, height = left + 6.4, 0.36 * len(arms) + 1.9
    with saved_figure(width, height, out / f"{task.name}_modes") as figure:
        axes = figure.subplots()
        for row, arm in enumerate(arms):
            counts = rows.loc[rows["arm"] == arm.name, "distinct"].clip(upper=top).round().astype(int)
            start = 0.0
            for modes, shade in enumerate(SHADES):
                share = float((counts == modes).mean())
                axes.barh(row, share, left=start, color=shade, edgecolor="white", height=0.72, linewidth=0.8)
                if share > 0.055:
                    ink = "white" if modes >= 4 else charts.INK
                    axes.text(
                        start + share / 2,
                        row,
                        f"{share:.0%}",
                        ha="center",
                        va="center",
                        fontsize=8.5,
                        color=ink,
                    )
                start += share
        axes.set_yticks(range(len(arms)), [arm.label for arm in arms], fontsize=9.5, color=charts.INK)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of held-out prompts")
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        title = f"Different right answers per prompt on {task.label}"
        draw_heading(figure, title, left=0.1 / width)
        _legend_of_shades(figure, top, left / width, 1 - 0.42 / height)
        figure.subplots_adjust(left=left / width, right=0.97, top=1 - 0.78 / height, bottom=0.62 / height)
    caption = (
        f"{title}: how many of a prompt's right answers {plan.evaluation.k} samples of the final policy find. Darker "
        "is more. A policy that collapses onto one answer moves prompts from the dark end to “1”."
    )
    return drawn_at(out / f"{task.name}_modes", title, caption)


def _legend_of_shades(figure: "Figure", top: int, left: float, height: float) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=shade, label=f"{modes} or more" if modes == top else str(modes))
        for modes, shade in enumerate(SHADES)
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(left - 0.012, height),
        ncols=len(SHADES),
        frameon=False,
        fontsize=8.5,
        handlelength=1.1,
        columnspacing=1.2,
        borderaxespad=0,
    )


def _curves(plan: Plan, task: StudyTask, records: Records, shown: TrainingCurves, out: Path) -> Drawn | None:
    """One small panel per arm that has logged the metric, with the baseline behind it in grey."""
    from matplotlib.ticker import MaxNLocator

    curves = {arm.name: records.curve(task.name, arm.name, shown.metric) for arm in plan.arms}
    baseline = curves[plan.baseline]
    arms = [arm for arm in plan.arms if curves[arm.name] is not None and arm.name != plan.baseline]
    if not arms:
        return None
    columns = min(COLUMNS, len(arms))
    lines = -(-len(arms) // columns)
    width, height = max(2.75 * columns + 0.5, 6.0), 2.15 * lines + 0.9
    with saved_figure(width, height, out / f"{task.name}_{shown.stem}") as figure:
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        for position, axes in enumerate(grid.flat):
            if position >= len(arms):
                axes.remove()
                continue
            arm, curve = arms[position], curves[arms[position].name]
            assert curve is not None
            if baseline is not None:
                _band(axes, baseline, "#9a9a9a")
            _band(axes, curve, charts.INK if arm.is_aa else colour_of(plan, arm))
            axes.set_title(arm.label, fontsize=10, fontweight="bold")
            if position % columns == 0:
                axes.set_ylabel(shown.unit)
            if position + columns >= len(arms):
                axes.set_xlabel("optimiser step")
                axes.tick_params(labelbottom=True)
                axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        title = f"{shown.heading}, {task.label}"
        draw_heading(figure, title, left=0.015)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.42 / height))
    behind = f"; {plan.arm(plan.baseline).label} in grey behind" if baseline is not None else ""
    caption = (
        f"{title}: mean over seeds of the training batches, smoothed, with the 95% t interval over runs{behind}. "
        f"{shown.note}"
    )
    return drawn_at(out / f"{task.name}_{shown.stem}", title, caption)


def _band(axes: "Axes", curve: Curve, colour: str) -> None:
    window = charts.smoothing_window(len(curve.steps))
    low, high = charts.smooth(curve.low, window), charts.smooth(curve.high, window)
    axes.fill_between(curve.steps, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(curve.steps, charts.smooth(curve.mean, window), color=colour, linewidth=1.9)
