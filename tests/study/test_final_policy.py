"""The rows of an evaluation: those of the untrained policy, which need no training."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.study.final_policy import evaluate_run
from maxent_grpo.study.plan import EvaluationPlan, read_plan
from maxent_grpo.study.runs import State, config_of, open_run, refuse_changes, untrained_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The smoke plan at two temperatures, with four samples a prompt, and its untrained policy, evaluated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        plan = read_plan(ROOT / "configs" / "study" / "smoke.yaml")
        plan = replace(plan, output_dir=tmp_path_factory.mktemp("study"))
        plan = replace(plan, evaluation=EvaluationPlan(4, (1.0, 0.5), (1001, 1002)))
        (run,) = untrained_of(plan)
        open_run(run, config_of(plan, run))
        evaluate_run(run.directory, plan.evaluation)
        assert run.state is State.DONE
        refuse_changes(plan, [run])
        yield plan, run, pd.read_parquet(run.directory / "evaluation.parquet")


def test_a_row_is_a_prompt_a_temperature_and_a_sampling_seed(evaluated):
    _, run, rows = evaluated
    assert run.name == "graph_coloring/untrained"
    assert len(rows) == 6 * 2 * 2
    assert not rows.duplicated(["prompt", "temperature", "eval_seed"]).any()
    assert set(rows["arm"]) == {"untrained"}
    assert (rows["breadth"] - (rows["distinct"] - rows["pass"])).abs().max() < 1e-12


def test_pcmd_and_cover_are_of_the_samples_under_all_seeds(evaluated):
    _, _, rows = evaluated
    pooled = rows.groupby(["prompt", "temperature"])
    right = pooled["mean"].transform("mean") * 8
    for share in (0.2, 0.5, 0.8):
        assert (rows[f"cover_{share * 100:.0f}"] == (right >= share * 8)).all()
    assert (rows["pcmd"].notna() == (right >= 2)).all()
    assert 0 < rows["pcmd"].notna().sum() < len(rows)
    assert (pooled["pcmd"].nunique() <= 1).all()  # one number for all rows of a prompt
    assert rows.loc[rows["distinct"] > 1, "pcmd"].min() > 0  # answers that differ under one seed are seen


def test_another_learning_rate_leaves_it_and_another_policy_does_not(evaluated, tmp_path, monkeypatch):
    plan, _, _ = evaluated
    monkeypatch.chdir(ROOT)
    faster = {**plan.budget.overrides, "learning_rate": 1e-3}
    refuse_changes(replace(plan, budget=replace(plan.budget, overrides=faster)), untrained_of(plan))
    other = {**plan.budget.overrides, "reward_funcs": ["task_reward", "length"]}
    with pytest.raises(UsageError, match="untrained: was run with other settings"):
        refuse_changes(replace(plan, budget=replace(plan.budget, overrides=other)), untrained_of(plan))
