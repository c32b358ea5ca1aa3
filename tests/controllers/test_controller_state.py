import json
import math
from pathlib import Path

import pytest
import torch

from maxent_grpo.controllers.controller import Controllers, Measurement
from maxent_grpo.controllers.settings import ControllerSettings, MetaSettings
from maxent_grpo.controllers.state import read_state, write_state
from maxent_grpo.errors import UsageError
from maxent_grpo.objectives.weights import closed_form_weights
from maxent_grpo.observe.definitions import definitions

DEFINED = {metric.name for metric in definitions() if metric.part == "controllers"}

FEEDBACK = ControllerSettings(
    tau=0.3,
    beta=0.2,
    kl_target=0.07,
    kl_horizon=20,
    kl_ctl_step_size=0.5,
    target_weight_entropy=1.0,
    tau_lr=0.05,
    tau_warmup_steps=5,
)


def with_meta(**changes: object) -> ControllerSettings:
    meta = MetaSettings(enabled=True, **({"lr": 0.02} | changes))  # type: ignore[arg-type]
    return ControllerSettings(tau=0.3, beta=0.2, kl_target=0.07, target_weight_entropy=1.0, meta=meta)


EVERY_KIND = {
    "feedback": FEEDBACK,
    "analytic": with_meta(update_interval=3),
    "adam": with_meta(method="first_order", optimizer="adam"),
    "adamw": with_meta(method="truncated_backprop", optimizer="adamw", truncation_steps=2, use_hessian=True),
}


def stream(step: int) -> Measurement:
    """A measurement that is a function of the step alone."""
    generator = torch.Generator().manual_seed(step)
    log_q = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    scores = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    kl, entropy = torch.rand(2, generator=generator).tolist()
    return Measurement(
        step, kl * 0.2, entropy * 1.6, 1.0, lambda tau, beta: closed_form_weights(log_q, scores, tau, beta)
    )


def run(controllers: Controllers, first: int, last: int) -> Controllers:
    for step in range(first, last + 1):
        controllers, _ = controllers.update(stream(step))
    return controllers


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_resumed_controllers_equal_the_uninterrupted_ones_exactly(kind: str, tmp_path: Path) -> None:
    settings = EVERY_KIND[kind]
    whole = run(Controllers.start(settings), 1, 40)
    halfway = run(Controllers.start(settings), 1, 17)
    write_state(tmp_path / "controller_state.json", halfway.state_dict())
    restored = Controllers.start(settings).load_state_dict(read_state(tmp_path / "controller_state.json"))
    assert restored == halfway
    assert run(restored, 18, 40) == whole
    assert whole.knobs() != Controllers.start(settings).knobs()


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_vector_round_trip_is_exact_and_finite(kind: str) -> None:
    start = Controllers.start(EVERY_KIND[kind])
    for controllers in (start, run(start, 1, 7)):
        vector = controllers.as_vector()
        assert all(map(math.isfinite, vector))
        assert len(vector) == len(start.as_vector())
        assert start.from_vector(vector) == controllers
        assert start.from_vector(torch.tensor(vector, dtype=torch.float64).tolist()) == controllers


def test_state_has_the_documented_schema_and_no_meta_block_without_meta() -> None:
    controllers = Controllers.start(FEEDBACK)
    assert controllers.state_dict() == {
        "beta": 0.2,
        "tau": 0.3,
        "tau_log": math.log(0.3),
        "tau_entropy_ema": None,
    }


def test_state_with_meta_holds_its_settings_and_last_gradients() -> None:
    controllers = run(Controllers.start(with_meta(tau_lr=0.01, beta_grad_clip=2.0)), 1, 1)
    meta = controllers.state_dict()["meta"]
    assert meta["version"] == 1
    assert meta["controller"] == {
        "enabled": True,
        "method": "analytic",
        "learning_rate": 0.02,
        "tau_learning_rate": 0.01,
        "beta_learning_rate": 0.0,
        "beta_grad_clip": 2.0,
        "update_interval": 1,
        "objective": "potential",
        "analytic_steps": 1,
        "optimizer": "sgd",
        "truncation_steps": 1,
        "use_hessian": False,
        "last_tau_grad": pytest.approx(stream(1).weight_entropy - 1.0),  # type: ignore[operator]
        "last_beta_grad": pytest.approx(stream(1).kl - 0.07),  # type: ignore[operator]
    }


def test_loading_restores_the_meta_settings_of_the_state() -> None:
    saved = run(Controllers.start(with_meta(lr=0.5, update_interval=2)), 1, 4).state_dict()
    restored = Controllers.start(with_meta(lr=0.01)).load_state_dict(saved)
    assert (restored.settings.meta.lr, restored.settings.meta.update_interval) == (0.5, 2)


