"""Recipes of the objective family in the loop: what the texts say reaches the tensors, and steps keep their size."""

import json
import math

import pytest

import runs
from maxent_grpo.controllers.feedback import kl_factor
from maxent_grpo.controllers.settings import EntropySettings
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.objectives.catalog import CATALOG
from maxent_grpo.train import drivers
from maxent_grpo.train.build import Given
from maxent_grpo.train.collate import collate
from maxent_grpo.types import Group, Prompt, Rollout
from runs import train


def group(texts: list[str], utilities: list[float], **columns: object) -> Group:
    prompt = Prompt(index=0, text="?", token_ids=(1,), columns=columns)
    ids = tuple((2, 3) for _ in texts)
    rollout = Rollout(prompt, ids, ((-0.1, -0.2),) * len(texts), tuple(texts), ("stop",) * len(texts), 0)
    return Group(rollout, {}, tuple(utilities), tuple(utility >= 1 for utility in utilities))


def test_answers_reach_the_batch_only_where_they_are_asked_for():
    groups = [
        group([r"\boxed{1}", r"\boxed{2}", r"\boxed{1}"], [1.0, 1.0, 1.0]),
        group(["123", "132", "x y"], [1.0, 0.0, 0.0], task="graph_coloring", modes=["123", "213"]),
    ]
    batch = collate(groups, pad_id=0, on_policy=True, answers=True)
    first, second = batch.answer_clusters.tolist()
    assert first[0] == first[2] != first[1]
    assert len(set(second)) == 3
    assert batch.mode_counts.tolist() == [2, 2]
    part = batch.select([1])
    assert part.answer_clusters.tolist() == [second]
    assert part.mode_counts.tolist() == [2]
    plain = collate(groups, pad_id=0, on_policy=True)
    assert plain.answer_clusters is None
    assert plain.mode_counts is None


RUNS = {
    "seed_grpo": {"objective": "seed_grpo"},
    "seed on gspo": {"objective": "gspo", "seed_grpo_enabled": True, "seed_grpo_alpha": 0.5},
    "flowrl": {"objective": "flowrl"},
    "kl_cov": {"objective": "kl_cov", "steps_per_generation": 4},
    "top_entropy": {"objective": "top_entropy", "entropy_coef": 0.01},
    "adaptive entropy": {
        "objective": "dr_grpo",
        "use_adaptive_entropy": True,
        "entropy_coef": 0.01,
        "entropy_target": 9.0,
        "entropy_kl_threshold": 0.04,
    },
    "cispo from TRL's name": {"loss_type": "cispo", "epsilon_high": 5.0},
}


@pytest.mark.parametrize("name", RUNS)
def test_recipes_train(configure, tmp_path, name):
    train(configure("train-baseline", max_steps=2, save_strategy="no", **RUNS[name]))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1:]
    for record in map(json.loads, lines):
        assert record["train/update_skipped"] == 0
        assert record["train/grad_norm"] > 0
        if "seed" in name:
            assert 0 < record["train/seed_grpo/semantic_entropy_mean"] <= 1.3863  # ln 4
            assert record["train/seed_grpo/advantage_scale_mean"] < 1


def test_an_adaptive_entropy_coefficient_moves_and_acts(configure, tmp_path):
    train(configure("train-baseline", max_steps=3, save_strategy="no", **RUNS["adaptive entropy"]))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1:]
    records = [json.loads(line) for line in lines]
    assert records[0]["train/entropy_coef"] == 0
    assert records[0]["train/loss/entropy"] == 0
    settings = EntropySettings(kl_threshold=0.04)
    for last, record, coef in zip(records, records[1:], (0.015, 0.02), strict=False):
        assert record["train/entropy_coef"] == pytest.approx(coef * kl_factor(last["train/kl"], settings))
        expected = -record["train/entropy_coef"] * record["train/entropy"]
        assert record["train/loss/entropy"] == pytest.approx(expected, rel=1e-5)


