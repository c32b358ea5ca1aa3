from typing import Any, Literal

import pytest
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from maxent_grpo.config.records import convert, describe


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ("1e-6", float, 1e-6),
        (3, float, 3.0),
        ("2.5", float | None, 2.5),
        (None, float | None, None),
        (8.0, int, 8),
        ("12", int, 12),
        ("True", bool, True),
        ("false", bool | None, False),
        ("true", str | bool | None, True),
        ("checkpoint-5", str | bool | None, "checkpoint-5"),
        ("1", int | str, "1"),
        ([1, 2], list[float], [1.0, 2.0]),
        (("a",), list[str], ["a"]),
        ({"a": 1}, dict[str, Any] | None, {"a": 1}),
        ("cosine", SchedulerType | str, SchedulerType.COSINE),
        (IntervalStrategy.STEPS, IntervalStrategy | str, IntervalStrategy.STEPS),
        ("ce", Literal["infonce", "ce"], "ce"),
    ],
)
def test_values_become_what_their_field_declares(value: Any, annotation: Any, expected: Any) -> None:
    converted = convert(value, annotation)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("fast", float),
        (True, float),
        (float("nan"), float),
        ("inf", float),
        (1.5, int),
        (True, int),
        (1, bool),
        ("yes", bool),
        (5, str),
        ("a", list[str]),
        ([1], list[str]),
        ("mse", Literal["infonce", "ce"]),
        (False, IntervalStrategy | str),
        ("sometimes", IntervalStrategy | str),
        (None, float),
        ([], dict[str, Any] | None),
    ],
)
def test_values_that_would_lose_something_are_refused(value: Any, annotation: Any) -> None:
    with pytest.raises(ValueError, match="expected "):
        convert(value, annotation)


def test_descriptions_are_words() -> None:
    assert describe(float | None) == "a finite number or null"
    assert describe(list[str]) == "a list of texts"
    assert describe(IntervalStrategy | str) == "one of no, steps, epoch"
