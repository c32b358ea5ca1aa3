"""Judging completions: the one place where a text becomes a score.

A grader takes a question with its completions and says for each whether it is right, what answer it gave, and, where
a task's right answers are enumerated, which of them it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.passk import RIGHT
from maxent_grpo.evaluate.presets import Benchmark
from maxent_grpo.evaluate.questions import Question
from maxent_grpo.tasks.answers import extract_answer
from maxent_grpo.tasks.registry import grade_response

TASK_GRADER_VERSION = 1
"""Raise it when a task's verifier judges otherwise than before: saved scores are then not mixed with new ones."""

MATH_GRADER = "maxent_grpo.rewards.math_grader"


@dataclass(frozen=True)
class Judgement:
    """What one completion is worth."""

    score: float  # 1 for a right answer, else 0
    extracted: str | None  # the answer as it was read; None where none was found
    mode: str | None = None  # the key of the right answer that it is, for tasks that have such keys


class Grader(Protocol):
    """Judges the completions of one question."""

    def fingerprint(self) -> dict[str, Any]:
        """What decides its verdicts; saved scores are reused only under the same. JSON values."""
        ...

    def judge(self, question: Question, completions: Sequence[str]) -> list[Judgement]:
        """One judgement per completion, in order. Never raises on a completion."""
        ...


class TaskGrader:
    """The verifier of a procedural task."""

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "task", "version": TASK_GRADER_VERSION}

    def judge(self, question: Question, completions: Sequence[str]) -> list[Judgement]:
        assert question.task is not None
        assert question.facts is not None
        judged = []
        for text in completions:
            verdict = grade_response(question.task, text, question.facts)
            judged.append(Judgement(RIGHT * verdict.correct, extract_answer(text), verdict.mode))
        return judged


class MathGrader:
    """The mathematics grader under one policy (default: its own default policy)."""

    def __init__(self, policy: Any = None) -> None:
        import maxent_grpo.rewards.math_grader as math_grader

        self._grade = math_grader.grade
        self._policy = math_grader.GraderPolicy() if policy is None else policy

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "math", "policy": self._policy.fingerprint()}

    def judge(self, question: Question, completions: Sequence[str]) -> list[Judgement]:
        judged = []
        for text in completions:
            verdict = self._grade(text, question.gold, self._policy)
            judged.append(Judgement(RIGHT * bool(verdict.right), verdict.extracted))
        return judged


def grader_for(benchmark: Benchmark) -> Grader:
    """The grader of a benchmark. Raises `UsageError` where this installation lacks it."""
    if benchmark.grader == "task":
        return TaskGrader()
    if find_spec(MATH_GRADER) is None:
        raise UsageError(f"{benchmark.dataset_id}: {MATH_GRADER} is not part of this installation")
    return MathGrader()
