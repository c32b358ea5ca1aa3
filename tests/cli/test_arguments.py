"""What is typed → what Hydra reads."""

from pathlib import Path

import pytest

from maxent_grpo.cli.compose import sort_arguments
from maxent_grpo.errors import UsageError


@pytest.mark.parametrize(
    ("typed", "opened"),
    [
        ("command=train-maxent", "++command=train-maxent"),
        ("maxent.training.seed=1,2", "++maxent.training.seed=1,2"),
        ("training.run_name='a=b'", "++training.run_name='a=b'"),
        ("training.system_prompt=", "++training.system_prompt="),
        ("+training.seed=1", "+training.seed=1"),
        ("++training.seed=1", "++training.seed=1"),
        ("~maxent.training.seed", "~maxent.training.seed"),
        ("hydra.sweep.dir=x", "hydra.sweep.dir=x"),
        ("hydra/launcher=submitit_slurm", "hydra/launcher=submitit_slurm"),
        ("hydra_like=1", "++hydra_like=1"),
    ],
)
def test_plain_keys_are_opened_and_hydras_own_are_not(typed: str, opened: str) -> None:
    assert sort_arguments([typed]).overrides == (opened,)


def test_flags_may_stand_between_overrides() -> None:
    line = sort_arguments(["a=1", "--multirun", "b=2", "-cp=pkg://x", "c=3"])
    assert line.overrides == ("++a=1", "++b=2", "++c=3")
    assert line.flags == ("--multirun", "-cp", "pkg://x")
    assert sort_arguments(["--info", "defaults-tree", "a=1"]).flags == ("--info", "defaults-tree")


def test_directories_are_read_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "mine.yaml").write_text("command: demo\n")
    monkeypatch.chdir(tmp_path)
    for flag in ("--config-path", "-cp", "--config-dir", "-cd"):
        line = sort_arguments([flag, "presets", "--config-name", "mine"])
        assert line.flags == (flag, str(tmp_path / "presets"), "--config-name", "mine")


def test_a_preset_name_alone_looks_into_the_shipped_presets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets = tmp_path / "configs" / "recipes" / "hydra"
    presets.mkdir(parents=True)
    (presets / "mine.yaml").write_text("command: demo\n")
    monkeypatch.chdir(tmp_path)
    assert sort_arguments(["--config-name=mine"]).flags == (
        "--config-name",
        "mine",
        "--config-path",
        str(presets),
    )
    with pytest.raises(UsageError, match=r"other: not in .*, which holds .*grpo_base, .*, mine$"):
        sort_arguments(["--config-name", "other"])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--learning_rate", "1e-6"], r"training\.learning_rate=VALUE"),
        (["--learning-rate=1e-6"], r"training\.learning_rate=1e-6"),
        (["--config", "x.yaml"], "python -m maxent_grpo.grpo"),
        (["train-maxent"], "train-maxent: an argument is key=value"),
        (["--config-name"], "--config-name needs a value"),
        (["--config-path", "/no/such/place"], "/no/such/place: there is no such directory"),
    ],
)
def test_refusals_say_what_to_write(typed: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sort_arguments(typed)
