"""Parts of objectives at their limits, and combinations that make no sense refused with the reason."""

import math
from dataclasses import replace

import pytest
import torch
from objective_batches import TESTED, denominators, gradient, make_batch
from torch import Tensor
from trl.rewards import get_soft_overlong_punishment

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.objectives import advantages, selection, shaping, surrogates
from maxent_grpo.objectives import group_losses as flow
from maxent_grpo.objectives.catalog import CATALOG, ObjectiveSpec, build_objective, find_objective
from maxent_grpo.objectives.weights import mode_adaptive_factor, tilted_weights
from maxent_grpo.types import Knobs

U = torch.tensor([[0.0, 1.0, 1.0, 0.25], [0.1, 0.1, 0.1, 0.1], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
BINARY = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [0.0] * 4, [1.0] * 4], dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


# Advantages


def test_leaving_one_out_is_centring_times_g_over_g_minus_1() -> None:
    close(advantages.rloo(U), advantages.dr_grpo(U) * 4 / 3)


def test_maxrl_gives_rare_successes_their_inverse_rate() -> None:
    expected = [[3.0, -1, -1, -1], [1 / 3, 1 / 3, 1 / 3, -1], [0.0] * 4, [0.0] * 4]
    close(advantages.maxrl(BINARY), torch.tensor(expected, dtype=torch.float64))


def test_maxrl_refuses_negative_utilities() -> None:
    with pytest.raises(RunError, match=r"a utility is -0\.5; use rewards that are never negative"):
        advantages.maxrl(torch.tensor([[-0.5, 1.0]]))


def test_pass_at_1_is_grpo_over_the_population_deviation() -> None:
    mean = BINARY.mean(dim=1, keepdim=True)
    expected = torch.where(
        advantages.has_spread(BINARY)[:, None], (BINARY - mean) / (mean * (1 - mean)).sqrt(), 0
    )
    close(advantages.pass_at_k(BINARY, 1), expected)


def test_pass_at_k_is_silent_where_every_subset_succeeds() -> None:
    assert not advantages.pass_at_k(BINARY[1:], 2).any()  # one wrong completion: no pair fails
    assert advantages.pass_at_k(BINARY[:1], 2).any()
    assert advantages.pass_at_k(BINARY[:1], 4).tolist() == [[0.0] * 4]


def test_pass_at_k_refuses_a_k_above_the_group() -> None:
    with pytest.raises(RunError, match="pass_k=5 is above the 4 completions"):
        advantages.pass_at_k(BINARY, 5)


def test_risk_sensitive_tends_to_the_mean_and_to_the_best() -> None:
    close(advantages.risk_sensitive(U, 1e-6), advantages.dr_grpo(U), atol=1e-5)
    best = advantages.risk_sensitive(U, 1000.0) * 1000.0
    close(best[0], torch.tensor([-1.0, 1.0, 1.0, -1.0], dtype=torch.float64))
    assert not advantages.risk_sensitive(U, 3.0)[1].any()


def test_positive_only_drops_what_went_badly() -> None:
    batch, _ = make_batch()
    plain = build_objective(CATALOG["dr_grpo"]).signal(batch, Knobs(0.0, 0.0))[0].advantages
    kept = build_objective(CATALOG["positive_only"]).signal(batch, Knobs(0.0, 0.0))[0].advantages
    assert torch.equal(kept, plain.clamp(min=0))


# Utilities


@pytest.mark.parametrize("length", [1, 59, 60, 61, 75, 99, 100])
def test_overlong_punishment_equals_trl(length: int) -> None:
    expected = get_soft_overlong_punishment(100, 40)([[1] * length])
    assert shaping.soft_overlong(torch.tensor([float(length)]), 100, 40).tolist() == pytest.approx(expected)


def test_of_two_right_answers_the_rarer_earns_more() -> None:
    scores = torch.tensor([[-1.0, -2.0, -9.0, -9.0]], dtype=torch.float64)
    shaped = shaping.unlikeliness(torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64), scores, 0.5)
    close(shaped, torch.tensor([[0.5, 0.0, 0.8125, 0.8125]], dtype=torch.float64))
    assert torch.equal(shaping.unlikeliness(U[1:2], scores, 0.5), U[1:2])


