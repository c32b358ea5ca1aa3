"""The composed tree → the request of one job."""

from collections.abc import Mapping
from typing import Any

import pytest

from maxent_grpo.cli.compose import Composed
from maxent_grpo.cli.request import read_request
from maxent_grpo.errors import UsageError


def _typed(tree: Mapping[str, Any], *given: str) -> Composed:
    return Composed(tree, frozenset(given))


def test_section_and_bare_settings_meet() -> None:
    tree = {
        "maxent": {"recipe": "r.yaml", "training": {"seed": 1, "beta": 0.5}, "model": None},
        "training": {"seed": 2},
        "script": {"dataset_name": "d"},
        "learning_rate": 1e-6,
    }
    request = read_request(_typed(tree), "train-maxent")
    assert request.command == "train-maxent"
    assert request.recipe == "r.yaml"
    assert request.overrides == {
        "script": {"dataset_name": "d"},
        "training": {"seed": 2, "beta": 0.5},
        "model": {},
        "flat": {"learning_rate": 1e-6},
    }


def test_a_named_command_wins_over_the_wrappers() -> None:
    composed = _typed({"command": "train-baseline", "baseline": {"recipe": "b.yaml"}}, "command")
    assert read_request(composed, "train-maxent").recipe == "b.yaml"


def test_report_and_demo_take_their_own_keys() -> None:
    assert read_request(_typed({"command": "report", "run": "var/x"}), None).section == {"run": "var/x"}
    assert read_request(_typed({"command": "demo", "demo": {"steps": 3}}), None).section == {"steps": 3}


@pytest.mark.parametrize(
    ("tree", "given", "message"),
    [
        ({}, (), "no command: add command="),
        ({"command": "train-maxnt"}, (), "Unsupported command: train-maxnt .did you mean train-maxent"),
        ({"command": "conjure"}, (), "Unsupported command: conjure"),
        ({"command": "report"}, (), "run=DIR"),
        ({"command": "report", "run": "x", "dry_run": True}, (), "dry_run is not read by report"),
        ({"command": "demo", "training": {}}, (), "training is not read by demo"),
        ({"command": "train-maxent", "run": "x"}, (), "run is not read by train-maxent"),
        (
            {"command": "train-maxent", "maxent": {"trainin": {}}},
            (),
            "maxent.trainin: unknown key .did you mean training",
        ),
        (
            {"command": "train-maxent", "maxent": {"training": 3}},
            (),
            "maxent.training=3: settings are needed",
        ),
        ({"command": "train-maxent", "maxent": {"recipe": 3}}, (), "maxent.recipe=3: a path is needed"),
        ({"command": "train-maxent", "dry_run": "maybe"}, (), "dry_run=maybe: true or false"),
        (
            {"command": "train-maxent", "baseline": {"training": {"seed": 1}}},
            ("baseline.training.seed",),
            "baseline.training.seed is not read by train-maxent; write maxent.training.seed",
        ),
        (
            {"command": "train-maxent", "maxent": {"training": {"seed": 1}}, "training": {"seed": 2}},
            ("maxent.training.seed", "training.seed"),
            "maxent.training.seed and training.seed are both given",
        ),
        (
            {"command": "train-maxent", "training": {"seed": 1}, "seed": 2},
            ("training.seed", "seed"),
            "training.seed and seed are both given",
        ),
    ],
)
def test_what_nothing_would_read_is_refused(
    tree: dict[str, Any], given: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_request(_typed(tree, *given), None)


def test_a_preset_for_another_command_is_refused_by_a_wrapper() -> None:
    with pytest.raises(UsageError, match="preset is for train-maxent and this script runs train-baseline"):
        read_request(_typed({"command": "train-maxent"}), "train-baseline")


def test_a_sweep_over_commands_may_set_every_section() -> None:
    tree = {"command": "train-maxent", "baseline": {"recipe": "b"}, "maxent": {"recipe": "m"}}
    composed = Composed(
        tree, frozenset({"baseline.recipe", "maxent.recipe"}), {"command": "train-maxent"}, is_sweep=True
    )
    assert read_request(composed, None).recipe == "m"
