"""The report: one HTML page that carries its figures, says what was asked, what came out, and how to repeat it.

Every sentence about an effect follows from a row of the table of effects by the rules of `conclusion`.
"""

import base64
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from maxent_grpo import __version__
from maxent_grpo.observe.report import render_page
from maxent_grpo.observe.run_files import load_run
from maxent_grpo.study.effects import LEAST_SEEDS, aa_alarms, measured_outcomes, run_outcomes
from maxent_grpo.study.figures import StudyFigure
from maxent_grpo.study.plan import OUTCOMES, StudyPlan
from maxent_grpo.study.runs import IDENTITY, RECIPE, State, StudyRun

TEMPLATE = Path(__file__).with_name("study.html")
COMPUTING = ("torch", "transformers", "trl", "accelerate", "datasets", "numpy")
ANALYSING = ("scipy", "statsmodels", "pandas", "pyarrow", "matplotlib")
VERDICTS = {"raises": "higher", "lowers": "lower", "equivalent": "equivalent", "inconclusive": "not shown"}


def write_report(
    plan: StudyPlan,
    plan_file: Path,
    rows: pd.DataFrame,
    effects: pd.DataFrame,
    figures: Sequence[StudyFigure],
    runs: Sequence[StudyRun],
    path: Path,
) -> Path:
    """Write the report of ``runs`` to ``path``."""
    done = [run for run in runs if run.state is State.DONE]
    aa_fine, aa_text = aa_sentence(effects, plan)
    page = render_page(
        TEMPLATE,
        question=plan.question,
        aa_fine=aa_fine,
        aa_text=aa_text,
        warnings=_warnings(plan, effects, runs, done),
        conclusions=conclusions(effects, plan),
        design=_design(plan, rows, done),
        outcomes=[
            (f"{name}@{plan.evaluation.k}", OUTCOMES[name].partition(": ")[2])
            for name in measured_outcomes(rows, plan)
        ],
        levels=_levels(plan, rows),
        effects=_effect_tables(plan, effects),
        figures=[
            {
                "data": base64.b64encode(figure.png.read_bytes()).decode(),
                "title": figure.title,
                "caption": figure.caption,
                "svg": f"figures/{figure.stem.name}.svg",
            }
            for figure in figures
        ],
        alpha=plan.judgement.alpha,
        repeat=_commands(plan_file, plan, done),
        versions=[("maxent-grpo", __version__), *((name, _version(name)) for name in COMPUTING + ANALYSING)],
        plan_text=plan_file.read_text(encoding="utf-8"),
    )
    path.write_text(page, encoding="utf-8")
    return path


def conclusion(row: pd.Series, plan: StudyPlan) -> tuple[str, str]:
    """What one row allows to say: raises, lowers, equivalent or inconclusive, and the sentence.

    A difference where Holm's p is below α; equivalence where TOST's is; else neither, and what was detectable.
    """
    alpha, arm = plan.judgement.alpha, plan.arm(str(row["arm"]))
    name = f"{row['outcome']}@{plan.evaluation.k}"
    within = f"within ±\u00a0{row['margin']:g}"
    tost = f"(TOST p {p_relation(row['p_equivalence'])})"
    p = f"({'p' if arm.is_aa else 'Holm p'} {p_relation(row['p_holm'])})"
    equivalent = row["p_equivalence"] < alpha
    if row["p_holm"] < alpha:
        verb = "raises" if row["effect"] > 0 else "lowers"
        levels = f"from {row['baseline_mean']:.3f} to {row['arm_mean']:.3f}"
        note = f", though by less than the margin of {row['margin']:g}" if equivalent else ""
        return verb, f"{arm.label} {verb} {name} {levels}, by {_interval(row)} {p}{note}."
    if equivalent:
        return (
            "equivalent",
            f"{arm.label} leaves {name} where the baseline has it: {_interval(row)}, {within} {tost}.",
        )
    detectable = f"{int(row['seeds'])} seeds are too few to say what could have been detected"
    if not pd.isna(row["detectable_effect"]):
        detectable = (
            f"with {int(row['seeds'])} seeds, an effect of {row['detectable_effect']:.3f} would have been found with "
            f"probability {plan.judgement.power:g}"
        )
    return "inconclusive", (
        f"{arm.label} shows no difference in {name}: {_interval(row)} {p}. Nor is equivalence {within} shown {tost}; "
        f"{detectable}."
    )


