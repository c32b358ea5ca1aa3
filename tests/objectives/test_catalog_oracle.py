"""Every objective of the catalogue, and every setting of it, against a loop over single tokens."""

from dataclasses import replace

import naive_objectives as naive
import pytest
import torch
from objective_batches import TESTED, denominators, gradient, make_batch

from maxent_grpo.objectives.catalog import CATALOG, ObjectiveSpec, build_objective
from maxent_grpo.types import Knobs

VARIANTS: dict[str, ObjectiveSpec] = {
    **TESTED,
    "batch scale": CATALOG["grpo"].with_settings(scale_rewards="batch"),
    "dual clip": CATALOG["dapo"].with_settings(delta=1.35),
    "sequence ratio, token mean": CATALOG["bnpo"].with_settings(
        importance_sampling_level="sequence", epsilon=0.05
    ),
    "sequence ratio, fixed length": CATALOG["dr_grpo"].with_settings(importance_sampling_level="sequence"),
    "truncated importance sampling": CATALOG["grpo"].with_settings(tis_cap=1.02),
    "masked on both sides": CATALOG["grpo"].with_settings(tis_low=0.95, tis_cap=1.05),
    "masked, token mean, under a tilt": CATALOG["tilted"].with_settings(
        tis_low=0.95, tis_cap=1.05, loss_type="dapo"
    ),
    "sequence ratio, corrected": CATALOG["gspo"].with_settings(tis_cap=1.02),
    "k1": CATALOG["dr_grpo"].with_settings(kl_estimator="k1"),
    "k2": CATALOG["dapo"].with_settings(kl_estimator="k2"),
    "behaviour k1": CATALOG["grpo"].with_settings(behaviour_kl_coef=0.3, behaviour_kl_estimator="k1"),
    "behaviour k2": CATALOG["bnpo"].with_settings(behaviour_kl_coef=0.3),
    "behaviour k3": CATALOG["dr_grpo"].with_settings(behaviour_kl_coef=0.3, behaviour_kl_estimator="k3"),
    "entropy": CATALOG["grpo"].with_settings(entropy_coef=0.05),
    "listwise per token": CATALOG["maxent"].with_settings(
        maxent_length_normalize_policy=True, maxent_length_normalize_ref=True, loss_type="grpo"
    ),
    "listwise over tau": CATALOG["maxent"].with_settings(
        maxent_weight_denominator="tau", maxent_q_temperature=0.3, maxent_q_epsilon=0.01
    ),
    "listwise with penalties": CATALOG["maxent"].with_settings(kl_in_loss=True, entropy_coef=0.1),
    "listwise, no skip": CATALOG["maxent"].with_settings(skip_zero_spread_groups=False),
    "likelihood, no skip": CATALOG["maxent_likelihood"].with_settings(skip_zero_spread_groups=False),
    "tilted by length": CATALOG["tilted"].with_settings(
        maxent_tilted_utility="dr_grpo", max_completion_length=11
    ),
    "tilted, corrected, with KL": CATALOG["tilted"].with_settings(tis_cap=1.02, kl_in_loss=True),
    "tilted relative to spread": CATALOG["tilted"].with_settings(scale_rewards="group"),
    "tilted, temperature by prompt": CATALOG["tilted"].with_settings(maxent_tau_mode_adaptive=True),
    "tilted, leave-one-out, soft gate": CATALOG["tilted"].with_settings(advantage="rloo", surrogate="sapo"),
    "overlong": CATALOG["dapo"].with_settings(
        overlong_buffer=7, overlong_penalty=0.5, max_completion_length=11
    ),
    "overlong, listwise": CATALOG["maxent"].with_settings(overlong_buffer=7, max_completion_length=11),
    "every shaping, batch scale": CATALOG["grpo"].with_settings(
        scale_rewards="batch",
        unlikeliness_coef=0.5,
        overlong_buffer=9,
        max_completion_length=11,
        entropy_bonus_coef=0.2,
    ),
    "seed, plain alpha, summed": CATALOG["gspo"].with_settings(
        seed_grpo_enabled=True,
        seed_grpo_alpha=0.5,
        seed_grpo_alpha_normalize_by_max_entropy=False,
        seed_grpo_length_normalize_logprobs=False,
    ),
    "seed on maxrl and cispo": TESTED["cispo"].with_settings(
        advantage="maxrl", scale_rewards="none", seed_grpo_enabled=True
    ),
    "risk averse": CATALOG["risk_sensitive"].with_settings(risk_sensitivity=-1.5),
    "rloo over deviation": CATALOG["rloo"].with_settings(scale_rewards="group"),
    "cispo, sequence ratio, corrected": TESTED["cispo"].with_settings(
        importance_sampling_level="sequence", tis_cap=1.02
    ),
    "sapo, sequence ratio": CATALOG["sapo"].with_settings(importance_sampling_level="sequence"),
    "vespo, corrected": CATALOG["vespo"].with_settings(tis_cap=1.02),
    "soft gate, fixed length": CATALOG["dr_grpo"].with_settings(surrogate="sapo", sapo_temperature_neg=2.0),
    "gmpo, two bounds, token mean, corrected": CATALOG["gmpo"].with_settings(
        epsilon=0.1, epsilon_high=0.3, loss_type="dapo", tis_cap=1.02
    ),
    "gmpo, under a tilt": CATALOG["tilted"].with_settings(surrogate="gmpo", epsilon=0.05),
    "luspo, token ratio": CATALOG["luspo"].with_settings(importance_sampling_level="token"),
    "off-policy mask": CATALOG["grpo"].with_settings(off_policy_mask_threshold=0.05),
    "top entropy, sequence ratio": TESTED["top_entropy"].with_settings(importance_sampling_level="sequence"),
    "selection of every kind": TESTED["clip_cov"].with_settings(
        top_entropy_quantile=0.7, off_policy_mask_threshold=0.1, kl_cov_fraction=0.2
    ),
    "covariance under a tilt": CATALOG["tilted"].with_settings(
        kl_cov_fraction=0.2, clip_cov_fraction=0.3, clip_cov_low=0.01
    ),
    "gapo as published": CATALOG["grpo"].with_settings(gapo="paper"),
    "ucpo as in the authors' code": CATALOG["grpo"].with_settings(ucpo_coef=0.7, ucpo_likelihood="token"),
    "semantic maxent, closed": CATALOG["semantic_maxent"].with_settings(
        semantic_maxent_support="closed", semantic_maxent_cap=0.6
    ),
    "max@1, with credit": CATALOG["max_at_k"].with_settings(max_k=1, pcmd_coef=0.3),
    "tilted, with credit": CATALOG["tilted"].with_settings(
        pcmd_coef=0.5, semantic_maxent_coef=0.4, setpo_coef=0.3, ucpo_coef=0.2
    ),
    "sets of two, tilted": CATALOG["tilted"].with_settings(poly_epo_size=2),
    "credit, seed": CATALOG["seed_grpo"].with_settings(setpo_coef=0.3, semantic_maxent_coef=0.2),
    "flow with a KL as well": TESTED["flowrl"].with_settings(kl_in_loss=True, epsilon=0.05),
    "functions of one's own": ObjectiveSpec(
        advantage=lambda u: u.sign() - u.sign().mean(dim=1, keepdim=True),
        surrogate=lambda ratio, a: -ratio.log() * a.unsqueeze(1),
        scale_rewards="none",
        loss_type="dapo",
    ),
}


