"""Artifact files: locked, resumed under their own settings only, repaired where a process died."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.evaluate.records import Answers, read_records
from maxent_grpo.files import fingerprint_path

FINGERPRINT = {"sampling.temperature": 0.6, "model.weights": "sha256:a"}


def record(index: int, **changes) -> dict:
    scores = [1.0, 0.0]
    return {
        "prompt_index": index,
        "num_generations": 2,
        "scores": scores,
        "generations": ["right", "wrong \ud800 \x00 \u202e </script>"],
        "answer_modes": [None, None],
        "mode_count": None,
        "pass_at_1_ok": True,
    } | changes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "data" / "temp_0p60" / "seed_0.jsonl"
    with Answers(path) as answers:
        answers.load(FINGERPRINT, resume=True)
        answers.append(record(0))
        answers.append(record(1))
    return path


def test_lines_come_back_as_they_were(path):
    with Answers(path) as answers:
        answers.load(FINGERPRINT, resume=True)
        assert answers.records == {0: record(0), 1: record(1)}
        answers.append(record(2))
    assert read_records(path).keys() == {0, 1, 2}


def test_each_line_is_on_the_disk_when_append_returns(tmp_path):
    path = tmp_path / "seed_0.jsonl"
    with Answers(path) as answers:
        answers.load(FINGERPRINT, resume=True)
        answers.append(record(0))
        assert list(read_records(path)) == [0]


@pytest.mark.parametrize("kept", [1, 20, -2])
def test_a_torn_last_line_is_cut_off(path, kept):
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[:first] + whole[first:][:kept])
    with Answers(path) as answers:
        answers.load(FINGERPRINT, resume=True)
        assert list(answers.records) == [0]
        assert path.read_bytes() == whole[:first]


def test_a_whole_last_line_without_its_newline_is_kept(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with Answers(path) as answers:
        answers.load(FINGERPRINT, resume=True)
        assert list(answers.records) == [0, 1]
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt_index": 5, "scor', "line 1 is not JSON"),
        ("[]", "line 1 is no record"),
        (json.dumps(record(5, scores=[1.0])), "line 1 is no record"),
        (json.dumps(record(5, scores=["1", "0"])), "line 1 is no record"),
        (json.dumps(record(1)), "line 3: prompt 1 is there twice"),
    ],
)
def test_damage_before_the_end_is_refused(path, line, message):
    path.write_bytes(line.encode() + b"\n" + path.read_bytes())
    with pytest.raises(UsageError, match=message), Answers(path) as answers:
        answers.load(FINGERPRINT, resume=True)


def test_other_settings_are_refused_by_name_and_nothing_is_touched(path):
    before = path.read_bytes()
    changed = FINGERPRINT | {"sampling.temperature": 1.0, "grader.kind": "math"}
    with pytest.raises(UsageError) as error, Answers(path) as answers:
        answers.load(changed, resume=True)
    assert "sampling.temperature: 0.6 in the file, 1.0 here" in str(error.value)
    assert "grader.kind: unknown in the file, math here" in str(error.value)
    assert "model.weights" not in str(error.value)
    assert "inference.artifacts.resume=false" in str(error.value)
    assert path.read_bytes() == before


def test_starting_over_drops_the_lines_and_takes_the_new_settings(path):
    changed = FINGERPRINT | {"sampling.temperature": 1.0}
    with Answers(path) as answers:
        answers.load(changed, resume=False)
        assert answers.records == {}
        answers.append(record(7))
    with Answers(path) as answers:
        answers.load(changed, resume=True)
        assert list(answers.records) == [7]


def test_lines_of_unknown_origin_are_refused(path):
    fingerprint_path(path).unlink()
    with pytest.raises(UsageError, match=r"no seed_0\.fingerprint\.json says"), Answers(path) as answers:
        answers.load(FINGERPRINT, resume=True)


def test_two_processes_cannot_have_one_file(path):
    imports = "import sys; from pathlib import Path; from maxent_grpo.evaluate.records import Answers"
    code = f"{imports}; Answers(Path(sys.argv[1]))"
    with Answers(path):
        with pytest.raises(RunError, match="another process is writing it"):
            Answers(path)
        other = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )
    assert "another process is writing it" in other.stderr.splitlines()[-1]
    Answers(path).__exit__(None, None, None)  # free again


def test_a_place_that_cannot_be_written_is_named():
    with pytest.raises(UsageError, match=r"/proc/no/seed_0\.jsonl cannot be written .*choose another"):
        Answers(Path("/proc/no/seed_0.jsonl"))