def test_a_format_reward_changes_neither_what_is_right_nor_what_is_rare() -> None:
    batch, _ = make_batch(utilities=torch.tensor([[1.0, 0, 0], [1.0, 1.0, 0]], dtype=torch.float64), groups=2)
    form = torch.tensor([[0.5, 1.0, 0.0], [1.0, 0.0, 1.0]], dtype=torch.float64)
    both = replace(
        batch,
        utilities=0.9 * batch.utilities + form,
        right=batch.utilities == 1,
        correctness=0.9 * batch.utilities,
    )
    for name in ("maxrl", "pass_at_k"):
        objective = build_objective(TESTED[name])
        alone, beside = (objective.signal(b, Knobs(0.0, 0.0))[0].advantages for b in (batch, both))
        assert alone.any()
        close(beside, alone)
    scores = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0]], dtype=torch.float64)
    assert both.correctness is not None
    shaped = shaping.unlikeliness(both.utilities, scores, 0.5, both.correctness)
    close(shaped, shaping.unlikeliness(both.correctness, scores, 0.5) + form)


def test_objectives_made_of_right_answers_say_so() -> None:
    needing = {name for name, spec in CATALOG.items() if build_objective(spec).needs_correctness}
    assert needing == {"maxrl", "re_max", "pass_at_k", "unlikeliness", "ucpo"}
    counting = build_objective(CATALOG["tilted"].with_settings(maxent_tau_mode_adaptive=True))
    assert counting.counts_modes
    assert not build_objective(CATALOG["tilted"]).counts_modes


def test_the_entropy_bonus_is_a_z_score_in_units_of_the_batch_deviation() -> None:
    logps = torch.tensor([[-1.0], [-3.0], [-2.0], [-2.0]], dtype=torch.float64)
    utilities = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    shaped = shaping.entropy_bonus(utilities, logps, torch.ones(4, 1, dtype=torch.bool), 0.2)
    close(shaped, utilities + torch.tensor([[-0.1, 0.1], [0.0, 0.0]], dtype=torch.float64))


# Surrogates


def test_every_surrogate_has_the_same_gradient_on_policy() -> None:
    logps = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], dtype=torch.float64, requires_grad=True)
    mask, a = torch.ones(2, 2, dtype=torch.bool), torch.tensor([0.7, -1.3], dtype=torch.float64)
    expected = -a[:, None].expand(2, 2)
    for ratio in (surrogates.token_ratio, surrogates.sequence_token_ratio):
        rho = ratio(logps, logps.detach(), mask)
        phi = surrogates.vespo_weights(torch.zeros(2, dtype=torch.float64), a, (2.0, 3.0), (3.0, 2.0))
        losses = {
            "clip": surrogates.clipped(rho, a, 0.2, 0.2),
            "unclipped": surrogates.unclipped(rho, a),
            "cispo": surrogates.cispo(rho, logps, a, 5.0),
            "sapo": surrogates.sapo(rho, a, 1.0, 1.05),
            "vespo": surrogates.vespo(phi, logps, a),
            "gmpo": 2 * surrogates.gmpo(rho.log(), a, mask, 0.4, 0.4),  # one loss for two tokens
        }
        for loss in losses.values():
            close(gradient(loss.sum(), logps), expected)


def test_cispo_keeps_the_gradient_that_the_clip_loses() -> None:
    logps = torch.tensor([[0.0]], dtype=torch.float64, requires_grad=True)
    rho, a = (
        surrogates.token_ratio(logps, logps.detach() - 2.0, torch.ones(1, 1, dtype=torch.bool)),
        torch.ones(1),
    )
    assert gradient(surrogates.clipped(rho, a, 0.2, 0.2).sum(), logps).item() == 0
    assert gradient(surrogates.cispo(rho, logps, a, 5.0).sum(), logps).item() == pytest.approx(-5.0)