@pytest.mark.parametrize("on_policy", [False, True], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("name", VARIANTS)
def test_value_and_gradient_equal_the_naive_loop(name: str, beta: float, on_policy: bool) -> None:
    spec, knobs = VARIANTS[name], Knobs(tau=0.4, beta=beta)
    batch, forward = make_batch()
    if on_policy:
        batch = replace(batch, old_logps=None)
    signal, _ = build_objective(spec).signal(batch, knobs)
    loss, _ = build_objective(spec).loss(forward, batch, signal, knobs, denominators(batch))
    expected, _ = naive.loss(spec, batch, forward, knobs)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    for leaf in (forward.logps, forward.entropy):
        torch.testing.assert_close(gradient(loss, leaf), gradient(expected, leaf), atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_signal_equals_the_naive_loop(name: str) -> None:
    spec, knobs = VARIANTS[name], Knobs(tau=0.4, beta=0.2)
    batch, forward = make_batch()
    signal, _ = build_objective(spec).signal(batch, knobs)
    _, expected = naive.loss(spec, batch, forward, knobs)
    if expected.weights is None:
        assert signal.weights is None
    else:
        torch.testing.assert_close(signal.weights, expected.weights, atol=1e-12, rtol=0)
    if spec["policy_loss"] in ("clip", "tilted", "flow"):
        torch.testing.assert_close(signal.advantages.flatten(), expected.advantages, atol=1e-12, rtol=0)


# The others detach a weight of the gradient, or select tokens by the log-probs that are varied.
@pytest.mark.parametrize(
    "name", sorted(CATALOG.keys() - {"cispo", "vespo", "gspo_token", "clip_cov", "kl_cov", "flowrl"})
)
def test_gradient_passes_gradcheck(name: str) -> None:
    spec, knobs = TESTED[name], Knobs(tau=0.4, beta=0.2)
    batch, forward = make_batch()
    objective = build_objective(spec)
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
    objective, knobs, (batch, forward) = build_objective(VARIANTS["dual clip"]), Knobs(0.4, 0.0), make_batch()
    signal, _ = objective.signal(batch, knobs)
    _, metrics = objective.loss(forward, batch, signal, knobs, denominators(batch))
    assert metrics["clip_ratio/low_mean"].value > 0
    assert metrics["clip_ratio/high_mean"].value > 0
    assert metrics["ratio/max"].value > 1.35
