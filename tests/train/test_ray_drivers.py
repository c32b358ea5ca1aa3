"""The Ray drivers make the steps of the inline one; what they are asked for and cannot do is refused."""

import importlib
import inspect
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from maxent_grpo.config.plan import VLLM_TIS_CAP, objective_spec
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.observe.definitions import definitions
from maxent_grpo.observe.names import STOP_FILE
from maxent_grpo.train.stopping import Stopped
from runs import train

ray = pytest.importorskip("ray")
from maxent_grpo.train.ray import NODE_TOO_SLOW  # noqa: E402
from maxent_grpo.train.ray.cluster import shortage, start_here  # noqa: E402

pytestmark = pytest.mark.xdist_group("ray")  # one worker, one cluster


def records(directory: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def policy_of(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_async_without_staleness_gives_the_parameters_of_the_inline_driver(
    ray_here, inline_tiny, configure_tiny, tmp_path
):
    run = tmp_path / "async"
    train(configure_tiny("async", driver="async", max_staleness=0, rollout_workers=2))
    assert policy_of(run) == policy_of(inline_tiny)
    steps = records(run)[1:]
    assert [r["train/buffer/policy_age_max"] for r in steps] == [0.0] * 10
    own = {key for key in steps[0] if key.startswith("train/buffer/")}
    assert own == {metric.name for metric in definitions() if metric.name.startswith("train/buffer/")}
    shared = records(inline_tiny)[1]
    assert {k: steps[0][k] for k in shared} == pytest.approx(shared)
    numbers = [number for r in records(run, "tickets.jsonl") for number in r["tickets"]]
    assert numbers == list(range(20))


@pytest.mark.nightly
def test_several_updates_per_rollout_with_controllers_are_the_inline_ones(ray_here, configure, tmp_path):
    """MaxEnt's listwise loss reads the sampler's log-probs, which are the same bits where one worker samples all."""
    settings = {
        "steps_per_generation": 4,
        "num_iterations": 2,
        "maxent_target_weight_entropy": 1.0,
        "maxent_tau_lr": 0.1,
        "max_steps": 10,
    }
    train(configure(output_dir=str(tmp_path / "inline"), **settings))
    settings |= {
        "driver": "async",
        "max_staleness": 0,
        "weight_update_frequency": 4,
    }  # once a rollout: never late
    train(configure(output_dir=str(tmp_path / "async"), **settings))
    assert policy_of(tmp_path / "async") == policy_of(tmp_path / "inline")
    last = "checkpoint-10/trainer_state.json"
    assert (tmp_path / "async" / last).read_bytes() == (tmp_path / "inline" / last).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("distributed", ["ddp", pytest.param("fsdp2", marks=pytest.mark.nightly)])
def test_two_learner_ranks_with_and_without_a_reference_worker_learn_what_one_process_does(
    ray_here, configure, tmp_path, distributed
):
    one = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "max_steps": 3}
    one |= {"learning_rate": 1e-4, "adam_epsilon": 1e-6}
    train(configure(output_dir=str(tmp_path / "one"), **one))
    scorers = 1 if distributed == "ddp" else 0
    two = one | {"per_device_train_batch_size": 8, "learner_workers": 2, "reference_workers": scorers}
    train(configure(output_dir=str(tmp_path / "two"), driver="sync", distributed=distributed, **two))
    expected = load_file(tmp_path / "one" / "model.safetensors")
    for name, value in load_file(tmp_path / "two" / "model.safetensors").items():
        assert (value - expected[name]).abs().max() < 1e-6, name
    assert records(tmp_path / "two", "timings.jsonl")[-1]["time/reference"] > 0


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_resumes_to_the_parameters_of_the_inline_driver(
    ray_here, inline_tiny, configure_tiny, tmp_path
):
    """Asked as a launcher asks the driver: by SIGUSR1, here while the learner starts."""
    run = tmp_path / "sync"

    def ask() -> None:
        while not (run / "metrics.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    threading.Thread(target=ask).start()
    with pytest.raises(Stopped, match="stopped after step 1"):
        train(configure_tiny("sync", driver="sync"))
    assert signal.getsignal(signal.SIGUSR1) is before
    assert not (run / STOP_FILE).exists()
    train(configure_tiny("sync", driver="sync", resume_from_checkpoint=True))
    assert policy_of(run) == policy_of(inline_tiny)
    assert [r["train/buffer/policy_age_max"] for r in records(run)[1:]] == [0.0] * 10


def test_a_node_that_is_slow_to_start_is_started_again_with_a_note(monkeypatch, caplog):
    """Ray's own message, from its source; the limit itself cannot be reached in a test's time."""
    source = inspect.getsource(importlib.import_module("ray._private.node"))
    assert NODE_TOO_SLOW in source
    slow = Exception(f"The {NODE_TOO_SLOW}. This could happen because some of the raylet failed to startup")
    outcomes: list[Exception | None] = [slow, None, slow, slow, slow, ValueError("no such folder")]
    started = []

    def init(**options):
        started.append(options["_temp_dir"])
        outcome = outcomes[len(started) - 1]
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "300")
    start_here("/tmp/s")
    assert len(started) == 2
    assert caplog.messages == ["Ray's node was not up after 30 s; starting another (2 of 3)"]
    with pytest.raises(RunError, match="in 3 attempts of 30 s"):
        start_here("/tmp/s")
    with pytest.raises(ValueError, match="no such folder"):
        start_here("/tmp/s")
    assert len(started) == 6


def test_a_demand_that_does_not_fit_is_refused_with_the_sum():
    roles = ["learner", "learner", "reference", "rollout", "rollout"]
    assert shortage(roles, {"CPU": 5}, gpus=False) is None
    problem = shortage(roles, {"CPU": 16, "GPU": 4}, gpus=True)
    assert problem is not None
    assert (
        "2 learner + 1 reference + 2 rollout = 5 workers need a GPU each, and the Ray cluster has 4"
        in problem
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rollout_workers": 2}, "rollout_workers: belongs to the Ray drivers"),
        ({"max_staleness": 1}, "max_staleness: belongs to the Ray drivers"),
        (
            {"use_vllm": True, "vllm_mode": "colocate", "vllm_sync_dir": "weights"},
            "vllm_sync_dir: vllm_mode=colocate hands its engine the weights in memory",
        ),
        (
            {"driver": "sync", "max_staleness": 1},
            "max_staleness: 1: driver=sync samples with weights of the learner",
        ),
        (
            {"driver": "async", "use_vllm": True, "vllm_mode": "server"},
            "own; use vllm_mode=colocate, which gives each rollout worker an engine, or driver=inline",
        ),
        (
            {"driver": "sync", "use_vllm": True, "vllm_tensor_parallel_size": 2},
            "vllm_tensor_parallel_size: 2: a rollout worker's engine has one device",
        ),
        (
            {"driver": "async", "use_vllm": True, "vllm_sync_interval_steps": 2},
            "vllm_sync_interval_steps: driver=async does not read it; set weight_update_frequency",
        ),
        (
            {"driver": "async", "use_vllm": True, "vllm_sync_weights": False},
            "vllm_sync_weights: driver=async does not read it; rollout workers always get the learner's weights",
        ),
        (
            {
                "driver": "sync",
                "use_vllm": True,
                "vllm_sync_backend": "nccl",
                "vllm_sync_urls": ["http://a:1"],
            },
            "go through Ray's object store; leave it out; vllm_sync_urls: driver=sync does not read it",
        ),
        (
            {"driver": "sync", "use_vllm": True, "vllm_sync_dir": "/shared"},
            "vllm_sync_dir: driver=sync does not read it",
        ),
        ({"driver": "async", "overlap_sampling": True}, "overlap_sampling: driver=async always does"),
        ({"driver": "sync", "weight_update_frequency": 2}, "behind, and max_staleness=0; lower it, or raise"),
        (
            {"driver": "async", "buffer_groups": 1},
            "buffer_groups: 1 cannot hold the 2 groups of a rollout; use 2",
        ),
        (
            {"driver": "async", "dynamic_sampling": True},
            "dynamic_sampling: driver=async trains on every group",
        ),
        ({"driver": "async", "rollout_workers": 0}, "rollout_workers: 0 must be ≥ 1"),
        ({"driver": "sync", "distributed": "zero2"}, "distributed: zero2 is not supported with driver=sync"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(configure_tiny, settings, problem):
    with pytest.raises(UsageError) as caught:
        configure_tiny("run", **settings)
    assert problem in str(caught.value)


def test_staleness_and_its_correction_have_values_where_they_are_unset(configure_tiny):
    def filled(**settings):
        training = configure_tiny("run", **settings).training
        return training.max_staleness, training.tis_cap

    assert filled() == (0, None)
    assert filled(driver="sync") == (0, None)
    assert filled(driver="sync", overlap_sampling=True) == (1, 2.0)
    assert filled(driver="async") == (1, 2.0)
    assert filled(driver="async", weight_update_frequency=3) == (3, 2.0)
    assert filled(driver="async", num_iterations=2, tis_cap=5.0) == (2, 5.0)
    assert filled(driver="async", max_staleness=0) == (0, None)
    engines = {"driver": "async", "use_vllm": True}
    assert filled(**engines) == (1, 2.0)
    assert filled(**engines, max_staleness=0) == (0, None)
    assert (
        objective_spec(configure_tiny("run", **engines, max_staleness=0).training)["tis_cap"] == VLLM_TIS_CAP
    )


def test_more_processes_than_one_are_refused(configure_tiny, monkeypatch):
    config = configure_tiny("run", driver="async")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="driver: async starts its own ranks, and 2 processes were launched"):
        train(config)


def test_a_reference_that_nothing_reads_is_refused(configure_tiny):
    with pytest.raises(UsageError, match="reference_workers: 1, and nothing reads the reference policy"):
        train(configure_tiny("run", driver="sync", reference_workers=1))
