"""What must hold at the edges: limits of τ and β, groups that teach nothing, agreement to first order."""

import math
from dataclasses import replace

import pytest
import torch
from objective_batches import (
    MAX_LENGTH,
    SELECTS_TOKENS,
    TELLS_ANSWERS,
    TESTED,
    denominators,
    gradient,
    make_batch,
)
from torch import Tensor

from maxent_grpo.errors import UsageError
from maxent_grpo.objectives.catalog import CATALOG, ObjectiveSpec, build_objective
from maxent_grpo.objectives.reduce import sequence_scores
from maxent_grpo.types import Batch, Forward, Knobs, Signal

WITH_WEIGHTS = ["maxent", "maxent_likelihood", "tilted"]
SILENT = sorted(
    TESTED.keys() - {"grpo_entropy_bonus", *TELLS_ANSWERS}
)  # whose utilities differ where the rewards do not


def policy_gradient(spec: ObjectiveSpec, batch: Batch, forward: Forward, knobs: Knobs) -> Tensor:
    """The gradient of the policy term alone."""
    alone = build_objective(
        spec.with_settings(kl_in_loss=False, behaviour_kl_coef=0.0, entropy_coef=0.0, kl_cov_fraction=0.0)
    )
    signal, _ = alone.signal(batch, knobs)
    return gradient(alone.loss(forward, batch, signal, knobs, denominators(batch))[0], forward.logps)


def surrogate_gradient(loss_type: str, batch: Batch, forward: Forward, advantages: Tensor) -> Tensor:
    """The on-policy gradient of the clipped surrogate with given advantages [P, G]."""
    objective = build_objective(ObjectiveSpec(loss_type=loss_type))
    loss, _ = objective.loss(forward, batch, Signal(advantages), Knobs(0.0, 0.0), denominators(batch))
    return gradient(loss, forward.logps)


def sampled_by_itself(batch: Batch, forward: Forward) -> Batch:
    return replace(batch, old_logps=None, behaviour_logps=forward.logps.detach())


def test_infinite_tau_makes_tilted_bit_equal_to_dr_grpo() -> None:
    batch, forward = make_batch(groups=2, group_size=7)
    results = []
    for name, tau in (("tilted", math.inf), ("dr_grpo", 1.0)):
        objective, knobs = build_objective(CATALOG[name].with_settings(kl_in_loss=False)), Knobs(tau, 0.0)
        signal, _ = objective.signal(batch, knobs)
        loss, _ = objective.loss(forward, batch, signal, knobs, denominators(batch))
        results.append((signal.advantages, loss, gradient(loss, forward.logps)))
    for tilted, dr_grpo in zip(*results, strict=True):
        assert torch.equal(tilted, dr_grpo)


def test_large_tau_approaches_dr_grpo() -> None:
    batch, forward = make_batch()
    near = policy_gradient(CATALOG["tilted"], batch, forward, Knobs(1e9, 0.0))
    limit = policy_gradient(CATALOG["dr_grpo"], batch, forward, Knobs(1.0, 0.0))
    torch.testing.assert_close(near, limit, atol=1e-9, rtol=0)


