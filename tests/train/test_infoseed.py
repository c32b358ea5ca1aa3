"""InfoSeed through the whole step: gradients that reach the policy, whatever the split, and an exact resume."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_resume import Stopped, contents, stop_at

import runs
from maxent_grpo import GRPOConfig, GRPOTrainer
from maxent_grpo.errors import UsageError
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.train import drivers
from maxent_grpo.train.checkpoint import load_checkpoint
from maxent_grpo.train.collate import collate
from maxent_grpo.train.micro_batches import MicroBatch
from maxent_grpo.train.step import step
from ranks import run_ranks, running
from runs import train

INFOSEED = {
    "command": "train-infoseed",
    "objective": "dr_grpo",
    "info_seed_enabled": True,
    "info_seed_num_seeds": 3,
    "info_seed_lambda": 0.5,
    "info_seed_alpha_entropy": 0.1,
}
LOSSES = {
    "infonce, mean": {"info_seed_loss_type": "infonce"},
    "infonce, last": {"info_seed_loss_type": "infonce", "info_seed_pooling": "last"},
    "ce, mean": {"info_seed_loss_type": "ce"},
}


@pytest.fixture
def make_run(configure, tmp_path):
    """A run in float64 under plain SGD, assembled and with a rollout collected."""

    def build(**settings):
        defaults = INFOSEED | {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant"}
        config = configure(**(defaults | {"max_grad_norm": 1e9} | settings))
        run = runs.build(config)
        run.learner.model.double()
        drivers.collect(run)
        return run

    return build


def vector(parameters) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in parameters])


def stepped(run, micro_groups: int = 4, every: bool = True) -> tuple[torch.Tensor, dict[str, float]]:
    """How far one SGD step of rate 1 moves the parameters (the negative gradient), and the step's metrics."""
    run.plan = replace(run.plan, micro_groups=micro_groups)
    trained = run.learner.policy.parameters if every else run.learner.model.parameters
    before = vector(trained())
    metrics = step(run, run.rollout).metrics
    return vector(trained()) - before, metrics


def moved(run, micro_groups: int = 4, every: bool = True) -> torch.Tensor:
    return stepped(run, micro_groups, every)[0]


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_and_metrics_do_not_depend_on_the_micro_batch_size(make_run, name):
    steps = [stepped(make_run(**LOSSES[name]), micro_groups=count) for count in (4, 1, 3)]
    movements, metrics = zip(*steps, strict=True)
    for parts in movements[1:]:
        assert (parts - movements[0]).norm() <= 1e-6 * movements[0].norm()
    for found in metrics[1:]:
        assert found == pytest.approx(metrics[0], rel=1e-5, abs=1e-7)
    assert metrics[0]["loss/seed"] > 0.1
    assert {"seed/seed_pred_acc", "seed/seed_pred_acc_aug", "seed/seed_diversity_l2"} <= metrics[0].keys()


def test_with_dropout_the_contrast_sees_the_states_that_are_differentiated(make_run):
    run = make_run()
    run.learner.model.config.attention_dropout = 0.5
    for layer in run.learner.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    policy = PolicyForward(run.learner.model, pool="mean").train()
    run.learner.strategy.policy = run.learner.strategy.module = policy
    batch = collate(run.rollout, pad_id=run.pad_id, on_policy=True)
    parts = [MicroBatch([group], needs_backward=True) for group in range(batch.utilities.shape[0])]
    torch.manual_seed(3)
    one_by_one = [part.groups for part in parts]
    pooled = run.learner.pooled(batch, parts)
    again, once_more = (
        torch.cat([run.learner.forward(batch.select(groups)).pooled for groups in one_by_one])
        for _ in range(2)
    )
    assert torch.equal(pooled, again)
    assert not torch.equal(pooled, once_more)


def test_the_gradient_does_not_depend_on_the_packed_forward(make_run):
    expected = moved(make_run())
    run = make_run()
    assert run.learner.policy.shortcuts == {"packed", "head"}
    run.learner.policy.shortcuts = frozenset()
    assert (moved(run) - expected).norm() <= 1e-6 * expected.norm()


