"""Every reported number, recomputed from its definition."""

import math
from dataclasses import replace

import naive_objectives as naive
import pytest
import torch
from objective_batches import TESTED, denominators, make_batch, total
from seeded_batches import loss_of, seeded_batch, spec_of

from maxent_grpo.objectives.catalog import CATALOG, ObjectiveSpec, build_objective
from maxent_grpo.objectives.infoseed import InfoSeed
from maxent_grpo.objectives.objective import Objective
from maxent_grpo.observe.definitions import definitions
from maxent_grpo.types import Batch, Forward, Knobs

KNOBS = Knobs(tau=0.4, beta=0.2)


def metrics_of(
    spec: ObjectiveSpec, knobs: Knobs = KNOBS
) -> tuple[dict[str, float], Batch, Forward, Objective]:
    batch, forward = make_batch()
    objective = build_objective(spec)
    signal, first = objective.signal(batch, knobs)
    _, second = objective.loss(forward, batch, signal, knobs, denominators(batch))
    return total([first, second]), batch, forward, objective


def test_every_metric_is_defined_and_every_definition_is_used() -> None:
    seen: set[str] = set()
    for spec in TESTED.values():
        seen |= metrics_of(spec.with_settings(entropy_coef=0.1, behaviour_kl_coef=0.1))[0].keys()
    seen |= metrics_of(CATALOG["grpo"].with_settings(tis_cap=1.1, off_policy_mask_threshold=0.1))[0].keys()
    batch, forward = seeded_batch()
    seen |= loss_of(spec_of(coefficient=0.1), batch, forward)[1].keys()
    seen |= InfoSeed(num_seeds=3).state_metrics(torch.randn(12, 6)).keys()
    defined = {metric.name for metric in definitions() if metric.part == "objectives"}
    assert {f"train/{name}" for name in seen} == defined


def test_utilities() -> None:
    metrics, batch, _, _ = metrics_of(CATALOG["grpo"])
    assert metrics["reward"] == pytest.approx(batch.utilities.mean().item(), abs=1e-12)
    stds = batch.utilities.std(dim=1)
    assert metrics["reward_std"] == pytest.approx(stds.mean().item(), abs=1e-12)
    assert metrics["frac_reward_zero_std"] == pytest.approx((stds < 1e-12).double().mean().item())
    assert metrics["frac_reward_zero_std"] > 0


@pytest.mark.parametrize("name", ["maxent", "maxent_likelihood", "tilted"])
def test_weights_and_targets(name: str) -> None:
    metrics, batch, _, objective = metrics_of(CATALOG[name])
    signal, _ = objective.signal(batch, KNOBS)
    entropies = [-sum(w * math.log(w) for w in row) for row in signal.weights.tolist()]
    assert metrics["weight_entropy"] == pytest.approx(sum(entropies) / 4, abs=1e-12)
    assert metrics["weight_entropy_norm"] == pytest.approx(sum(entropies) / 4 / math.log(3), abs=1e-12)
    assert metrics["weight_entropy_min"] == pytest.approx(min(entropies), abs=1e-12)
    assert metrics["weight_entropy_max"] == pytest.approx(max(entropies), abs=1e-12)
    assert metrics["effective_rollouts"] == pytest.approx(sum(map(math.exp, entropies)) / 4, abs=1e-12)
    assert metrics["weight_norm_denom"] == pytest.approx(0.6)
    targets = [-sum(math.exp(q) * q for q in row) for row in signal.log_q.tolist()]
    assert metrics["q_entropy_mean"] == pytest.approx(sum(targets) / 4, abs=1e-12)
    assert metrics["q_entropy_min"] == pytest.approx(min(targets), abs=1e-12)
    assert metrics["q_entropy_max"] == pytest.approx(max(targets), abs=1e-12)


def test_norm_denominator_follows_the_form_of_the_weights() -> None:
    spec = CATALOG["maxent"].with_settings(maxent_weight_denominator="tau")
    assert metrics_of(spec)[0]["weight_norm_denom"] == pytest.approx(0.4)


