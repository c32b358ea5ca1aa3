"""Countdown with feedback: an attempt that fails is told why, and another may follow."""

import json
from collections.abc import Mapping, Sequence

from maxent_grpo.errors import UsageError
from maxent_grpo.tasks.answers import extract_answer
from maxent_grpo.tasks.countdown import Countdown
from maxent_grpo.tasks.expressions import ExpressionError, evaluate, numbers_in, parse
from maxent_grpo.tasks.task import Facts
from maxent_grpo.types import Prompt


class CountdownFeedback:
    """An environment (`rollout.environment`) over the rows of ``task:countdown``."""

    def reply(self, prompt: Prompt, turns: Sequence[str]) -> Mapping[str, str] | None:
        """Nothing to add to a right answer; else a user's message that says what is wrong with the last one."""
        if prompt.columns.get("task") != Countdown.name:
            raise UsageError(
                f"environment: countdown_feedback answers rows of task:countdown, and row {prompt.index} is none"
            )
        facts = json.loads(prompt.columns["facts"])
        if Countdown().grade(turns[-1], facts).correct:
            return None
        return {"role": "user", "content": f"{what_is_wrong(turns[-1], facts)} Try again"}


def what_is_wrong(response: str, facts: Facts) -> str:
    """One sentence about a wrong answer: what it makes, which numbers it should use, or that it cannot be read."""
    answer = extract_answer(response)
    try:
        expression = parse((answer or "").partition("=")[0])
        value = evaluate(expression)
    except ExpressionError:
        return "That is no expression."
    if sorted(numbers_in(expression)) != sorted(facts["numbers"]):
        return f"Use each of {' '.join(map(str, facts['numbers']))} once."
    return f"That makes {value}, not {facts['target']}."
