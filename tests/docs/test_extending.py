"""The page on extensions, followed to the letter: its files written, its commands run, the package as it is."""

import importlib
import itertools
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from maxent_grpo.cli import main as console

PAGE = (Path(__file__).resolve().parents[2] / "docs/extending.md").read_text()
COMMANDS = {"maxent-grpo-baseline": console.baseline, "maxent-grpo-math-eval": console.math_eval}


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with every titled block of the page, as the place to stand in."""
    for name, text in re.findall(r'```\w+ title="([\w.]+)"\n(.*?)```', PAGE, flags=re.DOTALL):
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # of reward workers
    return tmp_path


def test_one_of_each_extension_works_together(followed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines():
        path, script, *arguments = shlex.split(line)
        assert path == "PYTHONPATH=."
        assert COMMANDS[script](arguments) == 0, capsys.readouterr().err
    _, *steps = [json.loads(line) for line in (followed / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps] == [1, 2]
    assert all("train/rewards/brevity/mean" in record for record in steps)
    assert "train/sampling/publishes" in steps[-1], sorted(steps[-1])
    rows = [json.loads(line) for file in followed.glob("artifacts/**/*.jsonl") for line in file.open()]
    assert len(rows) == 4
    assert "graph_coloring" in capsys.readouterr().out


def test_the_task_is_a_task(followed: Path) -> None:
    task = importlib.import_module("my_task").Divisors()
    splits = {split: task.problems(split, 1000, 0) for split in ("train", "eval", "control")}
    asked = [problem.question for problems in splits.values() for problem in problems]
    assert len(asked) == len(set(asked)) > 20
    for problem in itertools.chain(*splits.values()):
        for mode in problem.modes:
            assert task.grade(task.spell(mode, problem.facts), problem.facts).mode == mode
        assert not task.grade("1", problem.facts).correct


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("objective", "my_objective:NONE"),
        ("reward_funcs", "[task_reward,my_rewards:nothing]"),
        ("dataset_name", "task:my_task:Nothing"),
        ("environment", "my_environment:Nothing"),
        ("sampler", "my_sampler:nothing"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(
    followed: Path, capsys: pytest.CaptureFixture[str], setting: str, value: str
) -> None:
    assert console.baseline(["baseline.recipe=recipe.yaml", f"{setting}={value}"]) == 2
    (line,) = [
        text
        for text in capsys.readouterr().err.splitlines()
        if "has no" in text or "cannot be imported" in text
    ]
    assert "my_" in line
