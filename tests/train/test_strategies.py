"""Two processes train the policy that one process trains, however they hold its parameters.

Parameters are float32 and ranks sum gradients in another order than one process does. AdamW turns a gradient that is
nothing but rounding into a whole step where its ε is as small; with ε = 1e-6 five steps agree to 1e-6, at a learning
rate of 1e-4.
"""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from maxent_grpo.errors import UsageError
from maxent_grpo.grpo import main
from ranks import run_ranks, start_ranks

pytestmark = pytest.mark.xdist_group("forked")  # one worker: ranks fork from one process, runs are shared

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
    "save_steps": 3,
    "scale_rewards": "batch",
    "adam_epsilon": 1e-6,
    "disable_tqdm": True,
}
EXACT = ("eval/", "train/num_tokens", "train/epoch")
SUMMED = (
    "train/rewards/",
    "train/reward",
    "train/pass",
    "train/coverage",
    "train/completions/",
)  # in another order


def arguments(output_dir: Path, **settings) -> list[str]:
    """Of ``python -m maxent_grpo.grpo``; two ranks take 16 completions each, one takes 32."""
    flags = SMALL | {"output_dir": str(output_dir), "per_device_train_batch_size": 16} | settings
    named = (part for name, value in flags.items() for part in (f"--{name}", str(value)))
    return ["--config", str(RECIPE), *named]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    """The run of one process whose steps hold the same 8 groups."""
    output_dir = tmp_path_factory.mktemp("one") / "run"
    assert main(arguments(output_dir, per_device_train_batch_size=32)) == 0
    return output_dir


def records(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()][1:]


