"""Which relations give a quantity its value ("x = 5", "f(2) = 3", "AB = 4"), and whether two relations are one.

The others are equations, which no value stands for. A relation is the value that it gives, or itself, up to a factor on
both sides. What a name gives its value to counts: x = 3 is not y = 3.
"""

from fractions import Fraction

from math_answers.evaluation import (
    Value,
    agree,
    evaluate,
    nearly,
    points_for,
    quotient,
    real,
)
from math_answers.expressions import (
    CONSTANTS,
    Apply,
    Bracketed,
    Expression,
    Listed,
    Matrix,
    Number,
    Related,
    Symbol,
    UnreadableError,
    parts,
    substituted,
    symbols,
)
from math_answers.policy import GraderPolicy
from math_answers.relation_signs import backwards, plain
from math_answers.values import Same, every, same_numbers, same_values
from math_answers.words import has_logic

ORDER = frozenset({"<", ">", "<=", ">="})
"""Relations that bound a quantity."""

_APPROXIMATE = frozenset({"~", "simeq", "doteq", "approxeq"})
_WORKED_OUT = ("\\lim", "\\sum", "\\prod", "\\int")
_NOISE = Fraction(1, 10**10)
_NEAR = Fraction(1, 20)  # how far what stands behind ≈ may be from what stands before it, as a share


# -- names --------------------------------------------------------------------------------------------------------


def answer_in(claim: Expression | None, lenient: bool) -> Expression | None:
    """What a relation gives as the answer: the last side of a definition, else ``None``.

    Args:
        claim: a relation.
        lenient: let the left side also be a sum or a function of unknowns, "m + n = 16". A gold of that form
            is an equation, which no number stands for.
    """
    match claim:
        case Related(sides=(left, *_, right) as sides, relations=relations) if set(relations) == {"="}:
            if not _is_consistent(sides):
                return None
            if gives_name(left, right) or (lenient and _asks_for(left, right)):
                return right
            if len(sides) == 2 and gives_name(right, left):
                return left
            if is_constant(left) and same_numbers(left, right):
                return right
            if lenient and all(same_values(side, right, GraderPolicy()) for side in sides[:-1]):
                return right  # one formula, written in several ways
    return None


def _is_consistent(sides: "tuple[Expression, ...]") -> bool:
    """Whether the numbers in a chain of equations are one: not in 13 = 12."""
    numbers = [side for side in sides if is_constant(side) and not is_single_name(side)]
    return all(same_numbers(number, numbers[-1]) or _rounds(number, numbers[-1]) for number in numbers[:-1])


def _rounds(number: Expression, last: Expression) -> bool:
    return bool(same_values(last, number, GraderPolicy(significant_digits=3)))


def heads_of(claim: Expression) -> "tuple[Expression, ...]":
    """What a claim gives a value to: the x and y of "x = y = 5"."""
    match claim:
        case Related(sides=(head, value), relations=("=",)) if not gives_name(head, value) and gives_name(
            value, head
        ):
            return (value,)
        case Related(sides=(*heads, value), relations=relations) if set(relations) == {"="}:
            return tuple(
                head
                for head in heads
                if gives_name(head, value) and (not is_constant(head) or is_single_name(head))
            )
        case Related(sides=(head, _), relations=("~" | "simeq" | "in",)) if is_single_name(head):
            return (head,)
    return ()


def head_of(claim: Expression) -> Expression | None:
    """The first of `heads_of`, if there is one."""
    heads = heads_of(claim)
    return heads[0] if heads else None


def gives_name(head: Expression, value: Expression) -> bool:
    """Whether "head = value" gives a value a name, rather than being an equation."""
    if symbols(head) & symbols(value) - {"infty"} and not isinstance(head, Apply):
        return False
    if is_single_name(head):
        return not (_is_name(value) and not isinstance(head, Apply))
    return _is_name(head) and not _is_name(value) and value != Number(Fraction(0))


def is_single_name(head: Expression) -> bool:
    """A name that is not put together from others: x, f(2), x̄, Δp, (x, y), the words "the area"."""
    match head:
        case Symbol(name=name):
            if name.startswith("'"):
                return not has_logic(name)
            return name not in ("pi", "infty", "emptyset") and not name.startswith("mathbb")
        case Apply(operation="call", name=name):
            return not name.startswith("\\") or name.startswith(_WORKED_OUT)
        case Apply(operation="decorated", arguments=(inner,)):
            return is_single_name(inner)
        case Apply(operation="mul", arguments=(Symbol(name="Delta" | "partial"), inner)):
            return is_single_name(inner)
        case Bracketed(items=items):
            return len(items) > 1 and all(map(is_single_name, items))
    return False


