"""What is done stays done, what changed is refused by name, and one run has one process."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.study import command as study
from maxent_grpo.study.plan import read_plan
from maxent_grpo.study.runs import (
    State,
    changes,
    config_of,
    identity_of,
    open_run,
    refuse_changes,
    runs_of,
    try_lock,
)

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "configs" / "study" / "smoke.yaml"


@pytest.fixture
def smoke(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    return replace(read_plan(SMOKE), output_dir=tmp_path / "study")


def changed_budget(plan, **overrides):
    return replace(plan, budget=replace(plan.budget, overrides={**plan.budget.overrides, **overrides}))


def test_a_changed_setting_is_refused_by_name_and_the_same_plan_is_not(smoke):
    cells = runs_of(smoke)
    open_run(cells[0], config_of(smoke, cells[0]))
    assert len(refuse_changes(smoke, cells)) == 4
    with pytest.raises(
        UsageError, match=r"seed-0: was run with other settings .*\(learning_rate: 0.0001 → 0.0002\)"
    ):
        refuse_changes(changed_budget(smoke, learning_rate=2e-4), runs_of(smoke))
    longer = replace(smoke, budget=replace(smoke.budget, steps=4))
    with pytest.raises(UsageError, match=r"max_steps: 3 → 4"):
        refuse_changes(longer, runs_of(longer))


def test_a_report_of_runs_that_a_changed_plan_does_not_describe_is_refused(smoke, tmp_path):
    cell = runs_of(smoke)[0]
    open_run(cell, config_of(smoke, cell))
    (cell.directory / "evaluation.parquet").touch()
    longer = tmp_path / "plan.yaml"
    longer.write_text(SMOKE.read_text().replace("steps: 3\n", "steps: 4\n", 1))
    options = {"plan": str(longer), "output_dir": str(smoke.output_dir), "analyse": True}
    with pytest.raises(UsageError, match="max_steps: 3 → 4"):
        study.run_study(options)


def test_what_does_not_change_a_run_may_change(smoke):
    cell = runs_of(smoke)[0]
    open_run(cell, config_of(smoke, cell))
    other = replace(
        smoke,
        budget=replace(smoke.budget, save_steps=2),
        judgement=replace(smoke.judgement, alpha=0.1),
        seeds=(0, 1, 2),
    )
    refuse_changes(other, runs_of(other))


def test_other_prompts_are_another_run_although_no_setting_changed(smoke, tmp_path):
    rows = [{"problem": f"Say {w}.", "answer": w} for w in "abcdefgh"]
    path = tmp_path / "rows.jsonl"
    overrides = {"dataset_name": str(path), "eval_dataset_name": str(path), "reward_funcs": ["task_reward"]}
    overrides |= {"dataset_config": None, "eval_dataset_split": "train"}
    path.write_text("\n".join(map(json.dumps, rows)))
    plan = changed_budget(smoke, **overrides)
    plan = replace(plan, tasks=(replace(plan.tasks[0], overrides={}),))
    cell = runs_of(plan)[0]
    before = identity_of(config_of(plan, cell))
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(map(json.dumps, rows[::-1])))
    after = identity_of(
        config_of(changed_budget(plan, dataset_name=str(other), eval_dataset_name=str(other)), cell)
    )
    assert {change.partition(":")[0] for change in changes(before, after)} == {
        "dataset_name",
        "eval_dataset_name",
        "training prompts",
        "held-out prompts",
    }


def test_seeds_differ_in_their_seed_alone(smoke):
    cells = [cell for cell in runs_of(smoke) if cell.arm.name == "tilted"]
    first, second = (identity_of(config_of(smoke, cell)) for cell in cells)
    assert changes(first, second) == ["seed: 0 → 1"]


def test_the_arms_of_the_smoke_plan_differ_in_what_is_trained_alone(smoke):
    one, two = (identity_of(config_of(smoke, cell)) for cell in runs_of(smoke)[:2])
    differing = {change.partition(":")[0] for change in changes(one, two)}
    assert {name for name in differing if not name.startswith("maxent_")} == {
        "objective",
        "train_grpo_objective",
        "command",
    }


def test_the_state_is_read_from_the_files(smoke):
    cell = runs_of(smoke)[0]
    assert cell.state is State.MISSING
    open_run(cell, config_of(smoke, cell))
    assert cell.state is State.STARTED
    (cell.directory / ".final.partial").mkdir()
    (cell.directory / "model.safetensors").touch()  # half of the final files are moved: not yet trained
    assert cell.state is State.STARTED
    (cell.directory / ".final.partial").rmdir()
    assert cell.state is State.TRAINED
    (cell.directory / "evaluation.parquet").touch()
    assert cell.state is State.DONE


def test_a_directory_with_another_run_is_not_taken_over(smoke):
    cell = runs_of(smoke)[0]
    cell.directory.mkdir(parents=True)
    (cell.directory / "metrics.jsonl").touch()
    with pytest.raises(UsageError, match="holds a run that is not of a study"):
        refuse_changes(smoke, runs_of(smoke))


def test_a_run_has_one_process(tmp_path):
    first = try_lock(tmp_path)
    assert first is not None
    assert try_lock(tmp_path) is None
    os.close(first)
    again = try_lock(tmp_path)
    assert again is not None
    os.close(again)


def said(options):
    lines: list[str] = []
    study.run_study({"plan": str(SMOKE), **options}, lines.append)
    return "\n".join(lines)


def test_a_dry_run_shows_the_matrix_and_writes_nothing(smoke):
    text = said({"dry_run": True, "probe": False, "output_dir": str(smoke.output_dir)})
    assert "4 of 4 runs to do, 3 steps each, 2 at a time: no estimate" in text
    assert "Dr. GRPO" in text
    assert not smoke.output_dir.exists()


def test_the_slurm_script_is_an_array_over_the_runs(smoke):
    text = said({"slurm": True, "dry_run": True, "output_dir": str(smoke.output_dir)})
    assert "#SBATCH --array=0-3%2" in text
    assert 'study.index="$SLURM_ARRAY_TASK_ID"' in text
    assert not smoke.output_dir.exists()


def test_slurm_without_slurm_is_one_line(smoke, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RunError, match=r"there is no sbatch here; submit .*study.sbatch"):
        said({"slurm": True, "output_dir": str(smoke.output_dir)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prosesses": 2}, r"study.prosesses: unknown \(did you mean processes\?\)"),
        ({"processes": 0}, "study.processes=0: an integer of at least 1"),
        ({"dry_run": 1}, "study.dry_run=1: true or false"),
        ({"arms": ["titled"]}, r"study.arms: no arm is called 'titled' \(did you mean tilted\?\)"),
        ({"index": 9}, "study.index=9: the plan has no such run"),
        ({"slurm": True, "index": 1}, "study.slurm submits all runs"),
    ],
)
def test_a_wrong_option_is_named(smoke, options, message):
    with pytest.raises(UsageError, match=message):
        said({"output_dir": str(smoke.output_dir), **options})


def test_an_arm_that_this_version_cannot_run_stops_the_study_before_it_starts(smoke, tmp_path):
    plan = tmp_path / "plan.yaml"
    text = SMOKE.read_text().replace("maxent_tau: 0.05", "maxent_tua: 0.05")
    plan.write_text(text)
    message = r"1 arm\(s\) cannot run .*unknown key 'maxent_tua' \(did you mean maxent_tau\?\).*study.arms=\[dr_grpo\]"
    with pytest.raises(UsageError, match=message):
        study.run_study({"plan": str(plan), "output_dir": str(smoke.output_dir)})
    assert not smoke.output_dir.exists()


def test_a_setting_that_is_new_since_a_run_was_made_had_its_default_then() -> None:
    before = {"learning_rate": 1e-4, "command": "train-baseline"}
    assert changes(before, before | {"code_confinement": "kernel"}) == []
    assert changes(before, before | {"code_confinement": "none"}) == ["code_confinement: kernel → none"]
