"""Benchmarks by name: where the rows are, which columns hold problem and gold, and how answers are judged."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from maxent_grpo.config.conversion import convert, field_types
from maxent_grpo.data.sources import FILE_BUILDERS, TASK_PREFIX
from maxent_grpo.errors import UsageError, did_you_mean

MATH_SYSTEM_PROMPT = """\
You are an expert mathematician. Work through the problem step by step inside <think> and </think>, and check your
work before you finish. Then write the final answer, and nothing else, inside <answer> and </answer>.
Your whole reply has the form <think>reasoning</think><answer>final answer</answer>."""
"""The system prompt of the mathematics recipes, also in ``configs/prompts/math_system_prompt.txt``."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; every field but the last two can be overridden by ``inference.eval.FIELD``."""

    dataset_id: str  # its name in artifacts and tables
    dataset_name: str  # what `maxent_grpo.data.sources.load_rows` takes: a hub id, a file, ``task:NAME``
    dataset_config: str | None = None
    split: str = "test"
    prompt_column: str = "problem"
    answer_column: str = "answer"
    id_column: str | None = (
        "auto"  # must be unique; auto: the first of ID_COLUMNS that the rows have; null: unchecked
    )
    grader: Literal["math", "task"] = "math"
    prompt_fallbacks: tuple[str, ...] = ()  # read, in this order, where prompt_column is missing
    answer_fallbacks: tuple[str, ...] = ()

    @property
    def system_prompt(self) -> str | None:
        """For models that bring none of their own: the mathematics prompt, or nothing for procedural tasks."""
        return MATH_SYSTEM_PROMPT if self.grader == "math" else None


ID_COLUMNS = ("unique_id", "id", "idx")

_ANSWERS = ("solution", "expected_answer")
PRESETS: Mapping[str, Benchmark] = {
    benchmark.dataset_id: benchmark
    for benchmark in (
        Benchmark("math_500", "HuggingFaceH4/MATH-500", answer_fallbacks=_ANSWERS),
        Benchmark("aime24", "HuggingFaceH4/aime_2024", "default", "train", answer_fallbacks=_ANSWERS),
        Benchmark("aime25", "yentinglin/aime_2025", "default", "train", answer_fallbacks=_ANSWERS[::-1]),
        # Its ids number the problems of two contests separately.
        Benchmark(
            "amc",
            "AI-MO/aimo-validation-amc",
            "default",
            "train",
            id_column=None,
            prompt_fallbacks=("question",),
        ),
        Benchmark(
            "minerva",
            "svc-huggingface/minerva-math",
            prompt_fallbacks=("question", "prompt"),
            answer_fallbacks=("solution", "final_answer"),
        ),
        Benchmark("gsm8k", "openai/gsm8k", "main", prompt_column="question", prompt_fallbacks=("problem",)),
        Benchmark(
            "olympiadbench",
            "Hothan/OlympiadBench",
            "OE_TO_maths_en_COMP",
            "train",
            prompt_column="question",
            answer_column="final_answer",
            prompt_fallbacks=("problem",),
            answer_fallbacks=("answer",),
        ),
        Benchmark("countdown", "task:countdown", split="eval", grader="task"),
        Benchmark("graph_coloring", "task:graph_coloring", split="eval", grader="task"),
    )
}
"""Name → benchmark. The two tasks are generated and need no download."""

ALIASES = {
    "math": "math_500",
    "math500": "math_500",
    "aime_24": "aime24",
    "aime_2024": "aime24",
    "aime_25": "aime25",
    "aime_2025": "aime25",
    "minerva_math": "minerva",
    "olympiad_bench": "olympiadbench",
    "graph_colouring": "graph_coloring",
}
_OVERRIDE_ALIASES = {"dataset_split": "split", "solution_column": "answer_column", "name": "dataset_name"}
_OVERRIDABLE = tuple(field.name for field in fields(Benchmark) if not field.name.endswith("_fallbacks"))


def resolve_benchmark(name: str, overrides: Mapping[str, Any]) -> Benchmark:
    """The benchmark called ``name`` (a preset, an alias, or any name if ``dataset_name`` is overridden).

    A local file holds one split, called ``train``: that is the split of a ``dataset_name`` that is one, unless
    ``split`` is given as well.

    Raises:
        UsageError: an unknown preset or field, or a value of the wrong type.
    """
    changes = _checked(overrides)
    key = name.strip().lower().replace("-", "_")
    key = ALIASES.get(key, key)
    data = changes.get("dataset_name")
    if key in PRESETS:
        benchmark = PRESETS[key]
    elif data is not None:
        kind: Literal["math", "task"] = "task" if data.startswith(TASK_PREFIX) else "math"
        benchmark = Benchmark(name, data, grader=kind)
    else:
        hint = did_you_mean(key, [*PRESETS, *ALIASES])
        raise UsageError(
            f"Unknown inference dataset '{name}'{hint}. Supported presets: {', '.join(PRESETS)}; "
            "or name a data set with inference.eval.dataset_name"
        )
    if data is not None and Path(data).suffix in FILE_BUILDERS:
        # What the preset says about its own source does not hold for a file.
        changes = {"split": "train", "dataset_config": None} | changes
    return replace(benchmark, **changes)


def _checked(overrides: Mapping[str, Any]) -> dict[str, Any]:
    types = field_types(Benchmark)
    changes: dict[str, Any] = {}
    for given, value in overrides.items():
        key = _OVERRIDE_ALIASES.get(given, given)
        if key not in _OVERRIDABLE:
            hint = did_you_mean(str(given), _OVERRIDABLE)
            raise UsageError(f"inference.eval.{given}: unknown{hint}; it takes {', '.join(_OVERRIDABLE)}")
        if key in changes:
            raise UsageError(f"inference.eval.{given} and inference.eval.{key} are both given: keep one")
        try:
            changes[key] = convert(value, types[key])
        except ValueError as error:
            raise UsageError(f"inference.eval.{given}={value}: {error}") from error
    return changes
