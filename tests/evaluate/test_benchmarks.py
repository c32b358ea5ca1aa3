"""Benchmarks by name, their overrides, and their questions."""

import json
from pathlib import Path

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.benchmarks import (
    MATH_SYSTEM_PROMPT,
    PRESETS,
    content_digest,
    load_questions,
    resolve_benchmark,
)

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("math", ("math_500", "HuggingFaceH4/MATH-500", None, "test")),
        ("AIME-2024", ("aime24", "HuggingFaceH4/aime_2024", "default", "train")),
        ("aime_25", ("aime25", "yentinglin/aime_2025", "default", "train")),
        ("amc", ("amc", "AI-MO/aimo-validation-amc", "default", "train")),
        ("minerva", ("minerva", "svc-huggingface/minerva-math", None, "test")),
        ("graph-coloring", ("graph_coloring", "task:graph_coloring", None, "eval")),
    ],
)
def test_names_and_aliases(name, expected):
    found = resolve_benchmark(name, {})
    assert (found.dataset_id, found.dataset_name, found.dataset_config, found.split) == expected


def test_a_local_file_brings_its_own_split():
    found = resolve_benchmark("aime24", {"dataset_name": "mine.jsonl", "answer_column": "gold"})
    assert (found.dataset_config, found.split, found.answer_column) == (None, "train", "gold")
    assert (
        resolve_benchmark("aime24", {"dataset_name": "mine.jsonl", "split": "train[:2]"}).split == "train[:2]"
    )


def test_a_name_of_ones_own_needs_a_dataset():
    assert resolve_benchmark("mine", {"dataset_name": "mine.jsonl"}).dataset_id == "mine"
    assert resolve_benchmark("mine", {"dataset_name": "task:countdown", "split": "eval"}).grader == "task"


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "math_50",
            {},
            "Unknown inference dataset 'math_50' .did you mean math_500.*Supported presets: math_500, aime24",
        ),
        ("amc", {"prompt_colum": "x"}, "inference.eval.prompt_colum: unknown .did you mean prompt_column"),
        ("amc", {"prompt_column": 3}, "inference.eval.prompt_column=3: expected a text"),
        ("amc", {"grader": "maths"}, "one of math, task"),
        ("amc", {"split": "a", "dataset_split": "b"}, "both given"),
    ],
)
def test_refusals(name, overrides, message):
    with pytest.raises(UsageError, match=message):
        resolve_benchmark(name, overrides)


def test_the_system_prompt_is_the_one_that_the_recipes_train_with():
    file = (REPOSITORY / "configs/prompts/math_system_prompt.txt").read_text(encoding="utf-8").strip()
    assert file == MATH_SYSTEM_PROMPT
    recipe = (REPOSITORY / "configs/recipes/Qwen2.5-1.5B-Instruct/grpo/config_math.yaml").read_text(
        encoding="utf-8"
    )
    assert all(line in recipe for line in MATH_SYSTEM_PROMPT.splitlines())
    assert {p.dataset_id for p in PRESETS.values() if p.system_prompt is None} == {
        "countdown",
        "graph_coloring",
    }


FILES = [
    ("math_500", "math500.jsonl", {}, 500),
    ("aime24", "aime24.jsonl", {}, 30),
    ("aime25", "aime25.jsonl", {"answer_column": "expected_answer"}, 30),
    ("aime25", "aime25.jsonl", {}, 30),
    ("amc", "amc83.jsonl", {}, 83),
    ("amc", "amc23.jsonl", {}, 40),
    ("minerva", "minerva_math.jsonl", {}, 272),
    ("minerva", "drgrpo_suite/minerva.jsonl", {}, 272),
    ("gsm8k", "gsm8k_test.jsonl", {}, 1319),
    ("olympiadbench", "olympiadbench_oe_to_maths_en.jsonl", {}, 675),
    ("olympiadbench", "drgrpo_suite/olympiad_bench.jsonl", {}, 675),
]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def questions(path: Path, **overrides):
    return load_questions(resolve_benchmark("math_500", {"dataset_name": str(path)} | overrides))


