"""The KL to the reference as part of the reward: its value, its place, and the gradient that it is there for."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from naive_objectives import tokens_of
from objective_batches import denominators, make_batch

from maxent_grpo.errors import UsageError
from maxent_grpo.objectives.catalog import CATALOG, build_objective
from maxent_grpo.types import Batch, Denominators, Forward, Knobs

BETA = 0.3
IN_REWARD = {"kl_in_loss": False, "kl_in_reward": True}


def test_each_completion_loses_its_own_log_ratio() -> None:
    batch, _ = make_batch()
    spec = CATALOG["dr_grpo"].with_settings(**IN_REWARD)
    signal, metrics = build_objective(spec).signal(batch, Knobs(0.0, BETA))
    assert batch.reference_logps is not None
    for p, group in enumerate(batch.utilities.tolist()):
        rows = [p * len(group) + g for g in range(len(group))]
        ratios = [
            sum(
                float(batch.behaviour_logps[row, t] - batch.reference_logps[row, t])
                for t in tokens_of(batch, row)
            )
            for row in rows
        ]
        shaped = [u - BETA * r for u, r in zip(group, ratios, strict=True)]
        mean = sum(shaped) / len(shaped)
        expected = torch.tensor([u - mean for u in shaped], dtype=torch.float64)
        torch.testing.assert_close(signal.advantages[p], expected, atol=1e-12, rtol=0)
    assert float(metrics["reward_shaped"].value) != float(metrics["reward"].value)


def test_the_loss_itself_has_no_kl_then_but_measures_it() -> None:
    batch, forward = make_batch()
    spec = CATALOG["dr_grpo"].with_settings(**IN_REWARD)
    objective, knobs = build_objective(spec), Knobs(0.0, BETA)
    signal, _ = objective.signal(batch, knobs)
    loss, metrics = objective.loss(forward, batch, signal, knobs, denominators(batch))
    assert float(metrics["loss/weighted_kl"].value) == 0.0
    assert float(metrics["kl"].value) > 0.0
    assert float(loss.detach()) == float(metrics["loss/policy"].value)


def test_beta_zero_is_the_backbone_and_needs_no_reference() -> None:
    batch, _ = make_batch()
    spec, bare = CATALOG["grpo"].with_settings(**IN_REWARD), replace(batch, reference_logps=None)
    advantages = build_objective(spec).signal(bare, Knobs(0.0, 0.0))[0].advantages
    assert torch.equal(
        advantages, build_objective(CATALOG["grpo"]).signal(batch, Knobs(0.0, 0.0))[0].advantages
    )
    assert not build_objective(spec).needs_reference(0.0)
    assert build_objective(spec).needs_reference(BETA)
    with pytest.raises(ValueError, match="no reference_logps"):
        build_objective(spec).signal(bare, Knobs(0.0, BETA))


def test_the_expected_gradient_is_that_of_reward_minus_beta_times_the_kl() -> None:
    """All pairs of the nine two-token completions of a three-word policy, each pair with its probability."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(
        4, 3, generator=draw, dtype=torch.float64
    ).requires_grad_()  # first token, then after each
    reference = torch.randn(4, 3, generator=draw, dtype=torch.float64)
    words = list(product(range(3), repeat=2))
    worth = torch.randn(9, generator=draw, dtype=torch.float64)

    def logps(table: torch.Tensor) -> torch.Tensor:
        table = table.log_softmax(dim=-1)
        return torch.stack([torch.stack([table[0, a], table[1 + a, b]]) for a, b in words])

    policy, frozen = logps(logits), logps(reference)
    totals = policy.sum(dim=1)
    value = (totals.exp() * (worth - BETA * (totals - frozen.sum(dim=1)))).sum()
    (expected,) = torch.autograd.grad(value, logits, retain_graph=True)

    spec = CATALOG["rloo"].with_settings(**IN_REWARD)
    objective, knobs = build_objective(spec), Knobs(0.0, BETA)
    loss = logits.new_zeros(())
    for pair in product(range(9), repeat=2):
        rows = torch.tensor(pair)
        batch = Batch(
            prompt_ids=torch.ones(1, 1, dtype=torch.int64),
            prompt_mask=torch.ones(1, 1, dtype=torch.bool),
            completion_ids=torch.zeros(2, 2, dtype=torch.int64),
            completion_mask=torch.ones(2, 2, dtype=torch.bool),
            behaviour_logps=policy[rows].detach(),
            utilities=worth[rows].unsqueeze(0),
            reference_logps=frozen[rows],
        )
        signal, _ = objective.signal(batch, knobs)
        part, _ = objective.loss(Forward(policy[rows]), batch, signal, knobs, Denominators(1, 2, 4, 1))
        loss = loss + totals[rows].sum().exp().detach() * part
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(-gradient, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("grpo", {"kl_in_reward": True}, "the KL would count twice"),
        ("tilted", IN_REWARD, "policy_loss=tilted reads the reference in its own way"),
        ("maxent", IN_REWARD, "policy_loss=listwise reads the reference"),
    ],
)
def test_it_is_refused_where_the_reference_acts_already(name: str, change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CATALOG[name].with_settings(**change)
