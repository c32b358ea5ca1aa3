"""Runs on Ray with adapters, seeds, and groups of older weights: each ends at the bits of one process without Ray."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

import runs
from maxent_grpo.config.loading import RunConfig
from maxent_grpo.evaluate.training import exploration_metrics
from maxent_grpo.observe.console import Progress
from maxent_grpo.train.build import Given, build
from maxent_grpo.train.drivers import sample_rollouts, seed_libraries, update
from maxent_grpo.train.records import RunRecorder
from runs import train

pytest.importorskip("ray")

pytestmark = pytest.mark.xdist_group("ray")  # one worker, one cluster

RECORDS = ("completions.jsonl", "controller_state.json")
STALE = {"objective": "dr_grpo", "max_steps": 7, "save_steps": 7, "tis_cap": 2.0}


def records(directory: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def trained_in_one_process(config: RunConfig, versions: Sequence[int]) -> Path:
    """The run that learns rollout n from groups of policy version ``versions[n]``; one optimiser step a rollout.

    It knows nothing of Ray, buffers or schedules: the versions' weights are kept, and put back to sample.
    """
    output_dir = Path(str(config.training.output_dir))
    output_dir.mkdir()
    settings = runs.native(config)
    run = build(settings, Given())
    recorder = RunRecorder(run, settings.records, Progress(0, "", enabled=False))
    model, weights = run.learner.model, []
    for version in versions:
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        model.load_state_dict(weights[version])
        prompts = run.stream.take(run.plan.prompts_per_rollout)
        drawn = {"seed": run.seed, "step": run.step, "version": version}
        rollouts = sample_rollouts(run.sampler, run.sampling, None, prompts, **drawn)
        model.load_state_dict(weights[run.step])
        run.rollout, metrics = run.scorer.score(rollouts, run.step + 1)
        run.updates_done = 0
        run.meter.add(metrics | exploration_metrics([group.originals() for group in run.rollout]))
        seed_libraries(run)
        update(run, recorder, 0.0, {})
    run.close()
    return output_dir


def assert_the_same_run(mine: Path, expected: Path, policy: str) -> None:
    """The policy to the bit, every completion with its advantages, and the metrics that both have.

    ``train/epoch`` counts the prompts that were drawn: with groups on their way it is ahead, by how many is chance.
    """
    assert (mine / policy).read_bytes() == (expected / policy).read_bytes()
    for name in RECORDS:
        assert (mine / name).read_bytes() == (expected / name).read_bytes(), name
    for record, wanted in zip(records(mine)[-5:], records(expected)[-5:], strict=True):
        names = wanted.keys() - {"train/epoch"}
        assert {name: record[name] for name in names} == pytest.approx({name: wanted[name] for name in names})


@pytest.mark.slow
@pytest.mark.parametrize(
    "driver", ["sync with overlap", pytest.param("async, every second step", marks=pytest.mark.nightly)]
)
def test_stale_groups_are_trained_as_one_process_trains_them(ray_here, configure, tmp_path, driver):
    """One worker samples in order, so that the schedule is known: versions by rollout."""
    settings, versions = {
        "sync with overlap": ({"driver": "sync", "overlap_sampling": True}, [0, 0, 1, 2, 3, 4, 5]),
        "async, every second step": (
            {"driver": "async", "weight_update_frequency": 2},
            [0, 0, 0, 2, 2, 4, 4],
        ),
    }[driver]
    config = configure("train-baseline", **STALE, **settings)
    train(config)
    rollouts = records(tmp_path / "run", "tickets.jsonl")
    assert [number for r in rollouts for number in r["tickets"]] == list(
        range(28)
    )  # each prompt once, in order
    assert [set(r["versions"]) for r in rollouts] == [{version} for version in versions]
    steps = records(tmp_path / "run")[1:]
    ages = [step - version for step, version in enumerate(versions)]
    assert max(ages) == config.training.max_staleness
    assert [s["train/buffer/policy_age_max"] for s in steps] == ages
    assert [s["train/tis/raw_mean"] == pytest.approx(1, abs=1e-6) for s in steps] == [
        age == 0 for age in ages
    ]

    expected = configure("train-baseline", **STALE, output_dir=str(tmp_path / "expected"))
    assert_the_same_run(
        tmp_path / "run", trained_in_one_process(expected, versions), "checkpoint-7/model.safetensors"
    )


@pytest.mark.nightly
def test_an_adapter_and_seeds_train_as_they_do_inline(ray_here, configure, tmp_path):
    """LoRA with dropout and a reference that is the policy without it; InfoSeed with a head that is trained too."""
    lora = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.1, "lora_target_modules": ["q_proj", "v_proj"]}
    seeds = {"objective": "dr_grpo", "info_seed_enabled": True, "info_seed_num_seeds": 3}
    seeds |= {"info_seed_lambda": 0.5, "info_seed_alpha_entropy": 0.1, "info_seed_loss_type": "ce"}
    settings = lora | seeds | {"beta": 0.1, "max_steps": 5, "save_steps": 5}
    train(configure("train-infoseed", output_dir=str(tmp_path / "inline"), **settings))
    train(configure("train-infoseed", output_dir=str(tmp_path / "sync"), driver="sync", **settings))
    for name in ("adapter_model.safetensors", "checkpoint-5/seed_head.safetensors"):
        assert_the_same_run(tmp_path / "sync", tmp_path / "inline", name)
    last = records(tmp_path / "sync")[-1]
    assert last["train/kl"] > 0
    assert last["train/seed/seed_aug_frac"] == pytest.approx(3 / 7)
