"""Denominators, statistics, controller state and failures over two gloo processes."""

from pathlib import Path

import pytest

from ranks import run_ranks, running


@pytest.mark.xdist_group("forked")
def test_counts_statistics_and_controller_state_are_global(tmp_path):
    ended = run_ranks(tmp_path, [str(tmp_path)], call=running(Path(__file__).with_name("two_ranks.py")))
    assert ended.codes == [0, 0], ended.errors
    assert len(list(tmp_path.glob("rank-*"))) == 2