def test_gspo_token_has_the_gradient_of_gspo_where_advantages_are_per_completion() -> None:
    batch, forward = make_batch()
    losses = []
    for name in ("gspo", "gspo_token"):
        objective = build_objective(
            CATALOG[name].with_settings(kl_in_loss=False, epsilon=0.5, epsilon_high=0.5)
        )
        signal, _ = objective.signal(batch, Knobs(0.0, 0.0))
        losses.append(objective.loss(forward, batch, signal, Knobs(0.0, 0.0), denominators(batch))[0])
    close(losses[0], losses[1])
    close(gradient(losses[0], forward.logps), gradient(losses[1], forward.logps))


def test_gmpo_without_bounds_is_gspo_without_a_clip() -> None:
    batch, forward = make_batch()
    objectives = [
        build_objective(spec.with_settings(kl_in_loss=False))
        for spec in (
            CATALOG["gmpo"].with_settings(epsilon=1e6),
            CATALOG["gspo"].with_settings(surrogate="unclipped"),
        )
    ]
    signal, _ = objectives[0].signal(batch, Knobs(0.0, 0.0))
    losses = [o.loss(forward, batch, signal, Knobs(0.0, 0.0), denominators(batch))[0] for o in objectives]
    close(losses[0], losses[1])
    close(gradient(losses[0], forward.logps), gradient(losses[1], forward.logps))