def assert_same_run(run: Path, expected: Path) -> None:
    mine, theirs = load_file(run / "model.safetensors"), load_file(expected / "model.safetensors")
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (mine[name] - tensor).abs().max() <= TOLERANCE, name
    assert len(records(expected)) == 7  # five steps, two evaluations
    for record, wanted in zip(records(run), records(expected), strict=True):
        assert record.keys() == wanted.keys()
        for name, value in wanted.items():
            if name.startswith(EXACT):
                assert record[name] == value, name
            tolerance, floor = (1e-12, 1e-12) if name.startswith(SUMMED) else (1e-3, 1e-6)
            assert record[name] == pytest.approx(value, rel=tolerance, abs=floor), name
    lines = [(r / "completions.jsonl").read_text().splitlines() for r in (run, expected)]
    texts = [[(row["prompt_index"], row["completion"]) for row in map(json.loads, each)] for each in lines]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_torchrun_trains_the_policy_of_one_process(one_process, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         "-m", "maxent_grpo.grpo", *arguments(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("done after step 5") == 1
    assert_same_run(tmp_path / "run", one_process)


@pytest.fixture(scope="module", params=["fsdp2", "zero2", "zero3"])
def sharded(request, tmp_path_factory) -> tuple[str, Path]:
    """How two ranks hold the policy, and their run."""
    distributed: str = request.param
    if distributed.startswith("zero"):
        pytest.importorskip("deepspeed")
    directory = tmp_path_factory.mktemp(distributed)
    ended = run_ranks(directory, arguments(directory / "whole", distributed=distributed))
    assert ended.codes == [0, 0], ended.errors
    return distributed, directory / "whole"


def cut_back(whole: Path, run: Path) -> Path:
    """The run as its checkpoint of step 3 finds it: what came later is there only in part."""
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoint-5")
    (run / "model.safetensors").unlink()
    return run


@pytest.mark.slow
def test_sharded_ranks_train_the_policy_of_one_process(one_process, sharded):
    _, whole = sharded
    assert_same_run(whole, one_process)
    AutoModelForCausalLM.from_pretrained(whole / "checkpoint-5")


@pytest.mark.slow
def test_a_sharded_run_resumes_exactly_and_fsdp2_on_one_process_too(one_process, sharded, tmp_path):
    distributed, whole = sharded
    run = cut_back(whole, tmp_path / "run")
    ended = run_ranks(tmp_path, arguments(run, distributed=distributed, resume_from_checkpoint=True))
    assert ended.codes == [0, 0], ended.errors
    for file in ("model.safetensors", "controller_state.json"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
    assert [r for r in records(run) if "train/loss" in r] == [r for r in records(whole) if "train/loss" in r]
    if distributed != "fsdp2":
        return
    run = cut_back(whole, tmp_path / "one")
    assert main(arguments(run, per_device_train_batch_size=32, resume_from_checkpoint=True)) == 0
    mine, theirs = load_file(run / "model.safetensors"), load_file(one_process / "model.safetensors")
    for name, tensor in theirs.items():
        assert (mine[name] - tensor).abs().max() <= TOLERANCE, name
    lines = [(r / "completions.jsonl").read_text().splitlines() for r in (run, one_process)]
    order = [[json.loads(line)["prompt_index"] for line in each] for each in lines]
    assert order[0] == order[1]


@pytest.mark.slow
def test_two_killed_ranks_resume_to_the_same_bytes(tmp_path):
    settings = {"save_steps": 1, "max_steps": 6, "steps_per_generation": 2, "eval_strategy": "no"}
    ended = run_ranks(tmp_path, arguments(tmp_path / "whole", **settings))
    assert ended.codes == [0, 0], ended.errors
    cut = arguments(tmp_path / "cut", resume_from_checkpoint=True, **settings)
    ranks = start_ranks(tmp_path, cut)
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / "checkpoint-3").is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [-signal.SIGKILL, -signal.SIGKILL]
    ended = run_ranks(tmp_path, cut)
    assert ended.codes == [0, 0], ended.errors
    for file in (
        "metrics.jsonl",
        "completions.jsonl",
        "controller_state.json",
        "model.safetensors",
        "checkpoint-5/rollout.json",
        "checkpoint-6/optimizer.safetensors",
        "checkpoint-6/trainer_state.json",
    ):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize(
    "distributed", ["ddp", "zero2", *(pytest.param(s, marks=pytest.mark.nightly) for s in ("fsdp2", "zero3"))]
)
def test_a_non_finite_loss_on_one_rank_is_stepped_on_none(tmp_path, distributed):
    if distributed.startswith("zero"):
        pytest.importorskip("deepspeed")
    settings = {"max_steps": 3, "eval_strategy": "no", "eval_on_start": False, "distributed": distributed}
    settings["reward_isolation"] = False  # the reward spoils the trainer's own process
    reward = "rank_rewards:spoils_step_2_on_rank_1"
    ended = run_ranks(tmp_path, arguments(tmp_path / "run", reward_funcs=reward, **settings))
    assert ended.codes == [0, 0], ended.errors
    assert [record["train/update_skipped"] for record in records(tmp_path / "run")] == [0.0, 1.0, 0.0]
    assert "train/grad_norm" not in records(tmp_path / "run")[1]
    assert all(t.isfinite().all() for t in load_file(tmp_path / "run" / "model.safetensors").values())


@pytest.mark.slow
def test_a_failure_on_one_rank_ends_all_with_its_line(tmp_path):
    ended = run_ranks(tmp_path, arguments(tmp_path / "run", reward_funcs="rank_rewards:fails_on_rank_1"))
    assert ended.codes == [1, 1]
    assert "rank 1: reward function 'fails_on_rank_1' failed on all" in ended.errors[1]
    assert "no such file on this machine" in ended.errors[1]
    assert "rank 0: stopped, as another rank ended" in ended.errors[0]


def test_a_wrong_request_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main(arguments(tmp_path / "run", per_device_train_batch_size=6)) == 2
        assert capsys.readouterr().err.count("use per_device_train_batch_size=8") == lines


def test_a_forged_index_of_shards_is_refused(tmp_path):
    from maxent_grpo.train.strategies.fsdp2 import GuardedReader

    (tmp_path / ".metadata").write_bytes(pickle.dumps(os.system))
    with pytest.raises(UsageError, match=r"names posix\.system: it is damaged or forged"):
        GuardedReader(tmp_path).read_metadata()


def test_the_sampling_copy_owns_no_memory_between_rollouts(policy):
    from maxent_grpo.train.strategies.strategy import SamplingCopy

    copied = SamplingCopy(policy)
    prompt = torch.tensor([[1, 2, 3]])
    for _ in range(2):
        assert sum(p.untyped_storage().nbytes() for p in copied.model.parameters()) == 0
        with copied.filled(policy.named_parameters()) as model:
            assert torch.equal(model(prompt).logits, policy(prompt).logits)
