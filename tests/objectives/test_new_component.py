"""A new advantage with one parameter in the tree: two files of the package change; recipes, help and errors follow."""

import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "maxent_grpo"
FUNCTION = '''

@dataclass(frozen=True)
class OverQuantile:
    """``U − quantile(U)`` of each group: [P, G] → [P, G]."""

    share: float = 0.5

    def __call__(self, utilities: Tensor) -> Tensor:
        return utilities - utilities.quantile(self.share, dim=1, keepdim=True)
'''
LINE = """
    "over_quantile": Component("advantages:OverQuantile", {"share": native("quantile_share", float, 0.5,
        "Quantile of its group that over_quantile subtracts, 0 to 1; unset: 0.5.", ge=0, le=1)}),
"""
RECIPE = """
model_name_or_path: bundled:tiny-policy
dataset_name: task:graph_coloring
dataset_config: "train_size=8"
reward_funcs: [task_reward]
objective: dr_grpo
beta: 0.0
advantage: over_quantile
quantile_share: 0.25
num_generations: 4
per_device_train_batch_size: 8
max_completion_length: 8
max_steps: 1
force_custom_loop: true
use_cpu: true
disable_tqdm: true
output_dir: run
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the new advantage."""
    package = tmp_path_factory.mktemp("src") / "maxent_grpo"
    shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(SOURCE.parent / "math_answers", package.parent / "math_answers")
    advantages = package / "objectives" / "advantages.py"
    advantages.write_text(advantages.read_text() + FUNCTION)
    components = package / "objectives" / "components.py"
    before = components.read_text()
    components.write_text(before.replace("ADVANTAGES = {\n", f"ADVANTAGES = {{{LINE}", 1))
    return package


def changed(package: Path) -> list[str]:
    names = [str(p.relative_to(SOURCE)) for p in SOURCE.rglob("*.py")]
    return sorted(filecmp.cmpfiles(SOURCE, package, names, shallow=False)[1])


def run(tree: Path, where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"PYTHONPATH": str(tree.parent), "COLUMNS": "100"}
    call = f"import sys; from maxent_grpo.cli.main import baseline; sys.exit(baseline({list(arguments)!r}))"
    return subprocess.run(
        [sys.executable, "-c", call], cwd=where, env=environ, capture_output=True, text=True, timeout=300
    )


def test_two_files_change(tree: Path) -> None:
    assert changed(tree) == ["objectives/advantages.py", "objectives/components.py"]


def test_a_recipe_trains_a_step_with_it(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = run(tree, tmp_path, "baseline.recipe=recipe.yaml")
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert record["step"] == 1
    assert "quantile_share: 0.25" in (tmp_path / "run/resolved_config.yaml").read_text()


def test_help_and_errors_know_it(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("quantile_share: 0.25", "quantile_share: 1.5"))
    refused = run(tree, tmp_path, "baseline.recipe=recipe.yaml")
    assert refused.returncode == 2
    assert "quantile_share: 1.5 must be in [0, 1]" in refused.stderr
    (tmp_path / "recipe.yaml").write_text(
        RECIPE.replace("force_custom_loop: true", "force_custom_loop: false")
    )
    refused = run(tree, tmp_path, "baseline.recipe=recipe.yaml")
    assert "TRL's trainer does not read it" in refused.stderr
    assert "quantile_share" in run(tree, tmp_path, "--help").stdout
