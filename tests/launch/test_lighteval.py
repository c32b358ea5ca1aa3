"""LightEval's registry and the commands that its jobs become; a real run where LIGHTEVAL names a program."""

import base64
import json
import os
import pickle
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.launch import lighteval as jobs_module
from maxent_grpo.launch.lighteval import (
    benchmark_spec,
    expand,
    gpu_flags,
    gpus_that_fit,
    parameter_count,
    plan_benchmark_jobs,
    run_benchmark_jobs,
    task_argument,
)
from maxent_grpo.tasks.tiny_policy import bundled_policy_path

ROOT = Path(__file__).resolve().parents[2]
SMALL = "Qwen/Qwen2.5-1.5B-Instruct"


def test_the_registry_has_the_documented_benchmarks():
    assert benchmark_spec("math_500") == "lighteval|math_500|0|0"
    assert benchmark_spec("gpqa") == "lighteval|gpqa:diamond|0|0"
    assert benchmark_spec("lcb_v4").startswith("extended|lcb:")
    assert expand(["all"]) == ["math_500", "aime24", "aime25", "gpqa", "lcb", "lcb_v4"]
    assert expand(["aime24", "aime24"]) == ["aime24"]
    with pytest.raises(UsageError, match="benchmark 'aime26': unknown; there are all, math_500"):
        expand(["aime26"])


def test_a_spec_becomes_what_lighteval_takes_now():
    assert task_argument("lighteval|gpqa:diamond|0|0") == "gpqa:diamond|0"
    assert task_argument("lighteval|math_500|0|0,custom|toy|2|1") == "math_500|0,toy|2"
    assert task_argument("toy|0") == "toy|0"


@pytest.mark.parametrize(
    ("name", "count"),
    [
        (SMALL, 1.5e9),
        ("meta-llama/Llama-3.1-8B-Instruct", 8e9),
        ("mistralai/Mixtral-8x7B-v0.1", 56e9),
        ("Qwen/Qwen2.5-32B", 32e9),
        ("HuggingFaceTB/SmolLM2-135M", 135e6),
        ("org/model-70b_chat", 70e9),
        ("org/phi-4", None),
        ("org/4bit-model", None),
    ],
)
def test_sizes_are_read_from_names(name, count):
    assert parameter_count(name) == count


def test_sizes_of_local_models_are_counted():
    from transformers import AutoModelForCausalLM

    counted = AutoModelForCausalLM.from_pretrained(bundled_policy_path()).num_parameters()
    assert parameter_count(str(bundled_policy_path())) == counted


@pytest.mark.parametrize(
    ("wanted", "heads", "gpus"), [(8, 64, 8), (8, 28, 4), (8, 40, 8), (6, 64, 4), (7, 14, 2), (3, 25, 1)]
)
def test_gpus_divide_heads_and_64(wanted, heads, gpus):
    assert gpus_that_fit(wanted, heads) == gpus
    assert heads % gpus == 64 % gpus == 0


@pytest.mark.parametrize(
    ("style", "flags"), [("none", []), ("gpus", ["--gpus=2"]), ("gres", ["--gres=gpu:2"])]
)
def test_gpus_are_asked_for_as_the_site_wants(style, flags):
    assert gpu_flags(2, style) == flags
    (job,) = plan_benchmark_jobs(["math_500"], SMALL, environ={"SLURM_GPU_FLAG_STYLE": style})
    assert list(job.command[1 : 1 + len(flags)]) == flags


def test_an_unknown_style_is_refused():
    with pytest.raises(UsageError, match="SLURM_GPU_FLAG_STYLE=many: one of none, gpus, gres"):
        plan_benchmark_jobs(["math_500"], SMALL, environ={"SLURM_GPU_FLAG_STYLE": "many"})


def test_a_slurm_job_names_everything_the_launcher_takes():
    prompt = "Think, step by step.\nThen 'answer'."
    jobs = plan_benchmark_jobs(["all"], SMALL, revision="c929c65", system_prompt=prompt, environ={})
    assert len(jobs) == 6
    sbatch, gpus, job_name, script, *arguments = jobs[3].command
    assert (sbatch, gpus, job_name) == ("sbatch", "--gpus=2", "--job-name=lighteval-gpqa")
    assert script == "ops/slurm/evaluate.slurm"
    assert arguments[:-1] == ["gpqa", "lighteval|gpqa:diamond|0|0", SMALL, "c929c65", "false", "false"]
    assert base64.b64decode(arguments[-1]).decode() == prompt
    assert shlex.split(jobs[3].shown) == list(jobs[3].command)


def test_a_large_model_goes_over_the_gpus_that_fit_its_heads(monkeypatch):
    monkeypatch.setattr(jobs_module, "attention_heads", lambda *_, **__: 28)
    (job,) = plan_benchmark_jobs(["aime24"], "org/model-70B", environ={})
    assert "--gpus=4" in job.command
    assert job.command[-2:] == ("true", "false")
    (local,) = plan_benchmark_jobs(["aime24"], "org/model-70B", where="local", environ={})
    assert "tensor_parallel_size=4" in local.command[2]


def test_heads_come_from_the_models_configuration():
    heads = json.loads((Path(bundled_policy_path()) / "config.json").read_text())["num_attention_heads"]
    assert jobs_module.attention_heads(str(bundled_policy_path()), "main", trust_remote_code=False) == heads
    with pytest.raises(UsageError, match=r"org/none: its number of heads .* or give num_gpus"):
        jobs_module.attention_heads("org/none", "main", trust_remote_code=False)


