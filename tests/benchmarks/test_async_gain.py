"""The arithmetic of the table; the runs behind it are those of the driver tests."""

import pytest
from benchmarks.async_gain import curve, table


def test_the_clock_starts_with_the_second_step_and_rewards_are_matched():
    slow = curve([0.0, 0.2, 0.4, 0.6], [0.0] * 4, [9.0, 2.0, 2.0, 2.0], [9.0, 1.0, 1.0, 1.0], window=2)
    quick = curve(
        [0.0, 0.1, 0.3, 0.5], [0.0, 1.0, 1.0, 1.0], [9.0, 1.0, 1.0, 1.0], [9.0, 0.0, 0.0, 0.0], window=2
    )
    assert slow.seconds == [0.0, 2.0, 4.0, 6.0]
    assert slow.rewards[1:] == pytest.approx([0.1, 0.3, 0.5])
    assert (slow.waited, quick.waited, quick.age) == (0.5, 0.0, 0.75)
    rows = table({"sync": slow, "async": quick}).splitlines()
    assert rows[0].startswith("| driver | seconds for 4 steps | seconds to reward 0.400 ")
    assert rows[2] == "| sync | 6.0 | 6.0 | 0.500 | 50% | 0.00 |"
    assert rows[3] == "| async | 3.0 | 3.0 | 0.400 | 0% | 0.75 |"
