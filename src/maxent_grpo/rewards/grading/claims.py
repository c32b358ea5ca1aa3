"""Whether two answers are one claim, at least one of them a relation: equation, inequality, membership.

A relation is its interval, its set, the value that it gives, or itself, up to a factor on both sides.
"""

from maxent_grpo.rewards.grading.definitions import (
    answer_in,
    gives_name,
    head_of,
    is_constant,
    is_single_name,
)
from maxent_grpo.rewards.grading.evaluation import (
    WHOLE_NUMBER_OPERATIONS,
    Value,
    agree,
    evaluate,
    points,
    quotient,
    real,
)
from maxent_grpo.rewards.grading.expressions import (
    CONSTANTS,
    Apply,
    Bracketed,
    Expression,
    Listed,
    Matrix,
    Related,
    Symbol,
    UnreadableError,
    has_operation,
    substituted,
    symbols,
)
from maxent_grpo.rewards.grading.intervals import REVERSED, interval_of
from maxent_grpo.rewards.grading.pairing import Same, every
from maxent_grpo.rewards.grading.policy import GraderPolicy
from maxent_grpo.rewards.grading.values import same_values


def same_claims(pred: Expression, gold: Expression, policy: GraderPolicy, same: Same) -> bool | None:
    """Whether ``pred`` and ``gold``, one of them a relation, make the same claim.

    Args:
        pred: the answer, in simplest form.
        gold: the right answer, in simplest form.
        policy: the conventions.
        same: compares intervals, sets and values by these conventions.
    """
    pred, gold = _without_approximation(pred), _without_approximation(gold)
    if _is_membership(pred) or _is_membership(gold):
        return same(_members(pred), _members(gold))
    bounds = [interval_of(pred), interval_of(gold)]
    if any(bounds) and not (isinstance(pred, Related) and isinstance(gold, Related)):
        return same(bounds[0] or pred, bounds[1] or gold)
    if all(bounds) and symbols(pred) == symbols(gold):
        verdict = same(bounds[0], bounds[1])  # type: ignore[arg-type]
        if verdict is not False:
            return verdict
    if isinstance(pred, Related) and isinstance(gold, Related):
        if (verdict := _same_equations(pred, gold, policy, same)) is not False:
            return verdict
        if not is_constant(answer_in(pred, True)) and _unlike_heads(pred, gold):
            return False
    ours = answer_in(pred, True) if isinstance(pred, Related) else pred
    theirs = answer_in(gold, False) if isinstance(gold, Related) else gold
    if ours is None or theirs is None:
        return False
    if isinstance(ours, Related) or isinstance(theirs, Related):
        return None
    return same(_renamed(ours, pred, gold), theirs)


def _is_membership(claim: Expression) -> bool:
    return isinstance(claim, Related) and claim.relations == ("in",) and is_single_name(claim.sides[0])


def _members(claim: Expression) -> Expression:
    """The set behind ``x ∈``."""
    return claim.sides[1] if isinstance(claim, Related) and _is_membership(claim) else claim


def _without_approximation(expression: Expression) -> Expression:
    r"""``√3/3 ≈ 0.577`` is √3/3, ``x = 1/3 ≈ 0.33`` is x = 1/3, and ``x ≈ 11`` says x = 11."""
    if not isinstance(expression, Related) or "~" not in expression.relations:
        return expression
    cut = expression.relations.index("~")
    if cut == 0 and len(expression.sides) == 2 and gives_name(*expression.sides):
        return Related(expression.sides, ("=",))
    if cut == 0:
        return expression.sides[0]
    return Related(expression.sides[: cut + 1], expression.relations[:cut])


def _unlike_heads(pred: Related, gold: Related) -> bool:
    """Whether both define something, but not the same: y = 2x against x = 2x."""
    heads = head_of(pred), head_of(gold)
    return (
        isinstance(heads[0], Symbol)
        and isinstance(heads[1], Symbol)
        and heads[0] != heads[1]
        and heads[0].name in symbols(gold)
    )


def _renamed(value: Expression, pred: Expression, gold: Expression) -> Expression:
    """f(x) = 2x and f(n) = 2n are one function."""
    match head_of(pred), head_of(gold):
        case (
            Apply(operation="call", arguments=(Symbol(name=ours),)),
            Apply(operation="call", arguments=(Symbol(name=theirs),)),
        ) if ours != theirs and theirs not in symbols(value):
            return substituted(value, ours, Symbol(theirs))
    return value


def _same_equations(pred: Related, gold: Related, policy: GraderPolicy, same: Same) -> bool | None:
    if pred.relations == gold.relations and len(pred.sides) == len(gold.sides):
        verdict = every(_same_sides(p, g, policy, same) for p, g in zip(pred.sides, gold.sides, strict=True))
        if verdict:
            return True
    if len(pred.sides) != 2 or len(gold.sides) != 2:
        if len(pred.sides) == len(gold.sides) and all(r in REVERSED for r in pred.relations + gold.relations):
            turned = Related(pred.sides[::-1], tuple(REVERSED[r] for r in pred.relations[::-1]))
            return turned.relations == gold.relations and every(
                _same_sides(p, g, policy, same) for p, g in zip(turned.sides, gold.sides, strict=True)
            )
        return False
    if pred.relations == ("in",) or gold.relations == ("in",):
        return False
    factor = _proportional(pred, gold)
    if factor is None:
        return False
    ours, theirs = pred.relations[0], gold.relations[0]
    if ours in REVERSED:
        return (ours if factor > 0 else REVERSED[ours]) == theirs
    return ours == theirs


def _same_sides(pred: Expression, gold: Expression, policy: GraderPolicy, same: Same) -> bool | None:
    """Whether two sides of relations are one."""
    if isinstance(pred, Bracketed | Listed | Matrix) or isinstance(gold, Bracketed | Listed | Matrix):
        return same(pred, gold)
    return pred == gold or same_values(pred, gold, policy)


def _proportional(pred: Related, gold: Related) -> Value | None:
    """The constant c with (left − right of pred) = c·(left − right of gold) ≠ 0, if there is one."""
    ours, theirs = (Apply("add", (side.sides[0], Apply("neg", (side.sides[1],)))) for side in (pred, gold))
    names = symbols(ours) - CONSTANTS
    if not names or names != symbols(theirs) - CONSTANTS:
        return None
    factor: Value = None
    agreeing = 0
    for point in points(names, has_operation(ours, WHOLE_NUMBER_OPERATIONS)):
        try:
            a, b = evaluate(ours, point), evaluate(theirs, point)
        except UnreadableError:
            continue
        if not a or not b:
            return None
        ratio = quotient(a, b)
        if real(ratio) is None or (factor is not None and not agree(factor, ratio)):
            return None
        factor = real(ratio)
        agreeing += 1
    return factor if agreeing >= 3 else None
