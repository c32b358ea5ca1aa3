"""InfoSeed's seed head on two processes: sharded with the policy or whole, trained as one process trains it."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from maxent_grpo.infoseed import main
from ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("forked")]

RECIPE = (
    Path(__file__).resolve().parents[2]
    / "configs"
    / "recipes"
    / "tiny"
    / "infoseed"
    / "config_graph_coloring.yaml"
)
SETTINGS = {
    "dataset_config": "train_size=24,eval_size=5",
    "num_generations": 4,
    "max_completion_length": 8,
    "info_seed_loss_type": "ce",
    "info_seed_lambda": 0.5,
    "eval_strategy": "no",
    "eval_on_start": False,
    "max_steps": 4,
    "save_steps": 2,
    "adam_epsilon": 1e-6,  # see test_strategies.py
    "disable_tqdm": True,
}
LEARNT = ("train/loss/seed", "train/grad_norm", "train/seed/seed_pred_acc_aug", "train/loss")


def arguments(output_dir: Path, **settings) -> list[str]:
    """Two ranks take 8 completions each and their seeds, one takes 16."""
    flags = SETTINGS | {"output_dir": str(output_dir), "per_device_train_batch_size": 8} | settings
    return [
        "--config", str(RECIPE), *(part for name, value in flags.items() for part in (f"--{name}", str(value)))
    ]  # fmt: skip


def train_on_two_ranks(directory: Path, output_dir: Path, **settings) -> None:
    ended = run_ranks(directory, arguments(output_dir, **settings), call=main)
    assert ended.codes == [0, 0], ended.errors


def steps(run: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: record[name] for name in LEARNT} for record in records if "train/loss" in record]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("one") / "run"
    assert main(arguments(output_dir, per_device_train_batch_size=16)) == 0
    return output_dir


@pytest.mark.parametrize(
    "distributed",
    [
        pytest.param("ddp", marks=pytest.mark.nightly),
        "fsdp2",
        pytest.param("zero2", marks=pytest.mark.nightly),
        "zero3",
    ],
)
def test_ranks_train_and_resume_the_seed_head_of_one_process(distributed, one_process, tmp_path):
    if distributed.startswith("zero"):
        pytest.importorskip("deepspeed")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_on_two_ranks(tmp_path, whole, distributed=distributed)
    for mine, expected in zip(steps(whole), steps(one_process), strict=True):
        assert mine == pytest.approx(expected, rel=1e-3, abs=1e-6)
    policy = load_file(whole / "model.safetensors")
    for name, tensor in load_file(one_process / "model.safetensors").items():
        assert (policy[name] - tensor).abs().max() <= 1e-6, name

    cut.mkdir()
    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    resumed = str(cut / "checkpoint-2")
    train_on_two_ranks(tmp_path, cut, distributed=distributed, resume_from_checkpoint=resumed)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert steps(cut)[-2:] == steps(whole)[-2:]  # exactly: the head and its optimiser state came back


def test_one_process_goes_on_with_a_head_that_fsdp2_sharded(one_process, tmp_path):
    train_on_two_ranks(tmp_path, tmp_path / "sharded", distributed="fsdp2", max_steps=2)
    resumed = str(tmp_path / "sharded" / "checkpoint-2")
    run = arguments(tmp_path / "run", per_device_train_batch_size=16, resume_from_checkpoint=resumed)
    assert main(run) == 0
    for mine, expected in zip(steps(tmp_path / "run")[-2:], steps(one_process)[-2:], strict=True):
        assert mine == pytest.approx(expected, rel=1e-3, abs=1e-6)
