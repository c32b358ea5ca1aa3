"""Verified replay: losses and gradients in the scores against plain numbers, their limits and identities."""

import math

import pytest
import torch

from maxent_grpo.errors import UsageError
from maxent_grpo.objectives.catalog import CATALOG, build_objective
from maxent_grpo.objectives.replay import Replay, balance_loss, bank_entropies, mass_loss


def tensors(*banks):
    return [torch.tensor(bank, dtype=torch.float64) for bank in banks]


def test_two_banks_of_two_and_one_exemplar_by_hand():
    """−(−1 − 4)/2 = 2.5 and 2: their mean 2.25; each score of the first pulls by 1/4, that of the second by 1/2."""
    scores = tensors([-1.0, -4.0], [-2.0])
    term = Replay(1.0)
    assert float(term(scores, tensors([3.0, 1.0], [9.0]))) == 2.25
    gradient = term.gradient(scores, tensors([3.0, 1.0], [9.0]))
    assert [g.tolist() for g in gradient] == [[-0.25, -0.25], [-0.5]]


def test_frequency_weights_by_hand():
    """(3·1 + 1·4)/4 = 1.75 for the first bank."""
    term = Replay(0.5, by_frequency=True)
    scores, counts = tensors([-1.0, -4.0], [-2.0]), tensors([3.0, 1.0], [9.0])
    assert float(term(scores, counts)) == pytest.approx(0.5 * (1.75 + 2.0) / 2, abs=1e-15)
    gradient = term.gradient(scores, counts)
    assert [g.tolist() for g in gradient] == [[-0.5 * 3 / 8, -0.5 / 8], [-0.25]]


def naive(banks, counts, coefficient, balance, frequency):
    """The term, one exemplar after the other."""
    mass, divergence, several = 0.0, 0.0, 0
    for scores, seen in zip(banks, counts, strict=True):
        total = sum(seen) if frequency else len(scores)
        for score, n in zip(scores, seen, strict=True):
            mass -= (n if frequency else 1) * score / total / len(banks)
        if len(scores) > 1:
            several += 1
            normaliser = sum(math.exp(score) for score in scores)
            divergence += sum(
                math.log(1 / len(scores)) - score + math.log(normaliser) for score in scores
            ) / len(scores)
    return coefficient * mass + balance * (divergence / several if several else 0.0)


@pytest.mark.parametrize("frequency", [False, True])
@pytest.mark.parametrize("balance", [0.0, 0.3])
def test_the_term_and_its_gradient_equal_a_loop_over_exemplars(frequency, balance):
    banks = [[-1.3, -0.2, -2.5], [-0.7], [-3.0, -3.1]]
    counts = [[5, 1, 2], [4], [1, 7]]
    term = Replay(0.2, balance, frequency)
    loss = float(term(tensors(*banks), tensors(*counts)))
    assert loss == pytest.approx(naive(banks, counts, 0.2, balance, frequency), abs=1e-14)
    gradient = term.gradient(tensors(*banks), [c.double() for c in tensors(*counts)])
    for b, bank in enumerate(banks):
        for c in range(len(bank)):
            shifted = [list(other) for other in banks]
            shifted[b][c] += 1e-6
            higher = naive(shifted, counts, 0.2, balance, frequency)
            shifted[b][c] -= 2e-6
            slope = (higher - naive(shifted, counts, 0.2, balance, frequency)) / 2e-6
            assert float(gradient[b][c]) == pytest.approx(slope, abs=1e-8)


def test_the_balance_term_cannot_raise_a_banks_mass_and_is_zero_where_it_is_even():
    scores = tensors([-1.0, -3.0, -0.5])
    leaf = scores[0].requires_grad_()
    balance_loss([leaf]).backward()
    torch.testing.assert_close(leaf.grad, torch.softmax(leaf.detach(), 0) - 1 / 3)
    assert float(leaf.grad.sum()) == pytest.approx(0.0, abs=1e-15)
    assert float(balance_loss(tensors([-2.0] * 4))) == pytest.approx(0.0, abs=1e-15)
    assert float(balance_loss(tensors([-2.0]))) == 0.0


