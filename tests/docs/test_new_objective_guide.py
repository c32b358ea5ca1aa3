"""The guide for adding an objective, followed to the letter: its files written, its test run, its recipe trained."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from maxent_grpo.cli import main as console

GUIDE = (Path(__file__).resolve().parents[2] / "docs/guides/new_objective.md").read_text()


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with every titled block of the guide, as the place to stand in."""
    blocks = re.findall(r'```\w+ title="([\w.]+)"\n(.*?)```', GUIDE, flags=re.DOTALL)
    assert [name for name, _ in blocks] == ["my_objective.py", "recipe.yaml", "test_my_objective.py"]
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # PYTHONPATH=.
    monkeypatch.delitem(sys.modules, "my_objective", raising=False)
    return tmp_path


def test_its_test_passes(followed: Path) -> None:
    names: dict = {}
    exec((followed / "test_my_objective.py").read_text(), names)
    names["test_value_and_gradient_equal_a_loop"]()


def test_its_recipe_trains_two_steps_with_the_new_objective(followed: Path) -> None:
    (command,) = re.findall(r"```bash\n(.*?)```", GUIDE, flags=re.DOTALL)
    path, script, *arguments = shlex.split(command)
    assert (path, script) == ("PYTHONPATH=.", "maxent-grpo-baseline")
    assert console.baseline(arguments) == 0
    header, *steps = [json.loads(line) for line in (followed / "run/metrics.jsonl").read_text().splitlines()]
    assert header["run/objective"] == "my_objective:MEDIAN"
    assert [record["step"] for record in steps] == [1, 2]
    assert all(record["train/ratio/mean"] == pytest.approx(1.0) for record in steps)
    assert any(record["train/grad_norm"] > 0 for record in steps)
    assert "my_objective:MEDIAN" in (followed / "run/resolved_config.yaml").read_text()


def test_the_recipe_says_what_is_wrong_with_the_name(
    followed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = followed / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("my_objective:MEDIAN", "my_objective:MEAN"))
    assert console.baseline(["baseline.recipe=recipe.yaml"]) == 2
    assert "module 'my_objective' has no 'MEAN'" in capsys.readouterr().err
