"""Runs in parts: what a study leaves, a later start takes up; nothing is made again and nothing is mixed in silence."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as parquet
import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.study import command as study
from maxent_grpo.study import scheduler
from maxent_grpo.study.command import report_study
from maxent_grpo.study.figures import curve_metrics
from maxent_grpo.study.parts import parts_of, read_finished, read_part, taken_up, write_part
from maxent_grpo.study.plan import read_plan
from maxent_grpo.study.runs import (
    State,
    changes,
    config_of,
    evaluation_identity,
    identity_of,
    open_run,
    refuse_changes,
    runs_of,
    untrained_of,
)

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "configs" / "study" / "smoke.yaml"


@pytest.fixture
def plan_file(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("question: Does it?\n")
    return path


def elsewhere(plan, tmp_path, *parts):
    return replace(plan, output_dir=tmp_path / "elsewhere", parts=tuple(map(str, parts)))


def taken(plan):
    found = taken_up(runs_of(plan), parts_of(plan))
    return [replace(run, taken=found.get(run.name)) for run in runs_of(plan)]


def test_a_study_of_taken_runs_redraws_every_file(plan, plan_file, make_rows, finish, tmp_path):
    finish(plan, make_rows(plan, {"other": 0.1}))
    written = report_study(plan, plan_file, runs_of(plan))
    other = elsewhere(plan, tmp_path, plan.output_dir)
    assert all(run.state is State.DONE for run in taken(other))
    again = report_study(other, plan_file, taken(other))
    assert len(written) == len(again) == 11
    for one, two in zip(written, again, strict=True):
        same = one.read_bytes() == two.read_bytes()
        assert same or one.name == "report.html"  # which names directories and where runs came from
    assert not (other.output_dir / "runs").exists()
    page = (other.output_dir / "report.html").read_text()
    assert f"24 finished runs were taken from <code>{plan.output_dir}</code>" in page


def test_two_halves_make_a_whole(plan, plan_file, make_rows, finish, tmp_path):
    rows = make_rows(plan, {"other": 0.1})
    finish(plan, rows)
    whole = pd.read_parquet(report_study(plan, plan_file, runs_of(plan))[0])
    halves = tmp_path / "one", tmp_path / "two"
    for number, half in enumerate(halves):
        half.mkdir()
        mine = [run for run in runs_of(plan) if run.seed % 2 == number]
        write_part([read_finished(run, curve_metrics()) for run in mine], half)
    other = elsewhere(plan, tmp_path, tmp_path / "o*", tmp_path / "tw*")
    pd.testing.assert_frame_equal(pd.read_parquet(report_study(other, plan_file, taken(other))[0]), whole)
    assert [run.state for run in taken(replace(other, parts=(str(halves[0]),)))].count(State.DONE) == 12
    assert not parts_of(replace(other, parts=(str(tmp_path / "none"),)))


def test_a_part_keeps_what_its_runs_are(plan, make_rows, finish, tmp_path):
    finish(plan, make_rows(plan, {}))
    runs = [read_finished(run, curve_metrics()) for run in runs_of(plan)]
    write_part(runs, tmp_path)
    back = read_part(tmp_path)
    assert [(run.name, run.identity, run.evaluation, run.commit) for run in back] == [
        (run.name, run.identity, run.evaluation, run.commit) for run in runs
    ]
    curve = back[5].records.series("eval/coverage_at_8")
    assert curve.steps.tolist() == [0, 1, 2, 3, 4]
    assert curve.values == pytest.approx([0.4, 0.39, 0.38, 0.37, 0.36], abs=1e-7)
    facts = json.loads(parquet.read_schema(tmp_path / "runs.parquet").metadata[b"maxent_grpo.runs"])
    assert facts["common"] == {"initial policy": "one", "maxent_grpo version": "1.0"}  # written once


def test_a_table_that_does_not_say_how_its_runs_were_made_is_refused(plan, make_rows, tmp_path):
    make_rows(plan, {}).to_parquet(tmp_path / "runs.parquet")
    with pytest.raises(UsageError, match="does not say how its runs were made"):
        read_part(tmp_path)


def test_versions_may_differ_and_are_reported(plan, plan_file, make_rows, finish, tmp_path):
    finish(plan, make_rows(plan, {}))
    runs = [read_finished(run, curve_metrics()) for run in runs_of(plan)]
    older = [replace(run, identity={**run.identity, "maxent_grpo version": "0.9"}) for run in runs[:12]]
    write_part([*older, *runs[12:]], tmp_path)
    other = elsewhere(plan, tmp_path, tmp_path)
    report_study(other, plan_file, taken(other))
    head = (other.output_dir / "report.html").read_text().partition("What came out")[0]
    assert "made by different versions of the package: 0.9, 1.0" in head


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The smoke plan, a part with its first run as the present code identifies it, and a plan that names the part."""
    monkeypatch.chdir(ROOT)
    smoke = replace(read_plan(SMOKE), output_dir=tmp_path / "made")
    run = runs_of(smoke)[0]
    config = config_of(smoke, run)
    open_run(run, config)
    rows = pd.DataFrame({"task": ["graph_coloring"], "arm": ["dr_grpo"], "seed": [0], "mean": [0.5]})
    import pyarrow as arrow

    identity = json.dumps(evaluation_identity(config, smoke.evaluation))
    table = arrow.Table.from_pandas(rows).replace_schema_metadata({b"maxent_grpo.evaluation": identity})
    parquet.write_table(table, run.directory / "evaluation.parquet")
    (run.directory / "metrics.jsonl").write_text('{"run/git_sha": "abc", "step": 0}\n')
    finished = read_finished(run, curve_metrics())
    (tmp_path / "part").mkdir()
    write_part([finished], tmp_path / "part")
    return replace(smoke, output_dir=tmp_path / "new", parts=(str(tmp_path / "part"),)), finished


