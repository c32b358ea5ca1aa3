"""The figures of a study, each with one message, as PNG for reading and SVG for papers."""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from scipy import stats

from maxent_grpo.observe import charts
from maxent_grpo.observe.run_files import RunFiles, Series
from maxent_grpo.study.effects import against_baseline, measured_outcomes
from maxent_grpo.study.plan import UNTRAINED, Arm, StudyPlan, StudyTask
from maxent_grpo.study.runs import Finished

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Records = dict[tuple[str, str], list[RunFiles]]
"""(task, arm) → its finished runs."""

COLUMNS: Final = 4  # small multiples side by side
BAND_RUNS: Final = (
    3  # with two runs the interval is 13 standard errors to either side: a band that says nothing
)
MARKERS: Final = "osD^vP*X<>hp8"
SHADES: Final = ("#e8e8e8", "#c6dbef", "#9ecae1", "#6baed6", "#3182bd", "#08519c")  # one hue, light to dark
POINT: Final[dict[str, Any]] = {"linestyle": "none", "zorder": 4}


@cache
def _words() -> dict[str, Any]:
    """Titles, captions and units, and which curves of the training are drawn."""
    words: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return words


@dataclass(frozen=True)
class StudyFigure:
    """A figure on disk, as ``stem``.png and ``stem``.svg."""

    stem: Path
    title: str
    caption: str

    @property
    def png(self) -> Path:
        return self.stem.with_suffix(".png")

    @property
    def base64(self) -> str:
        return b64encode(self.png.read_bytes()).decode()


@dataclass(frozen=True)
class ArmCurve:
    """The mean over seeds at every step that all runs logged, with its 95% t interval (NaN below `BAND_RUNS`)."""

    steps: npt.NDArray[np.int64]
    """[S]"""
    mean: Floats
    """[S]"""
    low: Floats
    """[S]"""
    high: Floats
    """[S]"""


def draw_figures(
    plan: StudyPlan, rows: pd.DataFrame, effects: pd.DataFrame, finished: Sequence[Finished], out: Path
) -> list[StudyFigure]:
    """Every figure that the finished runs have data for, task by task."""
    records: Records = {}
    for run in finished:
        task, arm = run.rows[["task", "arm"]].iloc[0]
        records.setdefault((task, arm), []).append(run.records)
    first = plan.evaluation.temperatures[0]
    drawn: list[StudyFigure | None] = []
    for task in plan.tasks:
        here = rows[(rows["task"] == task.name) & (rows["temperature"] == first)]
        if len(effects):
            judged = against_baseline(effects, plan)
            judged = judged[(judged["task"] == task.name) & (judged["temperature"] == first)]
            drawn.append(_forest(plan, task, judged, out))
        drawn += [_trajectory(plan, task, records, out), _modes(plan, task, here, out)]
        drawn += [_curves(plan, task, records, out, **shown) for shown in _words()["curves"]]
    return [figure for figure in drawn if figure is not None]


def curve_metrics() -> tuple[str, ...]:
    """Patterns of the metrics whose curves are kept with a study: those that are drawn, and held-out exploration."""
    return (r"eval/[a-z_0-9]+_at_\d+", *(shown["metric"] for shown in _words()["curves"]))


def curve_of(records: Records, task: StudyTask, arm: Arm, metric: str) -> ArmCurve | None:
    """The curve of a metric whose whole name matches ``metric``; None where no run logged it."""
    found = [next(iter(run.matching(metric)), None) for run in records.get((task.name, arm.name), [])]
    logged = [series for series in found if series is not None and len(series.steps)]
    return average(logged) if logged else None