@pytest.mark.parametrize(("preset", "file", "overrides", "rows"), FILES)
def test_presets_read_the_public_files(shared_data, preset, file, overrides, rows):
    path = shared_data / "benchmarks" / file
    found = load_questions(resolve_benchmark(preset, {"dataset_name": str(path)} | overrides))
    assert len(found) == rows
    assert [q.index for q in found] == list(range(rows))
    assert all(q.text.strip() and q.gold not in ("", [], None) for q in found)


def test_golds_are_final_answers(shared_data):
    def gold(preset, file, index=0):
        path = str(shared_data / "benchmarks" / file)
        return load_questions(resolve_benchmark(preset, {"dataset_name": path}))[index].gold

    assert gold("gsm8k", "gsm8k_test.jsonl") == "18"
    assert gold("minerva", "minerva_math.jsonl") == "1.6"
    assert gold("amc", "amc83.jsonl") == 142.0
    assert gold("minerva", "drgrpo_suite/minerva.jsonl") == ["9.6"]
    assert gold("aime25", "aime25.jsonl") == "70"


@pytest.mark.parametrize("preset", ["countdown", "graph_coloring"])
def test_tasks_need_no_download(preset):
    found = load_questions(resolve_benchmark(preset, {}))
    assert len(found) >= 30
    assert all(q.task == preset and q.facts and q.mode_count for q in found)


def test_content_digest_is_that_of_the_content(tmp_path):
    rows = [{"problem": "1+1", "answer": "2"}, {"problem": "2+2", "answer": "4"}]
    first = questions(write(tmp_path / "a.jsonl", rows))
    again = questions(write(tmp_path / "b.jsonl", [row | {"note": "x"} for row in rows]))
    other = questions(write(tmp_path / "c.jsonl", [rows[0], rows[1] | {"answer": "5"}]))
    assert content_digest(first) == content_digest(again) != content_digest(other)


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        (
            [{"task": "1+1", "answer": "2"}],
            {},
            "no column 'problem'; it has task, answer: set inference.eval.prompt_col",
        ),
        (
            [{"problem": "1+1", "gold": "2"}],
            {},
            "no column 'answer' or 'solution'.*it has problem, gold: set .*answer_col",
        ),
        (
            [{"problem": "a", "answer": "1", "id": 7}, {"problem": "b", "answer": "1", "id": 7}],
            {},
            "rows 0 and 1 both have id=7",
        ),
        ([{"problem": " ", "answer": "2"}], {}, "row 0: column 'problem' holds no text but ' '"),
        (
            [{"problem": "a", "answer": "1"}, {"problem": "b", "answer": ""}],
            {},
            "row 1: column 'answer' holds no answer",
        ),
        (
            [{"problem": "a", "solution": "no box"}],
            {},
            "row 0: column 'solution' holds no answer but 'no box'",
        ),
        (
            [{"problem": "a", "answer": {"value": "1"}}],
            {},
            "row 0, column 'answer': the gold answer is a mapping with the keys value",
        ),
        ([{"problem": "a", "answer": "1"}], {"grader": "task"}, "no column 'task'"),
        ([{"problem": "a", "answer": "1"}], {"id_column": "key"}, "no column 'key'"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, overrides, message):
    with pytest.raises(UsageError, match=message):
        questions(write(tmp_path / "rows.jsonl", rows), **overrides)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UsageError, match=r"empty\.jsonl': the file is empty"):
        questions(tmp_path / "empty.jsonl")


def test_an_id_column_that_is_no_identity_can_be_ignored(tmp_path):
    rows = [{"problem": "a", "answer": "1", "id": 7}, {"problem": "b", "answer": "1", "id": 7}]
    assert len(questions(write(tmp_path / "rows.jsonl", rows), id_column=None)) == 2