def conclusions(table: pd.DataFrame, plan: StudyPlan) -> list[tuple[str, list[str]]]:
    """(task, sentences), the primary outcome of every arm first, then what it costs or wins in accuracy."""
    if table.empty:
        return []
    judged = table[table["temperature"] == plan.evaluation.temperatures[0]]
    said: dict[str, list[str]] = {}
    for task in plan.tasks:
        for arm in plan.arms:
            for outcome in dict.fromkeys((plan.judgement.primary, "mean")):
                here = (
                    (judged["task"] == task.name)
                    & (judged["arm"] == arm.name)
                    & (judged["outcome"] == outcome)
                )
                if here.any() and not arm.is_aa:
                    said.setdefault(task.label, []).append(conclusion(judged[here].iloc[0], plan)[1])
    return list(said.items())


def aa_sentence(table: pd.DataFrame, plan: StudyPlan) -> tuple[bool, str]:
    """Whether the A/A comparison is in order, and the sentence for the head of the report."""
    aa, k = plan.aa, plan.evaluation.k
    if aa is None:
        return False, (
            "This study has no A/A arm: nothing shows that its analysis finds no difference where there is none."
        )
    if table.empty or not (table["arm"] == aa.name).any():
        return False, "The A/A arm has fewer than two finished pairs: it cannot be judged yet."
    labels = {task.name: task.label for task in plan.tasks}
    alarms = aa_alarms(table, plan)
    if alarms.empty:
        own = table[(table["arm"] == aa.name) & (table["outcome"] == plan.judgement.primary)]
        own = own[own["temperature"] == plan.evaluation.temperatures[0]]
        primary = "; ".join(f"{labels[row['task']]} {_interval(row)}" for _, row in own.iterrows())
        return True, (
            "The A/A arm, the baseline once more with other seeds, does not differ from the baseline in any outcome "
            f"(Holm over outcomes, α = {plan.judgement.alpha:g}). In {plan.judgement.primary}@{k}: {primary}."
        )
    named = ", ".join(
        f"{row['outcome']}@{k} on {labels[row['task']]} by {signed(row['effect'])} (p {p_relation(row['p_sign_flip'])})"
        for _, row in alarms.iterrows()
    )
    return False, (
        f"The A/A arm differs from the baseline although only its seeds do: {named}. Distrust every effect of that "
        "size on this page: the runs vary more than the analysis assumes, or chance struck."
    )


def smallest_p(seeds: int) -> float:
    """The smallest p that the sign-flip test can give with so many pairs."""
    return min(1.0, 2.0 / 2**seeds)


def signed(value: float) -> str:
    """Three decimals with a sign that is a minus, not a hyphen."""
    return f"{value:+.3f}".replace("-", "−")


def p_text(p: float) -> str:
    return "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def p_relation(p: float) -> str:
    """``= .016`` or ``< .001``, for a sentence; it does not break over lines."""
    return f"<\u00a0{p_text(p)[1:]}" if p < 0.001 else f"=\u00a0{p_text(p)}"


def _interval(row: pd.Series) -> str:
    return f"{signed(row['effect'])} [{signed(row['ci_low'])}, {signed(row['ci_high'])}]"


def _warnings(
    plan: StudyPlan, effects: pd.DataFrame, runs: Sequence[StudyRun], done: Sequence[StudyRun]
) -> list[str]:
    """What a reader must know before the first number."""
    told = []
    if len(done) < len(runs):
        told.append(
            f"{len(runs) - len(done)} of {len(runs)} runs are not finished: this is a report of the rest."
        )
    seeds = int(effects["seeds"].min()) if len(effects) else 0
    if seeds < LEAST_SEEDS:
        told.append("There are too few finished pairs to compare anything: effects need at least two seeds.")
    elif smallest_p(seeds) >= plan.judgement.alpha:
        told.append(
            f"With {seeds} seeds the smallest p that the permutation test can give is {p_text(smallest_p(seeds))}: no "
            f"difference can be shown at α = {plan.judgement.alpha:g}. A claim needs at least 8."
        )
    elif seeds < 8:
        told.append(f"Only {seeds} seeds per arm: a claim needs at least 8.")
    commits = sorted({_commit(run)[:12] for run in done})
    if len(commits) > 1:
        told.append(f"The runs were made by different commits: {', '.join(commits)}.")
    return told


