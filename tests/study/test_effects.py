"""From rows to the table of effects, and from the table to sentences."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from maxent_grpo.study.effects import aa_alarms, effects_table, run_outcomes
from maxent_grpo.study.report import aa_sentence, conclusions, p_relation, smallest_p


def test_an_effect_is_the_mean_of_seed_paired_differences_of_run_averages(plan, make_rows):
    rows = make_rows(plan, {"other": 0.1}).sample(frac=1, random_state=0)  # the order of rows says nothing
    table = effects_table(rows, plan).set_index(["outcome", "arm"])
    runs = rows.groupby(["arm", "seed"])["coverage"].mean()
    differences = runs["other"] - runs["dr_grpo"]
    row = table.loc[("coverage", "other")]
    assert row["effect"] == pytest.approx(differences.mean(), abs=1e-12)
    assert row["rows_gamma"] == pytest.approx(differences.mean(), abs=1e-12)  # balanced, so both agree
    assert row["seeds"] == 8
    assert row["p_sign_flip"] == pytest.approx(2 / 256)
    assert row["ci_low"] < differences.mean() < row["ci_high"]
    assert row["p_wild_bootstrap"] < 0.02
    assert row["p_equivalence"] > 0.9
    half = stats.t.ppf(0.975, 7) * differences.std(ddof=1) / np.sqrt(8)
    assert row["ci_high"] - row["ci_low"] == pytest.approx(2 * half, rel=0.2)


def test_a_missing_run_drops_its_pair_alone(plan, make_rows):
    rows = make_rows(plan, {})
    rows = rows[~((rows["arm"] == "other") & (rows["seed"] == 3))]
    table = effects_table(rows, plan)
    assert set(table.loc[table["arm"] == "other", "seeds"]) == {7}
    assert set(table.loc[table["arm"] == "aa", "seeds"]) == {8}


def test_an_outcome_that_no_task_has_is_left_out(plan, make_rows):
    rows = make_rows(plan, {}).drop(columns=["distinct", "coverage"])
    assert set(effects_table(rows, plan)["outcome"]) == {"mean", "pass"}


def test_the_aa_arm_is_no_hypothesis_of_the_study(plan, make_rows):
    table = effects_table(make_rows(plan, {}), plan)
    aa = table[table["arm"] == "aa"]
    assert (aa["p_holm"] == aa["p_sign_flip"]).all()
    assert list(table["arm"][:2]) == ["aa", "other"]  # reported first


def test_run_averages_weigh_every_prompt_and_seed_alike(plan, make_rows):
    rows = make_rows(plan, {})
    runs = run_outcomes(rows, ["coverage"]).set_index(["arm", "seed"])
    mine = rows[(rows["arm"] == "aa") & (rows["seed"] == 2)]
    assert runs.loc[("aa", 2), "coverage"] == pytest.approx(mine["coverage"].mean())


def with_start(rows, shift):
    """The rows and, as the untrained policy's, those of the baseline's first run with its coverage shifted."""
    start = rows[(rows["arm"] == "dr_grpo") & (rows["seed"] == 0)]
    return pd.concat(
        [rows, start.assign(arm="untrained", coverage=start["coverage"] + shift)], ignore_index=True
    )


def test_the_untrained_policy_is_a_row_and_a_reference_of_every_run(plan, make_rows):
    rows = with_start(make_rows(plan, {"other": 0.1}), 0.3)
    table = effects_table(rows, plan)
    runs = run_outcomes(rows, ["coverage"]).set_index(["arm", "seed"])["coverage"]
    by = table[table["outcome"] == "coverage"].set_index(["against", "arm"])
    assert list(by.loc["untrained"].index) == ["dr_grpo", "aa", "other"]
    assert list(by.loc["dr_grpo"].index) == ["aa", "other", "untrained"]
    start = runs.loc["untrained"].item()
    for arm in ("dr_grpo", "other"):
        row = by.loc[("untrained", arm)]
        assert row["effect"] == pytest.approx(runs.loc[arm].mean() - start)
        assert (row["baseline_mean"], row["seeds"]) == (pytest.approx(start), 8)
    assert by.loc[("dr_grpo", "untrained"), "effect"] == pytest.approx(start - runs.loc["dr_grpo"].mean())
    # It is no hypothesis: the other arms' adjusted p are those of the study without it.
    without = effects_table(make_rows(plan, {"other": 0.1}), plan).set_index(["outcome", "arm"])
    assert by.loc[("dr_grpo", "other"), "p_holm"] == without.loc[("coverage", "other"), "p_holm"]
    assert by.loc[("dr_grpo", "untrained"), "p_holm"] == by.loc[("dr_grpo", "untrained"), "p_sign_flip"]


def test_holm_adjusts_the_test_that_the_plan_names(plan, make_rows):
    plan = replace(plan, judgement=replace(plan.judgement, test="t"))
    table = effects_table(make_rows(plan, {"other": 0.1}), plan).set_index(["outcome", "arm"])
    row = table.loc[("coverage", "other")]
    assert row["p_holm"] == row["p_t"] < row["p_sign_flip"]
    assert row["p_no_worse"] == row["p_no_worse_holm"] < 1e-4
    worse = effects_table(make_rows(plan, {"other": -0.1}), plan).set_index(["outcome", "arm"])
    assert worse.loc[("coverage", "other"), "p_no_worse"] > 0.99


def test_the_mean_of_pcmd_is_over_defined_prompts_and_needs_enough_of_them(plan, make_rows):
    rows = make_rows(plan, {})
    rows["pcmd"] = np.where(rows["prompt"] % 2 == 0, 0.25, np.nan)
    few = run_outcomes(rows, ["pcmd"])
    assert set(few["support"]) == {10}
    assert few["pcmd"].isna().all()  # of 10 prompts, where 20 are enough
    rows["pcmd"] = rows["prompt"] / 19
    assert run_outcomes(rows, ["pcmd"])["pcmd"].to_numpy() == pytest.approx(0.5)


def test_the_sentences_say_higher_equivalent_and_not_shown(plan, make_rows):
    table = effects_table(make_rows(plan, {"other": 0.1}), plan)
    ((task, sentences),) = conclusions(table, plan)
    assert task == "graph colouring"
    assert sentences[0].startswith("Other raises coverage@8 from 0.5")
    assert "Holm p" in sentences[0]
    assert "Other leaves mean@8 where the baseline has it" in sentences[1]
    noisy = effects_table(make_rows(plan, {}, run_sd=0.06), plan)
    ((_, sentences),) = conclusions(noisy, plan)
    assert sentences[0].startswith("Other shows no difference in coverage@8")
    assert "Nor is equivalence within" in sentences[0]
    assert "with 8 seeds, an effect of 0." in sentences[0]


def test_a_null_aa_arm_is_in_order_and_another_is_a_warning(plan, make_rows):
    fine, text = aa_sentence(effects_table(make_rows(plan, {}), plan), plan)
    assert fine
    assert "does not differ from the baseline in any outcome" in text
    table = effects_table(make_rows(plan, {"aa": 0.1}), plan)
    assert set(aa_alarms(table, plan)["outcome"]) == {"coverage", "distinct"}
    fine, text = aa_sentence(table, plan)
    assert not fine
    assert "Distrust every effect of that size" in text
    without = replace(plan, arms=tuple(arm for arm in plan.arms if not arm.is_aa))
    assert aa_sentence(table, without) == (False, aa_sentence(table, without)[1])
    assert "no A/A arm" in aa_sentence(table, without)[1]


def test_p_values_read_well():
    assert [p_relation(p) for p in (0.0004, 0.0156, 0.5, 1.0)] == [
        "<\u00a0.001",
        "=\u00a0.016",
        "=\u00a0.500",
        "=\u00a01",
    ]
    assert smallest_p(5) == 0.0625
