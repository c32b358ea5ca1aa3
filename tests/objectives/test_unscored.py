"""A completion without a utility: its group is learned from as if it were not there, and it is not learned from."""

import math
from dataclasses import replace

import pytest
import torch
from objective_batches import TESTED, denominators, gradient, make_batch
from torch import Tensor

from maxent_grpo.objectives import advantages, shaping
from maxent_grpo.objectives.catalog import CATALOG, ObjectiveSpec, build_objective
from maxent_grpo.objectives.weights import weighs, weight_entropy
from maxent_grpo.types import Batch, Forward, Knobs, Signal

GROUPS, SIZE = 5, 6
SCORED = torch.tensor(
    [
        [True, True, False, True, True, True],
        [True] * 6,
        [False, True, True, False, False, True],
        [False, False, False, True, False, False],
        [False] * 6,
    ]
)
"""One lost, none, three, all but one, all."""

# The entropy bonus is in units of the batch's deviation, so that a group by itself gets another one.
SPECS: dict[str, ObjectiveSpec] = {
    name: spec.with_settings(kl_in_loss=False)
    for name, spec in TESTED.items()
    if not spec["entropy_bonus_coef"]
} | {
    "by the batch": CATALOG["grpo"].with_settings(scale_rewards="batch", kl_in_loss=False),
    "temperature by prompt": CATALOG["tilted"].with_settings(maxent_tau_mode_adaptive=True),
    "of zero spread too": CATALOG["maxent"].with_settings(skip_zero_spread_groups=False),
    "own surrogate": CATALOG["grpo"].with_settings(
        surrogate=lambda ratio, a: ratio.log() * (1.0 - a.unsqueeze(1)), kl_in_loss=False
    ),
    "own advantage": CATALOG["grpo"].with_settings(
        advantage=lambda u: u.sign() - u.sign().mean(dim=1, keepdim=True), kl_in_loss=False
    ),
}

OF_ONE = ("own surrogate", "kl_cov")
"""Of these, a completion alone in its group has a loss: of its ratio, not of its advantage."""


def batch_with_gaps() -> tuple[Batch, Forward]:
    draw = torch.Generator().manual_seed(2)
    utilities = torch.randint(0, 3, (GROUPS, SIZE), generator=draw).double() / 2
    utilities[2] = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    batch, forward = make_batch(GROUPS, SIZE, utilities)
    return replace(batch, utilities=utilities.masked_fill(~SCORED, math.nan)), forward


def group_alone(batch: Batch, forward: Forward, p: int) -> tuple[Batch, Forward, Tensor]:
    """A batch of the scored completions of group ``p``, and their rows in the whole."""
    rows = p * SIZE + SCORED[p].nonzero().flatten()
    assert batch.answer_clusters is not None
    assert batch.mode_counts is not None
    small = Batch(
        prompt_ids=batch.prompt_ids[p : p + 1],
        prompt_mask=batch.prompt_mask[p : p + 1],
        completion_ids=batch.completion_ids[rows],
        completion_mask=batch.completion_mask[rows],
        behaviour_logps=batch.behaviour_logps[rows],
        utilities=batch.utilities[p : p + 1, SCORED[p]],
        reference_logps=None if batch.reference_logps is None else batch.reference_logps[rows],
        old_logps=None if batch.old_logps is None else batch.old_logps[rows],
        answer_clusters=batch.answer_clusters[p : p + 1, SCORED[p]],
        mode_counts=batch.mode_counts[p : p + 1],
        modes=batch.modes[p : p + 1, SCORED[p]],
        mode_history=batch.mode_history[p : p + 1],
    )
    assert forward.entropy is not None
    return small, Forward(forward.logps[rows], forward.entropy[rows]), rows


@pytest.mark.parametrize("tau", [0.3, math.inf])
@pytest.mark.parametrize("name", SPECS)
def test_a_group_with_gaps_equals_the_smaller_group(name: str, tau: float) -> None:
    objective = build_objective(SPECS[name])
    if name == "mode_entropy":
        tau = min(tau, 1e6)  # which weighs utilities; infinite, they would be too
    knobs = Knobs(tau, 0.1 if objective.has_weights else 0.0)
    batch, forward = batch_with_gaps()
    deviation = batch.utilities[SCORED].std()
    signal, metrics = objective.signal(batch, knobs)
    loss, _ = objective.loss(forward, batch, signal, knobs, denominators(batch))
    slopes = gradient(loss, forward.logps)
    assert torch.isfinite(loss)
    assert slopes.any() or tau == math.inf  # uniform weights have no gradient in the weighted likelihood
    assert not signal.advantages[~SCORED].any()
    assert not slopes.view(GROUPS, SIZE, -1)[~SCORED].any()
    assert not signal.advantages[3:].any()
    assert not slopes[3 * SIZE :].any() or name in OF_ONE
    if signal.weights is not None:
        torch.testing.assert_close(signal.weights.sum(dim=1), torch.tensor([1.0, 1, 1, 1, 0]).double())
    shares = torch.zeros((), dtype=torch.float64)
    for p in (0, 1, 2, *([3] if name in OF_ONE else [])):
        small, seen, rows = group_alone(batch, forward, p)
        if small.group_size < SPECS[name]["pass_k"] and name == "pass_at_k":
            continue
        alone, _ = objective.signal(small, knobs, lambda: deviation)
        for field in ("advantages", "weights"):
            mine, expected = getattr(signal, field), getattr(alone, field)
            if expected is not None:
                torch.testing.assert_close(mine[p : p + 1, SCORED[p]], expected, atol=1e-12, rtol=0)
        share, _ = objective.loss(seen, small, alone, knobs, denominators(batch))
        torch.testing.assert_close(slopes[rows], gradient(share, forward.logps)[rows], atol=1e-12, rtol=0)
        shares = shares + share.detach()
    torch.testing.assert_close(loss.detach(), shares, atol=1e-12, rtol=0)
    known = batch.utilities[SCORED]
    assert float(metrics["reward"].value / metrics["reward"].weight) == pytest.approx(float(known.mean()))


