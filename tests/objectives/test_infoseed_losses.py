"""InfoSeed's losses against loops, their gradients, and what they leave alone."""

import math
from dataclasses import replace

import pytest
import torch
from objective_batches import denominators, gradient, split, total
from seeded_batches import GROUPS, KNOBS, ORIGINALS, SEEDS, WIDTH, loss_of, seeded_batch, spec_of

from maxent_grpo.objectives.catalog import build_objective
from maxent_grpo.objectives.infoseed import (
    InfoSeed,
    contrast_gradient,
    info_nce,
    nearest_centroid,
    nearest_neighbour,
    seed_cross_entropy,
    seed_distances,
    subset_entropy,
)
from maxent_grpo.types import Forward


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def naive_info_nce(rows: list[list[float]], seeds: list[int], temperature: float) -> float:
    terms = []
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i and seeds[j] >= 0]
        if seeds[i] < 0:
            continue
        similarity = {j: cosine(rows[i], rows[j]) / temperature for j in others}
        normaliser = math.log(sum(math.exp(s) for s in similarity.values()))
        terms += [normaliser - similarity[j] for j in others if seeds[j] == seeds[i]]
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("temperature", [0.05, 0.3, 2.0])
@pytest.mark.parametrize(
    "seeds", [[0, 1, 2, 0, 1, 2, -1, -1], [0, 0, 0, 1, -1, 1, -1, 2], [0, 1, 2, 3, 4, 5, -1, -1], [-1] * 8]
)
def test_info_nce_equals_a_loop_over_pairs(seeds: list[int], temperature: float) -> None:
    pooled = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = info_nce(pooled, torch.tensor(seeds), temperature)
    assert got.item() == pytest.approx(naive_info_nce(pooled.tolist(), seeds, temperature), abs=1e-10)


def test_info_nce_reads_directions_only_and_originals_not_at_all() -> None:
    batch, forward = seeded_batch()
    pooled = forward.pooled.detach()
    loss = info_nce(pooled, batch.seed_ids, 0.1)
    lengths = torch.linspace(0.5, 3.0, len(pooled), dtype=torch.float64).unsqueeze(1)
    assert info_nce(lengths * pooled, batch.seed_ids, 0.1).item() == pytest.approx(loss.item(), abs=1e-12)
    elsewhere = torch.where(batch.seed_ids.unsqueeze(1) < 0, 7.0, pooled)
    assert info_nce(elsewhere, batch.seed_ids, 0.1).item() == pytest.approx(loss.item(), abs=1e-12)


def test_info_nce_limits() -> None:
    ids = torch.arange(4).repeat(5)
    told_apart = torch.eye(4, dtype=torch.float64).repeat(5, 1)
    one_point = torch.ones(20, 3, dtype=torch.float64)
    assert info_nce(one_point, ids, 0.1).item() == pytest.approx(math.log(19))  # chance among the others
    assert info_nce(told_apart, ids, 0.01).item() == pytest.approx(math.log(4))  # chance among four positives
    with pytest.raises(ValueError, match="must be positive, got 0"):
        info_nce(told_apart, ids, 0.0)


def test_seed_cross_entropy_equals_a_loop_over_seeded_rows() -> None:
    batch, forward = seeded_batch()
    terms = [
        math.log(sum(map(math.exp, row))) - row[seed]
        for row, seed in zip(forward.seed_logits.tolist(), batch.seed_ids.tolist(), strict=True)
        if seed >= 0
    ]
    got = seed_cross_entropy(forward.seed_logits, batch.seed_ids)
    assert got.item() == pytest.approx(sum(terms) / len(terms), abs=1e-10)
    assert seed_cross_entropy(forward.seed_logits, torch.full_like(batch.seed_ids, -1)).item() == 0
    grad = gradient(got, forward.seed_logits)
    assert not grad[batch.seed_ids < 0].any()


