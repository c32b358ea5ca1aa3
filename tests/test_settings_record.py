"""The record of a setting: read from the field that declares it."""

from dataclasses import dataclass

import pytest

from maxent_grpo.settings import setting, settings_of


@dataclass(frozen=True)
class Clip:
    """The clipped surrogate."""

    low: float = setting(0.2, "Lower clip range.", name="epsilon", gt=0, le=1)
    sizes: list[int] = setting([], "Sizes.", route="native")
    plain: int = 3


def test_records_carry_what_the_field_declares() -> None:
    epsilon, sizes = settings_of(Clip, section="script")
    assert (epsilon.name, epsilon.type, epsilon.default, epsilon.feeds) == ("epsilon", float, 0.2, "Clip.low")
    assert (epsilon.topic, epsilon.section, epsilon.range) == ("The clipped surrogate", "script", "in (0, 1]")
    assert (sizes.name, sizes.default, sizes.route, sizes.feeds) == ("sizes", [], "native", "")
    assert Clip().sizes is not Clip().sizes


@pytest.mark.parametrize(
    ("value", "holds"), [(0, False), (0.5, True), (1, True), (1.5, False), (float("nan"), False)]
)
def test_a_range_holds_what_it_says(value: float, holds: bool) -> None:
    assert settings_of(Clip)[0].holds(value) is holds
