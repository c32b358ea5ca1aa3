"""From evaluation rows to the table of effects: every arm against the baseline, per task, temperature and outcome."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from maxent_grpo.evaluate.passk import ENOUGH_PROMPTS
from maxent_grpo.study.paired import compare, holm
from maxent_grpo.study.plan import UNTRAINED, StudyPlan
from maxent_grpo.study.regression import regress

LEAST_SEEDS = 2


def run_outcomes(rows: pd.DataFrame, outcomes: Sequence[str]) -> pd.DataFrame:
    """One row per run and temperature: the average of every outcome over prompts and evaluation seeds.

    PCMD is an average over the prompts that have it, their number in ``support``; below `ENOUGH_PROMPTS` of them a
    run has none.
    """
    keys = ["task", "temperature", "arm", "seed"]
    means = rows.groupby(keys, as_index=False, sort=True)[list(outcomes)].mean()
    if "pcmd" in outcomes:
        support = rows[rows["pcmd"].notna()].groupby(keys)["prompt"].nunique()
        means["support"] = support.reindex(pd.MultiIndex.from_frame(means[keys]), fill_value=0).to_numpy()
        means.loc[means["support"] < ENOUGH_PROMPTS, "pcmd"] = np.nan
    return means


def measured(rows: pd.DataFrame, outcomes: Iterable[str]) -> list[str]:
    """Those of ``outcomes`` that the tasks have: modes are counted only where right answers have keys."""
    return [name for name in outcomes if name in rows.columns and rows[name].notna().any()]


def measured_outcomes(rows: pd.DataFrame, plan: StudyPlan) -> list[str]:
    """The outcomes that the plan judges and the tasks have."""
    return measured(rows, plan.judgement.outcomes)


def beside_every_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, those of the untrained policy repeated for every seed of its task: it is the start of every run."""
    is_start = rows["arm"] == UNTRAINED
    parts = [rows[~is_start]]
    for task, start in rows[is_start].groupby("task", sort=False):
        seeds = rows.loc[~is_start & (rows["task"] == task), "seed"].unique()
        parts += [start.assign(seed=seed, run_seed=seed) for seed in sorted(seeds)]
    return pd.concat(parts, ignore_index=True)


def effects_table(rows: pd.DataFrame, plan: StudyPlan) -> pd.DataFrame:
    """One row per task, temperature, outcome, reference (``against``) and arm, the A/A arm first.

    ``against`` the baseline stand all other arms and the untrained policy; ``against`` the untrained policy, where it
    was evaluated, all arms. ``p_holm`` is adjusted over the arms of one outcome, task, temperature and reference; the
    A/A arm and the untrained policy are no hypotheses of the study and keep their own p. Pairs with a missing run are
    left out; an arm with fewer than two pairs is not judged.
    """
    judgement = plan.judgement
    outcomes = measured_outcomes(rows, plan)
    rows = beside_every_seed(rows)
    runs = run_outcomes(rows, outcomes)
    arms = [arm.name for arm in plan.arms]
    table: list[dict[str, object]] = []
    for (task, temperature), group in runs.groupby(["task", "temperature"], sort=False):
        here = rows[(rows["task"] == task) & (rows["temperature"] == temperature)]
        for outcome in outcomes:
            wide = group.pivot(index="seed", columns="arm", values=outcome)
            for reference, others in ((plan.baseline, [*arms, UNTRAINED]), (UNTRAINED, arms)):
                for arm in others:
                    if arm == reference or arm not in wide or reference not in wide:
                        continue
                    pairs = wide[[arm, reference]].dropna()
                    if len(pairs) < LEAST_SEEDS:
                        continue
                    treated, baseline = pairs[arm].to_numpy(), pairs[reference].to_numpy()
                    margin = judgement.margin[outcome]
                    result = compare(
                        treated,
                        baseline,
                        margin=margin,
                        alpha=judgement.alpha,
                        power=judgement.power,
                        resamples=judgement.resamples,
                    )
                    row = {
                        "task": task,
                        "temperature": temperature,
                        "outcome": outcome,
                        "against": reference,
                        "arm": arm,
                        "seeds": len(pairs),
                        "baseline_mean": baseline.mean(),
                        "arm_mean": treated.mean(),
                        "effect": result.effect,
                        "ci_low": result.low,
                        "ci_high": result.high,
                        "p_sign_flip": result.p,
                        "p_t": result.p_t,
                        "p_holm": np.nan,
                        "margin": margin,
                        "p_equivalence": result.p_equivalence,
                        "p_no_worse": result.p_no_worse,
                        "p_no_worse_holm": np.nan,
                        "detectable_effect": result.detectable,
                    }
                    if reference == plan.baseline and temperature == plan.evaluation.temperatures[0]:
                        both = here[here["arm"].isin([arm, reference]) & here["seed"].isin(pairs.index)]
                        row |= _by_rows(both.dropna(subset=[outcome]), outcome, arm, judgement.resamples)
                    table.append(row)
    return with_holm(pd.DataFrame(table), plan)


def _by_rows(rows: pd.DataFrame, outcome: str, arm: str, resamples: int) -> dict[str, float]:
    """The regression that takes prompts as the unit."""
    by_rows = regress(rows, outcome, arm, resamples=resamples)
    return {
        "rows_gamma": by_rows.gamma,
        "rows_se": by_rows.se,
        "rows_ci_low": by_rows.low,
        "rows_ci_high": by_rows.high,
        "rows_p_prompt_clustered": by_rows.p,
        "p_wild_bootstrap": by_rows.p_wild,
    }


def with_holm(table: pd.DataFrame, plan: StudyPlan) -> pd.DataFrame:
    """The table with ``p_holm`` and ``p_no_worse_holm`` filled in."""
    if table.empty:
        return table
    own = table["arm"].isin([UNTRAINED, *([plan.aa.name] if plan.aa else [])])
    pairs = {"p_holm": f"p_{plan.judgement.test}", "p_no_worse_holm": "p_no_worse"}
    for adjusted, p in pairs.items():
        families = table[~own].groupby(["task", "temperature", "outcome", "against"], sort=False)
        for _, family in families:
            table.loc[family.index, adjusted] = holm(family[p].to_numpy())
        table.loc[own, adjusted] = table.loc[own, p]
    return table


def against_baseline(table: pd.DataFrame, plan: StudyPlan) -> pd.DataFrame:
    """The effects that the study is about."""
    return table if table.empty else table[table["against"] == plan.baseline]


def aa_alarms(table: pd.DataFrame, plan: StudyPlan) -> pd.DataFrame:
    """The rows in which the A/A arm differs from the baseline although nothing in its settings does.

    Its outcomes are several looks at one comparison: p is adjusted by Holm over them, so that a study without a fault
    raises an alarm in at most a share ``alpha`` of cases per task.
    """
    if plan.aa is None or table.empty:
        return table.iloc[:0]
    rows = against_baseline(table, plan)
    rows = rows[(rows["arm"] == plan.aa.name) & (rows["temperature"] == plan.evaluation.temperatures[0])]
    alarms = [
        group[holm(group[f"p_{plan.judgement.test}"].to_numpy()) < plan.judgement.alpha]
        for _, group in rows.groupby("task")
    ]
    return pd.concat(alarms) if alarms else rows