def test_tilted_with_a_temperature_by_prompt_trains(configure, tmp_path):
    train(
        configure(
            objective="tilted", beta=0.0, maxent_tau_mode_adaptive=True, max_steps=1, save_strategy="no"
        )
    )
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (
        0.05 / math.log(5) <= record["train/weight_norm_denom"] <= 0.05 / math.log(2)
    )  # 1 to 4 right answers


# Dynamic sampling


def coin(completions, **_):
    """Right or wrong by the sampled text, equal in about half of the groups of 2."""
    return [float(sum(map(ord, text)) % 2) for text in completions]


@pytest.fixture
def dynamic(configure, tmp_path):
    def build(**settings):
        config = configure(
            "train-baseline",
            num_generations=2,
            per_device_train_batch_size=8,
            dynamic_sampling=True,
            **settings,
        )
        run = runs.build(config, Given(reward_funcs=[coin]))
        drivers.collect(run)
        return run

    return build


def has_signal(group: Group) -> bool:
    return len(set(group.utilities)) > 1


def test_groups_without_signal_are_replaced_by_further_prompts(dynamic):
    run = dynamic(dynamic_sampling_max_rounds=30)
    metrics = run.meter.reduced()
    assert len(run.rollout) == run.plan.prompts_per_rollout == 8
    assert all(map(has_signal, run.rollout))
    drawn = round(run.stream.epoch * len(run.stream))
    assert metrics["dynamic_sampling/dropped"] == drawn - 8 > 0
    assert metrics["dynamic_sampling/rounds"] > 1
    assert metrics["dynamic_sampling/filled"] == 0


def test_after_the_last_round_silent_groups_complete_the_rollout(dynamic):
    run = dynamic(dynamic_sampling_max_rounds=1)
    metrics = run.meter.reduced()
    assert len(run.rollout) == 8
    silent = sum(not has_signal(g) for g in run.rollout)
    assert metrics["dynamic_sampling/filled"] == silent > 0
    assert metrics["dynamic_sampling/dropped"] == 0
    assert [has_signal(g) for g in run.rollout] == [True] * (8 - silent) + [False] * silent


def test_a_resumed_run_with_dynamic_sampling_is_the_uninterrupted_one(configure, tmp_path):
    def run(name, **settings):
        given = Given(reward_funcs=[coin])
        return train(
            configure(
                "train-baseline", num_generations=2, dynamic_sampling=True, save_steps=1, lr_scheduler_type="constant",
                output_dir=str(tmp_path / name), **settings,
            ),
            given,
        )  # fmt: skip

    run("whole", max_steps=3)
    run("parts", max_steps=2)
    run("parts", max_steps=3, resume_from_checkpoint=True)
    for file in ("metrics.jsonl", "model.safetensors"):
        whole, parts = ((tmp_path / name / file).read_bytes() for name in ("whole", "parts"))
        assert whole == parts, file


