"""The report: one HTML page that carries its figures, says what was asked, what came out, and how to repeat it."""

import base64
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from maxent_grpo import __version__
from maxent_grpo.observe.html_page import filled
from maxent_grpo.observe.run_files import load_run
from maxent_grpo.study.cells import Cell
from maxent_grpo.study.conclusions import (
    aa_sentence,
    conclusions,
    label_of_task,
    outcome_name,
    p_text,
    signed,
    smallest_p,
    verdict_of,
)
from maxent_grpo.study.drawing import Drawn
from maxent_grpo.study.effects import LEAST_SEEDS, measured_outcomes, run_outcomes
from maxent_grpo.study.plan import OUTCOMES, Plan
from maxent_grpo.study.store import CELL, State, state_of

TEMPLATE = Path(__file__).with_name("study.html")
COMPUTING = ("torch", "transformers", "trl", "accelerate", "datasets", "numpy")
ANALYSING = ("scipy", "statsmodels", "pandas", "pyarrow", "matplotlib")
VERDICTS = {"raises": "higher", "lowers": "lower", "equivalent": "equivalent", "inconclusive": "not shown"}


def write_page(
    plan: Plan,
    plan_file: Path,
    rows: pd.DataFrame,
    effects: pd.DataFrame,
    figures: Sequence[Drawn],
    cells: Sequence[Cell],
    path: Path,
) -> Path:
    """Write the report of ``cells`` to ``path``."""
    done = [cell for cell in cells if state_of(cell.directory) is State.DONE]
    aa_fine, aa_text = aa_sentence(effects, plan)
    page = filled(
        TEMPLATE,
        question=plan.question,
        aa_fine=aa_fine,
        aa_text=aa_text,
        warnings=warnings_of(plan, effects, cells, done),
        conclusions=conclusions(effects, plan),
        design=design_of(plan, rows, done),
        outcomes=[
            (outcome_name(name, plan.evaluation.k), OUTCOMES[name].partition(": ")[2])
            for name in measured_outcomes(rows, plan)
        ],
        levels=levels_of(plan, rows),
        effects=effect_tables(plan, effects),
        figures=[_image(figure) for figure in figures],
        alpha=plan.judgement.alpha,
        repeat=repeat_commands(plan_file, plan, done),
        versions=versions(),
        plan_text=plan_file.read_text(encoding="utf-8"),
    )
    path.write_text(page, encoding="utf-8")
    return path