def test_subset_entropy_equals_a_loop() -> None:
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    subset = torch.tensor([[True, True, False, False, True]] * 2 + [[False] * 5])
    for row, kept, got in zip(scores.tolist(), subset.tolist(), subset_entropy(scores, subset), strict=True):
        exps = [math.exp(s) for s, k in zip(row, kept, strict=True) if k]
        expected = -sum(e / sum(exps) * math.log(e / sum(exps)) for e in exps)
        assert got.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("loss_type", "leaf"), [("infonce", "pooled"), ("ce", "seed_logits"), ("infonce", "logps")]
)
def test_gradients_equal_finite_differences(loss_type: str, leaf: str) -> None:
    batch, forward = seeded_batch()
    spec = spec_of(
        loss_type=loss_type, coefficient=0.7, temperature=0.3, alpha_entropy=0.4 if leaf == "logps" else 0.0
    )
    backbone = spec.with_settings(info_seed_enabled=False)
    values = getattr(forward, leaf)
    spots = [(2, 0), (3, 0), (13, 0)]  # seeded rows
    analytic = gradient(loss_of(spec, batch, forward)[0] - loss_of(backbone, batch, forward)[0], values)
    for spot in spots:
        sides = []
        for step in (1e-6, -1e-6):
            moved = values.detach().clone()
            moved[spot] += step
            there = replace(forward, **{leaf: moved})
            sides.append(loss_of(spec, batch, there)[0] - loss_of(backbone, batch, there)[0])
        numeric = (sides[0] - sides[1]).item() / 2e-6
        assert numeric == pytest.approx(analytic[spot].item(), rel=1e-5)
        assert abs(numeric) > 1e-5