@pytest.mark.parametrize(
    ("advantage", "value", "slopes"),
    [(2.0, math.exp((0.4 - 1.0) / 2), [False, True]), (-2.0, math.exp((1.0 - 0.4) / 2), [True, False])],
)
def test_gmpo_holds_the_token_that_went_far_enough_and_leaves_the_other(
    advantage: float, value: float, slopes: list[bool]
) -> None:
    logs = torch.tensor([[1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    a, mask = torch.tensor([advantage], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    loss = surrogates.gmpo(logs, a, mask, 0.4, 0.4)
    assert loss.item() == pytest.approx(-advantage * value, abs=1e-12)
    expected = [-advantage * value / 2 if moved else 0.0 for moved in slopes]
    assert gradient(loss.sum(), logs)[0].tolist() == pytest.approx(expected, abs=1e-12)
    events = surrogates.GMPO().clip_events(logs.detach().exp(), a)
    assert (events.low | events.high)[0].tolist() == [not moved for moved in slopes]


# Selections


def test_all_tokens_of_a_group_have_top_entropy_where_all_are_equal() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    assert torch.equal(selection.high_entropy(torch.ones(2, 2), mask, 2, 0.2), mask)


def test_the_largest_are_counted_per_group_and_rounded_up() -> None:
    values = torch.tensor([[3.0, 1.0], [2.0, 9.0], [5.0, 4.0], [0.0, 1.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    chosen = selection.largest(values, mask, mask, 2, 0.5)
    assert chosen.tolist() == [[True, False], [True, False], [True, True], [False, False]]


def test_a_selection_of_everything_or_nothing_is_the_plain_objective() -> None:
    batch, forward = make_batch()
    spec = CATALOG["dapo"].with_settings(kl_in_loss=False)
    plain = build_objective(spec)
    signal, _ = plain.signal(batch, Knobs(0.0, 0.0))
    expected, _ = plain.loss(forward, batch, signal, Knobs(0.0, 0.0), denominators(batch))
    for change in ({"clip_cov_fraction": 0.5, "clip_cov_low": 1e6, "clip_cov_high": 1e7},
                   {"off_policy_mask_threshold": 1e6}, {"top_entropy_quantile": 0.999999}):  # fmt: skip
        changed = build_objective(spec, **change)
        loss, _ = changed.loss(forward, batch, signal, Knobs(0.0, 0.0), denominators(batch))
        if "top_entropy_quantile" in change:  # all but the token of least entropy of each group
            assert loss.item() != expected.item()
        else:
            assert torch.equal(loss, expected)


def test_kl_cov_pulls_back_only_the_tokens_that_it_holds() -> None:
    batch, forward = make_batch()
    spec = TESTED["kl_cov"].with_settings(kl_in_loss=False)
    objective = build_objective(spec)
    signal, _ = objective.signal(batch, Knobs(0.0, 0.0))
    gradients = []
    for coefficient in (0.0, 2.0):
        part = build_objective(spec, kl_cov_coef=coefficient)
        loss, _ = part.loss(forward, batch, signal, Knobs(0.0, 0.0), denominators(batch))
        gradients.append(gradient(loss, forward.logps))
    pulled = gradients[1] - gradients[0]
    direction = torch.where(batch.completion_mask, (forward.logps - batch.old_logps).sign(), 0.0)
    held = pulled != 0
    close(pulled[held], (2.0 * direction / batch.completion_mask.sum())[held])
    counts = [math.ceil(0.3 * int(rows.sum())) for rows in batch.completion_mask.split(3)]
    assert [int(rows.sum()) for rows in held.split(3)] == counts


# FlowRL


def test_flow_is_at_rest_where_the_policy_is_the_reference_times_exponential_rewards() -> None:
    reference = torch.tensor([[-1.0, -2.0, -0.5]], dtype=torch.float64)
    target = torch.tensor([[0.3, -0.4, 0.1]], dtype=torch.float64)
    scores = (reference + target - 0.77).requires_grad_()
    loss = flow.flow_balance(scores, target, reference, torch.tensor([[1.0, 0.9, 1.1]], dtype=torch.float64))
    assert loss.item() == pytest.approx(0, abs=1e-30)
    assert gradient(loss.sum(), scores).abs().max() < 1e-15


def test_the_partition_function_within_the_group_minimises_its_loss() -> None:
    draw = torch.Generator().manual_seed(0)
    scores, target, reference = torch.randn(3, 1, 5, generator=draw, dtype=torch.float64).unbind(0)
    weights = torch.rand(1, 5, generator=draw, dtype=torch.float64) + 0.5
    least = flow.flow_balance(scores, target, reference, weights).item()
    residual = flow.flow_residuals(scores, target, reference, weights)
    assert (weights * residual).sum().item() == pytest.approx(0, abs=1e-14)
    for shift in (-0.01, 0.01):
        assert (weights * (residual + shift).square()).sum().item() > least


def test_flow_needs_the_reference_whatever_beta_is() -> None:
    assert build_objective(CATALOG["flowrl"]).needs_reference(0.0)
    batch, _ = make_batch()
    with pytest.raises(ValueError, match="no reference_logps"):
        build_objective(CATALOG["flowrl"]).signal(replace(batch, reference_logps=None), Knobs(0.0, 0.0))


# Temperatures by prompt


def test_more_right_answers_lower_the_temperature() -> None:
    factor = mode_adaptive_factor(torch.tensor([1.0, 3.0], dtype=torch.float64))
    close(factor, torch.tensor([[1 / math.log(2)], [1 / math.log(4)]], dtype=torch.float64))
    rows = [tilted_weights(U[i : i + 1], 0.2 * factor[i].item()) for i in (0, 1)]
    close(tilted_weights(U[:2], 0.2 * factor), torch.cat(rows))


@pytest.mark.parametrize("tau", [0.0, math.inf])
def test_the_limits_of_tau_hold_for_every_prompt(tau: float) -> None:
    factor = mode_adaptive_factor(torch.tensor([1.0, 3.0, 8.0], dtype=torch.float64))
    assert torch.equal(tilted_weights(U, tau * factor), tilted_weights(U, tau))


# What is refused


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("maxent", {"surrogate": "sapo"}, "surrogate: acts on the surrogate of single tokens"),
        ("maxent", {"loss_type": "cispo"}, "surrogate: acts on"),
        ("maxent_likelihood", {"top_entropy_quantile": 0.2}, "top_entropy_quantile: acts on"),
        ("flowrl", {"kl_cov_fraction": 0.1}, "kl_cov_fraction: acts on"),
        ("flowrl", {"tis_cap": 2.0}, "tis_cap: acts on"),
        ("grpo", {"tis_low": 0.5}, "tis_low: bounds importance weights from below, and there are none"),
        ("maxent", {"tis_low": 0.5}, "tis_low: acts on the surrogate of single tokens"),
        ("grpo", {"tis_low": 5.0, "tis_cap": 5.0}, r"tis_low: 5\.0 must be below tis_cap=5\.0"),
        ("vespo", {"tis_low": 0.5, "tis_cap": 5.0}, "tis_low: vespo multiplies the weights"),
        ("flowrl", {"positive_only": True}, "positive_only: flow matches a distribution"),
        ("maxent", {"advantage": "rloo"}, "advantage: policy_loss=listwise learns from weights"),
        ("maxent", {"positive_only": True}, "positive_only: policy_loss=listwise has no advantages"),
        ("grpo", {"advantage": "maxrl"}, "scale_rewards: advantage=maxrl has its own scale; use none"),
        ("cispo", {"surrogate": "sapo"}, "surrogate: loss_type=cispo names its own"),
        ("sapo", {"delta": 4.0}, "delta: caps the ratio of the clipped surrogate only"),
        ("gmpo", {"importance_sampling_level": "sequence"}, "gmpo makes one ratio of a completion's tokens"),
        ("gmpo", {"top_entropy_quantile": 0.5}, "top_entropy_quantile: gmpo has one loss for a completion"),
        ("gmpo", {"clip_cov_fraction": 0.1}, "clip_cov_fraction: gmpo has one loss for a completion"),
        ("gmpo", {"tis_low": 0.5, "tis_cap": 5.0}, "tis_low: gmpo has one loss for a completion"),
        ("gmpo", {"epsilon": -0.1}, "epsilon: -0.1 must be ≥ 0"),
        ("gmpo", {"delta": 4.0}, "delta: caps the ratio of the clipped surrogate only"),
        ("vespo", {"importance_sampling_level": "sequence"}, "vespo weighs whole completions"),
        (
            "dr_grpo",
            {"maxent_tau_mode_adaptive": True},
            "mode_adaptive: is a temperature of tilted weights",
        ),
        ("grpo", {"top_entropy_quantile": 0.0}, r"must be in \(0, 1\]"),
        ("grpo", {"clip_cov_low": 5.0}, r"clip_cov_low: 5\.0 must be below"),
        ("grpo", {"overlong_buffer": 9}, "overlong_buffer: counts back from max_completion_length"),
        (
            "grpo",
            {"overlong_buffer": 9, "max_completion_length": 8},
            "do not fit into max_completion_length=8",
        ),
        ("risk_sensitive", {"risk_sensitivity": 0.0}, "use advantage=centered"),
        ("pass_at_k", {"pass_k": 0}, "pass_k: 0 must be ≥ 1"),
        ("grpo", {"unlikeliness_coef": 1.5}, r"must be in \[0, 1\]"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(name: str, change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CATALOG[name].with_settings(**change)


OWN = ObjectiveSpec(advantage=lambda utilities: utilities, scale_rewards="none")


def test_an_objective_of_ones_own_is_found_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_objective(f"{__name__}:OWN") is OWN
    assert find_objective("dapo") is CATALOG["dapo"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "dapu",
            r"^objective: there is no 'dapu' \(did you mean dapo\?\); known: grpo, .*; your own: module:NAME$",
        ),
        ("no_such_module:X", "'no_such_module' of .* cannot be imported .*is its directory on PYTHONPATH"),
        (f"{__name__}:NOTHING", "has no 'NOTHING'"),
        (f"{__name__}:U", "must name an ObjectiveSpec, and is a Tensor"),
    ],
)
def test_an_objective_that_cannot_be_found_is_named(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_objective(name)