def test_a_part_of_other_settings_is_refused_by_name(made):
    plan, _ = made
    refuse_changes(plan, taken(plan))
    faster = {**plan.budget.overrides, "learning_rate": 2e-4}
    changed = replace(plan, budget=replace(plan.budget, overrides=faster))
    with pytest.raises(
        UsageError, match=r"part: its graph_coloring/dr_grpo/seed-0 .*learning_rate: 0.0001 → 0.0002"
    ):
        refuse_changes(changed, taken(changed))
    changed = replace(plan, evaluation=replace(plan.evaluation, k=4))
    with pytest.raises(UsageError, match=r"evaluation.k: 2 → 4"):
        refuse_changes(changed, taken(changed))


def test_a_setting_that_is_newer_than_a_run_is_no_change_at_its_default(made):
    plan, finished = made
    identity = identity_of(config_of(plan, runs_of(plan)[0]))
    before = {name: value for name, value in finished.identity.items() if name != "entropy_coef"}
    assert changes(before, identity) == []
    assert changes(before, {**identity, "entropy_coef": 0.5}) == ["entropy_coef: 0.0 → 0.5"]
    # Unset, an objective's has its component's own value, and None where no component reads it.
    assert {identity["pass_k"], identity["maxent_mode_entropy"]} == {4, None}
    assert (
        changes({k: v for k, v in before.items() if k not in ("pass_k", "maxent_mode_entropy")}, identity)
        == []
    )
    assert changes({k: v for k, v in before.items() if k != "pass_k"}, {**identity, "pass_k": 8}) == [
        "pass_k: None → 8"
    ]
    assert changes({**before, "maxent_grpo version": "0"}, identity)[0].startswith("maxent_grpo version: 0 →")
    assert changes({**before, "maxent_grpo version": "0"}, identity, whatever_version=True) == []


def test_two_parts_that_disagree_on_a_run_are_refused(made, tmp_path):
    plan, finished = made
    (tmp_path / "other").mkdir()
    write_part([replace(finished, identity={**finished.identity, "seed": 5})], tmp_path / "other")
    plan = replace(plan, parts=(*plan.parts, str(tmp_path / "other")))
    with pytest.raises(
        UsageError, match=r"both have graph_coloring/dr_grpo/seed-0, made with .*\(seed: 0 → 5\)"
    ):
        taken(plan)


def touch(path):
    return [sys.executable, "-c", f"open({str(path)!r}, 'w')"]


@pytest.fixture
def quick(monkeypatch):
    """Training and evaluation of milliseconds; the commands that were started."""
    started = []

    def command(run, *_):
        started.append(run.name)
        return touch(run.directory / "evaluation.parquet")

    monkeypatch.setattr(scheduler, "train_command", lambda run: touch(run.directory / "model.safetensors"))
    monkeypatch.setattr(scheduler, "evaluate_command", command)
    monkeypatch.setattr(study, "report_study", lambda *_: [])
    return started


def test_a_start_makes_what_no_part_has(made, quick, tmp_path):
    plan, _ = made
    text = SMOKE.read_text().replace("output_dir:", f"parts: ['{tmp_path}/par?']\noutput_dir:")
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    lines: list[str] = []
    options = {"plan": str(path), "output_dir": str(plan.output_dir), "processes": 1}
    study.run_study({**options, "dry_run": True, "probe": False}, lines.append)
    assert "3 of 4 runs to do" in lines[-1]
    assert f"part      {tmp_path}/part: 1 runs of this study" in lines
    study.run_study({**options, "tasks": ["graph_coloring"], "seeds": [0]}, lines.append)
    assert quick == ["graph_coloring/untrained", "graph_coloring/tilted/seed-0"]
    other = {**options, "output_dir": str(tmp_path / "other"), "seeds": "1", "arms": "tilted"}
    study.run_study(other, lines.append)
    assert quick[3:] == ["graph_coloring/dr_grpo/seed-1", "graph_coloring/tilted/seed-1"]


def test_no_run_is_begun_that_would_not_end_in_time(made, quick):
    plan, _ = made
    plan = replace(plan, parts=())
    runs = [*untrained_of(plan), *runs_of(plan)]
    lines: list[str] = []
    configs = {run.index: config_of(plan, run) for run in runs}
    scheduler.run_all(plan, runs[:2], configs, 1, lines.append, hours=1.0)
    assert len(quick) == 2  # without a finished run there is no forecast: it is begun
    runs[1].record_duration("train", 3000.0)
    before = time.monotonic()
    scheduler.run_all(plan, runs, configs, 1, lines.append, hours=0.5)
    assert len(quick) == 2
    assert time.monotonic() - before < 60
    assert lines[-1].startswith("stopped   3 runs are left for a later start")
    scheduler.run_all(plan, runs, configs, 1, lines.append, hours=1.0)
    assert len(quick) > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tasks": ["graph_colouring"]},
            r"study.tasks: no task is called .* \(did you mean graph_coloring\?\)",
        ),
        ({"seeds": [7]}, r"study.seeds: 7 is not among the plan's \(0, 1\)"),
        ({"seeds": ["x"]}, "study.seeds: 'x' is not an integer"),
        ({"hours": 0}, "study.hours=0: a number above 0"),
        ({"slurm": True, "seeds": [0]}, "study.slurm submits all runs of the plan"),
    ],
)
def test_a_wrong_choice_is_named(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UsageError, match=message):
        study.run_study({"plan": str(SMOKE), "output_dir": str(tmp_path), **options}, lambda _: None)
