"""Draw the plots of *Controllers explained* by running the controllers: python docs/_figures/draw_controllers.py"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from simulation import entropy_curve, example_weights, run_kl, run_weights
from themes import THEMES, Theme, figure_for

from maxent_grpo.controllers.settings import ControllerSettings, MetaSettings
from maxent_grpo.observe.charts import EndLabel, draw_line, label_ends
from maxent_grpo.observe.run_files import Series

STEPS = 400
TAU = {"beta": 0.05, "target_weight_entropy": 2.2, "tau_lr": 0.05}
KL = {"tau": 0.0, "kl_target": 0.07, "kl_ctl_step_size": 1.0, "beta": 0.05}

TAU_RUNS = {
    "τ starts at 0.05": ControllerSettings(tau=0.05, **TAU),
    "τ starts at 10": ControllerSettings(tau=10.0, **TAU),
    "target 1.6 → 2.4": ControllerSettings(
        **TAU
        | {
            "tau": 0.5,
            "target_weight_entropy": None,
            "target_weight_entropy_start": 1.6,
            "target_weight_entropy_final": 2.4,
            "target_weight_entropy_horizon": 300,
        }
    ),
}
BETA_RUNS = {
    "horizon 20": ControllerSettings(kl_horizon=20, **KL),
    "horizon 100": ControllerSettings(kl_horizon=100, **KL),
    "β constant": ControllerSettings(**KL),
}
META_RUNS = {
    "analytic, 0.05": MetaSettings(enabled=True, method="analytic", lr=0.05),
    "first_order, 0.05": MetaSettings(enabled=True, method="first_order", lr=0.05),
    "first_order, 0.5": MetaSettings(enabled=True, method="first_order", lr=0.5),
}
"""Label with the learning rate → the meta-controller."""


def meta_settings(meta: MetaSettings) -> ControllerSettings:
    return ControllerSettings(tau=0.5, beta=0.05, target_weight_entropy=2.4, tau_min=0.05, meta=meta)


def draw_weights(theme: Theme) -> None:
    """What τ does to a group of eight candidates of which three are right."""
    with figure_for(theme, "weights", 8.6, 2.9) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for i, (tau, colour) in enumerate(zip((0.5, 2.0, 8.0), theme.lines, strict=False)):
            left.bar(
                np.arange(8) + 0.27 * (i - 1),
                example_weights(tau),
                width=0.25,
                color=colour,
                label=f"τ = {tau:g}",
            )
        left.set_xticks(range(8), ["right"] * 3 + ["wrong"] * 5)
        left.axhline(1 / 8, color=theme.quiet, linewidth=1, linestyle=(0, (4, 3)))
        left.text(7.45, 1 / 8 + 0.006, "1/G", color=theme.quiet, ha="right", va="bottom", fontsize=9)
        left.set_ylabel("weight")
        left.set_title("A group of eight", fontweight="bold")
        left.legend(frameon=False)
        taus = np.geomspace(0.1, 100, 120)
        ends = []
        for count, colour in zip((1, 3, 6), theme.lines, strict=False):
            values = entropy_curve(list(taus), count)
            right.plot(taus, values, color=colour, linewidth=2)
            right.text(0.11, values[0] + 0.06, f"{count} right", color=colour, fontsize=9)
            ends.append(values[-1])
        right.axhline(np.log(8), color=theme.quiet, linewidth=1, linestyle=(0, (4, 3)))
        right.text(0.11, np.log(8) + 0.03, "ln G", color=theme.quiet, fontsize=9)
        right.set_xscale("log")
        right.set_xlabel("τ")
        right.set_ylabel("nats")
        right.set_ylim(-0.1, 2.4)
        right.set_title("Its weight entropy", fontweight="bold")
        figure.tight_layout(w_pad=2.0)


def draw_pair(
    theme: Theme,
    name: str,
    titles: tuple[str, str],
    units: tuple[str, str],
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    targets: Sequence[Sequence[float]],
    log_scale: bool = True,
) -> None:
    """What is measured, with its targets, beside the knob that answers."""
    with figure_for(theme, name, 8.6, 3.1) as figure:
        left, right = figure.subplots(1, 2)
        steps = np.arange(1, len(curves[0][1]) + 1)
        for target in targets:
            left.plot(steps, target, color=theme.quiet, linewidth=1.2, linestyle=(0, (4, 3)), zorder=3)
        ends: list[EndLabel] = []
        for (label, measured, knob), colour in zip(curves, theme.lines, strict=False):
            draw_line(left, Series(label, steps, np.array(measured)), colour, raw_alpha=0.35)
            right.plot(steps, knob, color=colour, linewidth=2)
            ends.append(EndLabel(np.log10(knob[-1]) if log_scale else knob[-1], label, colour))
        for axes, title, unit in zip((left, right), titles, units, strict=True):
            axes.set_title(title, fontweight="bold")
            axes.set_ylabel(unit)
            axes.set_xlabel("optimiser step")
        if log_scale:
            right.set_yscale("log")
            right.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            right.yaxis.set_minor_formatter(NullFormatter())
        label_in(right, ends, log_scale)
        figure.tight_layout(w_pad=2.0)


def label_in(axes: Any, ends: Sequence[EndLabel], log_scale: bool) -> None:
    """End labels, whose heights are logarithms on a logarithmic axis."""
    if not log_scale:
        label_ends(axes, ends)
        return
    low, high = (np.log10(limit) for limit in axes.get_ylim())
    linear = axes.get_ylim()
    moved = [e._replace(y=linear[0] + (e.y - low) / (high - low) * (linear[1] - linear[0])) for e in ends]
    label_ends(axes, moved)


def draw_all() -> None:
    tau = [(label, run_weights(settings, STEPS)) for label, settings in TAU_RUNS.items()]
    beta = [(label, run_kl(settings, STEPS)) for label, settings in BETA_RUNS.items()]
    meta = [(label, run_weights(meta_settings(m), STEPS)) for label, m in META_RUNS.items()]
    entropy = ("Weight entropy", "τ")
    for theme in THEMES:
        draw_weights(theme)
        curves = [(label, t.entropy, t.tau) for label, t in tau]
        draw_pair(
            theme, "tau-controller", entropy, ("nats", "τ"), curves, [tau[0][1].target, tau[2][1].target]
        )
        curves = [(label, t.kl, t.beta) for label, t in beta]
        titles = ("KL to the reference", "β")
        draw_pair(theme, "beta-controller", titles, ("nats per token", "β"), curves, [[0.07] * STEPS])
        curves = [(label, t.entropy, t.tau) for label, t in meta]
        draw_pair(
            theme, "meta-controller", entropy, ("nats", "τ"), curves, [meta[0][1].target], log_scale=False
        )


if __name__ == "__main__":
    draw_all()
