"""Benchmarks by name, their overrides, and their questions."""

import csv
import gzip
import io
import json
import math
from pathlib import Path

import pytest
from datasets import Dataset

from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.backends import messages_of, plain_prompt
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
        "divisors",
        "equations",
        "graph_coloring",
        "lattice_paths",
        "name_one",
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


@pytest.mark.parametrize("preset", ["countdown", "graph_coloring", "name_one"])
def test_tasks_need_no_download(preset):
    found = load_questions(resolve_benchmark(preset, {}))
    assert len(found) >= 30
    assert all(q.task == preset and q.facts and q.mode_count for q in found)


def test_a_chat_is_a_question_with_earlier_turns(tmp_path):
    earlier = [{"role": "user", "content": "3+4"}, {"role": "assistant", "content": "7"}]
    asked = [{"role": "user", "content": "1+1"}]
    chat, bare = ({"problem": turns, "answer": "2"} for turns in (earlier + asked, asked))
    (question,) = questions(write(tmp_path / "chat.jsonl", [chat]))
    (plain,) = questions(write(tmp_path / "bare.jsonl", [bare]))
    (text,) = questions(write(tmp_path / "text.jsonl", [{"problem": "1+1", "answer": "2"}]))
    assert (question.text, list(question.turns)) == ("1+1", earlier)
    assert messages_of(question, "be brief") == [{"role": "system", "content": "be brief"}, *earlier, *asked]
    assert content_digest([question]) != content_digest([plain]) == content_digest([text])
    own = [{"role": "system", "content": "be kind"}, *asked]
    (spoken,) = questions(write(tmp_path / "own.jsonl", [{"problem": own, "answer": "2"}]))
    assert messages_of(spoken, "be brief") == own
    with pytest.raises(UsageError, match=r"prompt_template: row 0 is a chat of 3 messages"):
        plain_prompt(question, "Q: {question}")


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
        ([{"problem": [], "answer": "2"}], {}, "row 0: column 'problem' holds no text but"),
        (
            [{"problem": [{"role": "assistant", "content": "a"}], "answer": "2"}],
            {},
            "row 0: the chat in column 'problem' does not end with the user's message",
        ),
        (
            [{"problem": [{"role": "user"}], "answer": "2"}],
            {},
            "row 0, column 'problem': a message is .*expected",
        ),
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


ROWS = [{"problem": "1+1\té", "answer": "2", "id": 0}, {"problem": "2+2", "answer": "4", "id": 1}]


def json_lines(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json.gz", "a.tsv", "a.tsv.gz", "a.csv", "a.csv.gz"]
)
def test_files_by_suffix_compressed_or_not(tmp_path, name):
    text = io.StringIO()
    if ".json" in name:
        text.write(json_lines(ROWS))
    else:
        writer = csv.DictWriter(text, list(ROWS[0]), delimiter="\t" if ".tsv" in name else ",")
        writer.writeheader()
        writer.writerows(ROWS)
    content = text.getvalue().encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    questions = load_questions(resolve_benchmark("math_500", {"dataset_name": str(tmp_path / name)}))
    assert [(q.text, str(q.gold)) for q in questions] == [("1+1\té", "2"), ("2+2", "4")]


def test_a_column_may_be_a_path_into_mappings(tmp_path):
    path = tmp_path / "nested.jsonl"
    path.write_text(json_lines([{"data": row, "reward_model": {"gold": row["answer"]}} for row in ROWS]))
    overrides = {
        "dataset_name": str(path),
        "prompt_column": "data.problem",
        "answer_column": "reward_model.gold",
        "id_column": "data.id",
    }
    assert [q.gold for q in load_questions(resolve_benchmark("mine", overrides))] == ["2", "4"]
    with pytest.raises(
        UsageError, match=r"no column 'data.gold'; it has .*data.answer.*set inference.eval.answer"
    ):
        load_questions(resolve_benchmark("mine", overrides | {"answer_column": "data.gold"}))
    path.write_text(json_lines([{"data": ROWS[0] | {"solution": r"so \boxed{2}"}}, {"data": ROWS[0]}]))
    nested = {"dataset_name": str(path), "prompt_column": "data.problem", "answer_column": "data.solution"}
    with pytest.raises(UsageError, match=r"row 1: column 'data.solution' holds no answer but None"):
        load_questions(resolve_benchmark("mine", nested))
    with pytest.raises(UsageError, match=r"rows 0 and 1 both have data.id=0"):
        load_questions(resolve_benchmark("mine", nested | {"id_column": "data.id"}))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_another_encoding_is_named(tmp_path, suffix):
    path = tmp_path / f"latin{suffix}"
    rows = {".csv": "problem,answer\nCafé,1\n", ".tsv": "problem\tanswer\nCafé\t1\n"}
    path.write_bytes(rows.get(suffix, '{"problem": "Café", "answer": "1"}\n').encode("latin-1"))
    for place in (path, tmp_path):  # a folder of files as well
        with pytest.raises(UsageError, match=r"line [12] is not UTF-8 .*iconv -f LATIN1"):
            load_questions(resolve_benchmark("mine", {"dataset_name": str(place), "split": "train"}))


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ({"value": "8"}, "is a mapping with the keys value"),
        (True, "is True, a truth value"),
        (math.nan, "is NaN"),
        ([{"value": "8"}], "is a mapping"),
    ],
)
def test_a_gold_that_no_answer_equals_is_refused_by_row_and_column(tmp_path, gold, message):
    path = tmp_path / "golds.parquet"
    Dataset.from_list([{"problem": "a", "answer": gold}]).to_parquet(path)
    with pytest.raises(UsageError, match=f"row 0, column 'answer': the gold answer {message}"):
        load_questions(resolve_benchmark("mine", {"dataset_name": str(path)}))