def test_the_loss_is_the_sum_of_its_parts() -> None:
    spec = CATALOG["dapo"].with_settings(entropy_coef=0.1, behaviour_kl_coef=0.3)
    metrics, batch, forward, objective = metrics_of(spec)
    signal, _ = objective.signal(batch, KNOBS)
    loss, _ = objective.loss(forward, batch, signal, KNOBS, denominators(batch))
    parts = ("loss/policy", "loss/weighted_kl", "loss/behaviour_kl", "loss/entropy")
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-15)
    assert metrics["loss"] == pytest.approx(sum(metrics[part] for part in parts), abs=1e-12)
    assert metrics["loss/weighted_kl"] == pytest.approx(0.2 * metrics["loss/kl"], abs=1e-12)
    assert metrics["loss/kl"] == pytest.approx(metrics["kl"], abs=1e-12)  # a token mean under dapo
    assert metrics["loss/entropy"] == pytest.approx(-0.1 * metrics["entropy"], abs=1e-12)
    assert metrics["loss/behaviour_kl"] == pytest.approx(0.3 * metrics["behaviour_kl"], abs=1e-12)


def test_kl_is_measured_where_the_loss_has_none() -> None:
    metrics, batch, forward, _ = metrics_of(CATALOG["maxent"])
    r = (forward.logps - batch.reference_logps)[batch.completion_mask]
    assert metrics["kl"] == pytest.approx(((-r).exp() - 1 + r).mean().item(), abs=1e-12)
    assert metrics["loss/weighted_kl"] == 0
    assert metrics["loss"] == metrics["loss/policy"]


def test_ratios_and_clipping_per_token() -> None:
    metrics, batch, forward, objective = metrics_of(CATALOG["grpo"])
    mask = batch.completion_mask
    rho = (forward.logps - batch.old_logps)[mask].exp()
    advantages = objective.signal(batch, KNOBS)[0].advantages.flatten()[:, None].expand_as(mask)[mask]
    low, high = (rho < 0.8) & (advantages < 0), (rho > 1.2) & (advantages > 0)
    assert low.any()
    assert high.any()
    assert metrics["clip_ratio/low_mean"] == pytest.approx(low.double().mean().item())
    assert metrics["clip_ratio/high_mean"] == pytest.approx(high.double().mean().item())
    assert metrics["clip_ratio"] == pytest.approx((low | high).double().mean().item())
    assert metrics["ratio/mean"] == pytest.approx(rho.mean().item(), abs=1e-12)
    assert metrics["ratio/max"] == pytest.approx(rho.max().item(), abs=1e-12)


def test_semantic_entropy() -> None:
    spec = TESTED["seed_grpo"]
    metrics, batch, _, _ = metrics_of(spec)
    scales = [naive.semantic_scale(spec, batch, p) for p in range(4)]
    alpha = 0.8 / math.log(3)
    entropies = [(1 / scale - 1) / alpha for scale in scales]
    for name, values in (("semantic_entropy", entropies), ("advantage_scale", scales)):
        for kind, value in (("mean", sum(values) / 4), ("min", min(values)), ("max", max(values))):
            assert metrics[f"seed_grpo/{name}_{kind}"] == pytest.approx(value, abs=1e-12)
    assert metrics["seed_grpo/alpha_effective"] == pytest.approx(alpha)
    assert metrics["seed_grpo/max_possible_entropy"] == pytest.approx(math.log(3))
    assert max(entropies) > 0.1


def test_shares_of_tokens() -> None:
    spec = TESTED["clip_cov"].with_settings(top_entropy_quantile=0.7, kl_cov_fraction=0.2)
    metrics, batch, forward, objective = metrics_of(spec)
    flat = objective.signal(batch, KNOBS)[0].advantages.flatten().tolist()
    tokens = int(batch.completion_mask.sum())
    only = {"clip_cov/dropped": spec.with_settings(top_entropy_quantile=1.0)}
    only["top_entropy/kept"] = spec.with_settings(clip_cov_fraction=0.0)
    gone = {
        name: sum(len(naive.dropped(part, batch, forward, flat, row)) for row in range(0, 12, 3))
        for name, part in only.items()
    }
    assert metrics["clip_cov/dropped"] * tokens == pytest.approx(gone["clip_cov/dropped"])
    assert metrics["top_entropy/kept"] * tokens == pytest.approx(tokens - gone["top_entropy/kept"])
    assert 0 < gone["clip_cov/dropped"] < tokens
    held = [math.ceil(0.2 * int(group.sum())) for group in batch.completion_mask.split(3)]
    assert metrics["kl_cov/held"] * tokens == pytest.approx(sum(held))


