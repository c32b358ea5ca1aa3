"""Recipes for the command line's tests, and a place to run from that nothing is written to by accident."""

from collections.abc import Callable
from pathlib import Path

import pytest

MAXENT_RECIPE = """\
model_name_or_path: some/model
dataset_name: some/data
output_dir: var/data/out
train_grpo_objective: false
maxent_tau: 0.2
beta: 0.1
learning_rate: 1.0e-6
num_generations: 4
per_device_train_batch_size: 8
gradient_accumulation_steps: 2
max_steps: 10
"""
BASELINE_RECIPE = MAXENT_RECIPE.replace("train_grpo_objective: false\nmaxent_tau: 0.2\n", "")


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write a recipe by kind (``maxent`` or ``baseline``), with the working directory beside it."""
    monkeypatch.chdir(tmp_path)
    for variable in ("GRPO_RECIPE", "GRPO_RECIPE_USED", "MAXENT_LOG_LEVEL", "MAXENT_GRPO_LOGLEVEL"):
        monkeypatch.delenv(variable, raising=False)

    def write(kind: str) -> Path:
        path = tmp_path / f"{kind}.yaml"
        path.write_text(MAXENT_RECIPE if kind == "maxent" else BASELINE_RECIPE)
        return path

    return write