def warnings_of(plan: Plan, effects: pd.DataFrame, cells: Sequence[Cell], done: Sequence[Cell]) -> list[str]:
    """What a reader must know before the first number."""
    told = []
    if len(done) < len(cells):
        told.append(
            f"{len(cells) - len(done)} of {len(cells)} runs are not finished: this is a report of the rest."
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
    commits = sorted(
        {str(load_run(cell.directory).header.get("run/git_sha", "unknown"))[:12] for cell in done}
    )
    if len(commits) > 1:
        told.append(f"The runs were made by different commits: {', '.join(commits)}.")
    return told


def design_of(plan: Plan, rows: pd.DataFrame, done: Sequence[Cell]) -> list[tuple[str, str]]:
    """Name and value of what was compared, and how."""
    evaluation = plan.evaluation
    prompts = {task: group["prompt"].nunique() for task, group in rows.groupby("task", sort=False)}
    margins = ", ".join(
        f"± {plan.judgement.margin[name]:g} {outcome_name(name, evaluation.k)}"
        for name in measured_outcomes(rows, plan)
    )
    facts = [
        ("baseline", plan.arm(plan.baseline).label),
        ("other arms", "; ".join(arm.label for arm in plan.arms if arm.name != plan.baseline)),
        (
            "tasks",
            ", ".join(f"{task.label} ({prompts.get(task.name, 0)} held-out prompts)" for task in plan.tasks),
        ),
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
        ("primary outcome", outcome_name(plan.judgement.primary, evaluation.k)),
        ("margin of equivalence", margins),
    ]
    if plan.aa is not None:
        facts.append(("A/A arm", f"the baseline's settings, its seeds {plan.aa.seed_offset:+d}"))
    return facts


def levels_of(plan: Plan, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Per task: mean over runs of every outcome by arm, with the smallest and the largest run."""
    outcomes = measured_outcomes(rows, plan)
    runs = run_outcomes(rows, outcomes)
    runs = runs[runs["temperature"] == plan.evaluation.temperatures[0]]
    tables = []
    for task in plan.tasks:
        lines = []
        for arm in plan.arms:
            mine = runs[(runs["task"] == task.name) & (runs["arm"] == arm.name)]
            if len(mine):
                cells = [f"{mine[o].mean():.3f} ({mine[o].min():.3f}–{mine[o].max():.3f})" for o in outcomes]
                lines.append((arm.label, str(len(mine)), *cells))
        if lines:
            columns = ("", "runs", *(outcome_name(o, plan.evaluation.k) for o in outcomes))
            tables.append({"task": task.label, "columns": columns, "rows": lines})
    return tables


def effect_tables(plan: Plan, effects: pd.DataFrame) -> list[dict[str, Any]]:
    """Per task and temperature: every effect with all that was computed about it, the A/A arm first."""
    if effects.empty:
        return []
    tables = []
    labels = {arm.name: arm.label for arm in plan.arms}
    order = {arm.name: position for position, arm in enumerate(plan.arms)}
    for (task, temperature), group in effects.groupby(["task", "temperature"], sort=False):
        lines = []
        ranked = group.assign(
            arm_order=group["arm"].map(order), not_primary=group["outcome"] != plan.judgement.primary
        ).sort_values(["arm_order", "not_primary"], kind="stable")
        for _, row in ranked.iterrows():
            kind = verdict_of(row, plan).kind
            lines.append(
                {
                    "arm": labels[str(row["arm"])],
                    "outcome": outcome_name(str(row["outcome"]), plan.evaluation.k),
                    "cells": [
                        signed(row["effect"]),
                        f"{signed(row['ci_low'])} to {signed(row['ci_high'])}",
                        p_text(row["p_sign_flip"]),
                        p_text(row["p_holm"]),
                        p_text(row["p_equivalence"]),
                        "–" if pd.isna(row["detectable_effect"]) else f"{row['detectable_effect']:.3f}",
                        p_text(row["p_wild_bootstrap"]),
                        f"{signed(row['rows_ci_low'])} to {signed(row['rows_ci_high'])}",
                        p_text(row["rows_p_prompt_clustered"]),
                    ],
                    "kind": kind,
                    "verdict": VERDICTS[kind],
                }
            )
        tables.append(
            {"task": label_of_task(plan, str(task)), "temperature": f"{temperature:g}", "rows": lines}
        )
    return tables


def repeat_commands(plan_file: Path, plan: Plan, done: Sequence[Cell]) -> list[str]:
    """The commands that make the study again, and one of its runs alone."""
    commands = []
    if done:
        sha = str(load_run(done[0].directory).header.get("run/git_sha", "unknown"))
        commands += [f"git checkout {sha}"] if sha != "unknown" else []
    start = f"maxent-grpo-study study.plan={plan_file} study.output_dir={plan.output_dir}"
    commands += [start, f"{start} study.analyse=true    # this page again, from the finished runs"]
    if done:
        seed = json.loads((done[0].directory / CELL).read_text())["run_seed"]
        section = done[0].arm.command.removeprefix("train-")
        commands.append(
            f"maxent-grpo command={done[0].arm.command} {section}.recipe={done[0].directory / 'recipe.yaml'} "
            f"output_dir=var/again resume_from_checkpoint=false    # one run alone ({done[0].name}, seed {seed})"
        )
    return commands


def versions() -> list[tuple[str, str]]:
    """Package → version of what computes here."""
    found = [("maxent-grpo", __version__)]
    for name in (*COMPUTING, *ANALYSING):
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, "not installed"))
    return found


def _seeds(seeds: Sequence[int]) -> str:
    together = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]}–{seeds[-1]}" if together and len(seeds) > 2 else ", ".join(map(str, seeds))


def _image(figure: Drawn) -> dict[str, str]:
    data = base64.b64encode(figure.png.read_bytes()).decode()
    return {
        "data": data,
        "title": figure.title,
        "caption": figure.caption,
        "svg": f"figures/{figure.svg.name}",
    }
