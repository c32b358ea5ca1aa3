"""Two processes train the policy that one process trains, however they hold its parameters.

Parameters are float32, so that the ranks' sums are rounded in another order than one process's: after five steps of
AdamW they agree to 1e-6, while a step moves them by 1e-4.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from maxent_grpo.grpo import main

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs" / "recipes" / "tiny" / "grpo" / "config_graph_coloring.yaml"
TOLERANCE = 1e-6
SMALL = {
    "dataset_config": "train_size=24,eval_size=5",
    "eval_dataset_config": "train_size=24,eval_size=5",
    "num_generations": 4,
    "num_generations_eval": 2,
    "per_device_eval_batch_size": 4,
    "eval_steps": 5,
    "max_steps": 5,
    "save_steps": 5,
    "scale_rewards": "batch",
    "disable_tqdm": True,
}


def arguments(output_dir: Path, settings: dict) -> list[str]:
    flags = SMALL | {"output_dir": str(output_dir)} | settings
    return [
        "--config",
        str(RECIPE),
        *(part for name, value in flags.items() for part in (f"--{name}", str(value))),
    ]


def launch(output_dir: Path, processes: int = 2, **settings) -> subprocess.CompletedProcess:
    """``torchrun -m maxent_grpo.grpo`` with the small recipe."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone",
         "-m", "maxent_grpo.grpo", *arguments(output_dir, settings)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    """The run of one process whose steps hold the same 8 groups."""
    output_dir = tmp_path_factory.mktemp("one") / "run"
    assert main(arguments(output_dir, {"per_device_train_batch_size": 32})) == 0
    return output_dir


def records(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()][1:]


def assert_same_policy(directory: Path, expected: Path, tolerance: float = TOLERANCE) -> None:
    mine, theirs = load_file(directory / "model.safetensors"), load_file(expected / "model.safetensors")
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (mine[name] - tensor).abs().max() <= tolerance, name


@pytest.mark.slow
@pytest.mark.parametrize("distributed", ["ddp"])
def test_two_ranks_equal_one(one_process, tmp_path, distributed):
    done = launch(tmp_path / "run", per_device_train_batch_size=16, distributed=distributed)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_policy(tmp_path / "run", one_process)
    theirs = records(one_process)
    assert len(theirs) == 7  # five steps, two evaluations
    for record, expected in zip(records(tmp_path / "run"), theirs, strict=True):
        assert record.keys() == expected.keys()
        for name, value in expected.items():
            exact = name.startswith(("eval/", "train/rewards/", "train/completions/", "train/num_tokens"))
            assert record[name] == (value if exact else pytest.approx(value, rel=1e-3, abs=1e-6)), name
    samples = [(r / "completions.jsonl").read_text().splitlines() for r in (tmp_path / "run", one_process)]
    texts = [
        [(row["prompt_index"], row["completion"]) for row in map(json.loads, lines)] for lines in samples
    ]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_failure_on_one_rank_ends_all_with_its_line(tmp_path):
    done = launch(
        tmp_path / "run", per_device_train_batch_size=16, reward_funcs="rank_rewards:fails_on_rank_1"
    )
    assert done.returncode != 0
    line = next(line for line in done.stderr.splitlines() if "rank 1: reward function" in line)
    assert "no such file on this machine" in line


@pytest.mark.slow
def test_a_wrong_request_is_refused_once(tmp_path):
    done = launch(tmp_path / "run", per_device_train_batch_size=6)
    lines = [line for line in done.stderr.splitlines() if line.startswith("maxent-grpo:")]
    assert len(lines) == 1
    assert "use per_device_train_batch_size=8" in lines[0]
