"""The figures of a study, each with one message, as PNG for reading and SVG for papers."""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from scipy import stats

from maxent_grpo.observe import charts
from maxent_grpo.observe.run_files import RunFiles, Series
from maxent_grpo.study.effects import against_baseline, measured, measured_outcomes, run_outcomes
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
WIDTH: Final = 6.0  # inches: on 480 pixels its smallest letters are still read
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
    dark: Path | None = None
    """The stem of the same figure for a dark page."""

    @property
    def png(self) -> Path:
        return self.stem.with_suffix(".png")

    @property
    def base64(self) -> str:
        return b64encode(self.png.read_bytes()).decode()

    @property
    def dark_base64(self) -> str | None:
        return None if self.dark is None else b64encode(self.dark.with_suffix(".png").read_bytes()).decode()


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
        drawn += [
            _tradeoff(plan, task, here, out),
            _decoding(plan, task, rows[rows["task"] == task.name], out),
        ]
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
def _figure(
    width: float, height: float, stem: Path, title: str, left: float, theme: charts.Theme = charts.LIGHT
) -> Iterator["Figure"]:
    """A figure in our style, saved as PNG and SVG when the block ends well; equal numbers give equal files.

    ``left`` is the place of its title, as a share of its width.
    """
    from matplotlib import rc_context

    fixed: Any = {"svg.hashsalt": "maxent-grpo", "svg.fonttype": "none"}
    with rc_context(fixed), charts.styled_figure(width, height, stem.with_suffix(".png"), theme) as figure:
        heading: dict[str, Any] = {
            "fontsize": 12.5,
            "fontweight": "bold",
            "ha": "left",
            "va": "top",
            "color": theme.ink,
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


def _color(plan: StudyPlan, arm: Arm, theme: charts.Theme = charts.LIGHT) -> str:
    """Ink for the baseline, gray for its repetition and for the untrained policy, then the palette in turn.

    Arms of one family have one colour.
    """
    if arm.name == plan.baseline:
        return theme.ink
    if arm.is_aa or arm.name == UNTRAINED:
        return "#999999"
    others = [other for other in plan.arms if other.name != plan.baseline and not other.is_aa]
    families = list(dict.fromkeys(other.family or other.name for other in others))
    return theme.palette[families.index(arm.family or arm.name) % (len(theme.palette) - 1)]


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


def _tradeoff(plan: StudyPlan, task: StudyTask, rows: pd.DataFrame, out: Path) -> StudyFigure | None:
    """Accuracy against coverage of the final policies: every arm with its intervals, and how far chance alone goes."""
    if not {"mean", "coverage"} <= set(measured(rows, ("mean", "coverage"))):
        return None
    runs = run_outcomes(rows, ["mean", "coverage"])
    stem = out / f"{task.name}_tradeoff"
    dark = out / f"{task.name}_tradeoff_dark"
    title, caption = _words_of("tradeoff", plan, task)
    arms = [arm for arm in plan.arms if (runs["arm"] == arm.name).any()]
    lines = -(-len(arms) // 2)
    below = 0.24 * lines + 0.2
    height = 4.7 + below
    for theme, path in ((charts.LIGHT, stem), (charts.DARK, dark)):
        with _figure(WIDTH, height, path, title, left=0.015, theme=theme) as figure:
            axes = figure.add_axes((0.115, (below + 0.55) / height, 0.865, 3.6 / height))
            _cloud(axes, plan, runs, theme)
            at: list[tuple[float, float]] = []
            for arm in arms:
                mine = runs.loc[runs["arm"] == arm.name, ["mean", "coverage"]].to_numpy()
                (x, y), half = mine.mean(axis=0), _half_interval(mine)
                color = _color(plan, arm, theme)
                axes.plot([x - half[0], x + half[0]], [y, y], color=color, linewidth=1.3, zorder=3)
                axes.plot([x, x], [y - half[1], y + half[1]], color=color, linewidth=1.3, zorder=3)
                axes.plot(x, y, marker="o", markersize=5, color=color, **POINT)
                at.append((float(x), float(y)))
            axes.set_xlabel(f"accuracy: mean@{plan.evaluation.k}, share of right answers")
            axes.set_ylabel(f"diversity: coverage@{plan.evaluation.k}")
            axes.grid(visible=True, axis="both")
            axes.margins(0.07)
            _aim(axes, plan, runs, theme)
            colors = [_color(plan, arm, theme) for arm in arms]
            _numbers(axes, at, colors, theme)
            for number, (arm, color) in enumerate(zip(arms, colors, strict=True)):
                column, line = divmod(number, lines)
                x, y = 0.03 + 0.49 * column, (below - 0.24 * line - 0.12) / height
                _badge(figure, (x, y), number + 1, color, theme, figure.transFigure)
                figure.text(x + 0.027, y, arm.label, fontsize=9.5, va="center", color=theme.ink)
    return StudyFigure(stem, title, caption, dark)


def _half_interval(runs: Floats) -> Floats:
    """Half the 95% t interval of the mean over ``runs`` [N, D]: [D], 0 with one run."""
    n = len(runs)
    return (
        np.zeros(runs.shape[1])
        if n < 2
        else stats.t.ppf(0.975, n - 1) * runs.std(axis=0, ddof=1) / np.sqrt(n)
    )


def _aim(axes: "Axes", plan: StudyPlan, runs: pd.DataFrame, theme: charts.Theme) -> None:
    """The untrained policy, and the corner that is as diverse as it and no less accurate than the baseline."""
    from matplotlib.patches import Rectangle

    start = runs[runs["arm"] == UNTRAINED]
    base = runs.loc[runs["arm"] == plan.baseline, "mean"]
    if start.empty:
        return
    x, y = start[["mean", "coverage"]].to_numpy()[0]
    point: dict[str, Any] = {
        "marker": "D",
        "markersize": 9,
        "markerfacecolor": theme.page,
        "markeredgewidth": 1.8,
    }
    axes.plot(x, y, markeredgecolor=theme.ink, **point, **(POINT | {"zorder": 6}))
    axes.autoscale_view()
    (low, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    look: dict[str, Any] = {"color": theme.quiet, "linewidth": 1.0, "linestyle": (0, (4, 3)), "zorder": 1}
    axes.axhline(y, **look)
    axes.axvline(x, **look)
    words: dict[str, Any] = {"fontsize": 9.5, "textcoords": "offset points", "zorder": 7}
    words["bbox"] = {"facecolor": theme.page, "alpha": 0.75, "linewidth": 0, "pad": 1}
    axes.annotate("untrained", (x, y), (9, 6), color=theme.ink, **words)
    if len(base):
        left = base.mean() - plan.judgement.margin["mean"]
        color = "#e4f3ec" if theme.name == "light" else "#1d3029"
        corner: dict[str, Any] = {"facecolor": color, "zorder": 0.5, "linewidth": 0}
        axes.add_patch(Rectangle((left, y), max(0.0, right - left), max(0.0, top - y), **corner))
    axes.set_xlim(low, right)
    axes.set_ylim(bottom, top)


def _cloud(axes: "Axes", plan: StudyPlan, runs: pd.DataFrame, theme: charts.Theme) -> None:
    """The single runs of the baseline and of its repetition, and where 95% of such runs are expected."""
    from matplotlib.patches import Ellipse

    same = [arm.name for arm in plan.arms if arm.name == plan.baseline or arm.is_aa]
    points = runs.loc[runs["arm"].isin(same), ["mean", "coverage"]].to_numpy()
    n = len(points)
    axes.plot(*points.T, marker="o", markersize=3.5, color=theme.quiet, alpha=0.7, linestyle="none", zorder=2)
    if n < 4:
        return
    # Hotelling's region for one further draw of a normal distribution in the plane.
    factor = 2 * (n - 1) * (n + 1) / (n * (n - 2)) * stats.f.ppf(0.95, 2, n - 2)
    sizes, directions = np.linalg.eigh(np.cov(points.T))
    width, height = 2 * np.sqrt(factor * np.clip(sizes, 0, None))
    angle = float(np.degrees(np.arctan2(directions[1, 0], directions[0, 0])))
    look: dict[str, Any] = {"facecolor": theme.quiet, "alpha": 0.16, "linewidth": 0, "zorder": 1.5}
    axes.add_patch(Ellipse(tuple(points.mean(axis=0)), width, height, angle=angle, **look))


def _numbers(
    axes: "Axes", at: Sequence[tuple[float, float]], colors: Sequence[str], theme: charts.Theme
) -> None:
    """The arms' numbers beside their points, moved apart where they would touch, with a line to the point."""
    points = axes.transData.transform(np.array(at))
    scale = axes.figure.dpi / 72
    places = spread(points / scale, apart=14.5) * scale
    for number, (place, point, color) in enumerate(zip(places, points, colors, strict=True), start=1):
        (x, y), (end_x, end_y) = axes.transData.inverted().transform(np.array([place, point]))
        axes.plot([x, end_x], [y, end_y], color=color, linewidth=0.8, zorder=4, scalex=False, scaley=False)
        _badge(axes, (x, y), number, color, theme, axes.transData)


def _badge(
    on: Any, place: tuple[float, float], number: int, color: str, theme: charts.Theme, across: Any
) -> None:
    """A number in a disc on axes or a figure, at ``place`` in the coordinates ``across``."""
    from matplotlib.lines import Line2D

    disc: dict[str, Any] = {
        "marker": "o",
        "markersize": 13.5,
        "markerfacecolor": color,
        "markeredgecolor": theme.page,
    }
    on.add_artist(Line2D([place[0]], [place[1]], transform=across, zorder=8, **disc))
    text: dict[str, Any] = {"fontsize": 7.5, "fontweight": "bold", "color": theme.page, "transform": across}
    on.text(*place, f"{number}", ha="center", va="center_baseline", zorder=9, **text)


def spread(points: Floats, apart: float, rounds: int = 400) -> Floats:
    """A place for the label of each of ``points`` [N, 2]: near it, ``apart`` from other labels and off the points."""
    angles = 2.399963 * np.arange(len(points))  # golden angle: no two start the same way
    places = points + 0.75 * apart * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for _ in range(rounds):
        moves = 0.06 * (points - places)  # drawn back to its point
        for others, gap in ((places, apart), (points, 0.72 * apart)):
            away = places[:, None] - others[None]
            distance = np.sqrt((away**2).sum(axis=2)) + 1e-9
            push = np.clip(gap - distance, 0, None) * (distance > 1e-6)
            moves += 0.5 * (away / distance[..., None] * push[..., None]).sum(axis=1)
        places = places + moves
    return places


def _decoding(plan: StudyPlan, task: StudyTask, rows: pd.DataFrame, out: Path) -> StudyFigure | None:
    """What a policy gives at other temperatures: accuracy against coverage along them, a panel per arm."""
    temperatures = sorted(plan.evaluation.temperatures)
    if len(temperatures) < 2 or len(measured(rows, ("mean", "coverage"))) < 2:
        return None
    means = (
        run_outcomes(rows, ["mean", "coverage"]).groupby(["arm", "temperature"])[["mean", "coverage"]].mean()
    )
    paths = {
        str(arm): means.loc[arm].reindex(temperatures).to_numpy()
        for arm in means.index.get_level_values(0).unique()
    }
    shown = [arm for arm in plan.arms if arm.name in paths and arm.name != plan.baseline and not arm.is_aa]
    if plan.baseline not in paths or not shown:
        return None
    stem, dark = out / f"{task.name}_decoding", out / f"{task.name}_decoding_dark"
    title, caption = _words_of("decoding", plan, task)
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    height = 1.75 * lines + 0.85
    for theme, path in ((charts.LIGHT, stem), (charts.DARK, dark)):
        with _figure(WIDTH, height, path, title, left=0.015, theme=theme) as figure:
            grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
            for axes in grid.flat[len(shown) :]:
                axes.remove()
            for position, (axes, arm) in enumerate(zip(grid.flat, shown, strict=False)):
                if UNTRAINED in paths:
                    axes.plot(
                        *paths[UNTRAINED].T, color=theme.quiet, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1
                    )
                axes.plot(
                    *paths[plan.baseline].T,
                    color="#9a9a9a",
                    linewidth=1.6,
                    marker="o",
                    markersize=3,
                    zorder=2,
                )
                color = _color(plan, arm, theme)
                axes.plot(
                    *paths[arm.name].T, color=color, linewidth=1.9, marker="o", markersize=4.5, zorder=3
                )
                for end, offset in ((0, (5, -9)), (-1, (5, 3))):
                    text = f"{temperatures[end]:g}".replace("0.", ".")
                    words: dict[str, Any] = {"fontsize": 8, "textcoords": "offset points", "color": color}
                    axes.annotate(text, tuple(paths[arm.name][end]), offset, **words)
                axes.set_title(
                    fill(arm.label.replace(" = ", "\u00a0=\u00a0"), 23),
                    fontsize=8.8,
                    fontweight="bold",
                    pad=4,
                )
                axes.grid(visible=True, axis="both")
                axes.margins(0.13)
                if position + columns >= len(shown):
                    axes.tick_params(labelbottom=True)
            figure.tight_layout(rect=(0.04, 0.3 / height, 1, 1 - 0.4 / height))
            names: dict[str, Any] = {"fontsize": 9.5, "color": theme.quiet, "ha": "center", "va": "center"}
            figure.text(0.53, 0.18 / height, f"accuracy: mean@{plan.evaluation.k}", **names)
            figure.text(0.025, 0.5, f"diversity: coverage@{plan.evaluation.k}", rotation=90, **names)
    return StudyFigure(stem, title, caption, dark)


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