def test_utility_after_shaping_is_reported_beside_the_reward() -> None:
    spec = CATALOG["grpo"].with_settings(overlong_buffer=10, max_completion_length=11)
    metrics, batch, _, _ = metrics_of(spec)
    over = ((batch.lengths.double() - 1) / 10).clamp(min=0).mean().item()
    assert metrics["reward_shaped"] == pytest.approx(metrics["reward"] - over, abs=1e-12)
    assert "reward_shaped" not in metrics_of(CATALOG["grpo"])[0]


def test_ratios_per_completion_count_completions() -> None:
    metrics, batch, forward, _ = metrics_of(CATALOG["gspo"])
    gaps = torch.where(batch.completion_mask, forward.logps - batch.old_logps, 0.0).sum(1) / batch.lengths
    assert metrics["ratio/mean"] == pytest.approx(gaps.exp().mean().item(), abs=1e-12)
    assert metrics["ratio/max"] == pytest.approx(gaps.exp().max().item(), abs=1e-12)
    assert (metrics["clip_ratio"] * 12) == pytest.approx(round(metrics["clip_ratio"] * 12))


def test_largest_ratio_ignores_the_ones_at_padding() -> None:
    batch, forward = make_batch()
    batch = replace(batch, old_logps=forward.logps.detach() + 0.5)
    signal, _ = build_objective(CATALOG["grpo"]).signal(batch, Knobs(0.4, 0.0))
    _, metrics = build_objective(CATALOG["grpo"]).loss(
        forward, batch, signal, Knobs(0.4, 0.0), denominators(batch)
    )
    assert metrics["ratio/max"].value.item() == pytest.approx(math.exp(-0.5))


def test_corrections() -> None:
    metrics, batch, _, _ = metrics_of(CATALOG["grpo"].with_settings(tis_cap=1.05))
    factors = (batch.old_logps - batch.behaviour_logps)[batch.completion_mask].exp()
    assert metrics["tis/mean"] == pytest.approx(factors.clamp(max=1.05).mean().item(), abs=1e-12)
    assert metrics["tis/capped"] == pytest.approx((factors >= 1.05).double().mean().item())
    assert 0 < metrics["tis/capped"] < 1
    assert metrics["tis/raw_mean"] == pytest.approx(factors.mean().item(), abs=1e-12)
    assert metrics["tis/raw_max"] == pytest.approx(factors.max().item(), abs=1e-12)
    assert metrics["tis/raw_square_mean"] == pytest.approx(factors.square().mean().item(), abs=1e-12)


def test_masked_corrections() -> None:
    metrics, batch, _, _ = metrics_of(CATALOG["grpo"].with_settings(tis_low=0.95, tis_cap=1.05))
    factors = (batch.old_logps - batch.behaviour_logps)[batch.completion_mask].exp().tolist()
    kept = [r for r in factors if 0.95 <= r <= 1.05]
    assert any(r < 0.95 for r in factors)
    assert any(r > 1.05 for r in factors)
    assert metrics["tis/mean"] == pytest.approx(sum(kept) / len(factors), abs=1e-12)
    assert metrics["tis/capped"] == pytest.approx(1 - len(kept) / len(factors))


def test_metrics_carry_no_gradient() -> None:
    batch, forward = make_batch()
    for spec in TESTED.values():
        signal, _ = build_objective(spec).signal(batch, KNOBS)
        _, metrics = build_objective(spec).loss(forward, batch, signal, KNOBS, denominators(batch))
        assert not any(stat.value.requires_grad for stat in metrics.values())
