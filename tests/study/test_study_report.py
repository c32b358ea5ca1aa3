"""The report from finished runs: files, numbers, warnings; and curves over seeds."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.observe.run_files import Series
from maxent_grpo.study.command import report_study
from maxent_grpo.study.figures import average, spread
from maxent_grpo.study.plan import EvaluationPlan
from maxent_grpo.study.runs import runs_of, untrained_of


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text("question: <b>Does it?</b>\n")
    return path


@pytest.fixture(scope="module")
def reported(plan_in, plan_file, make_rows, finish, tmp_path_factory):
    """A plan whose arm "other" is better, and the files of its report."""
    plan = plan_in(tmp_path_factory.mktemp("reported"))
    finish(plan, make_rows(plan, {"other": 0.1}))
    return plan, report_study(plan, plan_file, runs_of(plan))


def test_the_report_carries_its_numbers_figures_and_plan(reported):
    plan, paths = reported
    assert {path.name for path in paths} >= {"runs.parquet", "effects.csv", "report.html"}
    page = (plan.output_dir / "report.html").read_text()
    effects = pd.read_csv(plan.output_dir / "effects.csv").set_index(["outcome", "arm"])
    effect = effects.loc[("coverage", "other"), "effect"]
    assert "Other raises coverage@8 from 0.5" in page
    assert f"+{effect:.3f}" in page
    assert "&lt;b&gt;Does it?&lt;/b&gt;" in page  # the plan is text
    assert "A/A check." in page
    assert "git checkout 0123abc" in page
    assert page.count("data:image/png;base64,") == 8
    drawn = ("effects", "tradeoff", "tradeoff_dark", "trajectory", "modes", "reward", "coverage", "gradient")
    for name in drawn:
        png = plan.output_dir / "figures" / f"graph_coloring_{name}.png"
        assert png.stat().st_size > 5_000
        assert png.with_suffix(".svg").read_text().startswith("<?xml")
    assert len(pd.read_parquet(plan.output_dir / "runs.parquet")) == 3 * 8 * 3 * 20
    assert page.index("A/A check.") < page.index("What came out") < page.index("Repeat it")


def test_the_head_warns_of_an_aa_arm_that_is_not_null(plan, plan_file, make_rows, finish):
    finish(plan, make_rows(plan, {"aa": 0.1}))
    report_study(plan, plan_file, runs_of(plan))
    head = (plan.output_dir / "report.html").read_text().partition("What came out")[0]
    assert re.search(r'class="note warning"><strong>A/A check.</strong> The A/A arm differs', head)


def test_the_head_warns_of_missing_runs_and_too_few_seeds(plan, plan_file, make_rows, finish):
    rows = make_rows(plan, {})
    finish(plan, rows[rows["seed"] < 4])
    report_study(plan, plan_file, runs_of(plan))
    head = (plan.output_dir / "report.html").read_text().partition("What came out")[0]
    assert "12 of 24 runs are not finished" in head
    assert "With 4 seeds the smallest p that the permutation test can give is .125" in head


def test_equal_runs_give_equal_files(reported, plan_file):
    plan, paths = reported
    first = {path: path.read_bytes() for path in paths}
    again = {path: path.read_bytes() for path in report_study(plan, plan_file, runs_of(plan))}
    assert first == again


def test_the_untrained_policy_and_other_temperatures_are_drawn(plan, plan_file, make_rows, finish):
    plan = replace(plan, seeds=(0, 1), evaluation=EvaluationPlan(temperatures=(1.0, 0.6)))
    rows = make_rows(plan, {"other": 0.1})
    rows = pd.concat([rows, rows.assign(temperature=0.6, coverage=rows["coverage"] - 0.1)], ignore_index=True)
    rows["pcmd"] = 0.5
    start = rows[(rows["arm"] == "dr_grpo") & (rows["seed"] == 0)].assign(arm="untrained", coverage=0.6)
    finish(plan, pd.concat([rows, start], ignore_index=True))
    report_study(plan, plan_file, runs_of(plan), untrained_of(plan))
    page = (plan.output_dir / "report.html").read_text()
    for name in ("tradeoff", "tradeoff_dark", "decoding", "decoding_dark"):
        svg = (plan.output_dir / "figures" / f"graph_coloring_{name}.svg").read_text()
        assert ("untrained" in svg) == (name.startswith("tradeoff"))
    assert '<th scope="row">untrained</th><td>–</td>' in page  # no run, but a row of the means
    assert "Differences to the untrained policy, graph colouring" in page
    assert '<th scope="col">PCMD</th><th scope="col">its support</th><th scope="col">N_eff</th>' in page
    assert "<td>0.500 (0.500–0.500)</td><td>20</td><td>2.00</td>" in page
    effects = pd.read_csv(plan.output_dir / "effects.csv")
    assert set(effects["against"]) == {"dr_grpo", "untrained"}


def test_the_smallest_p_over_many_arms_is_told(plan, plan_file, make_rows, finish):
    more = tuple(replace(plan.arm("other"), name=f"other_{i}") for i in range(7))
    plan = replace(plan, arms=(*plan.arms, *more))
    finish(plan, make_rows(plan, {}))
    report_study(plan, plan_file, runs_of(plan))
    head = (plan.output_dir / "report.html").read_text().partition("What came out")[0]
    # 8 arms beside the baseline and its repetition: 8 · 2/256 > .05.
    assert "the permutation test can give is .008, .062 after Holm" in head


def test_labels_are_apart_and_near_their_points():
    points = np.array([[10.0, 10.0], [11.0, 10.0], [10.0, 12.0], [60.0, 10.0], [60.0, 10.0]])
    places = spread(points, apart=14.0)
    between = np.linalg.norm(places[:, None] - places[None], axis=2) + 99 * np.eye(5)
    assert between.min() > 12.5
    assert np.linalg.norm(places - points, axis=1).max() < 30
    assert (places == spread(points, apart=14.0)).all()


def test_nothing_finished_is_said(plan, plan_file):
    with pytest.raises(UsageError, match="no run is finished yet"):
        report_study(plan, plan_file, runs_of(plan))


def test_a_curve_is_the_mean_at_common_steps_with_a_t_interval():
    one = Series("x", np.array([1, 2, 3]), np.array([1.0, 2.0, 3.0]))
    two = Series("x", np.array([2, 3, 4]), np.array([4.0, 5.0, 6.0]))
    three = Series("x", np.array([2, 3]), np.array([3.0, 4.0]))
    curve = average([one, two, three])
    assert curve.steps.tolist() == [2, 3]
    assert curve.mean.tolist() == [3.0, 4.0]
    half = 4.302652730 * 1 / np.sqrt(3)  # t of two degrees of freedom × standard error
    assert curve.high - curve.mean == pytest.approx([half, half])
    alone = average([one])
    assert alone.mean.tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(alone.low).all()