def test_the_gradient_is_the_same_under_activation_checkpointing(make_run):
    expected = moved(make_run())
    run = make_run(gradient_checkpointing=True)
    assert (moved(run, micro_groups=1) - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize(
    "term",
    [
        {"info_seed_alpha_entropy": 0.0},
        {"info_seed_alpha_entropy": 0.0, "info_seed_loss_type": "ce"},
        {"info_seed_lambda": 0.0, "info_seed_alpha_entropy": 2.0},
    ],
)
def test_each_term_has_the_policy_gradient_of_a_finite_difference(make_run, term):
    """Equal utilities leave no GRPO gradient, so that all movement is the term's."""
    run = make_run(**term)
    run.rollout = [replace(group, utilities=(1.0,) * 7) for group in run.rollout]
    batch = collate(run.rollout, pad_id=run.pad_id, on_policy=True)
    knobs, parameters = run.controllers.knobs(), list(run.learner.model.parameters())

    def loss() -> float:
        signal, _ = run.objective.signal(batch, knobs)
        forward = run.learner.forward(batch)
        return run.objective.loss(forward, batch, signal, knobs, run.learner.denominators(batch))[0].item()

    start, head = vector(parameters), run.learner.policy.seed_head
    untrained = None if head is None else {name: value.clone() for name, value in head.state_dict().items()}
    direction = moved(run, micro_groups=1, every=False)
    if head is not None:
        head.load_state_dict(untrained)
    assert direction.norm() > 1e-3
    sides = []
    for sign in (1, -1):
        stretch = sign * 1e-3 / direction.norm()
        torch.nn.utils.vector_to_parameters(start + stretch * direction, parameters)
        sides.append(loss())
    slope = (sides[0] - sides[1]) / 2e-3
    assert slope == pytest.approx(-direction.norm().item(), rel=0.01)


@pytest.mark.parametrize("loss_type", ["infonce", "ce"])
def test_without_coefficients_the_policy_moves_as_its_backbone_on_the_same_groups(make_run, loss_type):
    off = make_run(info_seed_lambda=0.0, info_seed_alpha_entropy=0.0, info_seed_loss_type=loss_type)
    backbone = make_run(info_seed_lambda=0.0, info_seed_alpha_entropy=0.0)
    backbone.objective = replace(backbone.objective, info_seed=None)
    expected = moved(backbone, every=False)
    assert expected.norm() > 0
    assert torch.equal(moved(off, every=False), expected)


def test_originals_are_those_of_a_run_without_seeds_and_so_are_their_metrics(make_run):
    seeded = make_run()
    plain = make_run(
        command="train-baseline",
        objective="dr_grpo",
        **dict.fromkeys(INFOSEED.keys() - {"command", "objective"}),
    )
    assert [g.originals().rollout for g in seeded.rollout] == [g.rollout for g in plain.rollout]
    metrics = [run.meter.reduced() for run in (seeded, plain)]
    assert metrics[0]["pass"] == metrics[1]["pass"]
    assert {len(g.utilities) for g in seeded.rollout} == {7}


def test_advantages_are_over_originals_and_seeded_completions_together(make_run):
    run = make_run()
    result = step(run, run.rollout)
    utilities = torch.tensor([g.utilities for g in run.rollout])
    torch.testing.assert_close(result.signal.advantages, utilities - utilities.mean(dim=1, keepdim=True))


RESUMED = {
    "ce, between two updates of a rollout": {
        "info_seed_loss_type": "ce",
        "steps_per_generation": 4,
        "num_iterations": 2,
        "save_steps": 1,
    },
    "infonce": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
}


@pytest.mark.parametrize("variant", RESUMED)
def test_a_stopped_run_resumes_to_the_same_bytes(configure, tmp_path, monkeypatch, variant):
    settings = INFOSEED | RESUMED[variant]
    train(configure(output_dir=str(tmp_path / "whole"), **settings))
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(Stopped):
            train(configure(output_dir=str(tmp_path / "cut"), **settings))
    train(configure(output_dir=str(tmp_path / "cut"), resume_from_checkpoint=True, **settings))
    assert contents(tmp_path / "cut", 6) == contents(tmp_path / "whole", 6)
    head = "checkpoint-6/seed_head.safetensors"
    if settings.get("info_seed_loss_type") == "ce":
        assert (tmp_path / "cut" / head).read_bytes() == (tmp_path / "whole" / head).read_bytes()
        assert not (tmp_path / "whole" / "seed_head.safetensors").exists()


def test_the_seed_head_is_trained_saved_and_no_part_of_the_policy(configure, tmp_path):
    config = configure(**INFOSEED, info_seed_loss_type="ce", max_steps=2)
    start = runs.build(config).learner.policy.seed_head
    train(config)
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "seed_head.safetensors")
    assert saved["weight"].shape == (3, 64)
    assert not torch.equal(saved["weight"], start.weight)
    assert not any("seed" in name for name in load_file(tmp_path / "run" / "model.safetensors"))
    again = runs.build(config)
    load_checkpoint(again, tmp_path / "run" / "checkpoint-2")
    assert torch.equal(again.learner.policy.seed_head.weight, saved["weight"])


