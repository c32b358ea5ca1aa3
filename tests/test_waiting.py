"""Waits that are told, and waits that end."""

import threading
import time

import pytest

from maxent_grpo.waiting import Late, waiting, within


def test_a_long_wait_is_told_and_a_short_one_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("the other ranks", first_word=0.5):
        time.sleep(2.6)
    with waiting("nobody", first_word=60.0):
        time.sleep(1.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(
        line.startswith("waiting since ") and line.endswith(" s for the other ranks") for line in lines
    )


def test_a_rank_says_which_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    with waiting("gradients", first_word=0.1):
        time.sleep(1.5)
    assert capsys.readouterr().err.startswith("rank 3: waiting since ")


def test_what_a_call_gives_or_raises_comes_back() -> None:
    assert within(5.0, lambda: 7, lambda: None) == 7
    with pytest.raises(KeyError, match="a"):
        within(5.0, lambda: {}["a"], lambda: None)


def test_a_call_that_is_late_is_given_up() -> None:
    gate = threading.Event()
    with pytest.raises(Late, match=r"no answer within 0\.2 s"):
        within(0.2, gate.wait, gate.set)
    assert gate.is_set()
