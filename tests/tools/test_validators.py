"""The validators' verdicts and exit codes on records that are right and on each way of being wrong."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from maxent_grpo.files import JsonlFile

TOOLS = Path(__file__).resolve().parents[2] / "tools"
HEADER = {"step": 0, "run/git_sha": "abc", "run/recipe_path": "r.yaml"}


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def step(number: int, **metrics: float) -> dict:
    return {"step": number, "train/loss": 0.5, "train/learning_rate": 1e-4} | {
        key.replace("__", "/"): value for key, value in metrics.items()
    }


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(*records: dict, name: str = "a") -> Path:
        path = tmp_path / "var" / "data" / name / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        for record in records:
            JsonlFile(path).append(record)
        return path

    return write


def test_whole_records_pass(run, capsys) -> None:
    run(HEADER, step(1), {"step": 1, "eval/mean_reward": 0.1}, step(2))
    assert tool("validate_logs").main([]) == 0
    assert tool("validate_training_logs").main(["--required-key", "eval/mean_reward"]) == 0
    assert "metrics.jsonl: ok" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("records", "complaint"),
    [
        ([HEADER, step(1), step(2, train__loss=float("nan"))], "step 2: train/loss was not finite"),
        ([HEADER, step(1), step(2, train__kl=float("inf"))], "step 2: train/kl was not finite"),
        ([HEADER, step(2), step(1)], "step 1 comes after step 2"),
        ([HEADER, step(1), step(1), step(2)], "step 1 was logged 2 times"),
        ([HEADER], "no step was logged"),
        ([HEADER, {"step": 1, "eval/x": 1.0}], "no record has train/loss"),
        (
            [HEADER, step(1), {"step": 2, "train/loss": 1.0}],
            "1 training record(s) have no train/learning_rate",
        ),
    ],
)
def test_what_is_wrong_is_named_and_the_exit_code_is_1(run, capsys, records, complaint) -> None:
    run(*records)
    assert tool("validate_logs").main([]) == 1
    assert complaint in capsys.readouterr().out


def test_runs_without_commit_or_recipe_cannot_be_compared(run, capsys) -> None:
    run({"step": 0, "run/git_sha": "abc"}, step(1))
    assert tool("validate_logs").main([]) == 0
    assert tool("validate_training_logs").main([]) == 1
    assert "line 1 has no run/recipe_path" in capsys.readouterr().out


def test_a_damaged_line_is_found_and_a_torn_last_one_is_not_a_fault(run, capsys) -> None:
    path = run(HEADER, step(1), step(2))
    path.write_text(path.read_text() + '{"step": 3, "train/lo')
    assert tool("validate_logs").main([]) == 0
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "garbage", *lines[1:3]]) + "\n")
    assert tool("validate_logs").main([]) == 1
    assert "line 2 is not JSON" in capsys.readouterr().out


def test_one_bad_run_of_several_fails_and_a_known_one_can_be_let_through(run, capsys) -> None:
    run(HEADER, step(1), name="good")
    run(HEADER, step(1, train__kl=float("nan")), name="bad")
    assert tool("validate_logs").main(["--glob", "var/data/*"]) == 1
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()][-1] == "ok"
    assert tool("validate_logs").main(["--glob", "var/data/*", "--allow-non-finite", "train/kl"]) == 0


@pytest.mark.parametrize(
    ("name", "strict"), [("validate_logs", "--strict-missing"), ("validate_training_logs", "--require-logs")]
)
def test_nothing_to_check_fails_only_where_that_is_asked(run, name: str, strict: str) -> None:
    assert tool(name).main([]) == 0
    assert tool(name).main([strict]) == 1


def test_a_required_metric_is_any_metric(run) -> None:
    run(HEADER, step(1, train__kl=0.1))
    assert tool("validate_logs").main(["--require-key", "train/kl"]) == 0
    assert tool("validate_logs").main(["--require-key", "train/nothing"]) == 1
