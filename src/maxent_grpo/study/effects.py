"""From evaluation rows to the table of effects: every arm against the baseline, per task, temperature and outcome."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from maxent_grpo.study.paired import compare, holm
from maxent_grpo.study.plan import StudyPlan
from maxent_grpo.study.regression import regress

LEAST_SEEDS = 2


def run_outcomes(rows: pd.DataFrame, outcomes: Sequence[str]) -> pd.DataFrame:
    """One row per run and temperature: the average of every outcome over prompts and evaluation seeds."""
    keys = ["task", "temperature", "arm", "seed"]
    return rows.groupby(keys, as_index=False, sort=True)[list(outcomes)].mean()


def measured_outcomes(rows: pd.DataFrame, plan: StudyPlan) -> list[str]:
    """The plan's outcomes that the tasks have: modes are counted only where all right answers are known."""
    return [name for name in plan.judgement.outcomes if name in rows.columns and rows[name].notna().any()]


def effects_table(rows: pd.DataFrame, plan: StudyPlan) -> pd.DataFrame:
    """One row per task, temperature, outcome and arm, the A/A arm first.

    ``p_holm`` is adjusted over the arms of one outcome, task and temperature; the A/A arm is no hypothesis of the
    study and keeps its own p. Pairs with a missing run are left out; an arm with fewer than two pairs is not judged.
    """
    judgement = plan.judgement
    outcomes = measured_outcomes(rows, plan)
    runs = run_outcomes(rows, outcomes)
    table: list[dict[str, object]] = []
    for (task, temperature), group in runs.groupby(["task", "temperature"], sort=False):
        for outcome in outcomes:
            wide = group.pivot(index="seed", columns="arm", values=outcome)
            for arm in plan.arms:
                if arm.name == plan.baseline or arm.name not in wide or plan.baseline not in wide:
                    continue
                pairs = wide[[arm.name, plan.baseline]].dropna()
                if len(pairs) < LEAST_SEEDS:
                    continue
                treated, baseline = pairs[arm.name].to_numpy(), pairs[plan.baseline].to_numpy()
                margin = judgement.margin[outcome]
                result = compare(
                    treated,
                    baseline,
                    margin=margin,
                    alpha=judgement.alpha,
                    power=judgement.power,
                    resamples=judgement.resamples,
                )
                here = (rows["task"] == task) & (rows["temperature"] == temperature)
                both = rows["arm"].isin([arm.name, plan.baseline]) & rows["seed"].isin(pairs.index)
                by_rows = regress(rows[here & both], outcome, arm.name, resamples=judgement.resamples)
                table.append(
                    {
                        "task": task,
                        "temperature": temperature,
                        "outcome": outcome,
                        "arm": arm.name,
                        "seeds": len(pairs),
                        "baseline_mean": baseline.mean(),
                        "arm_mean": treated.mean(),
                        "effect": result.effect,
                        "ci_low": result.low,
                        "ci_high": result.high,
                        "p_sign_flip": result.p,
                        "p_holm": np.nan,
                        "margin": margin,
                        "p_equivalence": result.p_equivalence,
                        "detectable_effect": result.detectable,
                        "rows_gamma": by_rows.gamma,
                        "rows_se": by_rows.se,
                        "rows_ci_low": by_rows.low,
                        "rows_ci_high": by_rows.high,
                        "rows_p_prompt_clustered": by_rows.p,
                        "p_wild_bootstrap": by_rows.p_wild,
                    }
                )
    return with_holm(pd.DataFrame(table), plan)


def with_holm(table: pd.DataFrame, plan: StudyPlan) -> pd.DataFrame:
    """The table with ``p_holm`` filled in."""
    if table.empty:
        return table
    aa = plan.aa.name if plan.aa else None
    for _, family in table[table["arm"] != aa].groupby(["task", "temperature", "outcome"], sort=False):
        table.loc[family.index, "p_holm"] = holm(family["p_sign_flip"].to_numpy())
    table.loc[table["arm"] == aa, "p_holm"] = table.loc[table["arm"] == aa, "p_sign_flip"]
    return table


def aa_alarms(table: pd.DataFrame, plan: StudyPlan) -> pd.DataFrame:
    """The rows in which the A/A arm differs from the baseline although nothing in its settings does.

    Its outcomes are several looks at one comparison: p is adjusted by Holm over them, so that a study without a fault
    raises an alarm in at most a share ``alpha`` of cases per task.
    """
    if plan.aa is None or table.empty:
        return table.iloc[:0]
    rows = table[(table["arm"] == plan.aa.name) & (table["temperature"] == plan.evaluation.temperatures[0])]
    alarms = [
        group[holm(group["p_sign_flip"].to_numpy()) < plan.judgement.alpha]
        for _, group in rows.groupby("task")
    ]
    return pd.concat(alarms) if alarms else rows