def test_loading_with_meta_disabled_ignores_the_meta_block() -> None:
    saved = run(Controllers.start(with_meta()), 1, 4)
    restored = Controllers.start(FEEDBACK).load_state_dict(saved.state_dict())
    assert restored.settings == FEEDBACK
    assert restored.knobs() == saved.knobs()
    assert "meta" not in restored.state_dict()


def test_meta_starts_afresh_from_a_state_without_it() -> None:
    saved = run(Controllers.start(FEEDBACK), 1, 4)
    restored = Controllers.start(with_meta()).load_state_dict(saved.state_dict())
    assert restored.knobs() == saved.knobs()
    assert restored.state.meta.last_tau_grad == 0.0


def test_missing_tau_log_is_the_log_of_tau_and_missing_average_is_none() -> None:
    restored = Controllers.start(FEEDBACK).load_state_dict({"beta": 0.5, "tau": 0.25})
    assert restored.state.tau_log == math.log(0.25)
    assert restored.state.entropy_ema is None


@pytest.mark.parametrize("key", ["beta", "tau"])
@pytest.mark.parametrize("value", [None, "0.1", math.nan, True, -1.0])
def test_missing_or_unusable_knob_is_refused_with_file_and_key(key: str, value: object) -> None:
    state = {"beta": 0.5, "tau": 0.25} | {key: value}
    with pytest.raises(UsageError, match=f"run/controller_state.json: {key} is .*, not a finite number"):
        Controllers.start(FEEDBACK).load_state_dict(state, source="run/controller_state.json")


def test_state_that_would_leave_beta_stuck_at_zero_is_refused() -> None:
    with pytest.raises(UsageError, match=r"state.json: beta is 0, .*can never leave"):
        Controllers.start(FEEDBACK).load_state_dict({"beta": 0.0, "tau": 0.25}, source="state.json")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 2, "meta: version is 2, not 1"),
        (("controller",), 3, "meta: controller must be an object"),
        (("controller", "method"), "magic", "meta: controller: meta.method is 'magic'"),
        (("optimizer_state", "tau", "first"), "x", "meta: first is 'x', not a finite number"),
    ],
)
def test_broken_meta_block_is_refused_by_key(path: tuple[str, ...], value: object, message: str) -> None:
    settings = with_meta()
    state = Controllers.start(settings).state_dict()
    block = state["meta"]
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    with pytest.raises(UsageError, match=message):
        Controllers.start(settings).load_state_dict(state)


def test_meta_block_without_a_setting_is_refused_by_key() -> None:
    state = Controllers.start(with_meta()).state_dict()
    del state["meta"]["controller"]["update_interval"]
    with pytest.raises(UsageError, match="meta: controller lacks update_interval"):
        Controllers.start(with_meta()).load_state_dict(state)


def test_written_state_is_plain_json_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "controller_state.json"
    write_state(path, {"beta": 1.0, "tau": 2.0, "padding": "x" * 1000})
    write_state(path, {"beta": 0.1, "tau": 0.2})
    assert json.loads(path.read_text()) == {"beta": 0.1, "tau": 0.2}
    assert [p.name for p in tmp_path.iterdir()] == ["controller_state.json"]


def test_crash_while_writing_leaves_the_old_state_and_its_leftover_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "controller_state.json"
    write_state(path, {"beta": 0.1, "tau": 0.2})

    def crash(descriptor: int) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", crash)
        with pytest.raises(OSError, match="power cut"):
            write_state(path, {"beta": 0.3, "tau": 0.4})
    assert len(list(tmp_path.iterdir())) == 2  # a half-written file beside the state
    assert read_state(path) == {"beta": 0.1, "tau": 0.2}
    write_state(path, {"beta": 0.5, "tau": 0.6})
    assert read_state(path) == {"beta": 0.5, "tau": 0.6}
    assert len(list(tmp_path.iterdir())) == 1


def test_state_that_json_cannot_hold_is_refused_before_the_old_file_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "controller_state.json"
    write_state(path, {"beta": 0.1})
    with pytest.raises(ValueError, match="JSON"):
        write_state(path, {"beta": math.nan})
    assert read_state(path) == {"beta": 0.1}


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no controller state there"), ("{", "not JSON"), ("[1]", "holds a list")]
)
def test_unreadable_state_file_is_refused_by_name(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "controller_state.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=f"controller_state.json: {message}"):
        read_state(path)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_metric_is_documented(kind: str) -> None:
    controllers = Controllers.start(EVERY_KIND[kind])
    for step in range(1, 4):
        controllers, metrics = controllers.update(stream(step))
        assert {f"train/{name}" for name in metrics} <= DEFINED
        assert all(map(math.isfinite, metrics.values()))


def test_ranks_with_equal_measurements_agree_exactly() -> None:
    settings = with_meta(method="first_order", optimizer="adam")
    first, second = (run(Controllers.start(settings), 1, 10) for _ in range(2))
    assert first.as_vector() == second.as_vector()
