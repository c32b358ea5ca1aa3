"""Draw the picture of *Architecture*, the life of a prompt: python docs/_figures/draw_architecture.py"""

from dataclasses import dataclass

from themes import STATIC, THEMES, Theme

WIDTH, HEIGHT = 920, 470
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Box:
    """A part: where it stands, what it is called, the file or room, and what it does."""

    x: int
    y: int
    width: int
    height: int
    title: str
    room: str
    text: tuple[str, ...]
    colour: int  # of the theme's lines


BOXES = (
    Box(20, 40, 190, 112, "Prompt stream", "data", ("a permutation keyed by", "(seed, epoch)"), 0),
    Box(255, 40, 190, 112, "Sampler", "rollout", ("G completions, token ids", "with their log-probs"), 0),
    Box(490, 40, 190, 112, "Rewards", "rewards", ("workers with deadlines;", "weighted sum: utility U"), 0),
    Box(715, 40, 185, 112, "Group", "types", ("rollout + rewards", "+ utilities"), 0),
    Box(
        715,
        215,
        185,
        112,
        "Signal",
        "objectives",
        ("advantages, weights:", "once, without gradient"),
        1,
    ),
    Box(
        490,
        215,
        190,
        112,
        "Loss",
        "objectives · models",
        ("packed forward,", "global denominators"),
        1,
    ),
    Box(255, 215, 190, 112, "Learner", "train", ("backward, clip, step, or", "refuse what is not finite"), 1),
    Box(20, 215, 190, 112, "Controllers", "controllers", ("measured H and KL", "move τ and β"), 2),
    Box(20, 385, 880, 62, "Records", "observe", (), 3),
)
RECORDS = "metrics.jsonl · completions.jsonl · controller_state.json · checkpoint-<step>/ · model.safetensors"

ARROWS = (  # points of a line that ends in an arrow head, and its label with its place
    (((210, 96), (249, 96)), None),
    (((445, 96), (484, 96)), None),
    (((680, 96), (709, 96)), None),
    (((807, 152), (807, 209)), None),
    (((715, 271), (686, 271)), None),
    (((490, 271), (451, 271)), None),
    (((255, 271), (216, 271)), None),
    (((350, 215), (350, 158)), ("new weights, policy version + 1", 362, 188, "start")),
    (((115, 327), (115, 345), (807, 345), (807, 333)), ("τ, β of the next step", 463, 363, "middle")),
)


def svg(theme: Theme) -> str:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="{FONT}">',
        f'<defs><marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L10 5 L0 10 z" fill="{theme.quiet}"/></marker></defs>',
        text(20, 24, "Sampling: one rollout", theme.quiet, 13),
        text(20, 204, "The step: train/step.py", theme.quiet, 13),
    ]
    parts += [part for box in BOXES for part in drawn(box, theme)]
    for points, label in ARROWS:
        line = " ".join(f"{x},{y}" for x, y in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{theme.quiet}" stroke-width="1.6" marker-end="url(#head)"/>'
        )
        if label:
            words, x, y, anchor = label
            parts.append(text(x, y, words, theme.quiet, 13, anchor=anchor))
    parts += [text(150, 422, RECORDS, theme.ink, 13), "</svg>"]
    return "\n".join(parts) + "\n"


def drawn(box: Box, theme: Theme) -> list[str]:
    colour = theme.lines[box.colour]
    parts = [
        f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="9" fill="{colour}" '
        f'fill-opacity="0.10" stroke="{colour}" stroke-width="1.6"/>',
        text(box.x + 14, box.y + 27, box.title, theme.ink, 16, weight="600"),
        text(box.x + 14, box.y + 46, box.room, colour, 12.5),
    ]
    return parts + [
        text(box.x + 14, box.y + 72 + 19 * i, line, theme.ink, 13) for i, line in enumerate(box.text)
    ]


def text(
    x: float, y: float, words: str, colour: str, size: float, weight: str = "400", anchor: str = "start"
) -> str:
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return (
        f'<text x="{x}" y="{y}" fill="{colour}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{words}</text>'
    )


if __name__ == "__main__":
    for each in THEMES:
        (STATIC / f"architecture-{each.name}.svg").write_text(svg(each), encoding="utf-8")