@pytest.mark.parametrize("loss_type", ["infonce", "ce"])
@pytest.mark.parametrize("backbone", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_without_coefficients_it_is_its_backbone(backbone: str, loss_type: str) -> None:
    batch, forward = seeded_batch()
    spec = spec_of(backbone, loss_type=loss_type)
    loss, metrics = loss_of(spec, batch, forward)
    expected, backbone_metrics = loss_of(spec.with_settings(info_seed_enabled=False), batch, forward)
    assert torch.equal(loss, expected)
    assert torch.equal(gradient(loss, forward.logps), gradient(expected, forward.logps))
    assert not gradient(loss, forward.pooled).any()
    assert backbone_metrics.items() <= metrics.items()
    assert metrics["loss/seed"] == metrics["info_seed/entropy"] == 0


def test_the_terms_add_up_and_the_entropies_are_those_of_the_parts() -> None:
    batch, forward = seeded_batch()
    spec = spec_of(coefficient=0.3, temperature=0.2, alpha_entropy=0.5)
    loss, metrics = loss_of(spec, batch, forward)
    backbone = loss_of(spec.with_settings(info_seed_enabled=False), batch, forward)[0]
    contrast = naive_info_nce(forward.pooled.tolist(), batch.seed_ids.tolist(), 0.2)
    assert metrics["loss/seed"] == pytest.approx(0.3 * contrast, abs=1e-10)
    gap = 0.5 * (metrics["seed/entropy/orig"] - metrics["seed/entropy/seed_aug"])
    assert metrics["info_seed/entropy"] == pytest.approx(gap, abs=1e-12)
    assert (loss - backbone).item() == pytest.approx(metrics["loss/seed"] + gap, abs=1e-12)
    assert metrics["seed/seed_aug_frac"] == pytest.approx(3 / 5)
    per_token = [
        row[kept].mean().item() for row, kept in zip(forward.logps, batch.completion_mask, strict=True)
    ]
    entropies = []
    for group in range(GROUPS):
        exps = [math.exp(s) for s in per_token[5 * group + ORIGINALS : 5 * group + 5]]
        entropies.append(-sum(e / sum(exps) * math.log(e / sum(exps)) for e in exps))
    assert metrics["seed/entropy/seed_aug"] == pytest.approx(sum(entropies) / GROUPS, abs=1e-10)


def test_the_entropy_gap_sharpens_originals_and_flattens_seeds() -> None:
    batch, forward = seeded_batch()
    spec = spec_of("dr_grpo", alpha_entropy=1.0)
    before = loss_of(spec, batch, forward)[1]
    gap = (
        loss_of(spec, batch, forward)[0]
        - loss_of(spec.with_settings(info_seed_enabled=False), batch, forward)[0]
    )
    stepped = (forward.logps - 0.5 * gradient(gap, forward.logps).nan_to_num()).detach()
    after = loss_of(spec, batch, replace(forward, logps=stepped))[1]
    assert after["seed/entropy/orig"] < before["seed/entropy/orig"]
    assert after["seed/entropy/seed_aug"] > before["seed/entropy/seed_aug"]


@pytest.mark.parametrize("loss_type", ["infonce", "ce"])
@pytest.mark.parametrize("groups_per_part", [1, 3])
def test_parts_add_up_to_the_whole(loss_type: str, groups_per_part: int) -> None:
    batch, forward = seeded_batch()
    spec = spec_of(loss_type=loss_type, coefficient=0.7, temperature=0.3, alpha_entropy=0.2)
    expected, expected_metrics = loss_of(spec, batch, forward)
    signal, signal_metrics = build_objective(spec).signal(batch, KNOBS)
    shares, slope = contrast_gradient(forward.pooled, batch.seed_ids, 0.3)
    signal = replace(
        signal,
        contrast_losses=shares.view(GROUPS, -1),
        contrast_gradient=slope.view(GROUPS, ORIGINALS + SEEDS, WIDTH),
    )
    loss, metrics, row = torch.zeros((), dtype=torch.float64), [signal_metrics], 0
    parts = zip(split(batch, groups_per_part), split(signal, groups_per_part), strict=True)
    for part, part_signal in parts:
        rows, width = part.completion_mask.shape
        own = slice(row, row + rows)
        view = Forward(
            forward.logps[own, :width],
            forward.entropy[own, :width],
            forward.pooled[own],
            forward.seed_logits[own],
        )
        part_loss, part_metrics = build_objective(spec).loss(
            view, part, part_signal, KNOBS, denominators(batch)
        )
        loss, row = loss + part_loss, row + rows
        metrics.append(part_metrics)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    for leaf in (forward.logps, forward.pooled, forward.seed_logits):
        torch.testing.assert_close(gradient(loss, leaf), gradient(expected, leaf), atol=1e-12, rtol=0)
    assert total(metrics) == pytest.approx(expected_metrics, abs=1e-12)


def test_a_contrast_over_one_micro_batch_of_several_is_refused() -> None:
    batch, forward = seeded_batch()
    objective = build_objective(spec_of(coefficient=0.1))
    signal, _ = objective.signal(batch, KNOBS)
    part, width = next(split(batch, 1)), ORIGINALS + SEEDS
    forward = Forward(forward.logps[:width, : part.completion_mask.shape[1]], pooled=forward.pooled[:width])
    with pytest.raises(ValueError, match="pooled states of the whole optimiser batch"):
        objective.loss(forward, part, next(split(signal, 1)), KNOBS, denominators(batch))


def test_what_is_missing_is_named() -> None:
    batch, forward = seeded_batch()
    with pytest.raises(ValueError, match="seed ids"):
        loss_of(spec_of(), replace(batch, seed_ids=None), forward)
    with pytest.raises(ValueError, match="pooled states"):
        loss_of(spec_of(coefficient=0.1), batch, replace(forward, pooled=None))
    with pytest.raises(ValueError, match="seed logits"):
        loss_of(spec_of(loss_type="ce"), batch, replace(forward, seed_logits=None))


def test_classification_and_distances_equal_loops() -> None:
    states = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    states = states + torch.eye(3, 5, dtype=torch.float64)
    units = (states / states.norm(dim=2, keepdim=True)).tolist()
    by_centroid, by_neighbour, distances = [], [], []
    for p in range(4):
        others = [q for q in range(4) if q != p]
        centroids = [[sum(units[q][s][d] for q in others) for d in range(5)] for s in range(3)]
        for s in range(3):
            closeness = [cosine(units[p][s], centroid) for centroid in centroids]
            by_centroid.append(closeness.index(max(closeness)) == s)
            near = max((cosine(units[p][s], units[q][r]), r) for q in others for r in range(3))
            by_neighbour.append(near[1] == s)
        pairs = [(units[p][a], units[p][b]) for a in range(3) for b in range(a + 1, 3)]
        distances.append(sum(math.dist(a, b) for a, b in pairs) / 3)
    assert nearest_centroid(states).flatten().tolist() == by_centroid
    assert nearest_neighbour(states).flatten().tolist() == by_neighbour
    assert seed_distances(states).tolist() == pytest.approx(distances, abs=1e-10)
    assert 0 < sum(by_centroid) < 12
    metrics = total([InfoSeed(3).state_metrics(states)])
    assert metrics["seed/seed_pred_acc"] == pytest.approx(sum(by_centroid) / 12)
    assert metrics["seed/seed_pred_acc_aug"] == pytest.approx(sum(by_neighbour) / 12)


def test_random_states_are_classified_at_chance_and_separated_ones_perfectly() -> None:
    draw = torch.Generator().manual_seed(4)
    assert nearest_centroid(torch.randn(200, 8, 16, generator=draw)).float().mean() == pytest.approx(
        1 / 8, abs=0.03
    )
    seeds = torch.randn(8, 16, generator=draw)
    prompts = 0.1 * torch.randn(20, 1, 16, generator=draw)
    assert nearest_centroid(seeds + prompts).all()


def test_one_prompt_alone_has_no_accuracy() -> None:
    assert InfoSeed(3).state_metrics(torch.randn(3, 4)).keys() == {"seed/seed_diversity_l2"}