def test_resuming_with_other_seeds_is_refused(configure):
    train(configure(**INFOSEED, info_seed_loss_type="ce", max_steps=2))
    changed = INFOSEED | {"info_seed_num_seeds": 4, "info_seed_loss_type": "ce"}
    with pytest.raises(
        UsageError, match=r"checkpoint-2 has a seed head for 3 seeds, and this run trains a seed head for 4"
    ):
        train(configure(**changed, resume_from_checkpoint=True))


def test_evaluation_asks_with_every_seed(configure, tmp_path):
    rows = str(tmp_path / "prompts.jsonl")
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_dataset_name": rows,
        "eval_dataset_split": "train",
    }
    train(configure(**INFOSEED, **settings, max_steps=2))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (_, last) = [r for r in records if "eval_seed/pass_at_1" in r]
    for name in ("pass_at_1", "mean", "pred_acc", "diversity_l2"):
        assert f"eval_seed/{name}_se" in last
    assert 0 <= last["eval_seed/pred_acc"] <= 1
    assert 0 < last["eval_seed/diversity_l2"] < 2
    rows = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert [row["seed_id"] for row in rows[:7]] == [-1, -1, -1, -1, 0, 1, 2]
    assert all(("[seed=2]" in row["prompt"]) == (row["seed_id"] == 2) for row in rows)


@pytest.mark.slow
@pytest.mark.xdist_group("forked")
def test_two_ranks_contrast_as_one(tmp_path):
    program = Path(__file__).with_name("two_ranks_contrast.py")
    ended = run_ranks(tmp_path, [str(tmp_path)], call=running(program))
    assert ended.codes == [0, 0], ended.errors
    assert len(list(tmp_path.glob("rank-*"))) == 2


def test_it_trains_from_python(policy, tokenizer, tmp_path):
    args = GRPOConfig(
        output_dir=str(tmp_path / "run"),
        info_seed_enabled=True,
        info_seed_num_seeds=2,
        info_seed_lambda=0.1,
        max_steps=1,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=5,
        use_cpu=True,
        disable_tqdm=True,
    )
    result = GRPOTrainer(
        policy,
        lambda completions, **_: [float(len(c)) for c in completions],
        args,
        ["a", "b"],
        processing_class=tokenizer,
    ).train()
    assert result.metrics["train/seed/seed_aug_frac"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"info_seed_num_seeds": 1}, "info_seed_num_seeds: 1 seeds tell nothing apart; use at least 2"),
        ({"info_seed_prompt_template": "x"}, "'x' does not contain {seed}"),
        ({"info_seed_prompt_template": "{seed} {oops}"}, r"cannot be filled in (KeyError('oops'))"),
        ({"info_seed_prompt_template": "{seed} {"}, "cannot be filled in"),
        ({"info_seed_lambda": -0.1}, "info_seed_lambda: -0.1 must be ≥ 0"),
        ({"info_seed_alpha_entropy": -1.0}, "info_seed_alpha_entropy: -1.0 must be ≥ 0"),
        ({"info_seed_temperature": 0.0}, "info_seed_temperature: 0.0 must be > 0"),
        ({"info_seed_pooling": "max"}, "info_seed_pooling: 'max' is not one of mean, last"),
        ({"objective": "maxent"}, "objective=maxent trains a MaxEnt objective; use train-maxent"),
        (
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
            "a step has one prompt; use gradient_accumulation_steps=2, or ce",
        ),
    ],
)
def test_wrong_settings_are_refused_in_one_line(configure, settings, message):
    with pytest.raises(UsageError) as caught:
        configure(**(INFOSEED | settings))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_maxent_objective_is_refused_from_python_too():
    with pytest.raises(UsageError, match="info_seed_enabled: InfoSeed adds to a GRPO objective"):
        GRPOConfig(
            output_dir="x", objective="tilted", info_seed_enabled=True, info_seed_num_seeds=4, use_cpu=True
        )
