"""Graders of completions: the one place where a text becomes a score.

A grader takes a question with its completions and says for each whether it is right, what answer it gave, and, where
a task's right answers are enumerated, which of them it is.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from math_answers import GraderPolicy, extract
from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.benchmarks import Benchmark, Question
from maxent_grpo.evaluate.passk import RIGHT
from maxent_grpo.evaluate.records import Grade
from maxent_grpo.rewards.isolation import Isolation, IsolationSettings
from maxent_grpo.rewards.math import graded, policy_of
from maxent_grpo.rewards.registry import GRADER_MODULES, CallContext, Location, RewardFunction
from maxent_grpo.tasks.answers import extract_answer
from maxent_grpo.tasks.registry import grade_response

TASK_GRADER_VERSION = 1
"""Raise it when a task's verifier judges otherwise than before: saved scores are then not mixed with new ones."""

GRADED = RewardFunction(
    "graded",
    graded,
    location=Location("maxent_grpo.rewards.math:graded", preload=GRADER_MODULES),
    rowwise=True,
)

logger = logging.getLogger(__name__)


class Grader(Protocol):
    """Judges the completions of one question."""

    def fingerprint(self) -> dict[str, Any]:
        """All that decides its verdicts, JSON values: saved scores are reused only under the same."""
        ...

    def judge(self, question: Question, completions: Sequence[str]) -> list[Grade]:
        """One grade per completion, in order. Never raises on a completion."""
        ...

    def close(self) -> None:
        """Release what judging needed."""
        ...


class TaskGrader:
    """The verifier of a procedural task."""

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "task", "version": TASK_GRADER_VERSION}

    def judge(self, question: Question, completions: Sequence[str]) -> list[Grade]:
        assert question.task is not None
        assert question.facts is not None
        verdicts = [grade_response(question.task, text, question.facts) for text in completions]
        return [
            Grade(RIGHT * verdict.correct, extract_answer(text), verdict.mode)
            for text, verdict in zip(completions, verdicts, strict=True)
        ]

    def close(self) -> None:
        """Nothing to release."""


class MathGrader:
    """The mathematics grader under one policy (default: `GraderPolicy`'s own), in worker processes with a deadline.

    A completion whose verdict does not come in time, or takes its worker with it, scores 0 and is counted in ``lost``.
    """

    def __init__(self, policy: GraderPolicy | None = None, settings: IsolationSettings | None = None) -> None:
        self._policy = GraderPolicy() if policy is None else policy
        self._isolation = Isolation(settings or IsolationSettings())
        self.lost = 0

    def fingerprint(self) -> dict[str, Any]:
        """The policy's digest, and by name what it sets otherwise than the default."""
        usual = GraderPolicy().as_dict()
        own = {name: value for name, value in self._policy.as_dict().items() if value != usual[name]}
        return {"kind": "math", "policy": self._policy.fingerprint(), "options": own}

    def judge(self, question: Question, completions: Sequence[str]) -> list[Grade]:
        scores = self._scores(completions, [question.gold] * len(completions))
        found = [extract(text, self._policy) for text in completions]
        modes = self._modes(question, completions, scores)
        return [
            Grade(RIGHT * (score == 1.0), None if answer is None else answer.answer, mode)
            for answer, score, mode in zip(found, scores, modes, strict=True)
        ]

    def _modes(
        self, question: Question, completions: Sequence[str], scores: Sequence[float]
    ) -> list[str | None]:
        """Which of the golds each right completion gives, where the row says that they are different answers."""
        modes: list[str | None] = [None] * len(completions)
        if question.mode_count is None or not isinstance(question.gold, list):
            return modes
        pairs = [(i, gold) for i, score in enumerate(scores) if score == 1.0 for gold in question.gold]
        same = self._scores([completions[i] for i, _ in pairs], [gold for _, gold in pairs])
        for (i, gold), score in zip(pairs, same, strict=True):
            if score == 1.0 and modes[i] is None:
                modes[i] = str(gold)
        return modes

    def _scores(self, completions: Sequence[str], golds: Sequence[Any]) -> Sequence[float]:
        """1 where a completion gives its gold; NaN where the verdict was lost, which is counted."""
        if not completions:
            return []
        size = len(completions)
        arguments: dict[str, list[Any]] = {
            "completions": list(completions),
            "answer": list(golds),
            "policy": [self._policy.as_dict()] * size,
        }
        call = self._isolation.submit(GRADED, arguments, [slice(0, size)], CallContext(is_eval=True))
        scored = call.scores()
        self.lost += len(scored.errors)
        return scored.values

    def close(self) -> None:
        """End the workers, and say how many verdicts were lost."""
        self._isolation.close()
        if self.lost:
            logger.warning("%d completions scored 0: their verdict took too long or crashed", self.lost)


def grader_for(benchmark: Benchmark, options: Mapping[str, Any] | None = None) -> Grader:
    """The grader of a benchmark, with the options of a model's ``grader_policy`` over the benchmark's own.

    Raises `UsageError` for an option that does not exist, and for any where a task's verifier judges.
    """
    options = {**benchmark.grader_policy, **(options or {})}
    if benchmark.grader == "task":
        if options:
            raise UsageError(
                f"grader_policy: {benchmark.dataset_id} is judged by its task's verifier: remove it"
            )
        return TaskGrader()
    return MathGrader(policy_of(options))
