"""What the figures of a study share: an arm's colour and marker, room for labels, and files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from maxent_grpo.observe import charts
from maxent_grpo.study.plan import Arm, Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS: Final = "osD^vP*X<>hp8"


@dataclass(frozen=True)
class Drawn:
    """A figure on disk."""

    png: Path
    svg: Path
    title: str
    caption: str


def colour_of(plan: Plan, arm: Arm) -> str:
    """An arm's colour: black for the baseline, grey for its repetition, then the palette in turn."""
    if arm.name == plan.baseline:
        return charts.INK
    if arm.is_aa:
        return "#999999"
    others = [other for other in plan.arms if other.name != plan.baseline and not other.is_aa]
    return charts.PALETTE[others.index(arm) % (len(charts.PALETTE) - 1)]


def marker_of(plan: Plan, arm: Arm) -> str:
    """An arm's marker: arms that share a colour differ in it."""
    return MARKERS[plan.arms.index(arm) % len(MARKERS)]


def label_room(arms: Sequence[Arm]) -> float:
    """Inches for arm labels beside a panel."""
    return 0.45 + 0.078 * max(12, *(len(arm.label) for arm in arms))


def draw_heading(figure: "Figure", text: str, left: float) -> None:
    """The figure's title at its top; ``left`` is a share of its width."""
    height = float(figure.get_size_inches()[1])
    figure.text(
        left, 1 - 0.1 / height, text, fontsize=12.5, fontweight="bold", ha="left", va="top", color=charts.INK
    )


def drawn_at(stem: Path, title: str, caption: str) -> Drawn:
    """The files that `saved_figure` leaves for ``stem``, with their words."""
    return Drawn(stem.with_suffix(".png"), stem.with_suffix(".svg"), title, caption)


@contextmanager
def saved_figure(width: float, height: float, stem: Path) -> Iterator["Figure"]:
    """A figure in our style, saved as PNG and SVG when the block ends well; equal numbers give equal files."""
    from matplotlib import rc_context

    with (
        rc_context({"svg.hashsalt": "maxent-grpo", "svg.fonttype": "none"}),
        charts.styled_figure(width, height, stem.with_suffix(".png")) as figure,
    ):
        yield figure
        stem.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
