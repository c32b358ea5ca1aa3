"""Plots of one run and of several runs side by side, drawn from the files of their directories alone.

``figures.yaml`` says which figures there are and what they show.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from maxent_grpo.errors import UsageError
from maxent_grpo.observe import charts
from maxent_grpo.observe.charts import EndLabel
from maxent_grpo.observe.run_files import RunFiles, Series, load_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMPARISON_LIMIT: Final = 6  # panels of a comparison


@dataclass(frozen=True)
class CurveSpec:
    """The metrics whose whole name matches ``metric``, drawn as a line, points or a target."""

    metric: str
    label: str = ""
    style: str = "line"

    def found(self, run: RunFiles) -> list[Series]:
        """The series of ``run``; of points that differ in k alone, those with the largest k."""
        found = list(run.matching(self.metric))
        if self.style == "points" and len(found) > 1:
            return [max(found, key=lambda series: _k_of(series.name))]
        return found

    def draw(self, axes: "Axes", series: Series, colour: str) -> float:
        """Draw ``series``. Returns its last value."""
        if self.style == "points":
            return charts.draw_points(axes, series, colour)
        return (
            charts.draw_target(axes, series)
            if self.style == "target"
            else charts.draw_line(axes, series, colour)
        )


@dataclass(frozen=True)
class PanelSpec:
    """One pair of axes. ``unit`` is the y label."""

    title: str
    unit: str
    curves: tuple[CurveSpec, ...]

    def has_data(self, run: RunFiles) -> bool:
        """True where there is more to draw than a target."""
        return any(curve.found(run) for curve in self.curves if curve.style != "target")


@dataclass(frozen=True)
class FigureSpec:
    """One image of a single run."""

    stem: str
    title: str
    caption: str
    panels: tuple[PanelSpec, ...]


@cache
def figure_specs() -> tuple[tuple[FigureSpec, ...], tuple[PanelSpec, ...]]:
    """The figures of a run, and the panels of a comparison."""
    import yaml

    listed = yaml.safe_load(Path(__file__).with_name("figures.yaml").read_text(encoding="utf-8"))
    figures = tuple(
        FigureSpec(entry["stem"], entry["title"], entry["caption"], _panels(entry["panels"]))
        for entry in listed["run"]
    )
    return figures, _panels(listed["comparison"])


def _panels(listed: Sequence[dict[str, Any]]) -> tuple[PanelSpec, ...]:
    def curve(entry: dict[str, str]) -> CurveSpec:
        return CurveSpec(entry["metric"], entry.get("label", ""), entry.get("as", "line"))

    return tuple(
        PanelSpec(entry.get("title", ""), entry["unit"], tuple(map(curve, entry["curves"])))
        for entry in listed
    )


def _k_of(name: str) -> int:
    k = re.search(r"_at_(\d+)$", name)
    return int(k.group(1)) if k else 0


def plot_run(run_dir: Path, out_dir: Path) -> list[Path]:
    """Draw every figure that ``run_dir`` has data for into ``out_dir``. Raises `UsageError` for no run."""
    run = load_run(run_dir)
    drawn = []
    for spec in figure_specs()[0]:
        panels = [panel for panel in spec.panels if panel.has_data(run)]
        if panels:
            drawn.append(_draw_run_figure(spec, panels, run, out_dir / f"{spec.stem}.png"))
    return drawn


def _draw_run_figure(spec: FigureSpec, panels: Sequence[PanelSpec], run: RunFiles, path: Path) -> Path:
    height = 3.6 if len(panels) == 1 else 2.35 * len(panels) + 0.75
    with charts.styled_figure(7.2, height, path) as figure:
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)
        for axes, panel in zip(grid[:, 0], panels, strict=True):
            _draw_run_panel(axes, panel, run)
        _label_steps(grid[-1, 0])
        top = 1 - 0.42 / height
        place = {"x": 0.015, "y": 1 - 0.1 / height, "ha": "left", "va": "top"}
        title = figure.suptitle(spec.title, fontsize=13, fontweight="bold", **place)
        title.set_in_layout(False)  # its room is reserved by ``top``
        figure.align_ylabels()
        figure.tight_layout(rect=(0, 0, 0.99, top))
    return path


def _draw_run_panel(axes: "Axes", panel: PanelSpec, run: RunFiles) -> None:
    ends: list[EndLabel] = []
    for curve in panel.curves:
        for series in curve.found(run):
            colour = (
                charts.QUIET if curve.style == "target" else charts.PALETTE[len(ends) % len(charts.PALETTE)]
            )
            last = curve.draw(axes, series, colour)
            match = re.fullmatch(curve.metric, series.name)
            label = curve.label.format(*(match.groups() if match else ()))
            ends.append(EndLabel(last, f"{charts.number(last)} {label}", colour))
    if panel.title:
        axes.set_title(panel.title)
    axes.set_ylabel(panel.unit)
    charts.settle_limits(axes)
    charts.label_ends(axes, ends)


def plot_comparison(runs: Sequence[tuple[str, Path]], out: Path) -> Path:
    """Draw small multiples over steps, all ``runs`` (label, directory) in each panel, as the image ``out``.

    Runs that share a label, such as the seeds of one arm, share a colour. Raises `UsageError` where nothing
    can be drawn.
    """
    loaded = [(label, load_run(directory)) for label, directory in runs]
    panels = [panel for panel in figure_specs()[1] if any(panel.has_data(run) for _, run in loaded)]
    panels = panels[:COMPARISON_LIMIT]
    if not panels:
        directories = ", ".join(str(directory) for _, directory in runs)
        raise UsageError(
            f"runs={directories}: no metric to compare was logged; give runs that made at least one step"
        )
    columns = 3 if len(panels) > 4 else min(2, len(panels))
    rows = -(-len(panels) // columns)
    labels = list(dict.fromkeys(label for label, _ in loaded))
    colours = {label: charts.PALETTE[i % len(charts.PALETTE)] for i, label in enumerate(labels)}
    with charts.styled_figure(4.3 * columns, 2.9 * rows + 0.95, out) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
        points: set[int] = set()
        for axes, panel in zip(grid.flat, panels, strict=False):
            points |= _draw_comparison_panel(axes, panel, loaded, colours)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for position in range(max(0, len(panels) - columns), len(panels)):
            _label_steps(grid.flat[position])
        _comparison_heading(figure, colours, _reading(points))
    return out


def _draw_comparison_panel(
    axes: "Axes", panel: PanelSpec, runs: Sequence[tuple[str, RunFiles]], colours: dict[str, str]
) -> set[int]:
    """Draw one panel. Returns the k of its points, 0 for points of no k."""
    ends, ks = [], set()
    for label, run in runs:
        for curve in panel.curves:
            for series in curve.found(run):
                last = curve.draw(axes, series, colours[label])
                if curve.style == "line":
                    ends.append(EndLabel(last, charts.number(last), colours[label]))
                elif curve.style == "points":
                    ks.add(_k_of(series.name))
    axes.set_title(panel.title, fontweight="bold")
    axes.set_ylabel(panel.unit)
    charts.settle_limits(axes)
    if len(runs) == len(colours):
        charts.label_ends(axes, ends)
    return ks


def _label_steps(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.tick_params(labelbottom=True)


def _reading(ks: set[int]) -> str:
    """A legend of the marks. Lines and points count different numbers of completions, and say so."""
    lines = "Lines: training groups, all G completions, smoothed over faint single steps; last value at the right."
    if not ks:
        return lines
    counts = ", ".join(str(k) for k in sorted(ks - {0}))
    each = f", {counts} completions each" if counts else ""
    return f"{lines}  Points: held-out prompts{each}, ± 1 standard error."


def _comparison_heading(figure: "Figure", colours: dict[str, str], reading: str) -> None:
    """The key, as words in the runs' colours, and how to read the marks."""
    from matplotlib.artist import Artist
    from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea

    width, height = figure.get_size_inches()
    figure.tight_layout(rect=(0, 0, 0.995, 1 - 0.8 / height), w_pad=2.0, h_pad=1.6)
    words: list[Artist] = [
        TextArea(f"● {label}", textprops={"color": colour, "fontsize": 13, "fontweight": "bold"})
        for label, colour in colours.items()
    ]
    box = AnchoredOffsetbox(
        loc="upper left",
        child=HPacker(children=words, pad=0, sep=18),
        frameon=False,
        bbox_to_anchor=(0.12 / width, 1 - 0.06 / height),
        bbox_transform=figure.transFigure,
        borderpad=0.2,
    )
    figure.add_artist(box)
    figure.text(0.2 / width, 1 - 0.5 / height, reading, fontsize=9, color=charts.QUIET, va="top")