def average(runs: Sequence[Series]) -> ArmCurve:
    """Mean and 95% t interval over runs, at the steps that all of them have."""
    common = sorted(set.intersection(*(set(series.steps.tolist()) for series in runs)))
    values = np.array([series.values[np.isin(series.steps, common)] for series in runs])
    mean, n = values.mean(axis=0), len(runs)
    half = np.full_like(mean, np.nan)
    if n >= BAND_RUNS:
        half = stats.t.ppf(0.975, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return ArmCurve(np.array(common), mean, mean - half, mean + half)


@contextmanager
def _figure(width: float, height: float, stem: Path, title: str, left: float) -> Iterator["Figure"]:
    """A figure in our style, saved as PNG and SVG when the block ends well; equal numbers give equal files.

    ``left`` is the place of its title, as a share of its width.
    """
    from matplotlib import rc_context

    fixed: Any = {"svg.hashsalt": "maxent-grpo", "svg.fonttype": "none"}
    with rc_context(fixed), charts.styled_figure(width, height, stem.with_suffix(".png")) as figure:
        heading: dict[str, Any] = {
            "fontsize": 12.5,
            "fontweight": "bold",
            "ha": "left",
            "va": "top",
            "color": charts.INK,
        }
        yield figure
        figure.text(left, 1 - 0.1 / height, title, **heading)
        stem.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})


def _words_of(kind: str, plan: StudyPlan, task: StudyTask) -> tuple[str, str]:
    """Title and caption of a figure."""
    values: dict[str, Any] = {"task": task.label, "baseline": plan.arm(plan.baseline).label}
    values |= {"alpha": plan.judgement.alpha, "k": plan.evaluation.k}
    title = _words()[kind]["title"].format(**values)
    return title, f"{title}: {_words()[kind]['caption'].format(**values)}"


def _color(plan: StudyPlan, arm: Arm) -> str:
    """Black for the baseline, gray for its repetition and for the untrained policy, then the palette in turn."""
    if arm.name == plan.baseline:
        return charts.INK
    if arm.is_aa or arm.name == UNTRAINED:
        return "#999999"
    others = [other for other in plan.arms if other.name != plan.baseline and not other.is_aa]
    return charts.PALETTE[others.index(arm) % (len(charts.PALETTE) - 1)]


def _label_room(arms: Sequence[Arm]) -> float:
    """Inches for arm labels beside a panel."""
    return 0.45 + 0.078 * max(12, *(len(arm.label) for arm in arms))


def _arms_down(axes: "Axes", arms: Sequence[Arm]) -> None:
    axes.set_yticks(range(len(arms)), [arm.label for arm in arms], fontsize=9.5, color=charts.INK)
    axes.set_ylim(len(arms) - 0.5, -0.5)


def _forest(plan: StudyPlan, task: StudyTask, table: pd.DataFrame, out: Path) -> StudyFigure | None:
    """Effect and interval of every arm (down) on every outcome (across)."""
    if table.empty:
        return None
    outcomes = [o for o in plan.judgement.outcomes if o in set(table["outcome"])]
    outcomes.sort(key=lambda outcome: outcome != plan.judgement.primary)
    arms = [arm for arm in (plan.untrained, *plan.arms) if arm.name in set(table["arm"])]
    left = _label_room(arms)
    width, height = left + 2.35 * len(outcomes), 0.36 * len(arms) + 1.75
    stem = out / f"{task.name}_effects"
    title, caption = _words_of("effects", plan, task)
    with _figure(width, height, stem, title, left=0.1 / width) as figure:
        grid = figure.subplots(1, len(outcomes), squeeze=False, sharey=True)[0]
        for axes, outcome in zip(grid, outcomes, strict=True):
            _forest_panel(axes, plan, table[table["outcome"] == outcome], arms)
            star = " (primary)" if outcome == plan.judgement.primary else ""
            name = "PCMD" if outcome == "pcmd" else f"{outcome}@{plan.evaluation.k}"
            axes.set_title(f"{name}{star}", fontweight="bold", fontsize=10)
            axes.set_xlabel(f"difference, {_words()['differences'][outcome]}", fontsize=8.5)
        _arms_down(grid[0], arms)
        edges = {"left": left / width, "right": 0.985, "top": 1 - 0.78 / height, "bottom": 0.62 / height}
        figure.subplots_adjust(**edges, wspace=0.14)
    return StudyFigure(stem, title, caption)