@pytest.mark.parametrize("tau", [0.0, 1e-4])
def test_vanishing_tau_leaves_the_best_completions_only(tau: float) -> None:
    utilities = torch.tensor([[0.0, 1.0, 1.0, 0.5], [2.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    batch, forward = make_batch(groups=2, group_size=4, utilities=utilities)
    batch = sampled_by_itself(batch, forward)
    kept = torch.tensor([[0.0, 2.0, 2.0, 0.0], [4.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    centred = utilities - utilities.mean(dim=1, keepdim=True)
    expected = surrogate_gradient("dr_grpo", batch, forward, kept * centred)
    actual = policy_gradient(CATALOG["tilted"], batch, forward, Knobs(tau, 0.0))
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_beta_zero_needs_and_reads_no_reference(name: str) -> None:
    batch, forward = make_batch()
    assert not build_objective(CATALOG[name]).needs_reference(0.0)
    assert build_objective(CATALOG[name]).needs_reference(0.1)
    without = policy_gradient(CATALOG[name], replace(batch, reference_logps=None), forward, Knobs(0.3, 0.0))
    assert torch.equal(policy_gradient(CATALOG[name], batch, forward, Knobs(0.3, 0.0)), without)
    near = policy_gradient(CATALOG[name], batch, forward, Knobs(0.3, 1e-9))
    torch.testing.assert_close(near, without, atol=1e-7, rtol=0)


@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("utility", [0.0, 0.1, 1.0 / 3.0])
@pytest.mark.parametrize("name", SILENT)
def test_equal_utilities_give_no_policy_gradient(name: str, utility: float, beta: float) -> None:
    batch, forward = make_batch(utilities=torch.full((4, 3), utility, dtype=torch.float64))
    signal, metrics = build_objective(TESTED[name]).signal(batch, Knobs(0.3, beta))
    assert not signal.advantages.any()
    assert not policy_gradient(TESTED[name], batch, forward, Knobs(0.3, beta)).any()
    assert metrics["reward_std"].value == 0
    assert metrics["frac_reward_zero_std"].value == metrics["frac_reward_zero_std"].weight


@pytest.mark.parametrize(
    "name", sorted(set(SILENT) - {*SELECTS_TOKENS, "positive_only", "pass_at_k", "max_at_k"})
)
def test_a_group_without_spread_is_silent_beside_groups_that_have_some(name: str) -> None:
    batch, forward = make_batch()
    grad = policy_gradient(TESTED[name], sampled_by_itself(batch, forward), forward, Knobs(0.3, 0.2))
    assert not grad[-3:].any()
    assert all(group.any() for group in grad[:-3].split(3))


def test_without_the_skip_listwise_moves_equal_utilities_towards_the_weights() -> None:
    spec = CATALOG["maxent"].with_settings(skip_zero_spread_groups=False)
    batch, forward = make_batch(utilities=torch.ones(4, 3, dtype=torch.float64))
    p = torch.softmax(sequence_scores(forward.logps.detach(), batch.completion_mask, 3, False), dim=1)
    grad = policy_gradient(spec, batch, forward, Knobs(0.3, 0.0))
    per_completion = grad[:, 0].view(4, 3) * 4 * MAX_LENGTH
    torch.testing.assert_close(per_completion, p - 1 / 3, atol=1e-12, rtol=0)


def test_without_the_skip_likelihood_has_no_gradient_for_equal_utilities_and_no_reference() -> None:
    spec = CATALOG["maxent_likelihood"].with_settings(skip_zero_spread_groups=False)
    batch, forward = make_batch(utilities=torch.ones(4, 3, dtype=torch.float64))
    assert not policy_gradient(spec, batch, forward, Knobs(0.3, 0.0)).any()
    assert policy_gradient(spec, batch, forward, Knobs(0.3, 0.2)).any()


@pytest.mark.parametrize(
    ("per_token", "loss_type"), [(False, "dr_grpo"), (True, "grpo")], ids=["summed scores", "mean scores"]
)
def test_listwise_is_to_first_order_a_policy_gradient_on_the_same_scale(
    per_token: bool, loss_type: str
) -> None:
    spec = CATALOG["maxent"].with_settings(
        maxent_length_normalize_policy=per_token, maxent_length_normalize_ref=per_token
    )
    batch, forward = make_batch()
    batch = sampled_by_itself(batch, forward)
    signal, _ = build_objective(spec).signal(batch, Knobs(0.3, 0.1))
    p = torch.softmax(sequence_scores(forward.logps.detach(), batch.completion_mask, 3, per_token), dim=1)
    advantages = 3 * (signal.weights - p)
    advantages[-1] = 0.0  # the group without spread
    torch.testing.assert_close(signal.advantages, advantages, atol=1e-12, rtol=0)
    expected = surrogate_gradient(loss_type, batch, forward, advantages)
    actual = policy_gradient(spec, batch, forward, Knobs(0.3, 0.1))
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", [name for name in TESTED if name not in SELECTS_TOKENS])
def test_signal_advantages_give_every_objective_its_on_policy_gradient(name: str) -> None:
    spec, knobs = TESTED[name], Knobs(0.3, 0.1)
    batch, forward = make_batch()
    batch = sampled_by_itself(batch, forward)
    signal, _ = build_objective(spec).signal(batch, knobs)
    reduction = {"cispo": "dapo", "sapo": "grpo", "vespo": "dapo"}.get(spec["loss_type"], spec["loss_type"])
    expected = surrogate_gradient(reduction, batch, forward, signal.advantages)
    torch.testing.assert_close(policy_gradient(spec, batch, forward, knobs), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_weights_for_controllers_agree_with_the_signal_and_differentiate(name: str, beta: float) -> None:
    objective, (batch, _) = build_objective(CATALOG[name]), make_batch()
    signal, _ = objective.signal(batch, Knobs(0.3, beta))
    tau_beta = tuple(torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.3, beta))
    torch.testing.assert_close(objective.weights(signal, *tau_beta), signal.weights, atol=1e-12, rtol=0)
    if beta > 0:
        assert torch.autograd.gradcheck(lambda t, b: objective.weights(signal, t, b), tau_beta)


def test_an_objective_without_weights_says_so() -> None:
    batch, _ = make_batch()
    signal, _ = build_objective(CATALOG["grpo"]).signal(batch, Knobs(0.3, 0.0))
    with pytest.raises(ValueError, match="no candidate weights"):
        build_objective(CATALOG["grpo"]).weights(signal, torch.tensor(0.3), torch.tensor(0.0))


def test_signal_has_no_gradient_and_leaves_its_inputs_alone() -> None:
    batch, _ = make_batch()
    signal, _ = build_objective(CATALOG["maxent"]).signal(batch, Knobs(0.3, 0.2))
    assert not any(t.requires_grad for t in (signal.advantages, signal.weights, signal.log_q))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (CATALOG["grpo"], r"beta=0\.1 adds a KL"),
        (CATALOG["grpo"].with_settings(kl_in_loss=False, entropy_coef=0.1), r"entropy_coef=0\.1 needs"),
    ],
)
def test_missing_inputs_are_refused_by_name(spec: ObjectiveSpec, message: str) -> None:
    batch, forward = make_batch()
    batch, forward = replace(batch, reference_logps=None), Forward(forward.logps)
    signal, _ = build_objective(spec).signal(batch, Knobs(0.3, 0.1))
    with pytest.raises(ValueError, match=message):
        build_objective(spec).loss(forward, batch, signal, Knobs(0.3, 0.1), denominators(batch))


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_weights_towards_a_missing_reference_are_refused(name: str) -> None:
    batch, _ = make_batch()
    with pytest.raises(ValueError, match="no reference scores"):
        build_objective(CATALOG[name]).signal(replace(batch, reference_logps=None), Knobs(0.3, 0.1))


def test_contradictory_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="tis_cap"):
        CATALOG["maxent"].with_settings(tis_cap=2.0)
    with pytest.raises(UsageError, match="max_completion_length"):
        CATALOG["tilted"].with_settings(maxent_tilted_utility="dr_grpo")


def test_bounds_that_no_weight_reaches_truncate_and_mask_alike() -> None:
    (batch, forward), knobs = make_batch(), Knobs(0.3, 0.0)
    truncated = CATALOG["grpo"].with_settings(tis_cap=1e6)
    masked = truncated.with_settings(tis_low=0.0)
    assert torch.equal(
        policy_gradient(truncated, batch, forward, knobs), policy_gradient(masked, batch, forward, knobs)
    )


def test_needs_are_those_of_the_loss() -> None:
    assert build_objective(CATALOG["grpo"]).needs_reference(0.1)
    assert not build_objective(CATALOG["grpo"]).needs_reference(0.0)
    assert build_objective(CATALOG["grpo"].with_settings(log_reference_kl=True)).needs_reference(0.0)
    assert not build_objective(CATALOG["grpo"].with_settings(kl_in_loss=False)).needs_reference(0.1)
    assert build_objective(CATALOG["grpo"].with_settings(entropy_coef=0.1)).needs_entropy
    assert not build_objective(CATALOG["grpo"]).needs_entropy


def test_single_completion_groups_are_finite_and_silent() -> None:
    batch, forward = make_batch(
        groups=3, group_size=1, utilities=torch.tensor([[0.0], [1.0], [2.0]]).double()
    )
    # The first need two, and say so; the last compares with what earlier steps found, too.
    for name in CATALOG.keys() - {
        "pass_at_k",
        "max_at_k",
        "pkpo",
        "poly_epo",
        "seed_grpo",
        "semantic_maxent",
    }:
        spec = CATALOG[name]
        signal, metrics = build_objective(spec).signal(batch, Knobs(0.3, 0.2))
        assert not signal.advantages.any()
        assert all(torch.isfinite(stat.value) for stat in metrics.values())
        assert not policy_gradient(spec, batch, forward, Knobs(0.3, 0.2)).any()
