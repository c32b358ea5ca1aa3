"""Target q, closed-form and tilted weights: values, optimality, limits, derivatives, refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maxent_grpo.objectives.weights import (
    closed_form_weights,
    target_log_q,
    tilted_weights,
    weight_entropy,
)

U = torch.tensor([[0.0, 1.0, 0.5, 1.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
REF = torch.tensor([[-5.0, -9.0, -4.0, -6.0], [-1.0, -2.0, -3.0, -4.0]], dtype=torch.float64)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("temperature", "epsilon"), [(1.0, 1e-6), (0.1, 0.05), (2.0, 0.0)])
def test_target_equals_the_floored_softmax_computed_by_hand(temperature: float, epsilon: float) -> None:
    q = target_log_q(U, temperature, epsilon).exp()
    for row, expected in zip(q.tolist(), U.tolist(), strict=True):
        exps = [math.exp(u / temperature) for u in expected]
        by_hand = [e / sum(exps) * (1 - epsilon * 4) + epsilon for e in exps]
        assert row == pytest.approx(by_hand, abs=1e-14)
        assert sum(row) == pytest.approx(1, abs=1e-14)


def test_target_keeps_its_floor_where_the_softmax_underflows() -> None:
    utilities = torch.tensor([[0.0, 1e6]], dtype=torch.float32)
    assert target_log_q(utilities, 1e-3, 1e-6)[0, 0].item() == pytest.approx(math.log(1e-6), rel=1e-6)
    assert torch.isfinite(target_log_q(utilities, 1e-3, 0.0)).all()


def test_target_refuses_a_floor_that_leaves_nothing_and_names_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"epsilon=0\.25, group size 4"):
        target_log_q(U, 1.0, 0.25)


@pytest.mark.parametrize(("temperature", "epsilon"), [(0.0, 0.0), (-1.0, 0.0), (1.0, -0.1)])
def test_target_refuses_numbers_out_of_range(temperature: float, epsilon: float) -> None:
    with pytest.raises(ValueError, match=r"temperature|epsilon"):
        target_log_q(U, temperature, epsilon)


@pytest.mark.parametrize("denominator", ["tau_plus_beta", "tau"])
def test_closed_form_equals_the_formula_computed_by_hand(denominator: str) -> None:
    tau, beta, log_q = 0.3, 0.2, target_log_q(U, 0.5, 1e-3)
    weights = closed_form_weights(log_q, REF, tau, beta, denominator)
    divisor = tau + beta if denominator == "tau_plus_beta" else tau
    for row, lq, ref in zip(weights.tolist(), log_q.tolist(), REF.tolist(), strict=True):
        exps = [math.exp((a + beta * b) / divisor) for a, b in zip(lq, ref, strict=True)]
        assert row == pytest.approx([e / sum(exps) for e in exps], abs=1e-13)


def value(kind: str, w: Tensor, log_q: Tensor, ref: Tensor, tau: float, beta: float) -> Tensor:
    """The objective that each form claims to maximise."""
    log_ref = torch.log_softmax(ref, dim=-1)
    entropy = -torch.special.xlogy(w, w).sum(-1)
    towards_ref = (w * log_ref).sum(-1) + (entropy if kind == "tau_plus_beta" else 0.0)
    return (w * log_q).sum(-1) + beta * towards_ref + tau * entropy


group = st.lists(st.floats(-3, 3), min_size=4, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    utilities=group,
    reference=group,
    other=group,
    step=st.floats(1e-3, 1),
    tau=st.floats(0.01, 5),
    beta=st.floats(0, 5),
    kind=st.sampled_from(["tau_plus_beta", "tau"]),
)
def test_no_other_distribution_does_better_than_the_closed_form(
    utilities: list[float],
    reference: list[float],
    other: list[float],
    step: float,
    tau: float,
    beta: float,
    kind: str,
) -> None:
    log_q = target_log_q(torch.tensor([utilities], dtype=torch.float64), 1.0, 1e-6)
    ref = torch.tensor([reference], dtype=torch.float64)
    best = closed_form_weights(log_q, ref, tau, beta, kind)
    rival = (1 - step) * best + step * torch.softmax(torch.tensor([other], dtype=torch.float64), dim=-1)
    at_best, at_rival = (value(kind, w, log_q, ref, tau, beta).item() for w in (best, rival))
    assert at_best >= at_rival - 1e-12


def test_gradient_ascent_on_the_simplex_arrives_at_the_closed_form() -> None:
    log_q, tau, beta = target_log_q(U, 1.0, 1e-6), 0.5, 0.3
    logits = torch.zeros_like(U, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -value("tau_plus_beta", torch.softmax(logits, -1), log_q, REF, tau, beta).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = closed_form_weights(log_q, REF, tau, beta)
    torch.testing.assert_close(torch.softmax(logits, -1).detach(), expected, atol=1e-7, rtol=0)


def test_value_of_the_tilted_problem_is_its_log_partition_function() -> None:
    tau, beta = 0.4, 0.2
    kappa, log_ref = tau + beta, torch.log_softmax(REF, -1)
    best = tilted_weights(U, tau, REF, beta)
    expected = kappa * torch.logsumexp((U + beta * log_ref) / kappa, -1)
    torch.testing.assert_close(value("tau_plus_beta", best, U, REF, tau, beta), expected, atol=1e-12, rtol=0)


def test_beta_zero_drops_the_reference() -> None:
    log_q = target_log_q(U, 1.0, 1e-6)
    assert torch.equal(closed_form_weights(log_q, REF, 0.3, 0.0), closed_form_weights(log_q, None, 0.3, 0.0))
    assert torch.equal(tilted_weights(U, 0.3, REF, 0.0), tilted_weights(U, 0.3))
    near = closed_form_weights(log_q, REF, 0.3, 1e-9)
    torch.testing.assert_close(near, closed_form_weights(log_q, None, 0.3, 0.0), atol=1e-7, rtol=0)


def test_tilted_weights_at_zero_are_uniform_over_the_exact_argmax_set() -> None:
    expected = torch.tensor([[0.0, 0.5, 0.0, 0.5], [0.25] * 4], dtype=torch.float64)
    assert torch.equal(tilted_weights(U, 0.0), expected)
    torch.testing.assert_close(tilted_weights(U, 1e-3), expected, atol=1e-12, rtol=0)
    nearly_tied = torch.tensor([[1.0, 1.0 + 1e-15]], dtype=torch.float64)
    assert tilted_weights(nearly_tied, 0.0).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("tau", [1e-30, 1e-300, 5e-324])
def test_tiny_temperatures_approach_the_argmax_set_without_overflow(tau: float) -> None:
    assert tilted_weights(U, tau).tolist() == [[0.0, 0.5, 0.0, 0.5], [0.25] * 4]


def test_infinite_tau_is_exactly_uniform() -> None:
    uniform = torch.full_like(U, 0.25)
    assert torch.equal(tilted_weights(U, math.inf), uniform)
    assert torch.equal(tilted_weights(U, math.inf, REF, 0.5), uniform)
    assert torch.equal(closed_form_weights(target_log_q(U, 1.0, 0.0), REF, math.inf, 0.5), uniform)


def test_tilted_weights_equal_the_product_of_tilt_and_reference_power() -> None:
    tau, beta = 0.7, 0.2
    power = torch.softmax(REF, -1) ** (beta / (tau + beta)) * (U / (tau + beta)).exp()
    torch.testing.assert_close(tilted_weights(U, tau, REF, beta), power / power.sum(-1, keepdim=True))


@pytest.mark.parametrize("denominator", ["tau_plus_beta", "tau"])
def test_weights_and_their_entropy_differentiate_in_tau_and_beta(denominator: str) -> None:
    log_q = target_log_q(U, 1.0, 1e-6)

    def entropies(tau: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        closed = closed_form_weights(log_q, REF, tau, beta, denominator)
        tilted = tilted_weights(U, tau, REF, beta)
        return closed, weight_entropy(closed), tilted, weight_entropy(tilted)

    assert torch.autograd.gradcheck(entropies, (scalar(0.4), scalar(0.3)))
    assert torch.autograd.gradgradcheck(entropies, (scalar(0.4), scalar(0.3)))


def test_derivative_in_beta_exists_at_zero() -> None:
    tau, beta = scalar(0.4), scalar(0.0)
    log_q = target_log_q(U, 1.0, 1e-6)
    (slope,) = torch.autograd.grad(closed_form_weights(log_q, REF, tau, beta)[0, 0], beta)
    ahead = (closed_form_weights(log_q, REF, 0.4, 1e-7) - closed_form_weights(log_q, REF, 0.4, 0.0))[0, 0]
    assert slope.item() == pytest.approx(ahead.item() / 1e-7, rel=1e-4)


def test_entropy_derivative_is_finite_where_a_weight_underflows() -> None:
    tau = scalar(1e-4)
    entropy = weight_entropy(tilted_weights(torch.tensor([[0.0, 1.0]], dtype=torch.float64), tau))
    (slope,) = torch.autograd.grad(entropy.sum(), tau)
    assert entropy.item() == 0.0
    assert slope.item() == 0.0


def test_entropy_of_known_distributions() -> None:
    weights = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]], dtype=torch.float64)
    assert weight_entropy(weights).tolist() == pytest.approx([math.log(4), 0.0, math.log(2)], abs=1e-15)


def test_refuses_a_reference_weight_without_reference() -> None:
    with pytest.raises(ValueError, match=r"beta=0\.1.*no reference scores"):
        closed_form_weights(U, None, 1.0, 0.1)
    with pytest.raises(ValueError, match=r"beta=0\.1.*no reference scores"):
        tilted_weights(U, 1.0, None, 0.1)


@pytest.mark.parametrize(
    ("tau", "beta", "denominator"),
    [
        (0.0, 0.0, "tau_plus_beta"),
        (0.0, 0.5, "tau"),
        (-1.0, 2.0, "tau_plus_beta"),
        (1.0, -0.5, "tau"),
        (math.nan, 0.0, "tau"),
        (1.0, math.nan, "tau"),
        (1.0, math.inf, "tau_plus_beta"),
    ],
)
def test_refuses_knobs_out_of_range(tau: float, beta: float, denominator: str) -> None:
    with pytest.raises(ValueError, match=r"tau|beta"):
        closed_form_weights(U, REF, tau, beta, denominator)
    with pytest.raises(ValueError, match=r"tau|beta"):
        closed_form_weights(U, REF, torch.tensor(tau), torch.tensor(beta), denominator)