def _is_name(head: Expression) -> bool:
    """A name of a quantity: x, f(2), AB, |AB|, S_1 : S_2, (p, q)."""
    if is_single_name(head):
        return True
    match head:
        case Apply(operation="mul", arguments=factors):
            if isinstance(factors[-1], Symbol) and factors[-1].name.startswith("angle "):
                return True
            if _is_derivative(factors):
                return True
            return all(
                (isinstance(factor, Symbol) and _may_be_factor(factor.name))
                or (isinstance(factor, Apply) and factor.operation == "inv" and _is_name(factor.arguments[0]))
                or (isinstance(factor, Apply) and factor.operation == "mul" and _is_name(factor))
                for factor in factors
            )
        case Apply(operation="ratio" | "abs", arguments=arguments):
            return all(map(_is_name, arguments))
    return False


def _may_be_factor(name: str) -> bool:
    return not has_logic(name) if name.startswith("'") else name[:1].isupper()


def _is_derivative(factors: "tuple[Expression, ...]") -> bool:
    """dy/dx."""
    match factors:
        case (
            Apply(operation="mul", arguments=(Symbol(name="d" | "partial"), Symbol())),
            Apply(
                operation="inv", arguments=(Apply(operation="mul", arguments=(Symbol(name=below), Symbol())),)
            ),
        ):
            return below in ("d", "partial")
    return False


def _asks_for(left: Expression, right: Expression) -> bool:
    return (
        is_constant(right)
        and right != Number(Fraction(0))
        and bool(symbols(left) - CONSTANTS)
        and not _has_number(left)
        and not any(name.startswith("'") for name in symbols(left))
        and not _is_operation(left)
    )


def _is_operation(left: Expression) -> bool:
    """Whether a sign or an operation that nothing here knows is done to what is asked for: −x, ¬x."""
    match left:
        case Apply(operation="neg"):
            return True
        case Apply(operation="call", name=name):
            return name.startswith("\\")
    return False


def _has_number(expression: Expression) -> bool:
    if isinstance(expression, Apply) and expression.operation in ("call", "root"):
        return expression.operation == "root" and _has_number(expression.arguments[0])
    return isinstance(expression, Number) or any(map(_has_number, parts(expression)))


def is_constant(expression: Expression | None) -> bool:
    """Whether no unknown is in it."""
    return expression is not None and not isinstance(expression, Related) and symbols(expression) <= CONSTANTS


def same_heads(ours: "tuple[Expression, ...]", theirs: "tuple[Expression, ...]") -> bool:
    """Whether two definitions define the same: one of our names is one of theirs, or a side has none."""
    return not ours or not theirs or any(same_head(p, g) for p in ours for g in theirs)


def same_head(ours: Expression, theirs: Expression) -> bool:
    """Whether two names are one: f(x) is f(t) and the y of a function, AB is BA and |AB|; "area" may be called A."""
    ours, theirs = _bare(ours), _bare(theirs)
    if ours == theirs:
        return True
    ours_in_words, theirs_in_words = (
        any(n.startswith("'") for n in symbols(side)) for side in (ours, theirs)
    )
    if ours_in_words != theirs_in_words:
        return True
    match ours, theirs:
        case (Apply(operation="call", arguments=p, name=f), Apply(operation="call", arguments=g, name=h)):
            return f == h and all(map(_is_argument, (*p, *g))) and len(p) == len(g)
        case (Symbol(name="y"), Apply(operation="call", arguments=arguments)) | (
            Apply(operation="call", arguments=arguments),
            Symbol(name="y"),
        ):
            return all(map(_is_argument, arguments))
        case (
            Apply(operation="mul", arguments=p, name="run"),
            Apply(operation="mul", arguments=g, name="run"),
        ):
            return len(p) == 2 and p == g[::-1]
        case (Bracketed(items=p), Bracketed(items=g)):
            return len(p) == len(g) and all(map(same_head, p, g))
    return False


def _bare(head: Expression) -> Expression:
    match head:
        case Apply(operation="abs", arguments=(inner,)):
            return _bare(inner)
        case Symbol(name=name) if name.startswith(("bar ", "vec ")) and name[4:].isupper() and len(name) == 6:
            return Apply("mul", (Symbol(name[4]), Symbol(name[5])), "run")
    return head


def _is_argument(expression: Expression) -> bool:
    """The x of f(x), which may be called otherwise."""
    return isinstance(expression, Symbol) and len(expression.name) == 1 and expression.name.islower()


# -- relations ----------------------------------------------------------------------------------------------------


def same_claims(pred: Expression, gold: Expression, policy: GraderPolicy, same: Same) -> bool | None:
    """Whether ``pred`` and ``gold``, one of them a relation, make the same claim.

    Args:
        pred: the answer, in simplest form.
        gold: the right answer, in simplest form.
        policy: the conventions.
        same: compares sets and values by these conventions.
    """
    ours, theirs = _without_approximation(pred), _without_approximation(gold)
    if ours is None or theirs is None:
        return False
    if isinstance(ours, Related) and isinstance(theirs, Related):
        approximate = [set(side.relations) & _APPROXIMATE for side in (ours, theirs)]
        if approximate[0] != approximate[1]:  # x ≈ 5 is not x = 5, but x = 5.3 is as good as x ≈ 5.3
            ends = [side.sides[-1] for side in (ours, theirs)]
            if not all(isinstance(end, Number) and end.decimal for end in ends):
                return False
        if (verdict := _same_relations(ours, theirs, policy, same)) is not False:
            return verdict
    pred, gold = _as_equation(ours), _as_equation(theirs)
    if _is_membership(pred) or _is_membership(gold):
        if not same_heads(heads_of(pred), heads_of(gold)):
            return False
        inner = _members(pred), _members(gold)
        return False if inner == (pred, gold) else same(*inner)
    if (
        isinstance(pred, Related)
        and isinstance(gold, Related)
        and not same_heads(heads_of(pred), heads_of(gold))
    ):
        return False
    left = answer_in(pred, not heads_of(gold)) if isinstance(pred, Related) else pred
    right = answer_in(gold, False) if isinstance(gold, Related) else gold
    if left is None or right is None:
        return False
    if isinstance(left, Related) or isinstance(right, Related):
        return None
    return same(_renamed(left, pred, gold), right)


