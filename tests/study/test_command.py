"""The study from the command line: its script, its help, and what it refuses."""

from pathlib import Path

import pytest

from maxent_grpo.cli import main as console
from maxent_grpo.cli.helptext import help_text

ROOT = Path(__file__).resolve().parents[2]


def test_the_script_is_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    options = ["study.plan=configs/study/smoke.yaml", "study.dry_run=true", "study.probe=false"]
    options.append(f"study.output_dir={tmp_path / 'study'}")
    assert console.study(options) == 0
    by_script = capsys.readouterr().out
    assert console.main(["command=study", *options]) == 0
    assert capsys.readouterr().out == by_script
    assert "4 of 4 runs to do" in by_script


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "maxent-grpo: study needs a plan: study.plan=FILE (configs/study has some)"),
        (
            ["study.plan=nowhere.yaml"],
            "maxent-grpo: study | nowhere.yaml: study.plan=nowhere.yaml: there is no such",
        ),
        (
            ["study.plan=a.yaml", "run=b"],
            "maxent-grpo: study: run is not read by study, which takes study.KEY=VALUE",
        ),
    ],
)
def test_a_wrong_request_is_one_line(options, line, capsys):
    assert console.study(options) == 2
    assert capsys.readouterr().err.startswith(line)


def test_a_training_command_does_not_take_study_settings(capsys):
    assert console.baseline(["study.plan=a.yaml"]) == 2
    assert "study is not read by train-baseline; it belongs to command=study" in capsys.readouterr().err


def test_the_help_names_the_study():
    text = help_text(100)
    assert "maxent-grpo-study" in text
    assert "study.dry_run=true" in text
