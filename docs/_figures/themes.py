"""Drawing for the site: every figure twice, for the light and for the dark theme, as SVG without a background."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from maxent_grpo.observe.charts import STYLE

STATIC = Path(__file__).resolve().parents[1] / "_static"


@dataclass(frozen=True)
class Theme:
    """Colours of one theme. The lines are Okabe and Ito's, in the tints that stand out on its background."""

    name: str
    ink: str
    quiet: str
    grid: str
    lines: tuple[str, ...]


THEMES = (
    Theme("light", "#222222", "#6b6b6b", "#e6e6e6", ("#0072B2", "#D55E00", "#009E73", "#CC79A7")),
    Theme("dark", "#e8e8e8", "#a9a9a9", "#3a3f45", ("#56B4E9", "#F0864A", "#2FC79B", "#E3A1C7")),
)


@contextmanager
def figure_for(theme: Theme, name: str, width: float, height: float) -> Iterator[Figure]:
    """A figure of ``width`` × ``height`` inches, saved as ``_static/<name>-<theme>.svg`` when the block ends well."""
    colours = {
        "text.color": theme.ink,
        "axes.titlecolor": theme.ink,
        "axes.labelcolor": theme.quiet,
        "axes.edgecolor": theme.quiet,
        "grid.color": theme.grid,
        "xtick.color": theme.quiet,
        "ytick.color": theme.quiet,
        "axes.facecolor": "none",
        "svg.hashsalt": name,
        "svg.fonttype": "path",
    }
    with rc_context(STYLE | colours):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), facecolor="none")
        FigureCanvasSVG(figure)
        yield figure
        figure.savefig(STATIC / f"{name}-{theme.name}.svg", metadata={"Date": None, "Creator": None})