def _is_membership(claim: Expression) -> bool:
    return (
        isinstance(claim, Related)
        and claim.relations == ("in",)
        and is_single_name(claim.sides[0])
        and (
            isinstance(claim.sides[1], Bracketed)
            or claim.sides[1] == Symbol("mathbb R")
            or (
                isinstance(claim.sides[1], Apply)
                and claim.sides[1].operation in ("union", "intersection", "without")
            )
        )
    )


def _members(claim: Expression) -> Expression:
    """The set behind ``x ∈``."""
    return claim.sides[1] if isinstance(claim, Related) and _is_membership(claim) else claim


def _as_equation(claim: Expression) -> Expression:
    match claim:
        case Related(sides=(head, value) as sides, relations=(relation,)) if (
            relation in _APPROXIMATE and gives_name(head, value)
        ):
            return Related(sides, ("=",))
    return claim


def _without_approximation(expression: Expression) -> Expression | None:
    r"""``√3/3 ≈ 0.577`` is √3/3, and ``x = 1/3 ≈ 0.33`` is x = 1/3, if what stands behind ≈ is near; else ``None``."""
    if not isinstance(expression, Related):
        return expression
    cut = next((i for i, relation in enumerate(expression.relations) if relation in _APPROXIMATE), None)
    if cut is None or not set(expression.relations[:cut]) <= {"="}:
        return expression
    before, behind = expression.sides[cut], expression.sides[cut + 1 :]
    if not is_constant(before) or (len(expression.sides) == 2 and not is_constant(behind[0])):
        return expression if len(expression.sides) == 2 else None
    if not all(_is_near(before, side) for side in behind):
        return None
    return before if cut == 0 else Related(expression.sides[: cut + 1], expression.relations[:cut])


def _is_near(value: Expression, approximation: Expression) -> bool:
    try:
        exact, rounded = (evaluate(_unsigned(side), {}) for side in (value, approximation))
    except (UnreadableError, KeyError):
        return False
    return nearly(rounded, exact, _NEAR)


def _unsigned(expression: Expression) -> Expression:
    match expression:
        case Apply(operation="percent" | "degree" | "unit", arguments=(inner,)):
            return inner
    return expression


def _renamed(value: Expression, pred: Expression, gold: Expression) -> Expression:
    """f(x) = 2x and f(n) = 2n are one function."""
    match head_of(pred), head_of(gold):
        case (
            Apply(operation="call", arguments=(Symbol(name=ours),)),
            Apply(operation="call", arguments=(Symbol(name=theirs),)),
        ) if ours != theirs and theirs not in symbols(value):
            return substituted(value, ours, Symbol(theirs))
    return value


def _same_relations(pred: Related, gold: Related, policy: GraderPolicy, same: Same) -> bool | None:
    """Whether two relations are one: sign by sign, read backwards, or multiplied by a factor."""
    ours, theirs = (tuple(map(plain, side.relations)) for side in (pred, gold))
    if len(pred.sides) == len(gold.sides):
        turned = tuple(backwards(relation) for relation in ours[::-1])
        for sides, relations in ((pred.sides, ours), (pred.sides[::-1], turned)):
            if relations == theirs:
                verdict = every(
                    _same_sides(p, g, policy, same) for p, g in zip(sides, gold.sides, strict=True)
                )
                if verdict:
                    return True
    if len(pred.sides) != 2 or len(gold.sides) != 2 or not ({*ours, *theirs} <= ORDER | {"=", "!=", "=="}):
        if ours == theirs and len(ours) == 1 and ours[0] in ("subset", "subseteq"):
            return _scaled(pred, gold, policy)
        return False
    factor = _proportional(pred, gold)
    if factor is None:
        return False
    return (ours[0] if factor > 0 else backwards(ours[0])) == theirs[0]


def _scaled(pred: Related, gold: Related, policy: GraderPolicy) -> bool:
    """2A ⊂ 2B is A ⊂ B."""
    factor = _proportional(pred, gold)
    return factor is not None and factor > 0


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
    first: Value = None
    agreeing, varies = 0, False
    for point in points_for(ours, theirs)[0]:
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
        first = a if first is None else first
        varies |= not nearly(a, first, _NOISE)
    return factor if agreeing >= 3 and varies else None