def test_a_dry_run_says_the_commands_and_needs_no_program(capsys):
    jobs = run_benchmark_jobs(["math_500", "lcb"], SMALL, environ={}, dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{job.benchmark}: {job.shown}" for job in jobs]


def test_a_missing_program_is_named_with_its_remedy():
    environ = {"LIGHTEVAL": "/no/lighteval"}
    with pytest.raises(
        UsageError, match=r"/no/lighteval: there is no such program here; make it an environment"
    ):
        run_benchmark_jobs(["math_500"], SMALL, where="local", environ=environ)


def test_new_weights_of_a_folder_are_not_given_old_answers(tmp_path):
    """LightEval's cache of answers knows a model by its name and settings only."""

    def cache(model: str) -> str | None:
        (job,) = plan_benchmark_jobs(["aime24"], model, where="local", environ={})
        return dict(item.split("=", 1) for item in job.command[2].split(",")[:4]).get("cache_dir")

    weights = tmp_path / "model.safetensors"
    shutil.copy(Path(bundled_policy_path()) / "model.safetensors", weights)
    before = cache(str(tmp_path))
    assert cache(str(tmp_path)) == before
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    assert cache(str(tmp_path)) not in (before, None)
    assert cache(SMALL) is None


def test_failed_jobs_are_counted_after_all_have_run(tmp_path):
    program = tmp_path / "lighteval"
    program.write_text(f'#!/bin/sh\necho "$2" >> {tmp_path}/ran\ncase "$3" in aime24*) exit 3;; esac\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environ = os.environ | {"LIGHTEVAL": str(program)}
    with pytest.raises(RunError, match="1 of 2 LightEval jobs failed: aime24"):
        run_benchmark_jobs(
            ["aime24", "math_500"], SMALL, where="local", environ=environ, say=lambda line: None
        )
    described = (tmp_path / "ran").read_text().splitlines()
    assert len(described) == 2
    assert all(line.startswith(f"model_name={SMALL},revision=main,") for line in described)
    assert all("data_parallel_size=2" in line.split(",") for line in described)


def test_the_command_line_plans(capsys):
    command = [sys.executable, str(ROOT / "tools" / "lighteval_jobs.py"), "--model", SMALL, "--dry-run"]
    done = subprocess.run([*command, "--benchmarks", "math_500"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("math_500: sbatch --gpus=2")
    wrong = subprocess.run([*command, "--benchmarks", "x"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("lighteval_jobs: benchmark 'x': unknown")


TOY = """\
from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc


def prompt(line, task_name=None):
    return Doc(task_name=task_name, query=line["problem"], choices=[line["answer"]], gold_index=0)


TASKS_TABLE = [
    LightevalTaskConfig(
        name="toy", prompt_function=prompt, hf_repo={repo!r}, hf_subset="default", hf_avail_splits=["train"],
        evaluation_splits=["train"], few_shots_split=None, few_shots_select=None, generation_size=8,
        metrics=[Metrics.exact_match], stop_sequence=["\\n"], version=0,
    )
]
"""


@pytest.fixture
def lighteval(monkeypatch) -> str:
    """LightEval's program, able to start without a network.

    One of its task modules fetches tinyBenchmarks.pkl on import unless the file is there. Only the tinyBenchmarks
    tasks would read it; here it holds an empty table, and goes away again.
    """
    program = os.environ["LIGHTEVAL"]
    where = (
        "import importlib.util; print(importlib.util.find_spec('lighteval').submodule_search_locations[0])"
    )
    python = Path(program).with_name("python")
    package = Path(
        subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    )
    table = package / "tasks" / "tasks" / "tinyBenchmarks.pkl"
    if table.exists():
        yield program
        return
    table.write_bytes(pickle.dumps({}))
    try:
        yield program
    finally:
        table.unlink()


def answered_greedily(folder: Path, rows: list[dict[str, str]]) -> int:
    """How many rows the model answers, by Transformers' ``generate``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    right = 0
    for row in rows:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["problem"]}],
            add_generation_prompt=True, return_tensors="pt", return_dict=True,
        )  # fmt: skip
        tokens = model.generate(**ids, do_sample=False, max_new_tokens=8)[0, ids["input_ids"].shape[1] :]
        right += tokenizer.decode(tokens, skip_special_tokens=True).strip() == row["answer"]
    return right


@pytest.mark.slow
@pytest.mark.skipif("LIGHTEVAL" not in os.environ, reason="LIGHTEVAL names no program of its own environment")
def test_a_real_run_lands_in_the_tables(lighteval, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from math_eval_table import PASS_1, read_scores

    from maxent_grpo.tasks.registry import load_rows

    rows = [
        {"problem": row["problem"], "answer": row["answer"] + ("" if number % 3 else "0")}
        for number, row in enumerate(load_rows("arithmetic", "eval", "")[:8])
    ]
    model = tmp_path / "runs" / "checkpoint-120"
    shutil.copytree(bundled_policy_path(), model)  # LightEval keeps answers in the folder of a model
    right = answered_greedily(model, rows)
    assert 0 < right < 8
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "toy.py").write_text(TOY.format(repo=str(tmp_path / "data")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(jobs_module.TASKS, "toy", ("custom", "toy"))
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run_benchmark_jobs(
        ["toy"], str(model), where="local", backend="accelerate",
        environ=environ | {"LIGHTEVAL": lighteval, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        extra=["--custom-tasks", str(tmp_path / "toy.py")],
    )  # fmt: skip
    scores = read_scores(tmp_path / "var" / "artifacts" / "lighteval")
    (row,) = scores.values
    assert (row.family, row.checkpoint, row.step) == ("runs", "checkpoint-120", 120)
    assert scores.mean(row, "toy", PASS_1) == right / 8
