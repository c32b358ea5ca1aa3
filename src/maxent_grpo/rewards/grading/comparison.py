"""Whether two parsed answers are one, under a policy: `same` brings both to simplest form and sends them on.

``True`` and ``False`` are verdicts; ``None`` means that nothing here could decide. Lists and objects go to
`objects`, relations to `claims`; both are handed `same` under this policy, to compare what is inside.
"""

from functools import partial

from maxent_grpo.rewards.grading.claims import same_claims
from maxent_grpo.rewards.grading.expressions import (
    Apply,
    Bracketed,
    Expression,
    Listed,
    Related,
    has_operation,
    mapped,
)
from maxent_grpo.rewards.grading.intervals import LINE, REALS, interval_of
from maxent_grpo.rewards.grading.objects import same_lists, same_objects
from maxent_grpo.rewards.grading.policy import GraderPolicy

_SIGN_CHOICES = frozenset({"pm", "mp"})


def same(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    """Whether ``pred`` says what ``gold`` says."""
    pred, gold = _simplest(pred), _simplest(gold)
    if pred == gold:
        return True
    inside = partial(same, policy=policy)
    if isinstance(gold, Listed) or isinstance(pred, Listed):
        return same_lists(pred, gold, policy, inside)
    if isinstance(gold, Related) or isinstance(pred, Related):
        return same_claims(pred, gold, policy, inside)
    return same_objects(pred, gold, policy, inside)


def _simplest(expression: Expression) -> Expression:
    """With ± written out as two answers, and inequalities that bound one unknown as intervals."""
    if expression == REALS:
        return LINE
    if isinstance(expression, Listed):
        items = [item for part in expression.items for item in _answers(part)]
        intervals = [interval_of(item) for item in items]
        if len(items) > 1 and all(interval is not None for interval in intervals):
            return Apply("union", tuple(interval for interval in intervals if interval is not None))
        return Listed(tuple(items)) if len(items) != 1 else items[0]
    if isinstance(expression, Bracketed) and expression.opening == "{":
        items = [item for part in expression.items for item in _answers(part)]
        return Bracketed("{", "}", tuple(items))
    answers = _answers(expression)
    return answers[0] if len(answers) == 1 else Listed(tuple(answers))


def _answers(expression: Expression) -> list[Expression]:
    if not has_operation(expression, _SIGN_CHOICES):
        return [expression]
    return [_signed(expression, plus) for plus in (True, False)]


def _signed(expression: Expression, plus: bool) -> Expression:
    if isinstance(expression, Apply) and expression.operation in _SIGN_CHOICES:
        inner = _signed(expression.arguments[0], plus)
        return inner if plus == (expression.operation == "pm") else Apply("neg", (inner,))
    return mapped(expression, lambda part: _signed(part, plus))
