"""SEED-GRPO: the entropy over answers, its limits, and what scaling does to a backbone."""

import math
from dataclasses import replace

import pytest
import torch
from objective_batches import denominators, gradient, make_batch

from maxent_grpo.errors import UsageError
from maxent_grpo.objectives.catalog import CATALOG, build_objective
from maxent_grpo.objectives.semantic import effective_alpha, seed_scale, semantic_entropy
from maxent_grpo.types import Knobs

EQUAL = torch.zeros(1, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("clusters", "expected"),
    [
        ([0, 0, 0, 0], 0.0),
        ([0, 1, 2, 3], math.log(4)),
        ([0, 0, 1, 1], math.log(2)),
        ([5, 5, 5, 9], -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))),
    ],
)
def test_equal_probabilities_count_answers(clusters: list[int], expected: float) -> None:
    entropy = semantic_entropy(torch.tensor([clusters]), EQUAL)
    assert entropy.item() == pytest.approx(expected, abs=1e-15)
    assert entropy.item() >= 0


def test_likely_completions_weigh_more() -> None:
    scores = torch.tensor([[math.log(6.0), math.log(3.0), 0.0]], dtype=torch.float64)
    entropy = semantic_entropy(torch.tensor([[0, 1, 0]]), scores)
    assert entropy.item() == pytest.approx(-(0.7 * math.log(0.7) + 0.3 * math.log(0.3)), abs=1e-14)


@pytest.mark.parametrize("shift", [0.0, -2000.0])
def test_only_differences_of_scores_matter(shift: float) -> None:
    assert semantic_entropy(torch.tensor([[0, 0, 1, 2]]), EQUAL + shift).item() == pytest.approx(
        1.5 * math.log(2), abs=1e-12
    )


def test_alpha_is_in_units_of_the_largest_entropy() -> None:
    alpha = effective_alpha(0.5, 8, True)
    assert seed_scale(torch.tensor(math.log(8)), alpha).item() == pytest.approx(1 / 1.5)
    assert effective_alpha(0.5, 8, False) == 0.5
    with pytest.raises(ValueError, match="at least 2 completions"):
        effective_alpha(0.5, 1, True)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "rloo", "maxrl"])
def test_alpha_zero_is_the_backbone_to_the_last_bit(name: str) -> None:
    batch, forward = make_batch(dtype=torch.float32)
    results = []
    for spec in (CATALOG[name], CATALOG[name].with_settings(seed_grpo_enabled=True, seed_grpo_alpha=0.0)):
        objective = build_objective(spec.with_settings(kl_in_loss=False))
        signal, _ = objective.signal(batch, Knobs(0.0, 0.0))
        loss, _ = objective.loss(forward, batch, signal, Knobs(0.0, 0.0), denominators(batch))
        results.append((signal.advantages, loss, gradient(loss, forward.logps)))
    for ours, backbone in zip(*results, strict=True):
        assert torch.equal(ours, backbone)


def test_disagreement_shrinks_advantages_and_agreement_leaves_them() -> None:
    batch, _ = make_batch()
    clusters = torch.zeros_like(batch.answer_clusters)
    clusters[1] = torch.arange(3)
    batch = replace(batch, answer_clusters=clusters)
    plain, _ = build_objective(CATALOG["dr_grpo"]).signal(batch, Knobs(0.0, 0.0))
    scaled, _ = build_objective(CATALOG["seed_grpo"]).signal(batch, Knobs(0.0, 0.0))
    assert torch.equal(scaled.advantages[0], plain.advantages[0])
    assert (scaled.advantages[1].abs() < plain.advantages[1].abs()).all()


def test_missing_clusters_are_named() -> None:
    batch, _ = make_batch()
    with pytest.raises(ValueError, match=r"needs Batch\.answer_clusters"):
        build_objective(CATALOG["seed_grpo"]).signal(replace(batch, answer_clusters=None), Knobs(0.0, 0.0))


@pytest.mark.parametrize("name", ["maxent", "maxent_likelihood", "tilted", "flowrl"])
def test_an_objective_that_is_not_of_grpo_type_refuses_it_with_the_reason(name: str) -> None:
    with pytest.raises(UsageError, match="seed_grpo_enabled: scales the advantages of a GRPO-type objective"):
        CATALOG[name].with_settings(seed_grpo_enabled=True)
