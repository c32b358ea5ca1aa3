"""The shell around the launchers: shellcheck is silent, --help needs nothing, a plan is printed, no token is shown."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted((ROOT / "ops" / "slurm").iterdir())
SCRIPTS = [*JOBS, *sorted((ROOT / "ops" / "scripts").glob("*.sh"))]


def bash(script: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    base = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | environ
    return subprocess.run(
        ["bash", str(script), *words], env=base, cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_shellcheck_finds_nothing() -> None:
    beside = Path(sys.executable).parent / "shellcheck"
    program = str(beside) if beside.is_file() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("no shellcheck")
    found = subprocess.run(
        [program, *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.stdout == ""
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("script", [*JOBS, ROOT / "ops/scripts/ray_cluster.sh"], ids=lambda path: path.name)
def test_help_needs_neither_slurm_nor_an_environment(script: Path) -> None:
    answer = bash(script, "--help", ENV_MODE="nonsense")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(f"{script.name}: ")
    assert "#SBATCH" not in answer.stdout


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.name)
def test_job_files_log_where_the_guide_says_and_can_be_requeued(script: Path) -> None:
    text = script.read_text()
    assert "#SBATCH --output=var/artifacts/logs/%x-%" in text
    for line in ("#SBATCH --open-mode=append", "#SBATCH --requeue", "#SBATCH --signal=B:USR1@"):
        assert line in text


def test_help_of_train_names_every_flag_and_variable() -> None:
    from maxent_grpo.launch.train import FLAGS

    text = bash(ROOT / "ops/slurm/train.slurm", "--help").stdout
    for flag in FLAGS:
        assert f"--{flag.name}" in text
        for variable in flag.variables:
            assert variable in text


def test_a_plan_is_printed_through_the_shell_without_the_token(tmp_path: Path) -> None:
    activate = tmp_path / "activate"
    activate.write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    answer = bash(
        ROOT / "ops/slurm/train.slurm", "--dry-run", "--nodes", "2", "--gpus-per-node", "4",
        "--args", "--use_vllm true --vllm_mode server --hub_token hf_ThisTokenIsNotReal",
        ENV_MODE="venv", ENV_ACTIVATE=str(activate), HF_TOKEN="hf_ThisTokenIsNotReal",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "node1  GPU 0    serves vLLM" in answer.stdout
    assert "hf_ThisTokenIsNotReal" not in answer.stdout + answer.stderr


def test_an_environment_that_is_not_there_is_named() -> None:
    answer = bash(
        ROOT / "ops/slurm/train.slurm", "--dry-run", ENV_MODE="venv", ENV_ACTIVATE="/nowhere/activate"
    )
    assert answer.returncode == 2
    assert "there is no /nowhere/activate" in answer.stderr
