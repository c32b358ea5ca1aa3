"""The launchers under a real Slurm: exit codes, logs, artifacts, and runs that go on after scancel and requeueing."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from slurm_jobs import LOGS, TOKEN, Job, Slurm

STEPS = 6


def train(slurm: Slurm, output: Path, *launcher: str, **settings: object) -> Job:
    """Two nodes with a process each, on the tiny recipe."""
    given = {
        "max_steps": STEPS, "save_steps": 1, "eval_strategy": "no", "per_device_train_batch_size": 32,
        "output_dir": output,
    } | settings  # fmt: skip
    words = shlex.join(word for key, value in given.items() for word in (f"--{key}", str(value)))
    return slurm.submit(
        "--nodes=2", "--gres=gpu:fake:2", "--time=30", "ops/slurm/train.slurm",
        "--model", "tiny", "--config", "graph_coloring", "--accelerator", "ddp", *launcher, "--args", words,
    )  # fmt: skip


def records(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()][1:]


@pytest.fixture(scope="module")
def uninterrupted(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path]:
    output = tmp_path_factory.mktemp("train") / "run"
    job = train(slurm, output)
    assert job.end() == "COMPLETED", job.output()
    return job, output


def test_two_nodes_train_and_leave_policy_records_and_logs(uninterrupted: tuple[Job, Path]) -> None:
    job, output = uninterrupted
    assert job.exit_code() == "0:0"
    assert [record["step"] for record in records(output) if "train/loss" in record] == list(
        range(1, STEPS + 1)
    )
    assert (output / "model.safetensors").is_file()
    assert (output / f"checkpoint-{STEPS}" / "manifest.json").is_file()
    plan = (LOGS / f"open_r1-{job.number}.out").read_text()
    assert "n1  GPU 0  trains, 1 process(es)" in plan
    assert "n2  GPU 0  trains, 1 process(es)" in plan
    assert f"6/{STEPS}" in (LOGS / f"train_{job.number}.log").read_text()


def test_the_token_reaches_nodes_and_is_in_no_log(slurm: Slurm, uninterrupted: tuple[Job, Path]) -> None:
    seen = slurm.run("srun", "--nodes=2", "bash", "-c", 'echo "${#HF_TOKEN}"').stdout.split()
    assert seen == [str(len(TOKEN))] * 2
    assert TOKEN not in uninterrupted[0].output()
    assert "HF_TOKEN      forwarded, not shown" in uninterrupted[0].output()


def test_a_wrong_setting_fails_the_job_and_its_line_is_in_the_error_file(
    slurm: Slurm, tmp_path: Path
) -> None:
    job = train(slurm, tmp_path / "run", learning_rat="1")
    assert job.end() == "FAILED"
    assert job.exit_code() == "1:0"  # accelerate's, whatever its processes ended with
    assert "learning_rat" in (LOGS / f"open_r1-{job.number}.err").read_text()


def test_a_cancelled_job_goes_on_to_the_numbers_of_an_uninterrupted_one(
    slurm: Slurm, uninterrupted: tuple[Job, Path], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    job = train(slurm, output)
    job.wait_for(lambda: (output / "checkpoint-2" / "manifest.json").is_file())
    slurm.run("scancel", job.number)
    assert job.end() == "CANCELLED"
    assert not (output / "model.safetensors").exists()
    again = train(slurm, output, "--resume")
    assert again.end() == "COMPLETED", again.output()
    assert "from the newest checkpoint (--resume)" in again.output()
    assert "resumed after step" in again.output()
    assert records(output) == records(uninterrupted[1])
    assert (output / "model.safetensors").read_bytes() == (
        uninterrupted[1] / "model.safetensors"
    ).read_bytes()


def test_usr1_saves_and_requeues_and_the_job_goes_on_by_itself(
    slurm: Slurm, uninterrupted: tuple[Job, Path], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    job = train(slurm, output, save_steps=100)  # the only checkpoint is the one that is asked for
    metrics = output / "metrics.jsonl"
    job.wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 2)
    slurm.run("scancel", "--batch", "--signal=USR1", job.number)
    job.wait_for(lambda: job.state() == "PENDING")
    assert list(output.glob("checkpoint-*/manifest.json"))
    assert not (output / "stop").exists()
    assert "trainer ended at a checkpoint after SIGUSR1" in job.output()
    job.start_again()
    state = job.end()
    assert state == "COMPLETED", f"{state}\n{job.output()}"
    assert "from the newest checkpoint (restart 1 of the job)" in job.output()
    assert records(output) == records(uninterrupted[1])
    assert (output / "model.safetensors").read_bytes() == (
        uninterrupted[1] / "model.safetensors"
    ).read_bytes()


def test_an_array_trains_each_point_of_its_grid(slurm: Slurm, tmp_path: Path) -> None:
    words = shlex.join(["--max_steps", "1", "--eval_strategy", "no", "--per_device_train_batch_size", "32",
                        "--output_dir", str(tmp_path / "sweep")])  # fmt: skip
    job = slurm.submit(
        "--array=0-1", "--gres=gpu:fake:1", "--time=20", "--mem=1500", "--cpus-per-task=1", "ops/slurm/sweep.slurm",
        "--grid", "task=grpo,maxent", "--model", "tiny", "--config", "graph_coloring", "--accelerator", "torchrun",
        "--args", words,
    )  # fmt: skip
    found = tmp_path / "sweep"
    expected = {found / f"task={task}" / "model.safetensors" for task in ("grpo", "maxent")}
    job.wait_for(lambda: set(found.glob("*/model.safetensors")) == expected)
    names = {
        p.parent.name: json.loads((p.parent / "metrics.jsonl").read_text().splitlines()[0]) for p in expected
    }
    assert names["task=grpo"]["run/objective"] == "dr_grpo"
    assert names["task=maxent"]["run/objective"] == "tilted"


def test_infer_math_evaluates_each_data_set(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit(
        "--nodes=1", "--gres=gpu:fake:2", "--time=20", "ops/slurm/infer_math.slurm", "--model", "bundled:tiny-policy",
        "--datasets", "graph_coloring,countdown", "--seeds", "0", "--num-generations", "2", "--system-prompt-file", "",
        "--max-new-tokens", "16", "--artifact-root", str(tmp_path / "artifacts"), "--extra-opts", "inference.limit=3",
    )  # fmt: skip
    assert job.end() == "COMPLETED", job.output()
    files = sorted((tmp_path / "artifacts").rglob("seed_0.jsonl"))
    assert [path.parent.parent.name for path in files] == ["countdown", "graph_coloring"]
    assert [len(path.read_text().splitlines()) for path in files] == [3, 3]


def test_ray_comes_up_on_both_nodes_and_runs_the_driver(slurm: Slurm, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import os, ray, sys\n"
        "ray.init(_node_ip_address=os.environ['MAXENT_RAY_NODE_ADDRESS'])\n"
        "print('nodes', sorted(n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']))\n"
        "print('GPUs', ray.cluster_resources().get('GPU'), 'words', sys.argv[1:])\n"
        "sys.exit(3)\n"
    )
    job = Slurm(slurm.environment | {"GRPO_COMMAND": f"python {driver}"}).submit(
        "--nodes=2", "--gres=gpu:fake:2", "--time=20", "ops/slurm/grpo-sync-multi-node.sbatch",
        "train_model.num_devices=2", "inference_model.num_devices=2",
    )  # fmt: skip
    assert job.end() == "FAILED", job.output()
    assert job.exit_code() == "3:0"
    text = (LOGS / f"train_{job.number}.log").read_text()
    assert "nodes ['127.0.0.2', '127.0.0.3']" in text
    assert "GPUs 4.0 words ['train_model.num_devices=2', 'inference_model.num_devices=2']" in text
    assert "inference_model  n2  GPU 1" in (LOGS / f"grpo-sync-{job.number}.out").read_text()
    left = subprocess.run(
        ["pgrep", "-f", f"/tmp/ray_{job.number}/"], capture_output=True, text=True, check=False
    )
    assert left.stdout == ""


def test_the_asynchronous_driver_trains_over_both_nodes_and_goes_on_after_usr1(
    slurm: Slurm, tmp_path: Path
) -> None:
    """One CPU of each node: learner and sampler are on different ones."""
    pytest.importorskip("ray")
    output = tmp_path / "run"
    job = slurm.submit(
        "--nodes=2", "--gres=gpu:fake:2", "--time=30", "ops/slurm/grpo-async-multi-node.sbatch",
        "--config-name", "grpo_tiny", "train_model.num_devices=1", "inference_model.num_devices=1",
        f"max_steps={STEPS}", "save_strategy=no", "per_device_train_batch_size=128", f"output_dir={output}",
    )  # fmt: skip
    metrics = output / "metrics.jsonl"
    job.wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 1)
    slurm.run("scancel", "--batch", "--signal=USR1", job.number)
    job.wait_for(lambda: job.state() == "PENDING")
    assert "the driver ended at a checkpoint after SIGUSR1" in job.output()
    assert not (output / "stop").exists()
    job.start_again()
    state = job.end()
    assert state == "COMPLETED", f"{state}\n{job.output()}"
    assert job.exit_code() == "0:0"
    assert job.output().count("Ray has 2 living node(s)") == 2
    steps = [record for record in records(output) if "train/loss" in record]
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    rollouts = [json.loads(line) for line in (output / "tickets.jsonl").read_text().splitlines()]
    numbers = [number for rollout in rollouts for number in rollout["tickets"]]
    assert len(set(numbers)) == len(numbers)
    allowed = yaml.safe_load((output / "resolved_config.yaml").read_text())["training"]["max_staleness"]
    ages = [rollout["step"] - 1 - version for rollout in rollouts for version in rollout["versions"]]
    assert 0 <= min(ages) <= max(ages) <= allowed
    assert (output / "model.safetensors").is_file()
