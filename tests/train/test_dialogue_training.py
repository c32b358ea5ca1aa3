"""Learning from completions in several turns: the gradient of a plain loop, whatever stands between the turns."""

import json
from dataclasses import asdict, replace

import pytest
import torch

import runs
from maxent_grpo.config.loading import resolve
from maxent_grpo.objectives.catalog import CATALOG, build_objective
from maxent_grpo.train import drivers
from maxent_grpo.train.checkpoint import group_from_json
from maxent_grpo.train.collate import collate
from maxent_grpo.train.state import Run
from maxent_grpo.train.step import step
from maxent_grpo.types import Denominators, Forward, Group, Knobs
from runs import train

SETTINGS = {
    "model_name_or_path": "bundled:tiny-policy",
    "dataset_name": "task:countdown",
    "dataset_config": "numbers=3",
    "reward_funcs": ["task_reward"],
    "environment": "countdown_feedback",
    "objective": "dr_grpo",
    "per_device_train_batch_size": 16,
    "num_generations": 8,
    "max_completion_length": 24,
    "max_steps": 2,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "force_custom_loop": True,
    "learning_rate": 1e-4,
}


def configured(tmp_path, **settings):
    flat = SETTINGS | {"output_dir": str(tmp_path / "run")} | settings
    return resolve("train-baseline", None, {"flat": flat}, environ={})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run in float64 with a rollout of two prompts, one SGD step of rate 1 away from its gradient."""
    plain = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 1e9}
    directory = tmp_path_factory.mktemp("dialogue")
    config = configured(directory, **plain)
    made = runs.build(config)
    made.learner.model.double()
    drivers.collect(made)
    spread = tuple(float(i) for i in range(8))  # whatever was right: every completion teaches
    made.rollout = [replace(group, utilities=spread) for group in made.rollout]
    return made


@pytest.mark.parametrize("name", ["dapo", "gspo", "maxent", "tilted", "top_entropy"])
def test_what_the_policy_did_not_write_has_no_influence(run: Run, name: str) -> None:
    """NaN at every such place, in everything that an objective reads per token, changes neither loss nor gradient."""
    groups: list[Group] = list(run.rollout)
    batch = collate(groups, pad_id=run.pad_id, on_policy=False)
    draw = torch.Generator().manual_seed(0)
    noise = [0.3 * torch.randn(batch.completion_ids.shape, generator=draw) for _ in range(2)]
    objective, knobs = build_objective(CATALOG[name].with_settings(entropy_coef=0.01)), Knobs(0.1, 0.1)
    written = batch.completion_mask
    results = []
    for elsewhere in (0.0, torch.nan):
        logps = torch.where(written, batch.behaviour_logps + noise[0], elsewhere).requires_grad_()
        entropy = torch.where(written, noise[1].abs(), elsewhere)
        changed = replace(
            batch,
            behaviour_logps=torch.where(written, batch.behaviour_logps, elsewhere),
            old_logps=torch.where(written, batch.behaviour_logps, elsewhere),
            reference_logps=torch.where(written, batch.behaviour_logps + noise[1], elsewhere),
        )
        counts = Denominators(2, 16, float(written.sum()), 24)
        signal, _ = objective.signal(changed, knobs)
        loss, metrics = objective.loss(Forward(logps, entropy), changed, signal, knobs, counts)
        (gradient,) = torch.autograd.grad(loss, logps)
        assert not gradient[~written].any()
        results.append((loss.detach(), gradient, metrics["kl"].value, metrics["entropy"].value))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_denominators_count_the_policys_tokens(run: Run) -> None:
    batch = collate(run.rollout, pad_id=run.pad_id, on_policy=True)
    assert run.learner.denominators(batch).tokens == sum(sum(g.rollout.lengths) for g in run.rollout)
    halves = [batch.select([0]), batch.select([1])]
    assert sum(int(half.read_mask.sum()) for half in halves) == int(batch.read_mask.sum())
    assert sum(int(half.completion_mask.sum()) for half in halves) == int(batch.completion_mask.sum())


def test_a_checkpoints_rollout_keeps_the_turns(run: Run) -> None:
    for group in run.rollout:
        assert group_from_json(json.loads(json.dumps(asdict(group)))) == group


def test_the_gradient_is_that_of_a_loop_over_rows(run: Run) -> None:
    """Moves the parameters of ``run``, whose rollout the other tests read."""
    model = run.learner.model
    assert any(False in mask for group in run.rollout for mask in group.rollout.policy_masks)
    loss = torch.zeros((), dtype=torch.float64)
    for group in run.rollout:
        mean = sum(group.utilities) / len(group.utilities)
        rows = zip(group.rollout.token_ids, group.rollout.policy_masks, group.utilities, strict=True)
        for ids, written, utility in rows:
            prompt = group.rollout.prompt.token_ids
            logps = model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(dim=-1)
            for t, (token, own) in enumerate(zip(ids, written, strict=True)):
                if own:
                    loss = loss - (utility - mean) * logps[len(prompt) + t - 1, token]
    loss = loss / (16 * 24)  # Dr. GRPO: completions × longest
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    step(run, run.rollout)
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    error = float((moved + expected).norm() / expected.norm())
    assert error < 1e-6  # the model's norms compute in float32


def test_the_tiny_policy_trains_on_countdown_with_feedback(tmp_path) -> None:
    result = train(configured(tmp_path, num_iterations=2, max_steps=2, beta=0.01, kl_in_reward=True))
    assert result.global_step == 2
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (
        0 < records[1]["train/completions/max_length_sampled"] <= 24
    )  # what the policy wrote, in all its turns
    assert records[2]["train/behaviour_kl"] > records[1]["train/behaviour_kl"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert any(row["transcript"].count("<|im_start|>") >= 2 for row in rows)
