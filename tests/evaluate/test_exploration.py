import json
import math

import pytest

from maxent_grpo.evaluate.passk import exploration_scores, with_standard_errors
from maxent_grpo.evaluate.training import exploration_metrics
from maxent_grpo.tasks.registry import load_rows
from maxent_grpo.types import Group, Prompt, Rollout


def group_of(row: dict, texts: list[str], utilities: list[float]) -> Group:
    prompt = Prompt(0, row["problem"], (1,), row)
    blank = tuple((1,) for _ in texts)
    rollout = Rollout(prompt, blank, tuple((0.0,) for _ in texts), tuple(texts), ("stop",) * len(texts), 0)
    return Group(rollout, {}, tuple(utilities))


@pytest.fixture(scope="module")
def row():
    """A colouring problem with at least four right answers."""
    return next(r for r in load_rows("graph_coloring", "eval") if len(r["modes"]) >= 4)


def hidden(row: dict, mode: str) -> str:
    """The answer text of a mode: the colours of the hidden vertices."""
    facts = json.loads(row["facts"])
    partial = facts["partial"]
    return "".join(colour for colour, given in zip(mode, partial, strict=True) if given == "?")


def test_each_measure_is_what_its_name_says(row):
    first, second = (hidden(row, mode) for mode in row["modes"][:2])
    groups = [
        group_of(row, [first, first, second, "no"], [1.0, 1.0, 1.0, 0.0]),
        group_of(row, ["no", "no", "no", "no"], [0.0] * 4),
    ]
    scores = exploration_scores(groups)
    assert scores["mean_at_4"] == [0.75, 0.0]
    assert scores["pass_at_4"] == [1.0, 0.0]
    assert scores["distinct_at_4"] == [2.0, 0.0]
    assert scores["coverage_at_4"] == [2 / len(row["modes"]), 0.0]


def test_training_metrics_are_the_means_over_groups(row):
    first = hidden(row, row["modes"][0])
    metrics = exploration_metrics(
        [group_of(row, [first, "no"], [1.0, 0.0]), group_of(row, ["no"] * 2, [0.0, 0.0])]
    )
    values = {name: float(stat.value / stat.weight) for name, stat in metrics.items()}
    assert values == {"pass": 0.5, "distinct": 0.5, "coverage": 0.5 / len(row["modes"])}


def test_without_enumerated_modes_there_is_no_coverage():
    group = group_of({"problem": "2+2"}, ["4", "5"], [1.0, 0.0])
    assert exploration_scores([group]) == {"mean_at_2": [0.5], "pass_at_2": [1.0]}


def test_the_standard_error_is_over_prompts():
    summary = with_standard_errors({"x": [0.0, 1.0, 1.0, 0.0]})
    assert summary == {"x": 0.5, "x_se": pytest.approx(math.sqrt((4 * 0.25 / 3) / 4))}
