"""One line of an artifact: a prompt of a benchmark, its samples under one seed, and what they are worth."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from maxent_grpo.evaluate.grading import Judgement
from maxent_grpo.evaluate.passk import RIGHT, ScoredSamples
from maxent_grpo.evaluate.presets import Benchmark
from maxent_grpo.evaluate.questions import Question
from maxent_grpo.evaluate.settings import InferenceModelSpec

Record = Mapping[str, Any]

_THINKING = re.compile(r"(?:.*?<think>)?(?P<think>.*?)</think>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Sampled:
    """The samples of one question, as a backend gives them."""

    index: int  # of the question
    prompt: str  # what the model read, as far as the backend knows
    completions: tuple[str, ...]
    finish_reasons: tuple[str, ...]  # "stop", or "length" where the completion was cut off


def record_of(
    benchmark: Benchmark,
    spec: InferenceModelSpec,
    seed: int,
    temperature: float,
    question: Question,
    sampled: Sampled,
    judged: Sequence[Judgement],
    *,
    system_prompt: str | None,
    write_prompt: bool,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> dict[str, Any]:
    """The line of one question. Its keys are documented in docs/guides/evaluation.md."""
    right = [judgement.score >= RIGHT for judgement in judged]
    parts = [split_thinking(text) for text in sampled.completions]
    return {
        "dataset_id": benchmark.dataset_id,
        "dataset_name": benchmark.dataset_name,
        "dataset_config": benchmark.dataset_config,
        "split": benchmark.split,
        "model_id": spec.model_name_or_path,
        "model_label": spec.name,
        "style": spec.style,
        "revision": spec.revision,
        "seed": seed,
        "temperature": temperature,
        "num_generations": len(judged),
        "prompt_index": question.index,
        "prompt": sampled.prompt if write_prompt else None,
        "answer": question.gold,
        "system_prompt": system_prompt,
        "generations": list(sampled.completions),
        "think_generations": [think for think, _ in parts],
        "answer_generations": [answer for _, answer in parts],
        "answer_extracted": [judgement.extracted for judgement in judged],
        "answer_modes": [judgement.mode for judgement in judged],
        "mode_count": question.mode_count,
        "finish_reasons": list(sampled.finish_reasons),
        "scores": [judgement.score for judgement in judged],
        "pass_at_1_ok": right[0],
        "pass_at_k_ok": any(right),
        "correct": right[0],
        "correct_k": sum(right),
        "completed_at": now().isoformat(timespec="seconds"),
    }


def split_thinking(text: str) -> tuple[str, str]:
    """What stands inside ``<think>…</think>``, and what follows it; ("", text) where no thought is closed."""
    found = _THINKING.match(text)
    return (found["think"], text[found.end() :]) if found else ("", text)


def scored_samples(records: Sequence[Record]) -> ScoredSamples:
    """The records of one seed, one row each."""
    enumerated = records[0]["mode_count"] is not None
    return ScoredSamples(
        scores=np.array([record["scores"] for record in records], dtype=np.float64),
        modes=tuple(tuple(record["answer_modes"]) for record in records) if enumerated else None,
        mode_counts=tuple(record["mode_count"] for record in records) if enumerated else None,
    )