def _forest_panel(axes: "Axes", plan: StudyPlan, table: pd.DataFrame, arms: Sequence[Arm]) -> None:
    from matplotlib.ticker import MaxNLocator

    margin = float(table["margin"].iloc[0])
    axes.axvspan(-margin, margin, color="#f0f0f0", zorder=0, linewidth=0)
    axes.axvline(0, color=charts.QUIET, linewidth=0.9, zorder=1)
    for height, arm in enumerate(arms):
        found = table[table["arm"] == arm.name]
        if found.empty:
            continue
        row, color = found.iloc[0], _color(plan, arm)
        axes.plot([row["ci_low"], row["ci_high"]], [height, height], color=color, linewidth=2.2, zorder=3)
        face = color if row["p_holm"] < plan.judgement.alpha else "white"
        point: dict[str, Any] = {"marker": "o", "markersize": 7.5, "markeredgewidth": 1.8, **POINT}
        axes.plot(row["effect"], height, color=color, markerfacecolor=face, **point)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -1.6 * margin), max(high, 1.6 * margin))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, symmetric=False))
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.spines["left"].set_visible(False)


def _trajectory(plan: StudyPlan, task: StudyTask, records: Records, out: Path) -> StudyFigure | None:
    """Held-out coverage against held-out accuracy, from the first evaluation to the last, one path per arm."""
    paths: list[tuple[Arm, ArmCurve, ArmCurve]] = []
    for arm in plan.arms:
        accuracy = curve_of(records, task, arm, r"eval/mean_at_\d+")
        coverage = curve_of(records, task, arm, r"eval/coverage_at_\d+")
        if accuracy is not None and coverage is not None and len(accuracy.steps) > 1:
            paths.append((arm, accuracy, coverage))
    if not paths:
        return None
    ks = (plan.evaluation.k, *range(1, 257))  # recipes set the k of evaluations during training
    base = plan.arm(plan.baseline)
    k = next((k for k in ks if curve_of(records, task, base, rf"eval/mean_at_{k}") is not None), ks[0])
    stem = out / f"{task.name}_trajectory"
    title, caption = _words_of("trajectory", plan, task)
    width = 6.2 + _label_room([arm for arm, *_ in paths])
    with _figure(width, 5.2, stem, title, left=0.015) as figure:
        axes = figure.subplots()
        for arm, x, y in paths:
            color = _color(plan, arm)
            axes.plot(x.mean, y.mean, color=color, linewidth=1.6, marker=".", markersize=5, zorder=2)
            axes.plot([x.low[-1], x.high[-1]], [y.mean[-1]] * 2, color=color, alpha=0.45)
            axes.plot([x.mean[-1]] * 2, [y.low[-1], y.high[-1]], color=color, alpha=0.45)
            marker = MARKERS[plan.arms.index(arm) % len(MARKERS)]
            end: dict[str, Any] = {
                "marker": marker,
                "markersize": 9,
                "color": color,
                "markeredgecolor": "white",
                **POINT,
            }
            axes.plot(x.mean[-1], y.mean[-1], label=arm.label, **end)
        _, x, y = paths[0]
        start: dict[str, Any] = {
            "marker": "o",
            "markersize": 10,
            "markerfacecolor": "white",
            "linestyle": "none",
            "zorder": 5,
        }
        start |= {"markeredgecolor": charts.INK, "markeredgewidth": 1.6, "label": "before training"}
        axes.plot(x.mean[0], y.mean[0], **start)
        axes.set_xlabel(f"accuracy: mean@{k}, share of right answers")
        axes.set_ylabel(f"diversity: coverage@{k}, share of modes found")
        axes.grid(visible=True, axis="both")
        axes.margins(0.08)
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9.5)
        figure.tight_layout(rect=(0, 0, 1, 0.93))
    return StudyFigure(stem, title, caption)


