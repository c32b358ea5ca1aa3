import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from maxent_grpo.errors import RunError
from maxent_grpo.files import JsonlFile, RowFile, escaped, replace_file


def filled(path: Path, steps: int) -> JsonlFile:
    log = JsonlFile(path)
    log.append({"step": 0, "run/git_sha": "abc"})
    for step in range(1, steps + 1):
        log.append({"step": step, "train/loss": 1 / (3 * step), "note": "τ"})
    return log


def test_floats_round_trip_exactly(tmp_path):
    values = [0.1 + 0.2, 1e-320, -0.0, 123456789.123456789, 1 / 3]
    JsonlFile(tmp_path / "m.jsonl").append({"step": 1, "values": values})
    assert JsonlFile.read(tmp_path / "m.jsonl")[0]["values"] == values


def test_non_finite_numbers_become_null_and_the_line_is_strict_json(tmp_path):
    path = tmp_path / "m.jsonl"
    JsonlFile(path).append({"step": 1, "a": math.nan, "b": {"c": math.inf, "d": [-math.inf, 1.0]}})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    record = json.loads(path.read_text(), parse_constant=refuse)
    assert record == {"step": 1, "a": None, "b": {"c": None, "d": [None, 1.0]}}


@pytest.mark.parametrize("step", [0, 1, 4, 9, 99])
def test_cut_back_keeps_exactly_the_records_up_to_the_step(tmp_path, step):
    log = filled(tmp_path / "m.jsonl", 9)
    log.cut_back(step)
    expected = filled(tmp_path / "expected.jsonl", min(step, 9))
    assert log.path.read_bytes() == expected.path.read_bytes()


def test_cut_back_and_append_again_gives_the_bytes_of_an_uninterrupted_run(tmp_path):
    whole = filled(tmp_path / "whole.jsonl", 9).path.read_bytes()
    log = filled(tmp_path / "m.jsonl", 7)
    log.cut_back(5)
    for step in range(6, 10):
        log.append({"step": step, "train/loss": 1 / (3 * step), "note": "τ"})
    assert log.path.read_bytes() == whole


def test_every_kill_point_within_the_last_line_is_survived(tmp_path):
    whole = filled(tmp_path / "whole.jsonl", 3).path.read_bytes()
    two = filled(tmp_path / "two.jsonl", 2).path.read_bytes()
    path = tmp_path / "m.jsonl"
    for size in range(len(two), len(whole) - 1):
        path.write_bytes(whole[:size])
        assert [record["step"] for record in JsonlFile.read(path)] == [0, 1, 2]
        JsonlFile(path).cut_back(3)
        assert path.read_bytes() == two


def test_a_whole_last_record_without_its_newline_is_kept(tmp_path):
    log = filled(tmp_path / "m.jsonl", 3)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-1])
    log.cut_back(3)
    assert log.path.read_bytes() == whole


def test_cut_back_leaves_no_temporary_file_and_accepts_a_missing_one(tmp_path):
    filled(tmp_path / "m.jsonl", 3).cut_back(1)
    JsonlFile(tmp_path / "absent.jsonl").cut_back(1)
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


@pytest.mark.parametrize("line", ['{"step": 1, "tr', "[1]", '{"loss": 1}'])
def test_damage_before_the_last_line_is_an_error_that_names_file_and_line(tmp_path, line):
    path = tmp_path / "m.jsonl"
    path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(RunError, match=r"m\.jsonl: line 2 ") as caught:
        JsonlFile.read(path)
    assert "\n" not in str(caught.value)


def test_the_log_is_light_to_import():
    heavy = "{'torch', 'matplotlib', 'rich', 'jinja2', 'accelerate', 'wandb'}"
    modules = "maxent_grpo.files, maxent_grpo.observe.console"
    code = f"import sys, {modules}; print({heavy} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


LONE = "é \ud800 \udcff 😀"


def test_a_lone_surrogate_is_an_escape_in_every_file_and_never_lost(tmp_path):
    path = tmp_path / "c.jsonl"
    JsonlFile(path).append({"step": 1, "completion": LONE})
    assert path.read_bytes().decode("utf-8").count("\\ud800") == 1
    assert JsonlFile.read(path)[0]["completion"] == LONE
    replace_file(tmp_path / "page.html", LONE)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "é \\ud800 \\udcff 😀"
    assert escaped({"a": [LONE, 1, None], "b": ("plain",)}) == {
        "a": ["é \\ud800 \\udcff 😀", 1, None],
        "b": ["plain"],
    }


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"step": "x"}', b'{"step": true}', b"\xff", b"\0\0"])
def test_every_kind_of_corrupt_middle_line_is_named(tmp_path, line):
    log = filled(tmp_path / "m.jsonl", 3)
    lines = log.path.read_bytes().splitlines()
    log.path.write_bytes(b"\n".join([lines[0], line, *lines[1:]]) + b"\n")
    for read in (lambda: JsonlFile.read(log.path), lambda: log.cut_back(2)):
        with pytest.raises(RunError, match=r"m.jsonl: line 2 .*restore the file or delete the line"):
            read()
    log.cut_back(-1)
    assert log.path.read_bytes() == b""


def test_a_row_file_without_a_row_goes_with_the_error_and_one_with_rows_stays(tmp_path: Path) -> None:
    path = tmp_path / "seed_0.jsonl"

    def use(fails: bool, appends: bool) -> None:
        with RowFile(path, elsewhere="x", start_over="y") as rows:
            rows.begin({"a": 1}, resume=True)
            if appends:
                rows.append({"index": 0})
            if fails:
                raise RunError("no model")

    with pytest.raises(RunError, match="no model"):
        use(fails=True, appends=False)
    assert list(tmp_path.iterdir()) == []
    use(fails=False, appends=False)
    assert path.is_file()
    with pytest.raises(RunError, match="no model"):
        use(fails=True, appends=True)
    assert json.loads(path.read_text()) == {"index": 0}
