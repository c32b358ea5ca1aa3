"""The step's gradient depends on the groups, and on nothing about how they are processed."""

from dataclasses import replace

import pytest
import torch

import runs
from maxent_grpo.errors import RunError
from maxent_grpo.objectives.objective import Objective
from maxent_grpo.train import drivers
from maxent_grpo.train.learner import Learner
from maxent_grpo.train.step import step
from runs import train


@pytest.fixture
def make_run(configure, tmp_path):
    """A run in float64, assembled and with a rollout collected."""

    def build(**settings):
        plain = {"max_grad_norm": 1e9, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant"}
        config = configure(**plain | settings)
        run = runs.build(config)
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
    "grpo": {"command": "train-baseline", "objective": "grpo"},
    "gspo": {"command": "train-baseline", "objective": "gspo"},
    "tilted": {"command": "train-maxent", "objective": "tilted"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_gradient_does_not_depend_on_the_micro_batch_size(make_run, name):
    whole = moved(make_run(**SETTINGS[name]), micro_groups=4)
    for micro_groups in (1, 2, 3):
        parts = moved(make_run(**SETTINGS[name]), micro_groups=micro_groups)
        assert (parts - whole).norm() <= 1e-6 * whole.norm()
    assert whole.norm() > 0


def test_the_gradient_does_not_depend_on_shortcuts_through_the_model(make_run):
    short, plain = make_run(**SETTINGS["maxent"]), make_run(**SETTINGS["maxent"])
    plain.learner.policy.shortcuts = frozenset()
    expected = moved(plain)
    assert (moved(short) - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("name", SETTINGS)
def test_gradient_signal_and_metrics_do_not_depend_on_the_token_budget(make_run, name):
    run = make_run(**SETTINGS[name])
    groups = [one_utility(run.rollout[0]), *run.rollout[1:]]
    lengths = [sum(map(len, g.rollout.token_ids)) + len(g.rollout.prompt.token_ids) for g in groups]
    start = {key: value.clone() for key, value in run.learner.model.state_dict().items()}
    results = []
    for budget in (None, 1, max(lengths), 2 * max(lengths), sum(lengths)):
        run.learner.model.load_state_dict(start)
        run.plan, run.step = replace(run.plan, micro_groups=4, micro_tokens=budget), 0
        run.meter.reduced()  # drop what sampling left there
        result = step(run, groups)
        now = run.learner.model.state_dict()
        results.append((result, torch.cat([(now[key] - start[key]).flatten() for key in start])))
    (whole, whole_moved), *others = results
    assert whole_moved.norm() > 0
    for result, change in others:
        assert (change - whole_moved).norm() <= 1e-6 * whole_moved.norm()
        torch.testing.assert_close(result.signal.advantages, whole.signal.advantages)
        assert result.metrics.keys() == whole.metrics.keys()
        for key, value in whole.metrics.items():
            assert result.metrics[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key


def one_utility(group):
    """The group, all of whose completions did equally well."""
    return replace(group, utilities=(0.5,) * len(group.utilities))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("silent", [2, 4])
def test_groups_without_signal_are_not_missed(make_run, monkeypatch, name, silent):
    backwards, real = [], Learner.backward
    monkeypatch.setattr(Learner, "backward", lambda self, *a: (backwards.append(a), real(self, *a))[1])
    results = []
    for skipping in (True, False):
        run = make_run(
            **SETTINGS[name] | {"optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.1}
        )
        run.plan = replace(run.plan, micro_groups=1)
        if not skipping:
            monkeypatch.setattr(
                Objective,
                "has_gradient",
                lambda self, batch, *_: torch.ones_like(batch.utilities[:, 0]).bool(),
            )
        groups = [one_utility(g) for g in run.rollout[:silent]] + list(run.rollout[silent:])
        for once in (run.rollout, groups, groups):
            backwards.clear()
            result = step(run, once)
        everything = torch.cat([p.detach().flatten() for p in run.learner.model.parameters()])
        results.append((everything, result.metrics, len(backwards)))
    (short, short_metrics, short_count), (full, full_metrics, full_count) = results
    assert (short - full).abs().max() <= 1e-10
    assert short_metrics == pytest.approx(full_metrics, rel=1e-9, abs=1e-9)
    assert full_count == 4
    assert short_count == (4 if "KL" in name else max(1, 4 - silent))


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
    assert run.learner.policy.shortcuts == {"packed", "head"}
    assert (moved(run) - expected).norm() <= 1e-6 * expected.norm()