def _modes(plan: StudyPlan, task: StudyTask, rows: pd.DataFrame, out: Path) -> StudyFigure | None:
    """Numbers of different right answers, as shares of prompts per arm."""
    from matplotlib.patches import Patch

    if "distinct" not in measured_outcomes(rows, plan):
        return None
    arms = [arm for arm in (plan.untrained, *plan.arms) if (rows["arm"] == arm.name).any()]
    top, left = len(SHADES) - 1, _label_room(arms)
    width, height = left + 6.4, 0.36 * len(arms) + 1.9
    stem = out / f"{task.name}_modes"
    title, caption = _words_of("modes", plan, task)
    with _figure(width, height, stem, title, left=0.1 / width) as figure:
        axes = figure.subplots()
        for row, arm in enumerate(arms):
            counts = rows.loc[rows["arm"] == arm.name, "distinct"].clip(upper=top).round().astype(int)
            start = 0.0
            for modes, shade in enumerate(SHADES):
                share = float((counts == modes).mean())
                axes.barh(row, share, left=start, color=shade, edgecolor="white", height=0.72, linewidth=0.8)
                if share > 0.055:
                    text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8.5}
                    text["color"] = "white" if modes >= 4 else charts.INK
                    axes.text(start + share / 2, row, f"{share:.0%}", **text)
                start += share
        _arms_down(axes, arms)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of held-out prompts")
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        patches = [
            Patch(facecolor=shade, label=f"{modes} or more" if modes == top else str(modes))
            for modes, shade in enumerate(SHADES)
        ]
        look: dict[str, Any] = {"ncols": len(SHADES), "frameon": False, "fontsize": 8.5, "handlelength": 1.1}
        place = (left / width - 0.012, 1 - 0.42 / height)
        look |= {"loc": "upper left", "bbox_to_anchor": place, "columnspacing": 1.2, "borderaxespad": 0}
        figure.legend(handles=patches, **look)
        figure.subplots_adjust(left=left / width, right=0.97, top=1 - 0.78 / height, bottom=0.62 / height)
    return StudyFigure(stem, title, caption)


def _curves(
    plan: StudyPlan,
    task: StudyTask,
    records: Records,
    out: Path,
    *,
    metric: str,
    name: str,
    title: str,
    unit: str,
    note: str,
) -> StudyFigure | None:
    """One small panel per arm that has logged the metric, with the baseline behind it in gray."""
    from matplotlib.ticker import MaxNLocator

    curves = {arm.name: curve_of(records, task, arm, metric) for arm in plan.arms}
    baseline = curves.pop(plan.baseline)
    shown = [(plan.arm(arm), curve) for arm, curve in curves.items() if curve is not None]
    if not shown:
        return None
    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    width, height = max(2.75 * columns + 0.5, 6.0), 2.15 * lines + 0.9
    stem, title = out / f"{task.name}_{name}", title.format(task=task.label)
    with _figure(width, height, stem, title, left=0.015) as figure:
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(shown) :]:
            axes.remove()
        for position, (axes, (arm, curve)) in enumerate(zip(grid.flat, shown, strict=False)):
            if baseline is not None:
                _band(axes, baseline, "#9a9a9a")
            _band(axes, curve, charts.INK if arm.is_aa else _color(plan, arm))
            axes.set_title(arm.label, fontsize=10, fontweight="bold")
            if position % columns == 0:
                axes.set_ylabel(unit)
            if position + columns >= len(shown):
                axes.set_xlabel("optimiser step")
                axes.tick_params(labelbottom=True)
                axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.42 / height))
    behind = _words()["behind"].format(baseline=plan.arm(plan.baseline).label) if baseline is not None else ""
    caption = f"{title}: {_words()['curve_caption'].format(behind=behind)}{note}"
    return StudyFigure(stem, title, caption)


def _band(axes: "Axes", curve: ArmCurve, color: str) -> None:
    window = charts.smoothing_window(len(curve.steps))
    low, high = charts.smooth(curve.low, window), charts.smooth(curve.high, window)
    axes.fill_between(curve.steps, low, high, color=color, alpha=0.18, linewidth=0)
    axes.plot(curve.steps, charts.smooth(curve.mean, window), color=color, linewidth=1.9)
