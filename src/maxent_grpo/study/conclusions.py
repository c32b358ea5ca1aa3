"""The numbers in words. Every sentence follows from a row of the table of effects by the rules written here."""

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from maxent_grpo.study.effects import aa_alarms
from maxent_grpo.study.plan import Plan

Kind = Literal["raises", "lowers", "equivalent", "inconclusive"]


@dataclass(frozen=True)
class Verdict:
    """What one row allows to say."""

    kind: Kind
    sentence: str


def verdict_of(row: pd.Series, plan: Plan) -> Verdict:
    """A difference where Holm's p is below α; equivalence where TOST's is; else neither, and what was detectable."""
    alpha, k = plan.judgement.alpha, plan.evaluation.k
    label = plan.arm(str(row["arm"])).label
    name = outcome_name(str(row["outcome"]), k)
    numbers = _interval(row)
    levels = f"from {row['baseline_mean']:.3f} to {row['arm_mean']:.3f}"
    p_name = "p" if plan.arm(str(row["arm"])).is_aa else "Holm p"
    if row["p_holm"] < alpha:
        verb: Kind = "raises" if row["effect"] > 0 else "lowers"
        small = row["p_equivalence"] < alpha
        note = f", though by less than the margin of {row['margin']:g}" if small else ""
        return Verdict(
            verb,
            f"{label} {verb} {name} {levels}, by {numbers} ({p_name} {p_relation(row['p_holm'])}){note}.",
        )
    if row["p_equivalence"] < alpha:
        return Verdict(
            "equivalent",
            f"{label} leaves {name} where the baseline has it: {numbers}, within ±\u00a0{row['margin']:g} "
            f"(TOST p {p_relation(row['p_equivalence'])}).",
        )
    return Verdict(
        "inconclusive",
        f"{label} shows no difference in {name}: {numbers} ({p_name} {p_relation(row['p_holm'])}). Nor is equivalence "
        f"within ±\u00a0{row['margin']:g} shown (TOST p {p_relation(row['p_equivalence'])}); {_detectable(row, plan)}.",
    )


def conclusions(table: pd.DataFrame, plan: Plan) -> list[tuple[str, list[str]]]:
    """(task, sentences), the primary outcome of every arm first, then what it costs or wins in accuracy."""
    said: list[tuple[str, list[str]]] = []
    judged = table[table["temperature"] == plan.evaluation.temperatures[0]] if len(table) else table
    for task in plan.tasks:
        here = judged[judged["task"] == task.name] if len(judged) else judged
        sentences = []
        for arm in plan.arms:
            for outcome in dict.fromkeys((plan.judgement.primary, "mean")):
                rows = here[(here["arm"] == arm.name) & (here["outcome"] == outcome)] if len(here) else here
                if len(rows) and not arm.is_aa:
                    sentences.append(verdict_of(rows.iloc[0], plan).sentence)
        if sentences:
            said.append((task.label, sentences))
    return said


def aa_sentence(table: pd.DataFrame, plan: Plan) -> tuple[bool, str]:
    """Whether the A/A comparison is in order, and the sentence for the head of the report."""
    aa, k = plan.aa, plan.evaluation.k
    if aa is None:
        return False, (
            "This study has no A/A arm: nothing shows that its analysis finds no difference where there is none."
        )
    judged = len(table) and (table["arm"] == aa.name).any()
    if not judged:
        return False, "The A/A arm has fewer than two finished pairs: it cannot be judged yet."
    alarms = aa_alarms(table, plan)
    if alarms.empty:
        own = table[(table["arm"] == aa.name) & (table["outcome"] == plan.judgement.primary)]
        primary = "; ".join(
            f"{label_of_task(plan, row['task'])} {_interval(row)}"
            for _, row in own[own["temperature"] == plan.evaluation.temperatures[0]].iterrows()
        )
        return True, (
            "The A/A arm, the baseline once more with other seeds, does not differ from the baseline in any outcome "
            f"(Holm over outcomes, α = {plan.judgement.alpha:g}). In {outcome_name(plan.judgement.primary, k)}: "
            f"{primary}."
        )
    named = ", ".join(
        f"{outcome_name(row['outcome'], k)} on {label_of_task(plan, row['task'])} by {signed(row['effect'])} "
        f"(p {p_relation(row['p_sign_flip'])})"
        for _, row in alarms.iterrows()
    )
    return False, (
        f"The A/A arm differs from the baseline although only its seeds do: {named}. Distrust every effect of that "
        "size on this page: the runs vary more than the analysis assumes, or chance struck."
    )


def smallest_p(seeds: int) -> float:
    """The smallest p that the sign-flip test can give with so many pairs."""
    return min(1.0, 2.0 / 2**seeds)


def label_of_task(plan: Plan, name: str) -> str:
    """How the plan calls a task in text."""
    return next((task.label for task in plan.tasks if task.name == name), name)


def outcome_name(outcome: str, k: int) -> str:
    """``coverage@8``."""
    return f"{outcome}@{k}"


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


def _detectable(row: pd.Series, plan: Plan) -> str:
    if pd.isna(row["detectable_effect"]):
        return f"{int(row['seeds'])} seeds are too few to say what could have been detected"
    return (
        f"with {int(row['seeds'])} seeds, an effect of {row['detectable_effect']:.3f} would have been found with "
        f"probability {plan.judgement.power:g}"
    )
