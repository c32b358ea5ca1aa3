"""Bad input from the shell: one line that names the thing and the remedy, the right exit code, no traceback."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from maxent_grpo.cli.main import maxent
from maxent_grpo.objectives.objective import Objective


@pytest.fixture
def run_cli(
    tmp_path: Path, policy_dir: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run ``maxent-grpo-maxent`` on a good small configuration with changes; exit code and last line of stderr."""
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(f'{{"problem": "Say {w}.", "answer": "a"}}' for w in "abcd")
    )
    (tmp_path / "empty.jsonl").write_text("")

    def run(**changes: object) -> tuple[int, str]:
        settings: dict[str, object] = {
            "model_name_or_path": policy_dir,
            "dataset_name": tmp_path / "rows.jsonl",
            "reward_funcs": "[wrong_rewards:gives_nan]",
            "output_dir": tmp_path / "run",
            "maxent_tau": 0.05,
            "beta": 0.1,
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "max_completion_length": 4,
            "max_steps": 4,
            "use_cpu": True,
            "disable_tqdm": True,
        }
        code = maxent([f"{key}={value}" for key, value in (settings | changes).items()])
        err = capfd.readouterr().err.strip().splitlines()
        assert not any("Traceback" in line for line in err)
        return code, err[-1]

    return run


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"maxent_tua": 0.1}, 2, ["maxent_tua", "did you mean maxent_tau"]),
        ({"learning_rate": "fast"}, 2, ["learning_rate", "'fast'", "number"]),
        ({"num_generations": 1, "per_device_train_batch_size": 4}, 2, ["num_generations", "2"]),
        ({"maxent_tau": 0, "beta": 0}, 2, ["maxent_tau", "beta"]),
        ({"dataset_name": "/no/such/rows.jsonl"}, 2, ["/no/such/rows.jsonl"]),
        ({"dataset_prompt_column": "text"}, 2, ["'text'", "problem, answer", "dataset_prompt_column"]),
        ({"model_name_or_path": "/no/such/model"}, 2, ["/no/such/model"]),
        ({"output_dir": "/proc/no/run"}, 2, ["output_dir", "/proc/no/run", "choose another directory"]),
        ({"reward_funcs": "[acuracy]"}, 2, ["acuracy", "pure_accuracy_math"]),
        ({"reward_funcs": "[wrong_rewards:gives_nan]"}, 1, ["gives_nan", "step 1"]),
        ({"reward_funcs": "[wrong_rewards:raises]"}, 1, ["raises", "ValueError: no such unit", "step 1"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_input_is_one_line_with_a_remedy(run_cli, changes, code, words):
    exit_code, line = run_cli(**changes)
    assert exit_code == code, line
    assert line.startswith("maxent-grpo: ")
    for word in words:
        assert word in line


def test_an_empty_dataset_is_named(run_cli, tmp_path):
    exit_code, line = run_cli(dataset_name=tmp_path / "empty.jsonl")
    assert (exit_code, "empty" in line) == (2, True), line


@pytest.mark.parametrize(
    "changes",
    [
        {"reward_funcs": "[wrong_rewards:tells_apart]"},
        {"reward_funcs": "[task_reward]", "dataset_name": "task:arithmetic"},  # no other gradient
    ],
)
def test_a_loss_that_stays_nan_ends_the_run(run_cli, monkeypatch, changes):
    real = Objective.loss
    monkeypatch.setattr(Objective, "loss", lambda self, *a: (real(self, *a)[0] * torch.nan, {}))
    exit_code, line = run_cli(**changes)
    assert exit_code == 1
    assert "step 3: 3 updates in a row" in line
    assert "lower learning_rate" in line