# What the configuration refuses


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "flowrl", "beta": 0.1}, "beta: FlowRL has the reference in its target"),
        ({"objective": "pass_at_k", "pass_k": 5}, "pass_k: 5 is above num_generations=4"),
        ({"objective": "max_at_k"}, "max_k: 4 is above 3, what num_generations=4 allows"),
        ({"objective": "pkpo", "max_k": 5}, "max_k: 5 is above 4, what num_generations=4 allows"),
        ({"objective": "poly_epo", "poly_epo_size": 5}, "poly_epo_size: 5 is above num_generations=4"),
        ({"objective": "pcmd", "num_generations": 2}, "pcmd_coef: compares three right completions or more"),
        ({"advantage": "loo"}, "advantage: 'loo' is not one of centered, rloo, maxrl"),
        (
            {"loss_type": "cispo"},
            "epsilon_high: under cispo it caps the ratio itself, and 0.2 is not above 1",
        ),
        ({"objective": "dr_grpo", "overlong_buffer": 99}, "overlong_buffer: 99 tokens do not fit"),
        ({"objective": "grpo", "advantage": "maxrl", "scale_rewards": "group"}, "maxrl has its own scale"),
        ({"seed_grpo_alpha": -1.0}, "seed_grpo_alpha: -1.0 must be ≥ 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_start(configure, settings, message):
    with pytest.raises(UsageError, match=message):
        configure("train-baseline", **settings)


def test_dynamic_sampling_is_refused_in_several_processes(configure, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="dynamic_sampling: works in one process, and 2 were launched"):
        configure("train-baseline", dynamic_sampling=True)


def test_seed_grpo_on_a_maxent_objective_is_refused_with_the_reason(configure):
    with pytest.raises(UsageError, match="seed_grpo_enabled: scales the advantages of a GRPO-type objective"):
        configure(seed_grpo_enabled=True)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"objective": "rloo"}, "advantage"),
        ({"objective": "flowrl"}, "objective"),
        ({"objective": "gspo_token"}, "importance_sampling_level"),
        ({"surrogate": "sapo"}, "surrogate"),
        ({"dynamic_sampling": True}, "dynamic_sampling"),
    ],
)
def test_trls_trainer_never_ignores_a_part_of_an_objective(configure, settings, name):
    with pytest.raises(UsageError, match=f"{name}: TRL's trainer .*; set force_custom_loop=true"):
        configure("train-baseline", force_custom_loop=False, **settings)


@pytest.mark.parametrize("name", ["cispo", "sapo", "vespo", "luspo", "gspo", "top_entropy"])
def test_objectives_that_trl_has_go_to_its_trainer_under_its_names(configure, name):
    training = configure("train-baseline", objective=name, force_custom_loop=False).training
    assert training.loss_type == CATALOG[name]["loss_type"]
    assert training.top_entropy_quantile == CATALOG[name]["top_entropy_quantile"]
    assert training.epsilon_high == CATALOG[name]["epsilon_high"]


def test_a_utility_that_an_advantage_cannot_use_ends_the_run(configure):
    with pytest.raises(RunError, match="advantage=maxrl divides by the mean utility"):
        train(
            configure("train-baseline", objective="maxrl", max_steps=1),
            Given(reward_funcs=[lambda completions, **_: [-float(len(c)) for c in completions]]),
        )


def letters(completions, **columns):
    return [float(len(set(text)) > 4) for text in completions]


def short(completions, **columns):
    return [1.0 for text in completions]


@pytest.mark.parametrize(
    "changes",
    [{"objective": "maxrl"}, {"objective": "pass_at_k", "pass_k": 2}, {"maxent_tau_mode_adaptive": True}],
)
def test_an_objective_made_of_right_answers_needs_a_reward_that_tells_them(configure, changes):
    command = "train-baseline" if "objective" in changes else "train-maxent"
    config = configure(command, **({"objective": "tilted", "max_steps": 1} | changes))
    with pytest.raises(UsageError, match="correctness_reward: the objective needs to know which completions"):
        train(config, Given(reward_funcs=[letters, short]))


def test_without_a_correctness_reward_there_is_no_pass(configure, tmp_path, caplog):
    train(configure(max_steps=1, save_strategy="no"), Given(reward_funcs=[letters, short]))
    record = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert "train/pass" not in record
    assert "none of the reward functions (letters, short) is known to tell what is right" in caplog.text


def test_a_named_correctness_reward_is_what_pass_counts(configure, tmp_path):
    def never(completions, **columns):
        return [0.0 for text in completions]

    settings = {"max_steps": 1, "save_strategy": "no", "objective": "maxrl"}
    config = configure("train-baseline", **settings, correctness_reward="never")
    train(config, Given(reward_funcs=[never, short]))
    record = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert record["train/pass"] == 0.0
    assert record["train/reward"] == 1.0
