"""Hydra's part: real composition, no training."""

import os
import sys
from pathlib import Path

import pytest

from composed import jobs_of
from maxent_grpo.cli.compose import Composed
from maxent_grpo.errors import UsageError


def _jobs(*typed: str) -> list[Composed]:
    return jobs_of(typed)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_new_keys_need_no_prefix() -> None:
    (job,) = _jobs("command=train-maxent", "maxent.training.x=1e-6", "training.y=[a,b]", "script.z={k: 1}")
    assert job.tree == {
        "command": "train-maxent",
        "maxent": {"training": {"x": 1e-6}},
        "training": {"y": ["a", "b"]},
        "script": {"z": {"k": 1}},
    }
    assert job.given == {"command", "maxent.training.x", "training.y", "script.z"}
    assert not job.is_sweep
    assert job.name == ""


def test_a_preset_yields_to_the_command_line_and_is_told_from_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("command: train-maxent\nmaxent:\n  training: {seed: 1, beta: 0.5}\n")
    (job,) = _jobs(
        "--config-dir", ".", "--config-name", "mine", "maxent.training.seed=2", "~maxent.training.beta"
    )
    assert job.tree["maxent"] == {"training": {"seed": 2}}
    assert "command" not in job.given


def test_a_single_run_writes_nothing_and_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    before = (list(sys.argv), dict(os.environ), os.getcwd())
    _jobs("command=train-maxent")
    assert (list(sys.argv), dict(os.environ), os.getcwd()) == before
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_is_the_product_of_what_varies() -> None:
    jobs = _jobs(
        "--multirun", "training.seed=0,1", "maxent.training.maxent_tau=choice(0.1,1)", "training.beta=0.5"
    )
    assert [job.name for job in jobs] == [
        "maxent_tau=0.1,seed=0",
        "maxent_tau=1,seed=0",
        "maxent_tau=0.1,seed=1",
        "maxent_tau=1,seed=1",
    ]
    assert jobs[2].tree["training"] == {"seed": 1, "beta": 0.5}


def test_sweep_leaves_one_file_under_var_artifacts(tmp_path: Path) -> None:
    _jobs("--multirun", "training.seed=0,1")
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["multirun.yaml"]
    assert files[0].parts[:3] == ("var", "artifacts", "multirun")


def test_hydra_settings_of_a_preset_and_of_the_command_line_count(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "hydra:\n  mode: MULTIRUN\n  sweep: {dir: here}\n  sweeper: {params: {++training.seed: '0,1'}}\n"
    )
    assert [job.name for job in _jobs("-cd", ".", "-cn", "mine")] == ["seed=0", "seed=1"]
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["multirun.yaml"]
    _jobs("-cd", ".", "-cn", "mine", "hydra.sweep.dir=there", "hydra/job_logging=none")
    assert (tmp_path / "there" / "multirun.yaml").is_file()
    assert not (tmp_path / "outputs").exists()


def test_job_names_are_directory_names_that_stay_different() -> None:
    names = [job.name for job in _jobs("--multirun", "maxent.recipe=a/b.yaml,a_b.yaml,a/b_yaml")]
    assert len(set(names)) == 3
    assert not any("/" in name for name in names)


def test_a_sweep_of_one_value_is_named_by_its_number() -> None:
    assert [job.name for job in _jobs("--multirun", "training.seed=3")] == ["job=0"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("training.x={", r"^training\.x=\{: no viable alternative"),
        ("training.x=${nowhere}", "Interpolation key 'nowhere' not found"),
        ("training.x=1,2", r"Ambiguous value for argument 'training\.x=1,2'.*--multirun"),
        ("~training.x", "Could not delete from config"),
    ],
)
def test_hydras_refusals_become_one_line(typed: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        _jobs(typed)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_broken_preset_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("command: [\n")
    with pytest.raises(UsageError, match=r"broken\.yaml"):
        _jobs("--config-dir", ".", "--config-name", "broken")
