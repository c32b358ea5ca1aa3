"""The step's gradient depends on the groups, and on nothing about how they are processed."""

from dataclasses import replace

import pytest
import torch

from maxent_grpo.errors import RunError
from maxent_grpo.train import drivers
from maxent_grpo.train.assembly import assemble, start_accelerator
from maxent_grpo.train.run import Given, train
from maxent_grpo.train.step import step


@pytest.fixture
def make_run(configure, tmp_path):
    """A run in float64, assembled and with a rollout collected."""

    def build(**settings):
        config = configure(
            max_grad_norm=1e9, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant", **settings
        )
        run = assemble(config, Given(), start_accelerator(config), tmp_path)
        run.learner.model.double()
        if run.reference is not None:
            run.reference.double()
        drivers.collect(run)
        return run

    return build


def moved(run, micro_groups: int = 4) -> torch.Tensor:
    """How far one SGD step of rate 1 moves the parameters: the negative gradient."""
    run.plan = replace(run.plan, micro_groups=micro_groups)
    before = torch.cat([p.detach().flatten() for p in run.learner.model.parameters()])
    step(run, run.rollout)
    return torch.cat([p.detach().flatten() for p in run.learner.model.parameters()]) - before


SETTINGS = {
    "maxent": {"command": "train-maxent"},
    "dr_grpo": {"command": "train-baseline", "objective": "dr_grpo"},
    "dapo with KL and entropy": {
        "command": "train-baseline",
        "objective": "dapo",
        "beta": 0.1,
        "entropy_coef": 0.01,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_gradient_does_not_depend_on_the_micro_batch_size(make_run, name):
    whole = moved(make_run(**SETTINGS[name]), micro_groups=4)
    for micro_groups in (1, 2, 3):
        parts = moved(make_run(**SETTINGS[name]), micro_groups=micro_groups)
        assert (parts - whole).norm() <= 1e-6 * whole.norm()
    assert whole.norm() > 0


def test_the_gradient_does_not_depend_on_the_shared_prefix(make_run):
    shared, plain = make_run(**SETTINGS["maxent"]), make_run(**SETTINGS["maxent"])
    plain.learner.shared_prefix = False
    expected = moved(plain)
    assert (moved(shared) - expected).norm() <= 1e-6 * expected.norm()


def test_metrics_do_not_depend_on_the_micro_batch_size(make_run):
    results = []
    for micro_groups in (1, 4):
        run = make_run(**SETTINGS["maxent"])
        run.plan = replace(run.plan, micro_groups=micro_groups)
        results.append(step(run, run.rollout).metrics)
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert value == pytest.approx(results[1][name], rel=1e-5, abs=1e-7), name


def test_a_non_finite_loss_steps_nothing_and_is_reported(make_run, monkeypatch):
    run = make_run(**SETTINGS["maxent"])
    real = type(run.objective).loss

    def broken(self, *arguments):
        loss, metrics = real(self, *arguments)
        return loss * torch.nan, metrics

    monkeypatch.setattr(type(run.objective), "loss", broken)
    controllers = run.controllers
    assert moved(run).abs().max() == 0
    assert run.skipped_in_a_row == 1
    assert run.controllers is controllers
    assert run.step == 1


def test_a_run_of_non_finite_steps_ends_with_a_remedy(configure, monkeypatch):
    from maxent_grpo.objectives.catalog import Objective

    real = Objective.loss
    monkeypatch.setattr(Objective, "loss", lambda self, *a: (real(self, *a)[0] * torch.nan, {}))
    with pytest.raises(RunError, match=r"step 2: 2 updates in a row .* lower learning_rate"):
        train(configure(max_nonfinite_steps=2))


def test_grpo_and_maxent_gradients_are_of_comparable_size(make_run):
    sizes = {name: float(moved(make_run(**SETTINGS[name])).norm()) for name in ("maxent", "dr_grpo")}
    assert 0.1 < sizes["maxent"] / sizes["dr_grpo"] < 10


def test_activation_checkpointing_gives_the_same_gradient(make_run):
    expected = moved(make_run(**SETTINGS["maxent"]))
    run = make_run(**SETTINGS["maxent"], gradient_checkpointing=True)
    assert run.learner.model.is_activation_checkpointing
    assert not run.learner.shared_prefix
    assert (moved(run) - expected).norm() <= 1e-6 * expected.norm()
