"""Our losses equal TorchRL's on the same rows, there padded on the left; and where its definitions differ."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("torchrl", reason="needs the extra `parity`")

from benchmarks.parity import (
    TORCHRL_SETTINGS,
    Case,
    difference,
    left_padded_rows,
    make_case,
    ours,
    torchrl_loss,
)

from maxent_grpo.objectives.catalog import CATALOG, ObjectiveSpec
from maxent_grpo.objectives.regularizers import k1 as k1_estimate
from maxent_grpo.stats import Metrics

WITHIN = 1e-5


@pytest.fixture(scope="module", params=["off-policy", "on-policy"])
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(on_policy=request.param == "on-policy")


def positions(case: Case) -> tuple[int, int]:
    """Tokens that count, and positions of TorchRL's padded layout."""
    mask = left_padded_rows(case).mask
    return int(mask.sum()), mask.numel()


def mean_of(metrics: Metrics, name: str) -> float:
    return float(metrics[name].value / metrics[name].weight)


@pytest.mark.parametrize("name", TORCHRL_SETTINGS)
def test_loss_and_gradient_equal_torchrl(case: Case, name: str) -> None:
    kind, spec, settings = TORCHRL_SETTINGS[name]
    loss, signal, _ = ours(spec, case, 0.0)
    theirs = torchrl_loss(kind, case, signal.advantages, **settings)
    apart = difference(name, "TorchRL", case, loss, theirs.loss_objective.squeeze())
    assert max(apart.loss, apart.gradient) < WITHIN
    (size,) = torch.autograd.grad(loss, case.logits, retain_graph=True)
    assert size.abs().max() > 1e-3


def test_effective_sample_size_is_a_share_of_tokens(case: Case) -> None:
    _, signal, metrics = ours(CATALOG["dapo"], case, 0.0)
    theirs = torchrl_loss("GRPOLoss", case, signal.advantages, clip_epsilon=0.2)
    ours_share = mean_of(metrics, "ratio/mean") ** 2 / mean_of(metrics, "ratio/square_mean")
    assert ours_share == pytest.approx(float(theirs.ESS), abs=WITHIN)
    assert ours_share < 1 + WITHIN


def test_clip_fraction_counts_both_sides_of_every_sign_over_all_positions(case: Case) -> None:
    """TorchRL counts ratios outside the range whatever the advantage, and divides by padding and prompt too."""
    _, signal, _ = ours(CATALOG["dapo"], case, 0.0)
    theirs = torchrl_loss("GRPOLoss", case, signal.advantages, clip_epsilon=(0.2, 0.28))
    batch = case.batch
    old = case.forward.logps.detach() if batch.old_logps is None else batch.old_logps
    rho = (case.forward.logps - old)[batch.completion_mask].exp()
    outside = int(((rho < 0.8) | (rho > 1.28)).sum())
    assert float(theirs.clip_fraction) == pytest.approx(outside / positions(case)[1], abs=WITHIN)


def test_clip_fraction_equals_ours_for_advantages_of_one_sign() -> None:
    """With A > 0 and a lower bound out of reach both count the same events; the denominators still differ."""
    case = make_case()
    spec = ObjectiveSpec(loss_type="dapo", epsilon=0.999, epsilon_high=0.28, advantage=torch.ones_like)
    utilities = torch.arange(12.0).view(4, 3)  # spread in every group
    case = replace(case, batch=replace(case.batch, utilities=utilities))
    _, signal, metrics = ours(spec.with_settings(scale_rewards="none"), case, 0.0)
    theirs = torchrl_loss("GRPOLoss", case, signal.advantages, clip_epsilon=(0.999, 0.28))
    tokens, everything = positions(case)
    fraction = mean_of(metrics, "clip_ratio/high_mean")
    assert fraction > 0
    assert float(theirs.clip_fraction) == pytest.approx(fraction * tokens / everything, abs=WITHIN)


def masked(case: Case, values: Tensor) -> Tensor:
    return values[case.batch.completion_mask]


def test_kl_approximation_is_k1_over_all_positions(case: Case) -> None:
    """``kl_approx`` is the mean of log π_old − log π over B·W positions, prompt and padding included as zeros."""
    batch = case.batch
    _, signal, _ = ours(CATALOG["dapo"], case, 0.0)
    theirs = torchrl_loss("GRPOLoss", case, signal.advantages, clip_epsilon=0.2)
    old = case.forward.logps.detach() if batch.old_logps is None else batch.old_logps
    k1 = masked(case, k1_estimate(case.forward.logps.detach(), old, batch.completion_mask))
    assert float(theirs.kl_approx) == pytest.approx(-float(k1.sum()) / positions(case)[1], abs=WITHIN)


def test_kl_to_the_reference_is_our_k3_up_to_the_denominator(case: Case) -> None:
    """Value and gradient of ``loss_kl_to_ref`` are ours times tokens / (B·W)."""
    beta = 0.3
    loss, signal, metrics = ours(CATALOG["dapo"], case, beta)
    theirs = torchrl_loss("GRPOLoss", case, signal.advantages, kl_to_ref=beta, clip_epsilon=(0.2, 0.28))
    tokens, everything = positions(case)
    assert float(theirs.kl_to_ref) * everything / tokens == pytest.approx(mean_of(metrics, "kl"), abs=WITHIN)
    whole = theirs.loss_objective.squeeze() + theirs.loss_kl_to_ref * everything / tokens
    apart = difference("dapo with KL", "TorchRL", case, loss, whole)
    assert max(apart.loss, apart.gradient) < WITHIN


def cispo(case: Case, **settings: Any) -> tuple[Tensor, Tensor]:
    spec = ObjectiveSpec(loss_type="cispo", epsilon_high=1.0 + settings["clip_epsilon"][1])
    loss, signal, _ = ours(spec, case, 0.0)
    return loss, torchrl_loss("CISPOLoss", case, signal.advantages, **settings).loss_objective.squeeze()


def test_cispo_has_torchrls_gradient_while_nothing_is_clipped(case: Case) -> None:
    loss, theirs = cispo(case, clip_epsilon=(0.9999, 50.0))
    assert difference("cispo", "TorchRL", case, loss, theirs).gradient < WITHIN


def test_torchrls_cispo_loses_the_gradient_of_clipped_tokens_and_ours_keeps_it() -> None:
    case = make_case()
    loss, theirs = cispo(case, clip_epsilon=(0.9999, 0.2))
    (kept,) = torch.autograd.grad(loss, case.logits)
    (lost,) = torch.autograd.grad(theirs, case.logits)
    rho = (case.forward.logps - case.batch.old_logps).exp()
    clipped = case.batch.completion_mask & (rho > 1.2)
    centred = case.batch.utilities - case.batch.utilities.mean(dim=1, keepdim=True)
    taught = (centred.flatten() != 0)[:, None]
    assert not lost[clipped].any()
    assert kept[clipped & taught].abs().sum(dim=-1).min() > 0
    inside = case.batch.completion_mask & ~clipped
    torch.testing.assert_close(kept[inside], lost[inside], atol=WITHIN, rtol=0)
