"""The report: one HTML page that carries its figures, says what was asked, what came out, and how to repeat it.

Every sentence about an effect follows from a row of the table of effects by the rules of `conclusion`.
"""

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from maxent_grpo import __version__
from maxent_grpo.evaluate.passk import effective_modes
from maxent_grpo.files import replace_file
from maxent_grpo.observe.report import render_page
from maxent_grpo.study.effects import aa_alarms, against_baseline, measured, measured_outcomes, run_outcomes
from maxent_grpo.study.figures import StudyFigure
from maxent_grpo.study.plan import OUTCOMES, UNTRAINED, StudyPlan
from maxent_grpo.study.runs import Finished, State, StudyRun

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
    finished: Sequence[Finished],
    path: Path,
) -> Path:
    """Write the report of ``runs``, those that are done and the untrained policy in ``finished``, to ``path``."""
    done = [run for run in runs if run.state is State.DONE]
    commits = [run.commit for run in finished if run.commit]
    aa_fine, aa_text = aa_sentence(effects, plan)
    page = render_page(
        TEMPLATE,
        plan=plan,
        plan_file=plan_file,
        plan_text=plan_file.read_text(encoding="utf-8"),
        runs=runs,
        done=done,
        seeds=int(effects["seeds"].min()) if len(effects) else 0,
        family=sum(not arm.is_aa for arm in plan.arms) - 1,
        commit=commits[0] if commits else "unknown",
        commits=sorted({commit[:12] for commit in commits}),
        made_by=sorted({run.version for run in finished}),
        sources=_sources(runs),
        one=next((run for run in done if run.is_here), None),
        prompts={task: group["prompt"].nunique() for task, group in rows.groupby("task", sort=False)},
        outcomes=measured_outcomes(rows, plan),
        definitions=OUTCOMES,
        aa_fine=aa_fine,
        aa_text=aa_text,
        conclusions=conclusions(effects, plan),
        levels=_levels(plan, rows),
        from_start=_from_start(plan, effects),
        figures=figures,
        effects=_effect_tables(plan, effects),
        verdicts=VERDICTS,
        versions=[("maxent-grpo", __version__), *((name, _version(name)) for name in COMPUTING + ANALYSING)],
        signed=signed,
        p_text=p_text,
        smallest_p=smallest_p,
        outcome_name=lambda outcome: outcome_name(outcome, plan),
        short=lambda *numbers: " and ".join(f"{number:g}" for number in numbers),
        span=_span,
    )
    replace_file(path, page)
    return path


def _sources(runs: Sequence[StudyRun]) -> dict[str, int]:
    """Part → how many runs were taken from it."""
    return dict(Counter(str(run.taken.source) for run in runs if run.taken is not None))


def conclusion(row: pd.Series, plan: StudyPlan) -> tuple[str, str]:
    """The verdict of one row (raises, lowers, equivalent or inconclusive) and its sentence.

    A difference where Holm's p is below α; equivalence where TOST's is; else neither, and what was detectable.
    """
    alpha, arm = plan.judgement.alpha, plan.arm(str(row["arm"]))
    name = outcome_name(str(row["outcome"]), plan)
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


def outcome_name(outcome: str, plan: StudyPlan) -> str:
    """``coverage`` as coverage@8, ``cover_50`` as Cover@.5."""
    if outcome.startswith("cover_"):
        return f"Cover@{int(outcome[6:]) / 100:g}".replace("0.", ".")
    names = {"pcmd": "PCMD", "breadth": f"B@{plan.evaluation.k}"}
    return names.get(outcome, f"{outcome}@{plan.evaluation.k}")


