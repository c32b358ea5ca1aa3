"""Our losses equal those of TRL's trainer on the same batch: value, gradient and statistics."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from benchmarks.parity import TRL_SETTINGS, Case, difference, make_case, ours, trl_loss
from torch import Tensor
from trl.trainer.grpo_config import GRPOConfig as TRLConfig

from maxent_grpo.objectives.catalog import CATALOG, ObjectiveSpec, build_objective
from maxent_grpo.objectives.surrogates import CISPO, Clip
from maxent_grpo.stats import Metrics
from maxent_grpo.types import Knobs

WITHIN = 1e-5


def mean_of(metrics: Metrics, name: str) -> float:
    return float(metrics[name].value / metrics[name].weight)


@pytest.fixture(scope="module", params=["off-policy", "on-policy"])
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(on_policy=request.param == "on-policy")


@pytest.mark.parametrize("name", TRL_SETTINGS)
def test_loss_gradient_and_statistics_equal_trl(case: Case, name: str) -> None:
    spec, beta = TRL_SETTINGS[name]
    loss, signal, metrics = ours(spec, case, beta)
    theirs, logged = trl_loss(spec, case, signal.advantages, beta)
    apart = difference(name, "TRL", case, loss, theirs)
    assert apart.loss < WITHIN
    assert apart.gradient < WITHIN
    (size,) = torch.autograd.grad(loss, case.logits, retain_graph=True)
    assert size.abs().max() > 1e-3
    names = {"entropy": "entropy"}
    surrogate = build_objective(spec).policy_loss.surrogate
    if isinstance(surrogate, Clip):
        names |= {"clip_ratio": "clip_ratio/region_mean"}
        names |= {name: name for name in ("clip_ratio/low_mean", "clip_ratio/high_mean")}
    if isinstance(surrogate, CISPO):
        names |= {"clip_ratio": "cispo_clip_ratio"}
    if beta:
        names |= {"kl": "kl"}
    for our_name, their_name in names.items():
        assert mean_of(metrics, our_name) == pytest.approx(logged[their_name], abs=WITHIN)


def test_the_batch_reaches_every_branch_of_the_clip() -> None:
    spec, beta = TRL_SETTINGS["dapo, token ratio, dual clip"]
    _, _, metrics = ours(spec, make_case(), beta)
    assert metrics["clip_ratio/low_mean"].value > 0
    assert metrics["clip_ratio/high_mean"].value > 0
    assert metrics["ratio/max"].value > 1.35
    _, _, metrics = ours(TRL_SETTINGS["cispo, token ratio"][0], make_case(), 0.0)
    assert metrics["clip_ratio/high_mean"].value > 0
    _, _, metrics = ours(TRL_SETTINGS["dapo, off-policy mask"][0], make_case(), 0.0)
    assert 0 < mean_of(metrics, "off_policy_mask/kept") < 1


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_top_entropy_equals_trl_where_its_micro_batch_is_one_group(share: float) -> None:
    spec = CATALOG["dapo"].with_settings(top_entropy_quantile=share)
    parts = []
    for seed in (1, 2, 3):
        case = make_case(groups=1, seed=seed)
        loss, signal, _ = ours(spec, case, 0.1)
        theirs, _ = trl_loss(spec, case, signal.advantages, 0.1)
        apart = difference("top entropy", "TRL", case, loss, theirs)
        parts += [apart.loss, apart.gradient]
    assert max(parts) < WITHIN


def test_over_several_groups_trl_has_one_threshold_and_we_have_one_per_group() -> None:
    spec, case = CATALOG["dapo"].with_settings(top_entropy_quantile=0.5), make_case()
    loss, signal, _ = ours(spec, case, 0.0)
    theirs, _ = trl_loss(spec, case, signal.advantages, 0.0)
    assert difference("top entropy", "TRL", case, loss, theirs).gradient > 1e-4


def test_defaults_of_shared_settings_are_trls() -> None:
    trl, ours = TRLConfig(output_dir="x", use_cpu=True, bf16=False), ObjectiveSpec()
    shared = [f"sapo_temperature_{sign}" for sign in ("pos", "neg")]
    shared += [f"vespo_{name}_{sign}" for name in ("k", "lambda") for sign in ("pos", "neg")]
    for name in [*shared, "top_entropy_quantile", "off_policy_mask_threshold", "entropy_coef", "delta"]:
        assert ours[name] == getattr(trl, name), name


def batch_advantages(utilities: Tensor) -> Tensor:
    """TRL's advantages under ``scale_rewards="batch"``."""
    return (utilities - utilities.mean(dim=1, keepdim=True)) / (utilities.std() + 1e-4)


def group_advantages(utilities: Tensor) -> Tensor:
    """TRL's advantages under ``scale_rewards="group"``."""
    return (utilities - utilities.mean(dim=1, keepdim=True)) / (utilities.std(dim=1, keepdim=True) + 1e-4)


@pytest.mark.parametrize(("scale", "formula"), [("group", group_advantages), ("batch", batch_advantages)])
def test_advantages_are_trls(case: Case, scale: str, formula: Callable[[Tensor], Tensor]) -> None:
    signal, _ = build_objective(ObjectiveSpec(scale_rewards=scale)).signal(case.batch, Knobs(0.0, 0.0))
    torch.testing.assert_close(signal.advantages, formula(case.batch.utilities), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "loss_type"), [("maxent", "dr_grpo"), ("flowrl", "grpo")])
def test_first_order_advantages_make_trl_train_a_group_loss(name: str, loss_type: str) -> None:
    case = make_case(on_policy=True)
    batch = replace(case.batch, behaviour_logps=case.forward.logps.detach())
    case, spec, knobs = replace(case, batch=batch), CATALOG[name], Knobs(0.3, 0.1)
    signal, _ = build_objective(spec).signal(batch, knobs)
    loss, _ = build_objective(spec).loss(case.forward, batch, signal, knobs, case.denominators)
    theirs, _ = trl_loss(ObjectiveSpec(loss_type=loss_type), case, signal.advantages, beta=0.0)
    assert difference(name, "TRL", case, loss, theirs).gradient < 1e-6
