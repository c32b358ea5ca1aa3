"""Whether two parsed answers are one, under a policy: values, relations, or objects of several parts.

`same` brings both to simplest form and sends them on. ``True`` and ``False`` are verdicts; ``None`` means that nothing
here could decide. Lists, tuples, sets, matrices are compared here, relations in `relations`, values in `values`.
"""

from functools import partial

from math_answers.expressions import (
    Apply,
    Bracketed,
    Expression,
    Listed,
    Matrix,
    Related,
    has_operation,
    mapped,
    parts,
)
from math_answers.policy import GraderPolicy
from math_answers.relations import LINE, REALS, gives_name, head_of, interval_of, pieces_of, same_claims
from math_answers.values import MAX_ITEMS, Same, distinct, every, matched, same_values

_NO_INTERVALS = frozenset({("(", ")"), ("{", "}"), ("<", ">")})


def same_lists(pred: Expression, gold: Expression, policy: GraderPolicy, same: Same) -> bool | None:
    """Whether ``pred`` and ``gold``, one of them several answers side by side, are the same answers.

    Args:
        pred: the answer, in simplest form.
        gold: the right answer, in simplest form.
        policy: the conventions; which orders count.
        same: compares two items by these conventions.
    """
    ours, theirs = _items(pred), _items(gold)
    if ours is None or theirs is None:
        return _same_bare(pred, gold, same)
    if any(
        isinstance(side, Bracketed) and (side.opening, side.closing) not in kinds
        for side, kinds in ((gold, _NO_INTERVALS), (pred, {*_NO_INTERVALS, ("[", "]")}))
    ):
        return False
    ordered = _is_tuple(pred) or _is_tuple(gold)
    sets = [isinstance(side, Bracketed) and side.opening == "{" for side in (pred, gold)]
    if any(sets):
        ours, theirs = distinct(ours, same), distinct(theirs, same)
    if len(ours) != len(theirs) or len(ours) > MAX_ITEMS:
        return False
    heads = [[head_of(item) for item in items] for items in (ours, theirs)]
    named = [len(set(side)) == len(side) > 1 and None not in side for side in heads]
    if all(named) and set(heads[0]) == set(heads[1]):
        by_name = dict(zip(heads[0], ours, strict=True))
        return every(same(by_name[head], item) for head, item in zip(heads[1], theirs, strict=True))
    strict = policy.list_order == "strict" and not any(sets)
    if (ordered and policy.tuple_order == "strict") or strict or any(named):
        return every(same(p, g) for p, g in zip(ours, theirs, strict=True))
    return matched(ours, theirs, same)


def _same_bare(pred: Expression, gold: Expression, same: Same) -> bool | None:
    """A list on one side only: at best its repetitions make it one answer."""
    listed, other = (pred, gold) if isinstance(pred, Listed) else (gold, pred)
    if isinstance(other, Apply) and other.operation == "union" and isinstance(listed, Listed):
        return matched(list(listed.items), list(other.arguments), same)
    return False


def same_objects(pred: Expression, gold: Expression, policy: GraderPolicy, same: Same) -> bool | None:
    """Whether ``pred`` and ``gold``, neither a list nor a relation, are one object or value.

    Args:
        pred: the answer, in simplest form.
        gold: the right answer, in simplest form.
        policy: the conventions.
        same: compares two entries by these conventions.
    """
    if any(
        isinstance(side, Apply) and side.operation in ("union", "without", "intersection")
        for side in (pred, gold)
    ):
        return _same_sets(pred, gold, same)
    if isinstance(pred, Matrix) and isinstance(gold, Matrix):
        if [len(row) for row in pred.rows] != [len(row) for row in gold.rows]:
            return False
        return every(same(p, g) for p, g in zip(parts(pred), parts(gold), strict=True))
    if isinstance(pred, Matrix) or isinstance(gold, Matrix):
        ours, theirs = _items(pred), _items(gold)
        if (
            policy.vectors != "as_tuples"
            or ours is None
            or theirs is None
            or not (_is_tuple(pred) and _is_tuple(gold))
        ):
            return False
        return len(ours) == len(theirs) and every(same(p, g) for p, g in zip(ours, theirs, strict=True))
    if isinstance(pred, Bracketed) and isinstance(gold, Bracketed):
        return _same_bracketed(pred, gold, policy, same)
    for side, other in ((pred, gold), (gold, pred)):
        if isinstance(side, Bracketed):
            # "[5]" and "{5}" for a single answer; anything longer is another kind of object.
            return same(side.items[0], other) if len(side.items) == 1 else False
    return same_values(pred, gold, policy)


def _same_bracketed(pred: Bracketed, gold: Bracketed, policy: GraderPolicy, same: Same) -> bool | None:
    kinds = [("(", ")") if side.opening == "<" else (side.opening, side.closing) for side in (pred, gold)]
    if kinds[0] != kinds[1]:
        return False
    if kinds[0][0] == "{":
        return matched(distinct(pred.items, same), distinct(gold.items, same), same)
    if len(pred.items) != len(gold.items):
        return False
    if policy.tuple_order == "free" and kinds[0] == ("(", ")"):
        return matched(pred.items, gold.items, same)
    return every(same(p, g) for p, g in zip(pred.items, gold.items, strict=True))


def _same_sets(pred: Expression, gold: Expression, same: Same) -> bool | None:
    ours, theirs = pieces_of(pred), pieces_of(gold)
    if ours is None or theirs is None:
        return None
    return matched(ours, theirs, same)


def _items(expression: Expression) -> list[Expression] | None:
    match expression:
        case Listed(items=items) | Bracketed(items=items):
            return list(items)
        case Matrix(rows=rows) if len(rows) == 1 or len(rows[0]) == 1:
            return [entry for row in rows for entry in row]
        case Related(sides=(head, value), relations=("=",)) if gives_name(head, value):
            return _items(value)
    return None


def _is_tuple(expression: Expression) -> bool:
    match expression:
        case Bracketed(opening=opening, closing=closing):
            return (opening, closing) in (("(", ")"), ("<", ">"))
        case Related(sides=(_, value)):
            return _is_tuple(value)
    return isinstance(expression, Matrix)


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
