"""Answer modes: the key of the right answer that a completion gave, equal for completions that gave the same one.

Only completions that the correctness reward calls right have one. By the first rule that applies, the key is

1. what the user's own function says (setting ``mode_key``);
2. of a row of a procedural task (columns ``task``, ``facts`` and ``modes``), the mode that its verifier reports;
3. of a row whose gold is a list of right answers, the first of them that the completion's answer equals, by value;
4. of a row with one gold, which the correctness reward compares by itself, that gold: all right answers are equal;
5. the answer's text: in the last ``\\boxed{…}`` or ``<answer>`` of the completion, else the completion, where it is one
   short plain line.

The cost: a verifier's verdict for each right completion (2), or a comparison with each gold of the list (3), which the
same function makes in the same worker processes as the reward.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from maxent_grpo.named import find_named, is_path, one_line
from maxent_grpo.rewards.math import GoldError, gold_answers
from maxent_grpo.rewards.registry import RIGHT, RewardFunction, load_rewards
from maxent_grpo.tasks.answers import extract_answer
from maxent_grpo.tasks.registry import TASKS, answer_string, grade_response
from maxent_grpo.types import Rollout

ModeKey = Callable[[str, Mapping[str, Any]], str | None]
"""A right completion's text and its row's columns → the key of its answer; None: it has none."""

Equal = Callable[[RewardFunction, Sequence[int], Sequence[str]], Sequence[float]]
"""A function that compares answers, rows of a step's completions and a gold for each → its scores (NaN: none)."""

logger = logging.getLogger(__name__)


def load_mode_key(path: str | None) -> ModeKey | None:
    """The function that the setting ``mode_key`` names. Raises `UsageError` where there is none."""
    if path is None:
        return None
    found: ModeKey = find_named("mode_key", path, {}, "a function of a completion and its row", callable)
    return found


class ModeKeys:
    """Names the right answers of a step's completions, by the rules of this module.

    Args:
        judge: the correctness reward.
        own: the user's function. Where it raises, or returns something else than a text or None, the completion has no
            key; the first time is logged.
    """

    def __init__(self, judge: RewardFunction, own: ModeKey | None = None) -> None:
        self._judge = judge
        self._own = own
        self._failed = False

    def __call__(
        self, rollouts: Sequence[Rollout], rights: Sequence[Sequence[bool]], equal: Equal
    ) -> list[tuple[str | None, ...]]:
        """The keys of each rollout's completions, of which those of ``rights`` are right."""
        right = [ok for verdicts in rights for ok in verdicts]
        texts = [text for rollout in rollouts for text in rollout.texts]
        columns = [rollout.prompt.columns for rollout in rollouts for _ in rollout.texts]
        rows = [row for row, ok in enumerate(right) if ok]
        keys: list[str | None] = [None] * len(texts)
        for row in rows:
            keys[row] = self._key(texts[row], columns[row])
        listed = [row for row in rows if self._own is None and len(_golds(columns[row])) > 1]
        if listed:
            pairs = [(row, gold) for row in listed for gold in _golds(columns[row])]
            scores = equal(self._grader, [row for row, _ in pairs], [gold for _, gold in pairs])
            # Backwards, so that the first gold that is equal stays.
            for (row, gold), score in reversed([*zip(pairs, scores, strict=True)]):
                if score >= RIGHT:
                    keys[row] = gold
                elif math.isnan(score) and keys[row] not in _golds(columns[row]):
                    keys[row] = None  # a comparison that was lost could have been the one
        ends = [sum(len(rollout.texts) for rollout in rollouts[: i + 1]) for i in range(len(rollouts))]
        return [tuple(keys[end - len(r.texts) : end]) for r, end in zip(rollouts, ends, strict=True)]

    @property
    def _grader(self) -> RewardFunction:
        """What compares with one gold of a list: the judge, where it is known to compare with golds."""
        if self._judge.golds:
            return self._judge
        grader = load_rewards(["accuracy"])[0]
        return grader if self._judge.isolated else replace(grader, location=None)

    def _key(self, text: str, columns: Mapping[str, Any]) -> str | None:
        """The key without a list's comparisons."""
        if self._own is not None:
            return self._own_key(self._own, text, columns)
        if _is_task_row(columns):
            return grade_response(columns["task"], text, columns["facts"]).mode
        if self._judge.golds and (golds := _golds(columns)):
            return ", ".join(
                golds
            )  # of a list: all of them are one answer, unless one of them is found equal
        return answer_string(text) or extract_answer(text)

    def _own_key(self, own: ModeKey, text: str, columns: Mapping[str, Any]) -> str | None:
        try:
            key = own(text, columns)
            if key is not None and not isinstance(key, str):
                raise TypeError(f"returned a {type(key).__name__}, expected a text or None")
        # The user's code can raise anything; a run must survive what one completion provokes.
        except Exception as error:
            if not self._failed:
                self._failed = True
                logger.warning(
                    "mode_key failed on a completion, which therefore counts for no mode (%s); further failures are "
                    "not logged",
                    one_line(error),
                    exc_info=error,
                )
            return None
        return key


def _is_task_row(columns: Mapping[str, Any]) -> bool:
    task = columns.get("task")
    return isinstance(task, str) and (task in TASKS or is_path(task)) and {"facts", "modes"} <= columns.keys()


def _golds(columns: Mapping[str, Any]) -> list[str]:
    """The right answers that a row lists in its gold column; none for a task's, whose verifier knows more."""
    if _is_task_row(columns):
        return []
    try:
        return gold_answers(columns.get("answer"))
    except GoldError:  # of a reward that reads golds of its own kind
        return []