def _design(plan: StudyPlan, rows: pd.DataFrame, done: Sequence[StudyRun]) -> list[tuple[str, str]]:
    """Name and value of what was compared, and how."""
    evaluation, margin = plan.evaluation, plan.judgement.margin
    prompts = {task: group["prompt"].nunique() for task, group in rows.groupby("task", sort=False)}
    tasks = [f"{task.label} ({prompts.get(task.name, 0)} held-out prompts)" for task in plan.tasks]
    facts = [
        ("baseline", plan.arm(plan.baseline).label),
        ("other arms", "; ".join(arm.label for arm in plan.arms if arm.name != plan.baseline)),
        ("tasks", ", ".join(tasks)),
        (
            "runs",
            f"{len(done)} finished: {len(plan.seeds)} seeds for each arm and task, the seeds {_seeds(plan.seeds)}",
        ),
        ("budget", f"{plan.budget.steps} optimiser steps a run"),
        (
            "evaluation",
            f"final policy, {evaluation.k} samples a prompt at temperature "
            f"{' and '.join(f'{t:g}' for t in evaluation.temperatures)}, sampling seeds {_seeds(evaluation.seeds)}, "
            "the same draws for every run",
        ),
        ("primary outcome", f"{plan.judgement.primary}@{evaluation.k}"),
        (
            "margin of equivalence",
            ", ".join(f"± {margin[name]:g} {name}@{evaluation.k}" for name in measured_outcomes(rows, plan)),
        ),
    ]
    if plan.aa is not None:
        facts.append(("A/A arm", f"the baseline's settings, its seeds {plan.aa.seed_offset:+d}"))
    return facts


def _levels(plan: StudyPlan, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Per task: mean over runs of every outcome by arm, with the smallest and the largest run."""
    outcomes = measured_outcomes(rows, plan)
    means = run_outcomes(rows, outcomes)
    means = means[means["temperature"] == plan.evaluation.temperatures[0]]
    tables = []
    for task in plan.tasks:
        lines = []
        for arm in plan.arms:
            mine = means[(means["task"] == task.name) & (means["arm"] == arm.name)]
            if len(mine):
                cells = [f"{mine[o].mean():.3f} ({mine[o].min():.3f}–{mine[o].max():.3f})" for o in outcomes]
                lines.append((arm.label, str(len(mine)), *cells))
        if lines:
            columns = ("", "runs", *(f"{outcome}@{plan.evaluation.k}" for outcome in outcomes))
            tables.append({"task": task.label, "columns": columns, "rows": lines})
    return tables


def _effect_tables(plan: StudyPlan, effects: pd.DataFrame) -> list[dict[str, Any]]:
    """Per task and temperature: every effect with all that was computed about it, the A/A arm first."""
    if effects.empty:
        return []
    order = {arm.name: position for position, arm in enumerate(plan.arms)}
    labels = {task.name: task.label for task in plan.tasks}
    tables = []
    for (task, temperature), group in effects.groupby(["task", "temperature"], sort=False):
        ranked = group.assign(
            arm_order=group["arm"].map(order), not_primary=group["outcome"] != plan.judgement.primary
        ).sort_values(["arm_order", "not_primary"], kind="stable")
        lines = [_effect_line(row, plan) for _, row in ranked.iterrows()]
        tables.append({"task": labels[str(task)], "temperature": f"{temperature:g}", "rows": lines})
    return tables


def _effect_line(row: pd.Series, plan: StudyPlan) -> dict[str, Any]:
    kind, _ = conclusion(row, plan)
    detectable = row["detectable_effect"]
    return {
        "arm": plan.arm(str(row["arm"])).label,
        "outcome": f"{row['outcome']}@{plan.evaluation.k}",
        "cells": [
            signed(row["effect"]),
            f"{signed(row['ci_low'])} to {signed(row['ci_high'])}",
            *(p_text(row[name]) for name in ("p_sign_flip", "p_holm", "p_equivalence")),
            "–" if pd.isna(detectable) else f"{detectable:.3f}",
            p_text(row["p_wild_bootstrap"]),
            f"{signed(row['rows_ci_low'])} to {signed(row['rows_ci_high'])}",
            p_text(row["rows_p_prompt_clustered"]),
        ],
        "kind": kind,
        "verdict": VERDICTS[kind],
    }


def _commands(plan_file: Path, plan: StudyPlan, done: Sequence[StudyRun]) -> list[str]:
    """The commands that make the study again, and one of its runs alone."""
    start = f"maxent-grpo-study study.plan={plan_file} study.output_dir={plan.output_dir}"
    commands = [start, f"{start} study.analyse=true    # this page again, from the finished runs"]
    if done:
        run, command = done[0], done[0].arm.command
        commands = ([f"git checkout {_commit(run)}"] if _commit(run) != "unknown" else []) + commands
        seed = json.loads((run.directory / IDENTITY).read_text())["run_seed"]
        commands.append(
            f"maxent-grpo command={command} {command.removeprefix('train-')}.recipe={run.directory / RECIPE} "
            f"output_dir=var/again resume_from_checkpoint=false    # one run alone ({run.name}, seed {seed})"
        )
    return commands


def _commit(run: StudyRun) -> str:
    return str(load_run(run.directory).header.get("run/git_sha", "unknown"))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _seeds(seeds: Sequence[int]) -> str:
    together = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]}–{seeds[-1]}" if together and len(seeds) > 2 else ", ".join(map(str, seeds))
