"""Which figures a run gets: each says one thing. `plots` draws what is described here."""

from dataclasses import dataclass
from typing import Final, Literal

from maxent_grpo.observe import names


@dataclass(frozen=True)
class Curve:
    """The metrics whose whole name matches ``pattern``; ``{0}`` in ``label`` is the pattern's first group.

    A line is smoothed over faint raw values, points are single measurements with standard errors, a target
    is dashed.
    """

    pattern: str
    label: str
    style: Literal["line", "points", "target"] = "line"


@dataclass(frozen=True)
class Panel:
    """One pair of axes. ``unit`` is the y label."""

    title: str
    unit: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class FigureSpec:
    """One image of a single run: panels above each other over the same steps."""

    stem: str
    title: str
    caption: str
    panels: tuple[Panel, ...]


RUN_FIGURES: Final = (
    FigureSpec(
        "reward",
        "Reward",
        "Does the policy learn? The line is the mean reward of the sampled completions, smoothed over the "
        "faint values of single steps; points are held-out prompts with their standard error.",
        (
            Panel(
                "",
                "mean reward",
                (Curve(names.REWARD, "training"), Curve("eval/mean_reward", "held out", "points")),
            ),
        ),
    ),
    FigureSpec(
        "exploration",
        "Right answers within a group",
        "Does the policy keep finding different right answers? Pass is the share of groups with at least "
        "one right answer; coverage is the share of the distinct right answers that a group finds.",
        (
            Panel(
                "Pass: at least one right",
                "share of groups",
                (
                    Curve(names.PASS, "training"),
                    Curve(r"eval/pass_at_(\d+)", "held out, k = {0}", "points"),
                ),
            ),
            Panel(
                "Coverage: distinct right answers found",
                "share of answer modes",
                (
                    Curve(names.COVERAGE, "training"),
                    Curve(r"eval/coverage_at_(\d+)", "held out, k = {0}", "points"),
                ),
            ),
        ),
    ),
    FigureSpec(
        "divergence",
        "Distance from the reference policy",
        "How far has the policy moved? Mean estimate of the KL divergence from the frozen reference per "
        "completion token; dashed: the target of the β controller.",
        (
            Panel(
                "",
                "KL, nats per token",
                (Curve(names.KL, "KL"), Curve("train/kl_controller/target", "target", "target")),
            ),
        ),
    ),
    FigureSpec(
        "entropy",
        "Entropy",
        "Is there randomness left to explore with? Above, the entropy of the next-token distribution; "
        "below, the entropy of the weights over the completions of a group; dashed: the target of the τ "
        "controller.",
        (
            Panel("Policy, next token", "nats per token", (Curve(names.TOKEN_ENTROPY, "policy"),)),
            Panel(
                "Weights over a group",
                "nats per group",
                (
                    Curve(names.WEIGHT_ENTROPY, "weights"),
                    Curve("train/tau_target_entropy", "target", "target"),
                ),
            ),
        ),
    ),
    FigureSpec(
        "controllers",
        "What the controllers set",
        "τ weighs the entropy over candidates, β the reference policy.",
        (
            Panel("", "τ", (Curve(names.TAU, "τ"),)),
            Panel("", "β", (Curve(names.BETA, "β"),)),
        ),
    ),
    FigureSpec(
        "optimisation",
        "Optimisation",
        "Is the optimiser healthy? Loss and global gradient norm before clipping.",
        (
            Panel("Loss", "loss", (Curve("train/loss", "loss"),)),
            Panel("Gradient norm", "L2 norm", (Curve("train/grad_norm", "gradient"),)),
        ),
    ),
    FigureSpec(
        "lengths",
        "Completion length",
        "Do answers grow, and do they hit the limit? Mean tokens per completion, and the share cut off by "
        "the limit.",
        (
            Panel("Length", "tokens", (Curve("train/completions/mean_length_sampled", "mean"),)),
            Panel("Cut off by the limit", "share", (Curve("train/completions/clipped_frac", "cut off"),)),
        ),
    ),
    FigureSpec(
        "time",
        "Where the time goes",
        "Wall-clock seconds of the phases of a step, and throughput.",
        (
            Panel("Phases", "seconds per step", (Curve("time/(.+)", "{0}"),)),
            Panel("Throughput", "tokens per second", (Curve(names.TOKENS_PER_SECOND, "sampled"),)),
        ),
    ),
)

COMPARISON_PANELS: Final = (
    Panel("Reward", "mean reward", (Curve(names.REWARD, ""), Curve("eval/mean_reward", "", "points"))),
    Panel(
        "Coverage",
        "share of answer modes",
        (Curve(names.COVERAGE, ""), Curve(r"eval/coverage_at_(\d+)", "", "points")),
    ),
    Panel(
        "Pass",
        "share of prompts solved",
        (Curve(names.PASS, ""), Curve(r"eval/pass_at_(\d+)", "", "points")),
    ),
    Panel("Distance from the reference", "KL, nats per token", (Curve(names.KL, ""),)),
    Panel("Token entropy", "nats per token", (Curve(names.TOKEN_ENTROPY, ""),)),
    Panel("Weight entropy", "nats per group", (Curve(names.WEIGHT_ENTROPY, ""),)),
    Panel("Temperature of the weights", "τ", (Curve(names.TAU, ""),)),
)
"""Candidates for the small multiples, most wanted first: the first six with data in any run are drawn."""
COMPARISON_LIMIT: Final = 6
