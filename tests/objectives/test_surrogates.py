"""Ratios, the clip, group losses, KL estimators, corrections, reductions: small cases checked by hand."""

import math

import pytest
import torch
from objective_batches import MAX_LENGTH, denominators, gradient, make_batch
from torch import Tensor

from maxent_grpo.objectives import reduce, regularizers
from maxent_grpo.objectives.components import REDUCTION
from maxent_grpo.objectives.group_losses import listwise, weighted_likelihood
from maxent_grpo.objectives.reduce import sequence_scores
from maxent_grpo.objectives.regularizers import entropy_bonus
from maxent_grpo.objectives.surrogates import (
    TruncatedImportance,
    clip_events,
    clipped,
    sequence_ratio,
    token_ratio,
)


def tensor(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_token_ratio_is_one_at_padding() -> None:
    batch, forward = make_batch()
    rho = token_ratio(forward.logps, batch.old_logps, batch.completion_mask)
    assert rho.shape == batch.completion_mask.shape
    assert (rho[~batch.completion_mask] == 1).all()
    for row, t in batch.completion_mask.nonzero().tolist():
        gap = (forward.logps[row, t] - batch.old_logps[row, t]).item()
        assert rho[row, t].item() == pytest.approx(math.exp(gap), abs=1e-12)


def test_sequence_ratio_is_the_geometric_mean_of_the_token_ratios() -> None:
    batch, forward = make_batch()
    by_token = token_ratio(forward.logps, batch.old_logps, batch.completion_mask)
    by_sequence = sequence_ratio(forward.logps, batch.old_logps, batch.completion_mask)
    assert by_sequence.shape == (12, 1)
    geometric = by_token.prod(dim=1) ** (1 / batch.lengths.double())
    torch.testing.assert_close(by_sequence[:, 0], geometric, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("rho", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # already likelier than the clip allows: no further push
        (0.5, 2.0, -1.0, -2.0),  # less likely than before: pushed up
        (0.5, -2.0, 1.6, 0.0),  # already less likely than the clip allows: no further push
        (1.5, -2.0, 3.0, 2.0),  # likelier than before although bad: pushed down, in full
        (1.1, -2.0, 2.2, 2.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clip_is_pessimistic_for_both_signs(rho: float, advantage: float, loss: float, slope: float) -> None:
    leaf = tensor(rho).requires_grad_()
    value = clipped(leaf, torch.tensor([advantage], dtype=torch.float64), 0.2, 0.2)
    assert value.item() == pytest.approx(loss, abs=1e-12)
    assert gradient(value.sum(), leaf).item() == pytest.approx(slope, abs=1e-12)


def test_clip_is_never_more_optimistic_than_the_unclipped_surrogate() -> None:
    rho = torch.linspace(0.1, 5, 200, dtype=torch.float64).unsqueeze(0)
    for advantage in (-1.5, 1.5):
        loss = clipped(rho, torch.tensor([advantage], dtype=torch.float64), 0.2, 0.28)
        assert (loss >= -rho * advantage - 1e-12).all()


def test_dual_clip_caps_the_loss_of_a_bad_token_that_became_likely() -> None:
    leaf = tensor(10.0).requires_grad_()
    loss = clipped(leaf, torch.tensor([-2.0], dtype=torch.float64), 0.2, 0.2, delta=3.0)
    assert loss.item() == 6.0
    assert gradient(loss.sum(), leaf).item() == 0.0
    good = clipped(leaf, torch.tensor([2.0], dtype=torch.float64), 0.2, 0.2, delta=3.0)
    assert good.item() == pytest.approx(-2.4)


def test_asymmetric_clip_uses_each_side() -> None:
    rho = tensor(0.7, 1.25, 1.5)
    up, down = (torch.tensor([a], dtype=torch.float64) for a in (1.0, -1.0))
    assert clipped(rho, up, 0.2, 0.28)[0].tolist() == pytest.approx([-0.7, -1.25, -1.28])
    assert clipped(rho, down, 0.2, 0.28)[0].tolist() == pytest.approx([0.8, 1.25, 1.5])
    events = clip_events(rho, up, 0.2, 0.28)
    assert events.low.tolist() == [[False, False, False]]
    assert events.high.tolist() == [[False, False, True]]
    events = clip_events(rho, down, 0.2, 0.28)
    assert events.low.tolist() == [[True, False, False]]
    assert events.high.tolist() == [[False, False, False]]


def test_clip_events_are_exactly_where_the_gradient_is_off() -> None:
    rho = torch.linspace(0.5, 1.6, 51, dtype=torch.float64).repeat(3, 1).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    events = clip_events(rho, advantages, 0.2, 0.28)
    off = gradient(clipped(rho, advantages, 0.2, 0.28).sum(), rho) == 0
    assert torch.equal((events.low | events.high)[:2], off[:2])
    assert not (events.low | events.high)[2].any()


def test_listwise_is_cross_entropy_with_gradient_p_minus_w() -> None:
    scores = tensor(-3.0, -1.0, -2.0).requires_grad_()
    weights = tensor(0.2, 0.5, 0.3)
    p = torch.softmax(scores, dim=1)
    loss = listwise(scores, weights)
    assert loss.item() == pytest.approx(-(weights * p.log()).sum().item(), abs=1e-12)
    torch.testing.assert_close(gradient(loss.sum(), scores), (p - weights).detach(), atol=1e-14, rtol=0)
    at_optimum = gradient(listwise(scores, p.detach()).sum(), scores)
    torch.testing.assert_close(at_optimum, torch.zeros_like(scores), atol=1e-15, rtol=0)


def test_listwise_is_finite_for_weights_of_zero_and_hopeless_scores() -> None:
    scores = tensor(-3000.0, -1.0).requires_grad_()
    loss = listwise(scores, tensor(0.0, 1.0))
    assert loss.item() == 0.0
    assert torch.isfinite(gradient(loss.sum(), scores)).all()


def test_weighted_likelihood_is_linear_with_a_baseline() -> None:
    scores = tensor(-3.0, -1.0, -2.0, -1.5).requires_grad_()
    weights = tensor(0.1, 0.5, 0.15, 0.25)
    loss = weighted_likelihood(scores, weights)
    assert loss.item() == pytest.approx(-(-0.15 * -3 + 0.25 * -1 + -0.1 * -2), abs=1e-12)
    torch.testing.assert_close(gradient(loss.sum(), scores), 0.25 - weights, atol=1e-15, rtol=0)
    assert not gradient(weighted_likelihood(scores, torch.full_like(weights, 0.25)).sum(), scores).any()


def test_kl_estimators_equal_their_definitions_and_vanish_at_padding() -> None:
    batch, forward = make_batch()
    for estimator in ("k1", "k2", "k3"):
        kl = getattr(regularizers, estimator)(forward.logps, batch.reference_logps, batch.completion_mask)
        assert not kl[~batch.completion_mask].any()
        for row, t in batch.completion_mask.nonzero().tolist():
            r = (forward.logps[row, t] - batch.reference_logps[row, t]).item()
            expected = {"k1": r, "k2": r * r / 2, "k3": math.exp(-r) - 1 + r}[estimator]
            assert kl[row, t].item() == pytest.approx(expected, abs=1e-12)


def test_kl_estimators_have_the_expectations_and_expected_gradients_that_their_docstring_claims() -> None:
    logits = tensor(0.3, -0.2, 0.5, 0.0).requires_grad_()
    log_p = torch.log_softmax(logits, dim=1)
    log_other = torch.log_softmax(tensor(0.1, 0.4, -0.3, 0.2), dim=1)
    p, every = log_p.exp().detach(), torch.ones(1, 4, dtype=torch.bool)
    reverse = (log_p.exp() * (log_p - log_other)).sum()
    forward = (log_other.exp() * (log_other - log_p)).sum()
    zero = torch.zeros_like(logits)
    for estimator, expected_gradient in (
        ("k1", zero),
        ("k2", gradient(reverse, logits)),
        ("k3", gradient(forward, logits)),
    ):
        expectation = (p * getattr(regularizers, estimator)(log_p, log_other, every)).sum()
        torch.testing.assert_close(gradient(expectation, logits), expected_gradient, atol=1e-14, rtol=0)
        if estimator != "k2":
            assert expectation.item() == pytest.approx(reverse.item(), abs=1e-14)


def test_small_kl_keeps_its_precision_in_float32() -> None:
    policy, other = torch.tensor([[-1.0]]), torch.tensor([[-1.0 - 2.0**-14]])
    kl = regularizers.k3(policy, other, torch.ones(1, 1, dtype=torch.bool)).item()
    assert kl == pytest.approx(2.0**-29, rel=1e-2)


def test_truncated_importance_is_capped_from_above_only_and_constant() -> None:
    old, behaviour = tensor(-1.0, -1.0, -1.0, math.nan).requires_grad_(), tensor(-1.5, -4.0, -0.5, math.nan)
    mask = torch.tensor([[True, True, True, False]])
    factors = TruncatedImportance(2.0).factors(old, behaviour, mask)
    assert factors[0].tolist() == pytest.approx([math.exp(0.5), 2.0, math.exp(-0.5), 1.0])
    assert not factors.requires_grad


@pytest.mark.parametrize("shape", ["per token", "per completion"])
@pytest.mark.parametrize("loss_type", REDUCTION.options)
def test_reductions_equal_a_loop(loss_type: str, shape: str) -> None:
    batch, forward = make_batch()
    values = forward.logps if shape == "per token" else torch.arange(12.0).double().unsqueeze(1)
    rows = []
    for row, length in enumerate(batch.lengths.tolist()):
        rows.append([values[row, t if shape == "per token" else 0].item() for t in range(length)])
    expected = {
        "grpo": sum(sum(r) / len(r) for r in rows) / 12,
        "bnpo": sum(map(sum, rows)) / sum(map(len, rows)),
        "dapo": sum(map(sum, rows)) / sum(map(len, rows)),
        "dr_grpo": sum(map(sum, rows)) / (12 * MAX_LENGTH),
        "luspo": sum(map(sum, rows)) / 12,
    }[{"cispo": "dapo", "sapo": "grpo", "vespo": "dapo"}.get(loss_type, loss_type)]
    reduced = getattr(reduce, REDUCTION.options[loss_type].path.partition(":")[2])(
        values, batch.completion_mask, denominators(batch)
    )
    assert reduced.item() == pytest.approx(expected, abs=1e-12)


def test_entropy_bonus_is_a_token_mean() -> None:
    batch, forward = make_batch()
    bonus = entropy_bonus(forward.entropy, batch.completion_mask, denominators(batch))
    assert bonus.item() == pytest.approx(forward.entropy[batch.completion_mask].mean().item(), abs=1e-12)


@pytest.mark.parametrize("length_normalize", [False, True])
def test_sequence_scores_equal_a_loop_over_unpadded_tokens(length_normalize: bool) -> None:
    batch, forward = make_batch()
    scores = sequence_scores(forward.logps, batch.completion_mask, 3, length_normalize)
    assert scores.shape == (4, 3)
    for row, score in enumerate(scores.flatten().tolist()):
        tokens = forward.logps[row, : int(batch.lengths[row])].tolist()
        assert score == pytest.approx(sum(tokens) / (len(tokens) if length_normalize else 1), abs=1e-12)
