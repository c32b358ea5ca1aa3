"""Runs that sample from a live vLLM: the weights are right after every publication, whatever happens to the server."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.vllm_process import VLLMProcess
from safetensors.torch import load_file

from maxent_grpo.config.loading import resolve
from maxent_grpo.errors import RunError
from maxent_grpo.maxent_grpo import main
from maxent_grpo.rollout.weight_sync.gloo import free_port
from maxent_grpo.tasks.tiny_policy import bundled_policy_path
from ranks import run_ranks
from runs import train

RECIPE = Path(__file__).parents[2] / "configs/recipes/tiny/maxent-grpo/config_graph_coloring.yaml"
OPTIONS = ("--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--no-enable-chunked-prefill")
SMALL: dict[str, Any] = {
    "num_generations": 8,
    "max_completion_length": 24,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 8,
    "max_steps": 3,
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "disable_tqdm": True,
}
RIGHT = 1e-4  # nats, in float32


def sampled_by(server: VLLMProcess, **settings: Any) -> dict[str, Any]:
    return {
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_server_base_url": server.url,
        "vllm_group_port": free_port(),
        **settings,
    }


def run(output_dir: Path, **settings: Any) -> list[dict[str, float]]:
    """Train as the tiny MaxEnt recipe says, in this process; the metrics of its steps."""
    flat = SMALL | {"output_dir": str(output_dir)} | settings
    train(resolve("train-maxent", RECIPE, {"flat": flat}, environ={}))
    return records(output_dir)


def records(output_dir: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [record for record in found if record["step"] > 0 and "train/reward" in record]


def largest_difference(steps: list[dict[str, float]]) -> float:
    return max(step["train/sampling/logp_difference/max"] for step in steps)


@pytest.mark.slow
def test_a_server_trains_as_the_local_sampler_does(vllm_server: VLLMProcess, tmp_path: Path) -> None:
    served = run(tmp_path / "served", max_steps=12, **sampled_by(vllm_server))
    local = run(tmp_path / "local", max_steps=12)
    assert [step["train/sampling/publishes"] for step in served] == [1.0] * 12
    assert largest_difference(served) < RIGHT
    assert all(abs(step["train/tis/mean"] - 1) < RIGHT for step in served)
    mean_served, mean_local = (sum(step["train/reward"] for step in steps) / 12 for steps in (served, local))
    # 384 completions of the same 48 prompts each: four standard errors of a difference of two such means.
    assert abs(mean_served - mean_local) < 4 * (2 * 0.25 / 384) ** 0.5


def test_weights_by_disk(vllm_server: VLLMProcess, tmp_path: Path) -> None:
    steps = run(tmp_path / "run", max_steps=2, **sampled_by(vllm_server, vllm_sync_backend="disk"))
    assert largest_difference(steps) < RIGHT
    assert not list(tmp_path.glob("run/.published/*"))


def test_an_adapter_is_merged_for_the_server(vllm_server: VLLMProcess, tmp_path: Path) -> None:
    steps = run(
        tmp_path / "run",
        max_steps=3,
        use_peft=True,
        lora_r=4,
        lora_target_modules=["q_proj", "v_proj"],
        lora_dropout=0.0,
        learning_rate=1e-2,
        **sampled_by(vllm_server),
    )
    assert largest_difference(steps) < RIGHT


@pytest.mark.slow
@pytest.mark.parametrize("through", ["middleware", pytest.param("proxy", marks=pytest.mark.nightly)])
def test_two_ranks_share_a_server(
    through: str, request: pytest.FixtureRequest, vllm_server: VLLMProcess, tmp_path: Path
) -> None:
    settings = SMALL | {
        "output_dir": str(tmp_path / "run"),
        "max_steps": 2,
        "per_device_train_batch_size": 16,
    }
    settings |= sampled_by(vllm_server)
    if through == "middleware":
        settings["distributed"] = "fsdp2"
    else:
        settings["vllm_server_base_url"] = request.getfixturevalue("proxy")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(RECIPE.read_text()) | settings))
    ended = run_ranks(tmp_path, ["--config", str(recipe)], call=main)
    assert ended.codes == [0, 0], ended.errors
    steps = records(tmp_path / "run")
    assert largest_difference(steps) < RIGHT
    probes, completions = 2 * 4, 32  # over both ranks, each step
    # The start asks each rank one or two completions more, to find out what the server reports.
    assert 2 <= steps[0]["train/generation/requests"] - probes - completions <= 4
    assert steps[1]["train/generation/requests"] == probes + completions
    assert all(step["train/generation/client_tag_errors"] == 0 for step in steps)


@pytest.mark.nightly
def test_a_server_without_the_echo_is_refused_before_the_first_step(tmp_path: Path) -> None:
    refusal = r"does not echo client_tag='mine' \(policy strict\); start vLLM with `--middleware"
    with (
        VLLMProcess(bundled_policy_path(), tmp_path / "serve.log", options=OPTIONS) as silent,
        pytest.raises(RunError, match=refusal),
    ):
        run(tmp_path / "run", vllm_client_tag="mine", **sampled_by(silent, vllm_sync_backend="disk"))
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again(vllm_server: VLLMProcess, tmp_path: Path) -> None:
    output_dir = tmp_path / "run"

    def crash() -> None:
        metrics = output_dir / "metrics.jsonl"
        while not (metrics.is_file() and len(records(output_dir)) >= 2):
            time.sleep(0.05)
        vllm_server.kill()
        vllm_server.start()

    crashing = threading.Thread(target=crash)
    crashing.start()
    steps = run(
        output_dir, max_steps=6, **sampled_by(vllm_server, vllm_server_timeout=400.0, vllm_max_retries=10)
    )
    crashing.join()
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert largest_difference(steps) < RIGHT
    ratios = [step["train/sampling/ratio/max"] for step in steps] + [
        step["train/sampling/ratio/min"] for step in steps
    ]
    assert all(
        abs(ratio - 1) < 10 * RIGHT for ratio in ratios
    )  # nothing was trained that other weights sampled
    # It was away while completions were asked for, between two requests, or while weights were sent.
    away = (
        "train/generation/retry_attempts",
        "train/generation/server_losses",
        "train/sampling/lost_weights",
    )
    repeated = sum(step["train/sampling/publishes"] for step in steps) - len(steps)
    assert repeated + sum(step.get(name, 0.0) for step in steps for name in away) > 0
    tokens = [step["train/num_tokens"] for step in steps]
    again = run(tmp_path / "again", max_steps=6, **sampled_by(vllm_server))
    assert tokens == [step["train/num_tokens"] for step in again]  # nothing was lost, and nothing came twice
    whole, cut = (load_file(folder / "model.safetensors") for folder in (tmp_path / "again", output_dir))
    assert max(float((whole[name] - cut[name]).abs().max()) for name in whole) < 1e-4
