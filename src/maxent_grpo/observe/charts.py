"""Drawing: one style and the few marks that our figures are made of, without pyplot's global state."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from maxent_grpo.observe.run_files import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

# Okabe and Ito's palette, "Color Universal Design" (2008): told apart under every common colour blindness.
# Its yellow is left out: too faint for a line on white.
PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK: Final = "#222222"
QUIET: Final = "#6b6b6b"
DPI: Final = 160
LABEL_GAP: Final = 0.075  # smallest distance of two end labels, as a share of the axes' height

STYLE: Final = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#b5b5b5",
    "axes.labelcolor": QUIET,
    "axes.labelsize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titlecolor": INK,
    "axes.titlepad": 8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": "#ececec",
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


class Theme(NamedTuple):
    """The colours of a figure on a page of its kind."""

    name: str
    page: str
    ink: str
    quiet: str
    grid: str
    palette: tuple[str, ...]

    @property
    def style(self) -> dict[str, Any]:
        """What differs from `STYLE`."""
        quiet = ("axes.labelcolor", "xtick.color", "ytick.color")
        return {
            **dict.fromkeys(quiet, self.quiet),
            **dict.fromkeys(("text.color", "axes.titlecolor"), self.ink),
            "axes.facecolor": self.page,
            "axes.edgecolor": "#b5b5b5" if self.name == "light" else "#5a6067",
            "grid.color": self.grid,
        }


LIGHT: Final = Theme("light", "#ffffff", INK, QUIET, "#ececec", PALETTE)
# The palette in tints that stand out on a dark page.
DARK: Final = Theme(
    "dark",
    "#16181b",
    "#e8e8e8",
    "#a9a9a9",
    "#2b3036",
    ("#4BA3E3", "#F0864A", "#2FC79B", "#E3A1C7", "#F2B632", "#8FD0F5", "#FFFFFF"),
)


class EndLabel(NamedTuple):
    """Text to stand right of a curve's last point, in the curve's colour."""

    y: float  # data coordinates
    text: str
    colour: str


@contextmanager
def styled_figure(width: float, height: float, path: Path, theme: Theme = LIGHT) -> Iterator["Figure"]:
    """A figure of ``width`` × ``height`` inches in our style, saved to ``path`` when the block ends well."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE | theme.style):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), facecolor=theme.page)
        FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})


def smoothing_window(points: int) -> int:
    """The neighboring steps that a smoothed value averages: a tenth of the run, one step for a short run."""
    return 1 if points < 12 else 2 * max(1, points // 20) + 1


def smooth(values: Floats, window: int) -> Floats:
    """Centred moving mean of ``values`` [N] over an odd ``window``, shorter at both ends; NaN is left out."""
    half = window // 2
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return np.array([np.nan if np.isnan(part).all() else np.nanmean(part) for part in parts])


def draw_line(axes: "Axes", series: Series, colour: str, raw_alpha: float = 0.28) -> float:
    """A smoothed line over its faint raw values. Returns the last smoothed value."""
    window = smoothing_window(len(series.values))
    smoothed = smooth(series.values, window)
    if window > 1:
        axes.plot(series.steps, series.values, color=colour, linewidth=0.7, alpha=raw_alpha, zorder=1.5)
    axes.plot(series.steps, smoothed, color=colour, linewidth=2.0)
    return float(smoothed[-1])


def draw_points(axes: "Axes", series: Series, colour: str) -> float:
    """Single measurements with standard errors. Returns the last value."""
    marker: dict[str, Any] = {"fmt": "o", "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 1.0}
    lines: dict[str, Any] = {"yerr": series.errors, "elinewidth": 1.3, "capsize": 0}
    axes.errorbar(series.steps, series.values, color=colour, zorder=4, **marker, **lines)
    return float(series.values[-1])


def draw_target(axes: "Axes", series: Series) -> float:
    """A dashed line to compare with. Returns its last value."""
    axes.plot(series.steps, series.values, color=QUIET, linewidth=1.2, linestyle=(0, (4, 3)))
    return float(series.values[-1])


def settle_limits(axes: "Axes") -> None:
    """Give a curve that never changes an axis from zero, instead of one that magnifies nothing."""
    low, high = axes.dataLim.intervaly
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
        axes.set_ylim(min(0.0, 1.5 * low), max(0.0, 1.5 * high) or 1.0)


def label_ends(axes: "Axes", labels: Sequence[EndLabel], fontsize: float = 9) -> None:
    """Write ``labels`` right of the axes, each beside its curve's end, moved apart where they would touch."""
    kept = [label for label in labels if np.isfinite(label.y)]
    if not kept:
        return
    low, high = axes.get_ylim()
    wanted = [(label.y - low) / (high - low) for label in kept]
    style: dict[str, Any] = {"fontsize": fontsize, "va": "center", "transform": axes.transAxes}
    for label, height in zip(kept, moved_apart(wanted, LABEL_GAP), strict=True):
        axes.text(1.015, height, label.text, color=label.colour, **style)


def moved_apart(heights: Sequence[float], gap: float) -> list[float]:
    """``heights`` shifted as little as needed so that neighbours are ``gap`` apart; their order is kept."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    blocks: list[list[int]] = []  # neighbours that touch move as one, centred on where they wanted to be
    centres: list[float] = []
    for i in order:
        blocks.append([i])
        centres.append(heights[i])
        while len(blocks) > 1 and centres[-1] - centres[-2] < gap * (len(blocks[-1]) + len(blocks[-2])) / 2:
            merged = blocks.pop(-2) + blocks.pop()
            del centres[-2:]
            blocks.append(merged)
            centres.append(sum(heights[j] for j in merged) / len(merged))
    placed = [0.0] * len(heights)
    for block, centre in zip(blocks, centres, strict=True):
        for rank, i in enumerate(block):
            placed[i] = centre + gap * (rank - (len(block) - 1) / 2)
    return placed


def number(value: float) -> str:
    """``value`` with three significant digits, for a label."""
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
