"""Verdicts on many pairs from verdicts on one: all in their order, or each answer with a partner of its own.

A verdict is ``True``, ``False``, or ``None`` where nothing could decide.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from maxent_grpo.rewards.grading.expressions import Expression

Same: TypeAlias = Callable[[Expression, Expression], bool | None]
"""Whether the first, an answer or a part of one, says what the second, of the gold, says."""

MAX_ITEMS = 100


def every(verdicts: Iterable[bool | None]) -> bool | None:
    """Whether all are true: false if one is false, undecided if one is undecided and none false."""
    undecided = False
    for verdict in verdicts:
        if verdict is False:
            return False
        undecided |= verdict is None
    return None if undecided else True


def matched(ours: Sequence[Expression], theirs: Sequence[Expression], same: Same) -> bool | None:
    """Whether each answer has its own partner. Being the same is transitive, so the first will do."""
    if len(ours) != len(theirs) or len(ours) > MAX_ITEMS:
        return False
    left = list(ours)
    undecided = False
    for wanted in theirs:
        for i, item in enumerate(left):
            verdict = same(item, wanted)
            undecided |= verdict is None
            if verdict:
                del left[i]
                break
        else:
            return None if undecided else False
    return True


def distinct(items: Sequence[Expression], same: Same) -> list[Expression]:
    """The items without repetitions; only as many are looked at as may be compared."""
    found: list[Expression] = []
    for item in items[: MAX_ITEMS + 1]:
        if not any(same(item, other) for other in found):
            found.append(item)
    return found