def test_mass_and_balance_add_up_to_the_likelihood_of_the_bank():
    """−(1/k)·Σ log p(c) = −log P_B + log k + KL(U_k ‖ p(·|B)), for exemplars of equal length."""
    logs = torch.tensor([-1.0, -2.5, -0.7], dtype=torch.float64)
    mass = mass_loss([logs], [torch.ones(3, dtype=torch.float64)])
    split = -logs.logsumexp(0) + math.log(3) + balance_loss([logs])
    assert float(mass) == pytest.approx(float(split), abs=1e-14)


def test_the_entropy_of_a_bank_is_that_of_the_policys_choice_within_it():
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    entropies = bank_entropies([p.log() - 7.0, torch.zeros(1), torch.zeros(2)])
    assert entropies.tolist() == pytest.approx([1.5 * math.log(2), math.log(2)])
    assert bank_entropies([torch.zeros(1)]).tolist() == []


@pytest.mark.parametrize(("size", "expected"), [(16, 15 / 256), (4, 3 / 16), (2, 1 / 4)])
def test_the_published_scale_is_that_of_a_lone_success_in_a_centred_group(size, expected):
    utilities = torch.zeros(size)
    utilities[0] = 1.0
    lone = float((utilities - utilities.mean())[0]) / size
    assert Replay(0.1).scale(size) == pytest.approx(lone) == expected
    assert Replay(0.1, as_lone_success=False).scale(size) == 1.0


def test_the_control_has_a_gradient_of_exactly_zero():
    term = Replay(0.1, balance=0.2, is_control=True)
    gradient = term.gradient(tensors([-1.0, -2.0], [-3.0]), tensors([1.0, 1.0], [2.0]))
    assert [g.tolist() for g in gradient] == [[0.0, 0.0], [0.0]]


def test_the_catalogs_replay_is_its_backbone_and_a_term():
    assert build_objective(CATALOG["re_dr"]).replay == Replay(0.1)
    assert CATALOG["re_dr"].with_settings(replay_coef=0.0) == CATALOG["dr_grpo"]
    re_max = build_objective(CATALOG["re_max"])
    assert re_max.replay == Replay(0.1)
    assert re_max.reduction is build_objective(CATALOG["dr_grpo"]).reduction
    assert re_max.advantages == build_objective(CATALOG["maxrl"]).advantages
    assert build_objective(CATALOG["dr_grpo"]).replay is None


def test_every_setting_reaches_the_term():
    spec = CATALOG["tilted"].with_settings(
        replay_coef=0.2, replay_balance_coef=0.1, replay_weighting="frequency", replay_capacity=1,
        replay_max_prompts=7, replay_scope="own_prompts", replay_scale="plain", replay_control=True,
    )  # fmt: skip
    assert build_objective(spec).replay == Replay(
        0.2, 0.1, by_frequency=True, capacity=1, max_prompts=7, own_prompts=True, as_lone_success=False,
        is_control=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replay_balance_coef": 0.1}, "replay_balance_coef: there is no replay at replay_coef=0"),
        ({"replay_control": True}, "replay_control: there is no replay at replay_coef=0"),
        ({"replay_coef": -0.1}, "replay_coef: -0.1 must be ≥ 0"),
        ({"replay_coef": 0.1, "replay_capacity": 0}, "replay_capacity: 0 must be ≥ 1"),
        (
            {"replay_coef": 0.1, "replay_weighting": "even"},
            "replay_weighting: 'even' is not one of uniform, frequency",
        ),
        (
            {"replay_coef": 0.1, "replay_scope": "own_prompts", "replay_banks_per_step": 2},
            "replay_banks_per_step: replay_scope=own_prompts replays the banks of all",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        CATALOG["dr_grpo"].with_settings(**settings)
