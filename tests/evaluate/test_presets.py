"""Benchmarks by name, and what can be overridden."""

from pathlib import Path

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.benchmarks import MATH_SYSTEM_PROMPT, PRESETS, resolve_benchmark

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
