"""Every objective of the catalogue, and every setting of it, against a loop over single tokens."""

from dataclasses import replace

import naive_objectives as naive
import pytest
import torch
from objective_batches import denominators, gradient, make_batch

from maxent_grpo.objectives.catalog import CATALOG, Objective, ObjectiveSpec
from maxent_grpo.types import Knobs

VARIANTS: dict[str, ObjectiveSpec] = {
    **CATALOG,
    "batch scale": replace(CATALOG["grpo"], scale_rewards="batch"),
    "dual clip": replace(CATALOG["dapo"], delta=1.35),
    "sequence ratio, token mean": replace(
        CATALOG["bnpo"], importance_sampling_level="sequence", epsilon=0.05
    ),
    "sequence ratio, fixed length": replace(CATALOG["dr_grpo"], importance_sampling_level="sequence"),
    "truncated importance sampling": replace(CATALOG["grpo"], tis_cap=1.02),
    "sequence ratio, corrected": replace(CATALOG["gspo"], tis_cap=1.02),
    "k1": replace(CATALOG["dr_grpo"], kl_estimator="k1"),
    "k2": replace(CATALOG["dapo"], kl_estimator="k2"),
    "behaviour k1": replace(CATALOG["grpo"], behaviour_kl_coef=0.3, behaviour_kl_estimator="k1"),
    "behaviour k2": replace(CATALOG["bnpo"], behaviour_kl_coef=0.3),
    "behaviour k3": replace(CATALOG["dr_grpo"], behaviour_kl_coef=0.3, behaviour_kl_estimator="k3"),
    "entropy": replace(CATALOG["grpo"], entropy_coef=0.05),
    "listwise per token": replace(
        CATALOG["maxent"], length_normalize_policy=True, length_normalize_ref=True, loss_type="grpo"
    ),
    "listwise over tau": replace(
        CATALOG["maxent"], weight_denominator="tau", q_temperature=0.3, q_epsilon=0.01
    ),
    "listwise with penalties": replace(CATALOG["maxent"], kl_in_loss=True, entropy_coef=0.1),
    "listwise, no skip": replace(CATALOG["maxent"], skip_zero_spread_groups=False),
    "likelihood, no skip": replace(CATALOG["maxent_likelihood"], skip_zero_spread_groups=False),
    "tilted by length": replace(CATALOG["tilted"], tilted_utility="dr_grpo", max_completion_length=11),
    "tilted, corrected, with KL": replace(CATALOG["tilted"], tis_cap=1.02, kl_in_loss=True),
    "tilted relative to spread": replace(CATALOG["tilted"], scale_rewards="group"),
}


@pytest.mark.parametrize("on_policy", [False, True], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("name", VARIANTS)
def test_value_and_gradient_equal_the_naive_loop(name: str, beta: float, on_policy: bool) -> None:
    spec, knobs = VARIANTS[name], Knobs(tau=0.4, beta=beta)
    batch, forward = make_batch()
    if on_policy:
        batch = replace(batch, old_logps=None)
    signal, _ = Objective(spec).signal(batch, knobs)
    loss, _ = Objective(spec).loss(forward, batch, signal, knobs, denominators(batch))
    expected, _ = naive.loss(spec, batch, forward, knobs)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    for leaf in (forward.logps, forward.entropy):
        torch.testing.assert_close(gradient(loss, leaf), gradient(expected, leaf), atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_signal_equals_the_naive_loop(name: str) -> None:
    spec, knobs = VARIANTS[name], Knobs(tau=0.4, beta=0.2)
    batch, forward = make_batch()
    signal, _ = Objective(spec).signal(batch, knobs)
    _, expected = naive.loss(spec, batch, forward, knobs)
    if expected.weights is None:
        assert signal.weights is None
    else:
        torch.testing.assert_close(signal.weights, expected.weights, atol=1e-12, rtol=0)
    if spec.policy_loss in ("clip", "tilted"):
        torch.testing.assert_close(signal.advantages.flatten(), expected.advantages, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", CATALOG)
def test_gradient_passes_gradcheck(name: str) -> None:
    spec, knobs = CATALOG[name], Knobs(tau=0.4, beta=0.2)
    batch, forward = make_batch()
    objective = Objective(spec)
    signal, _ = objective.signal(batch, knobs)
    mask = batch.completion_mask

    def loss_of(logps: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        full = type(forward)(
            torch.full_like(forward.logps, torch.nan).masked_scatter(mask, logps),
            torch.full_like(forward.logps, torch.nan).masked_scatter(mask, entropy),
        )
        return objective.loss(full, batch, signal, knobs, denominators(batch))[0]

    leaves = [value.detach()[mask].requires_grad_() for value in (forward.logps, forward.entropy)]
    assert torch.autograd.gradcheck(loss_of, tuple(leaves), fast_mode=True)


def test_the_batch_reaches_every_branch_of_the_clip() -> None:
    objective, knobs, (batch, forward) = Objective(VARIANTS["dual clip"]), Knobs(0.4, 0.0), make_batch()
    signal, _ = objective.signal(batch, knobs)
    _, metrics = objective.loss(forward, batch, signal, knobs, denominators(batch))
    assert metrics["clip_ratio/low_mean"].value > 0
    assert metrics["clip_ratio/high_mean"].value > 0
    assert metrics["ratio/max"].value > 1.35
