"""An evaluation killed in the middle and started again holds each prompt once, with the figures of one left alone."""

import json
import time
from pathlib import Path

import pytest
from benchmarks.kill_evaluation import command, differences, lines_written

from forked import start
from maxent_grpo.cli.main import main

LIMIT = 8


@pytest.mark.slow
@pytest.mark.xdist_group("forked")
def test_killed_twice_the_evaluation_ends_as_if_left_alone(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(whole, LIMIT)[3:]) == 0
    for lines in (2, LIMIT + 2):  # under the first seed and under the second
        process = start(main, command(killed, LIMIT)[3:], tmp_path / "written")
        while lines_written(killed) < lines:
            assert process.is_alive(), (tmp_path / "written").read_text()
            time.sleep(0.01)
        process.kill()
        process.join()
        assert lines <= lines_written(killed) < 2 * LIMIT
    assert main(command(killed, LIMIT)[3:]) == 0
    assert differences(whole, killed, LIMIT) == []


def test_the_comparison_sees_what_is_wrong(tmp_path: Path) -> None:
    lines = [{"prompt_index": index, "scores": [index], "completed_at": "now"} for index in range(3)]
    for folder, kept in (
        ("a", lines),
        ("b", lines[:2]),
        ("c", [*lines[:2], lines[2] | {"scores": [9]}]),
        ("d", lines),
    ):
        (tmp_path / folder).mkdir()
        text = "".join(json.dumps(line | {"completed_at": folder}) + "\n" for line in kept)
        (tmp_path / folder / "seed_0.jsonl").write_text(text)
        (tmp_path / folder / "summary.csv").write_text("same")
    found = {folder: differences(tmp_path / "a", tmp_path / folder, 3) for folder in "bcd"}
    assert found["d"] == []
    assert found["c"] == ["seed_0.jsonl: other answers"]
    assert found["b"][0] == "seed_0.jsonl: not every prompt exactly once"