@pytest.mark.parametrize("name", [*TESTED, "entropy bonus"])
def test_a_gap_in_another_group_changes_no_bit(name: str) -> None:
    spec = CATALOG["grpo_entropy_bonus"] if name == "entropy bonus" else TESTED[name]
    if spec["entropy_bonus_coef"] or spec["scale_rewards"] == "batch":
        pytest.skip("in units of the batch")
    objective, knobs = build_objective(spec), Knobs(0.3, 0.1)
    whole, _ = make_batch(GROUPS, SIZE)
    gaps = replace(whole, utilities=whole.utilities.clone())
    gaps.utilities[0, 0] = math.nan
    expected, got = (objective.signal(batch, knobs)[0] for batch in (whole, gaps))
    assert torch.equal(got.advantages[1:], expected.advantages[1:])


@pytest.mark.parametrize("name", ["tilted", "maxent"])
def test_weights_at_other_knobs_leave_out_what_has_no_utility(name: str) -> None:
    objective, knobs = build_objective(CATALOG[name]), Knobs(0.3, 0.1)
    signal, _ = objective.signal(batch_with_gaps()[0], knobs)
    tau = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    weights = objective.weights(signal, tau, torch.tensor(0.1, dtype=torch.float64))
    assert not weights[~SCORED].any()
    slope = gradient(weight_entropy(weights[weighs(SCORED)]).mean(), tau)
    assert torch.isfinite(slope)
    assert slope > 0


def test_a_lost_score_beside_penalties_has_no_say() -> None:
    utilities = torch.tensor([[math.nan, -2.0, -3.0, -4.0], [1.0, 1.0, math.nan, math.nan]])
    scored = ~utilities.isnan()
    got = advantages.GroupAdvantages()(utilities.nan_to_num(0.0), None, scored)
    torch.testing.assert_close(got[0], torch.tensor([0.0, 1.0, 0.0, -1.0]), atol=2e-4, rtol=0)
    assert not got[1].any()


def test_shaping_compares_scored_completions_alone() -> None:
    batch, _ = batch_with_gaps()
    known = batch.utilities.nan_to_num(0.0)
    shaped = shaping.EntropyBonus(0.2)(known, batch, Knobs(0.0, 0.0))
    small, _, _ = group_alone(*batch_with_gaps(), 0)
    logps, mask = small.behaviour_logps, small.completion_mask
    alone = shaping.entropy_bonus(small.utilities, logps, mask, 1.0) - small.utilities
    unit = small.utilities.std(correction=0)
    expected = alone / unit * 0.2 * batch.utilities[SCORED].std(correction=0)
    torch.testing.assert_close((shaped - known)[0, SCORED[0]], expected[0])
    assert torch.equal(shaped[~SCORED], known[~SCORED])


@pytest.mark.parametrize("name", ["grpo", "tilted", "maxent", "flowrl", "seed_grpo", "maxrl"])
def test_a_batch_without_any_utility_has_no_signal_and_a_finite_loss(name: str) -> None:
    objective, knobs = build_objective(TESTED[name].with_settings(kl_in_loss=False)), Knobs(0.3, 0.0)
    batch, forward = make_batch()
    batch = replace(batch, utilities=torch.full_like(batch.utilities, math.nan))
    signal, metrics = objective.signal(batch, knobs)
    assert not signal.advantages.any()
    assert not objective.has_gradient(batch, signal, knobs).any()
    loss, _ = objective.loss(forward, batch, signal, knobs, denominators(batch))
    assert loss.item() == 0.0
    assert not gradient(loss, forward.logps).any()
    assert float(metrics["reward"].weight) == 0


def test_a_part_of_a_signal_keeps_which_completions_count() -> None:
    signal = Signal(torch.zeros(GROUPS, SIZE), scored=SCORED)
    chosen = signal.select([2, 0]).scored
    assert chosen is not None
    assert torch.equal(chosen, SCORED[[2, 0]])