def conclusions(table: pd.DataFrame, plan: StudyPlan) -> list[tuple[str, list[str]]]:
    """(task, sentences), the primary outcome of every arm first, then what it costs or wins in accuracy."""
    if table.empty:
        return []
    judged = against_baseline(table, plan)
    judged = judged[judged["temperature"] == plan.evaluation.temperatures[0]]
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
    """True if the A/A comparison is in order, and the sentence for the head of the report."""
    aa, table = plan.aa, against_baseline(table, plan)
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
        name = outcome_name(plan.judgement.primary, plan)
        return True, (
            "The A/A arm, the baseline once more with other seeds, does not differ from the baseline in any outcome "
            f"(Holm over outcomes, α = {plan.judgement.alpha:g}). In {name}: {primary}."
        )
    named = ", ".join(
        f"{outcome_name(row['outcome'], plan)} on {labels[row['task']]} by {signed(row['effect'])} "
        f"(p {p_relation(row['p_holm'])})"
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
    """Three decimals with a sign that is a minus, not a hyphen; – where there is no number."""
    if value != value:
        return "–"
    return f"{value:+.3f}".replace("-", "−")


def p_text(p: float) -> str:
    if p != p:
        return "–"
    return "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def p_relation(p: float) -> str:
    """``= .016`` or ``< .001``, for a sentence; it does not break over lines."""
    return f"<\u00a0{p_text(p)[1:]}" if p < 0.001 else f"=\u00a0{p_text(p)}"


def _interval(row: pd.Series) -> str:
    return f"{signed(row['effect'])} [{signed(row['ci_low'])}, {signed(row['ci_high'])}]"


def _levels(plan: StudyPlan, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Per task: its outcomes, and per arm how many runs, and of every outcome the mean, and the range of its runs.

    PCMD is followed by its support, the fewest prompts of any run, and by the effective number of answers.
    """
    outcomes = measured(rows, OUTCOMES)
    means = run_outcomes(rows, outcomes)
    means = means[means["temperature"] == plan.evaluation.temperatures[0]]
    tables = []
    for task in plan.tasks:
        of_arms = [
            (arm, means[(means["task"] == task.name) & (means["arm"] == arm.name)])
            for arm in (plan.untrained, *plan.arms)
        ]
        lines = [
            (arm.label, "–" if arm.name == UNTRAINED else len(mine), _cells(mine, outcomes))
            for arm, mine in of_arms
            if len(mine)
        ]
        if lines:
            heads = [outcome_name(name, plan) for name in outcomes]
            at = outcomes.index("pcmd") + 1 if "pcmd" in outcomes else len(heads)
            heads[at:at] = ["its support", "N_eff"] if "pcmd" in outcomes else []
            tables.append({"task": task.label, "heads": heads, "rows": lines})
    return tables


def _cells(runs: pd.DataFrame, outcomes: Sequence[str]) -> list[str]:
    cells = []
    for outcome in outcomes:
        given = runs[outcome].dropna()
        text = f"{given.mean():.3f}" if len(given) else "–"
        if len(given) > 1:
            text += f" ({given.min():.3f}–{given.max():.3f})"
        cells.append(text)
        if outcome == "pcmd":
            number = effective_modes(given.mean()) if len(given) else None
            cells += [str(int(runs["support"].min())), "–" if number is None else f"{number:.2f}"]
    return cells


def _from_start(plan: StudyPlan, effects: pd.DataFrame) -> list[dict[str, Any]]:
    """Per task, at the judged temperature: every arm's differences to the untrained policy."""
    if effects.empty:
        return []
    first = plan.evaluation.temperatures[0]
    mine = effects[(effects["against"] == UNTRAINED) & (effects["temperature"] == first)]
    tables = []
    for task in plan.tasks:
        here = mine[mine["task"] == task.name]
        outcomes = list(dict.fromkeys(here["outcome"]))
        lines = []
        for arm in plan.arms:
            found = {row["outcome"]: row for _, row in here[here["arm"] == arm.name].iterrows()}
            cells = [
                (_interval(found[name]), found[name]["p_holm"] < plan.judgement.alpha)
                if name in found
                else ("–", False)
                for name in outcomes
            ]
            lines += [(arm.label, cells)] if found else []
        if lines:
            heads = [outcome_name(name, plan) for name in outcomes]
            tables.append({"task": task.label, "heads": heads, "rows": lines})
    return tables


def _effect_tables(plan: StudyPlan, effects: pd.DataFrame) -> list[dict[str, Any]]:
    """Per task and temperature: every effect against the baseline and what it allows to say, the A/A arm first."""
    effects = against_baseline(effects, plan)
    if effects.empty:
        return []
    order = {arm.name: position for position, arm in enumerate((*plan.arms, plan.untrained))}
    labels = {task.name: task.label for task in plan.tasks}
    tables = []
    for (task, temperature), group in effects.groupby(["task", "temperature"], sort=False):
        ranked = group.assign(
            arm_order=group["arm"].map(order),
            not_primary=group["outcome"] != plan.judgement.primary,
            kind=[conclusion(row, plan)[0] for _, row in group.iterrows()],
            name=[outcome_name(outcome, plan) for outcome in group["outcome"]],
        ).sort_values(["arm_order", "not_primary"], kind="stable")
        lines = ranked.to_dict("records")
        tables.append({"task": labels[str(task)], "temperature": temperature, "rows": lines})
    return tables


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _span(seeds: Sequence[int]) -> str:
    together = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]}–{seeds[-1]}" if together and len(seeds) > 2 else ", ".join(map(str, seeds))
