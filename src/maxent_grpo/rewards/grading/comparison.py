"""Whether two parsed answers are one, under a policy.

``True`` and ``False`` are verdicts; ``None`` means that nothing here could decide.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

from maxent_grpo.rewards.grading.evaluation import (
    POSITIVE_POINTS,
    Value,
    agree,
    distance,
    evaluate,
    is_exact,
    points,
    quotient,
    real,
    within,
)
from maxent_grpo.rewards.grading.expressions import (
    Apply,
    Bracketed,
    Expression,
    Listed,
    Matrix,
    Number,
    Related,
    Symbol,
    UnreadableError,
    has_operation,
    parts,
    symbols,
)
from maxent_grpo.rewards.grading.policy import GraderPolicy

MAX_ITEMS = 100
_CONSTANTS = frozenset({"pi", "e", "i"})
_WHOLE_NUMBER_OPERATIONS = frozenset({"factorial", "binomial", "floor", "ceil", "gcd", "lcm"})
_SIGN_CHOICES = frozenset({"pm", "mp"})
_ORDER = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_INFINITY = Symbol("infty")
_LINE = Bracketed("(", ")", (Apply("neg", (_INFINITY,)), _INFINITY))
_REALS = Symbol("mathbb R")
_NO_INTERVALS = frozenset({("(", ")"), ("{", "}"), ("<", ">")})
_FLOAT_NOISE = Fraction(1, 10**12)  # double precision prints 0.30000000000000004
_FLOAT_DIGITS = 12


def same(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    """Whether ``pred`` says what ``gold`` says."""
    pred, gold = _simplest(pred), _simplest(gold)
    if pred == gold:
        return True
    if isinstance(gold, Listed) or isinstance(pred, Listed):
        return _same_lists(pred, gold, policy)
    if isinstance(gold, Related) or isinstance(pred, Related):
        return _same_claims(pred, gold, policy)
    return _same_objects(pred, gold, policy)


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    undecided = False
    for verdict in verdicts:
        if verdict is False:
            return False
        undecided |= verdict is None
    return None if undecided else True


# -- forms -------------------------------------------------------------------------------------------------


def _simplest(expression: Expression) -> Expression:
    """With ± written out as two answers, and inequalities that bound one unknown as intervals."""
    if expression == _REALS:
        return _LINE
    if isinstance(expression, Listed):
        items = [item for part in expression.items for item in _answers(part)]
        intervals = [_interval(item) for item in items]
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
    return _mapped(expression, lambda part: _signed(part, plus))


def _mapped(expression: Expression, change: Callable[[Expression], Expression]) -> Expression:
    match expression:
        case Apply(arguments=inner):
            return dataclasses.replace(expression, arguments=tuple(map(change, inner)))
        case Bracketed(items=inner) | Listed(items=inner):
            return dataclasses.replace(expression, items=tuple(map(change, inner)))
        case Related(sides=inner):
            return dataclasses.replace(expression, sides=tuple(map(change, inner)))
        case Matrix(rows=rows):
            return Matrix(tuple(tuple(map(change, row)) for row in rows))
    return expression


def _substituted(expression: Expression, name: str, by: Expression) -> Expression:
    if expression == Symbol(name):
        return by
    return _mapped(expression, lambda part: _substituted(part, name, by))


# -- lists -------------------------------------------------------------------------------------------------


def _same_lists(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    ours, theirs = _items(pred), _items(gold)
    if ours is None or theirs is None:
        return _same_bare(pred, gold, policy)
    if any(
        isinstance(side, Bracketed) and (side.opening, side.closing) not in kinds
        for side, kinds in ((gold, _NO_INTERVALS), (pred, {*_NO_INTERVALS, ("[", "]")}))
    ):
        return False
    ordered = _is_tuple(pred) or _is_tuple(gold)
    sets = [isinstance(side, Bracketed) and side.opening == "{" for side in (pred, gold)]
    if any(sets):
        ours, theirs = _distinct(ours, policy), _distinct(theirs, policy)
    if len(ours) != len(theirs) or len(ours) > MAX_ITEMS:
        return False
    heads = [[_head(item) for item in items] for items in (ours, theirs)]
    named = [len(set(side)) == len(side) > 1 and None not in side for side in heads]
    if all(named) and set(heads[0]) == set(heads[1]):
        by_name = dict(zip(heads[0], ours, strict=True))
        return _all(same(by_name[head], item, policy) for head, item in zip(heads[1], theirs, strict=True))
    strict = policy.list_order == "strict" and not any(sets)
    if (ordered and policy.tuple_order == "strict") or strict or any(named):
        return _all(same(p, g, policy) for p, g in zip(ours, theirs, strict=True))
    return _matched(ours, theirs, policy)


def _same_bare(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    """A list on one side only: at best its repetitions make it one answer."""
    listed, other = (pred, gold) if isinstance(pred, Listed) else (gold, pred)
    if isinstance(other, Apply) and other.operation == "union" and isinstance(listed, Listed):
        return _matched(list(listed.items), list(other.arguments), policy)
    return False


def _items(expression: Expression) -> list[Expression] | None:
    match expression:
        case Listed(items=items) | Bracketed(items=items):
            return list(items)
        case Matrix(rows=rows) if len(rows) == 1 or len(rows[0]) == 1:
            return [entry for row in rows for entry in row]
        case Related(sides=(head, value), relations=("=",)) if _names(head, value):
            return _items(value)
    return None


def _is_tuple(expression: Expression) -> bool:
    match expression:
        case Bracketed(opening=opening, closing=closing):
            return (opening, closing) in (("(", ")"), ("<", ">"))
        case Related(sides=(_, value)):
            return _is_tuple(value)
    return isinstance(expression, Matrix)


def _distinct(items: Sequence[Expression], policy: GraderPolicy) -> list[Expression]:
    found: list[Expression] = []
    for item in items[: MAX_ITEMS + 1]:
        if not any(same(item, other, policy) for other in found):
            found.append(item)
    return found


def _matched(ours: Sequence[Expression], theirs: Sequence[Expression], policy: GraderPolicy) -> bool | None:
    """Whether each answer has its own partner. Being the same is transitive, so that taking the first will do."""
    if len(ours) != len(theirs) or len(ours) > MAX_ITEMS:
        return False
    left = list(ours)
    undecided = False
    for wanted in theirs:
        for i, item in enumerate(left):
            verdict = same(item, wanted, policy)
            undecided |= verdict is None
            if verdict:
                del left[i]
                break
        else:
            return None if undecided else False
    return True


def _head(item: Expression) -> Expression | None:
    match item:
        case Related(sides=(head, *_, value), relations=relations) if set(relations) == {"="}:
            return head if _names(head, value) else None
    return None


# -- relations ---------------------------------------------------------------------------------------------


def _same_claims(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    pred, gold = _without_approximation(pred), _without_approximation(gold)
    if _is_membership(pred) or _is_membership(gold):
        return same(_members(pred), _members(gold), policy)
    bounds = [_interval(pred), _interval(gold)]
    if any(bounds) and not (isinstance(pred, Related) and isinstance(gold, Related)):
        return same(bounds[0] or pred, bounds[1] or gold, policy)
    if all(bounds) and symbols(pred) == symbols(gold):
        verdict = same(bounds[0], bounds[1], policy)  # type: ignore[arg-type]
        if verdict is not False:
            return verdict
    if isinstance(pred, Related) and isinstance(gold, Related):
        if (verdict := _same_equations(pred, gold, policy)) is not False:
            return verdict
        if not _constant(_value(pred, True)) and _unlike_heads(pred, gold):
            return False
    ours = _value(pred, True) if isinstance(pred, Related) else pred
    theirs = _value(gold, False) if isinstance(gold, Related) else gold
    if ours is None or theirs is None:
        return False
    if isinstance(ours, Related) or isinstance(theirs, Related):
        return None
    return same(_renamed(ours, pred, gold), theirs, policy)


def _is_membership(claim: Expression) -> bool:
    return isinstance(claim, Related) and claim.relations == ("in",) and _is_single_name(claim.sides[0])


def _members(claim: Expression) -> Expression:
    """The set behind ``x ∈``."""
    return claim.sides[1] if isinstance(claim, Related) and _is_membership(claim) else claim


def _without_approximation(expression: Expression) -> Expression:
    r"""``√3/3 ≈ 0.577`` is √3/3, ``x = 1/3 ≈ 0.33`` is x = 1/3, and ``x ≈ 11`` says x = 11."""
    if not isinstance(expression, Related) or "~" not in expression.relations:
        return expression
    cut = expression.relations.index("~")
    if cut == 0 and len(expression.sides) == 2 and _names(*expression.sides):
        return Related(expression.sides, ("=",))
    if cut == 0:
        return expression.sides[0]
    return Related(expression.sides[: cut + 1], expression.relations[:cut])


def _value(claim: Expression | None, lenient: bool) -> Expression | None:
    """What a relation gives as the answer: the right side of a definition, the set behind ∈, else ``None``.

    Args:
        claim: a relation.
        lenient: let the left side also be a sum or a function of unknowns, "m + n = 16". A gold of that form
            is an equation, which no number stands for.
    """
    match claim:
        case Related(sides=(left, *_, right), relations=relations) if set(relations) <= {"=", "==", "mid"}:
            if set(relations) != {"="}:
                return None
            if _names(left, right) or (lenient and _asks_for(left, right)):
                return right
            if len(claim.sides) == 2 and _names(right, left):
                return left
            if _constant(left) and same_numbers(left, right):
                return right
    return None


def _names(head: Expression, value: Expression) -> bool:
    """Whether "head = value" gives a value a name, rather than being an equation."""
    if symbols(head) & symbols(value) - {"infty"} and not isinstance(head, Apply):
        return False
    if _is_single_name(head):
        return not (_is_name(value) and not isinstance(head, Apply))
    return _is_name(head) and not _is_name(value) and value != Number(Fraction(0))


def _is_single_name(head: Expression) -> bool:
    match head:
        case Symbol(name=name):
            return name not in ("pi", "infty", "emptyset")
        case Apply(operation="call"):
            return True
        case Apply(operation="decorated", arguments=(inner,)):
            return _is_single_name(inner)
        case Bracketed(items=items):
            return len(items) > 1 and all(map(_is_single_name, items))
    return False


def _is_name(head: Expression) -> bool:
    """A name of a quantity: x, f(2), AB, |AB|, S_1 : S_2, (p, q)."""
    if _is_single_name(head):
        return True
    match head:
        case Apply(operation="mul", arguments=factors):
            if isinstance(factors[-1], Symbol) and factors[-1].name.startswith("angle "):
                return True
            return all(
                (isinstance(factor, Symbol) and factor.name[:1].isupper())
                or (isinstance(factor, Apply) and factor.operation == "inv" and _is_name(factor.arguments[0]))
                for factor in factors
            )
        case Apply(operation="ratio" | "abs", arguments=arguments):
            return all(map(_is_name, arguments))
    return False


def _asks_for(left: Expression, right: Expression) -> bool:
    return (
        _constant(right)
        and right != Number(Fraction(0))
        and bool(symbols(left) - _CONSTANTS)
        and not _has_number(left)
    )


def _has_number(expression: Expression) -> bool:
    if isinstance(expression, Apply) and expression.operation in ("call", "root"):
        return expression.operation == "root" and _has_number(expression.arguments[0])
    return isinstance(expression, Number) or any(map(_has_number, parts(expression)))


def _constant(expression: Expression | None) -> bool:
    return (
        expression is not None and not isinstance(expression, Related) and symbols(expression) <= _CONSTANTS
    )


def _unlike_heads(pred: Related, gold: Related) -> bool:
    """Whether both define something, but not the same: y = 2x against x = 2x."""
    heads = _head(pred), _head(gold)
    return (
        isinstance(heads[0], Symbol)
        and isinstance(heads[1], Symbol)
        and heads[0] != heads[1]
        and heads[0].name in symbols(gold)
    )


def _renamed(value: Expression, pred: Expression, gold: Expression) -> Expression:
    """f(x) = 2x and f(n) = 2n are one function."""
    match _head(pred), _head(gold):
        case (
            Apply(operation="call", arguments=(Symbol(name=ours),)),
            Apply(operation="call", arguments=(Symbol(name=theirs),)),
        ) if ours != theirs and theirs not in symbols(value):
            return _substituted(value, ours, Symbol(theirs))
    return value


def _same_equations(pred: Related, gold: Related, policy: GraderPolicy) -> bool | None:
    if pred.relations == gold.relations and len(pred.sides) == len(gold.sides):
        verdict = _all(same_sides(p, g, policy) for p, g in zip(pred.sides, gold.sides, strict=True))
        if verdict:
            return True
    if len(pred.sides) != 2 or len(gold.sides) != 2:
        if len(pred.sides) == len(gold.sides) and all(r in _ORDER for r in pred.relations + gold.relations):
            turned = Related(pred.sides[::-1], tuple(_ORDER[r] for r in pred.relations[::-1]))
            return turned.relations == gold.relations and _all(
                same_sides(p, g, policy) for p, g in zip(turned.sides, gold.sides, strict=True)
            )
        return False
    if pred.relations == ("in",) or gold.relations == ("in",):
        return False
    factor = _proportional(pred, gold)
    if factor is None:
        return False
    ours, theirs = pred.relations[0], gold.relations[0]
    if ours in _ORDER:
        return (ours if factor > 0 else _ORDER[ours]) == theirs
    return ours == theirs


def same_sides(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    """Whether two sides of relations are one."""
    if isinstance(pred, Bracketed | Listed | Matrix) or isinstance(gold, Bracketed | Listed | Matrix):
        return same(pred, gold, policy)
    return pred == gold or _same_values(pred, gold, policy)


def _proportional(pred: Related, gold: Related) -> Value | None:
    """The constant c with (left − right of pred) = c·(left − right of gold) ≠ 0, if there is one."""
    ours, theirs = (Apply("add", (side.sides[0], Apply("neg", (side.sides[1],)))) for side in (pred, gold))
    names = symbols(ours) - _CONSTANTS
    if not names or names != symbols(theirs) - _CONSTANTS:
        return None
    factor: Value = None
    agreeing = 0
    for point in points(names, has_operation(ours, _WHOLE_NUMBER_OPERATIONS)):
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


def _interval(expression: Expression) -> Expression | None:
    """The interval of an inequality between a name and bounds, or one that is linear in its only unknown."""
    match expression:
        case Related(sides=(low, name, high), relations=(first, second)) if (
            _is_single_name(name) and first[:1] == second[:1] and {first, second} <= _ORDER.keys()
        ):
            if first.startswith(">"):
                low, high, first, second = high, low, second, first
            return Bracketed("[" if "=" in first else "(", "]" if "=" in second else ")", (low, high))
        case Related(sides=(left, right), relations=(relation,)) if relation in _ORDER:
            if not _is_single_name(left):
                left, right, relation = right, left, _ORDER[relation]
            if not _is_single_name(left) or symbols(right) & symbols(left):
                return _linear_interval(left, right, relation)
            return _half_line(right, relation)
        case Related(sides=(left, right), relations=("!=",)) if _is_single_name(left) and _constant(right):
            return Apply("union", (_half_line(right, "<"), _half_line(right, ">")))
    return None


def _half_line(bound: Expression, relation: str) -> Expression:
    if relation.startswith("<"):
        return Bracketed("(", "]" if "=" in relation else ")", (Apply("neg", (_INFINITY,)), bound))
    return Bracketed("[" if "=" in relation else "(", ")", (bound, _INFINITY))


def _linear_interval(left: Expression, right: Expression, relation: str) -> Expression | None:
    difference = Apply("add", (left, Apply("neg", (right,))))
    names = symbols(difference) - _CONSTANTS
    if len(names) != 1:
        return None
    (name,) = names
    try:
        at = [evaluate(difference, {name: Fraction(x)}) for x in (0, 1, 2, 5)]
    except UnreadableError:
        return None
    if not all(map(is_exact, at)) or at[2] - at[1] != at[1] - at[0] or at[3] - at[0] != 5 * (at[1] - at[0]):
        return None
    slope = at[1] - at[0]
    if not slope:
        return None
    return _half_line(Number(-at[0] / slope), relation if slope > 0 else _ORDER[relation])


# -- intervals, tuples, matrices ---------------------------------------------------------------------------


def _same_objects(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    if any(
        isinstance(side, Apply) and side.operation in ("union", "without", "intersection")
        for side in (pred, gold)
    ):
        return _same_sets(pred, gold, policy)
    if isinstance(pred, Matrix) and isinstance(gold, Matrix):
        if [len(row) for row in pred.rows] != [len(row) for row in gold.rows]:
            return False
        return _all(same(p, g, policy) for p, g in zip(parts(pred), parts(gold), strict=True))
    if isinstance(pred, Matrix) or isinstance(gold, Matrix):
        ours, theirs = _items(pred), _items(gold)
        if (
            policy.vectors != "as_tuples"
            or ours is None
            or theirs is None
            or not (_is_tuple(pred) and _is_tuple(gold))
        ):
            return False
        return len(ours) == len(theirs) and _all(
            same(p, g, policy) for p, g in zip(ours, theirs, strict=True)
        )
    if isinstance(pred, Bracketed) and isinstance(gold, Bracketed):
        return _same_bracketed(pred, gold, policy)
    for side, other in ((pred, gold), (gold, pred)):
        if isinstance(side, Bracketed):
            # "[5]" and "{5}" for a single answer; anything longer is another kind of object.
            return same(side.items[0], other, policy) if len(side.items) == 1 else False
    return _same_values(pred, gold, policy)


def _same_bracketed(pred: Bracketed, gold: Bracketed, policy: GraderPolicy) -> bool | None:
    kinds = [("(", ")") if side.opening == "<" else (side.opening, side.closing) for side in (pred, gold)]
    if kinds[0] != kinds[1]:
        return False
    if kinds[0][0] == "{":
        return _matched(_distinct(pred.items, policy), _distinct(gold.items, policy), policy)
    if len(pred.items) != len(gold.items):
        return False
    if policy.tuple_order == "free" and kinds[0] == ("(", ")"):
        return _matched(pred.items, gold.items, policy)
    return _all(same(p, g, policy) for p, g in zip(pred.items, gold.items, strict=True))


def _same_sets(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    ours, theirs = _pieces(pred), _pieces(gold)
    if ours is None or theirs is None:
        return None
    return _matched(ours, theirs, policy)


def _pieces(expression: Expression) -> list[Expression] | None:
    """The parts of a union; a line without points in parts."""
    match expression:
        case Apply(operation="union", arguments=arguments):
            inner = [_pieces(argument) for argument in arguments]
            return None if None in inner else [piece for found in inner for piece in found or []]
        case Apply(operation="without", arguments=(whole, Bracketed(opening="{", items=holes))):
            if whole not in (_LINE, _REALS, Symbol("R")):
                return None
            try:
                ordered = sorted(holes, key=lambda hole: float(evaluate(hole, {})))
            except (UnreadableError, KeyError, TypeError):
                return None
            ends = [Apply("neg", (_INFINITY,)), *ordered, _INFINITY]
            return [Bracketed("(", ")", pair) for pair in itertools.pairwise(ends)]
        case Apply(operation="without" | "intersection"):
            return None
        case Bracketed(opening="{", items=items):
            return [Bracketed("{", "}", (item,)) for item in items]
    return [expression]


# -- values ------------------------------------------------------------------------------------------------


def _same_values(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    pred, our_unit = _unit(pred)
    gold, their_unit = _unit(gold)
    if our_unit and not their_unit:
        gold, their_unit = _letter_unit(gold)
    elif their_unit and not our_unit:
        pred, our_unit = _letter_unit(pred)
    if policy.units == "required" and (our_unit or their_unit) and our_unit != their_unit:
        return False
    if (
        policy.units == "optional"
        and _is_known(our_unit)
        and _is_known(their_unit)
        and our_unit != their_unit
    ):
        return False
    pred, gold = _sign_inside(pred), _sign_inside(gold)
    bases = [_based(pred), _based(gold)]
    if any(bases):
        return _same_in_base(pred, gold, policy)
    kinds = [side.operation if isinstance(side, Apply) else "" for side in (pred, gold)]
    for kind in ("percent", "degree"):
        if kinds == [kind, kind]:
            return _same_values(pred.arguments[0], gold.arguments[0], policy)  # type: ignore[union-attr]
    if "percent" in kinds or "degree" in kinds:
        verdicts = [_equal(p, g, policy) for p in _readings(pred, policy) for g in _readings(gold, policy)]
        return True if True in verdicts else None if None in verdicts else False
    if "ratio" in kinds:
        return _same_ratios(pred, gold, policy)
    return _equal(pred, gold, policy)


def _sign_inside(expression: Expression) -> Expression:
    """−(90°) as (−90)°, so that the outermost operation tells the kind."""
    match expression:
        case Apply(
            operation="neg", arguments=(Apply(operation="percent" | "degree" as kind, arguments=(inner,)),)
        ):
            return Apply(kind, (Apply("neg", (inner,)),))
    return expression


def _readings(expression: Expression, policy: GraderPolicy) -> list[Expression]:
    match expression:
        case Apply(operation="percent", arguments=(inner,)):
            of_hundred = [] if policy.percent == "value" else [inner]
            return of_hundred + ([] if policy.percent == "sign_optional" else [expression])
        case Apply(operation="degree", arguments=(inner,)):
            return [inner, expression] if policy.degrees == "optional" else [expression]
    return [expression]


def _based(expression: Expression) -> bool:
    return isinstance(expression, Apply) and expression.operation == "based"


def _same_in_base(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    (ours, our_base), (theirs, their_base) = _digits_and_base(pred), _digits_and_base(gold)
    if our_base == their_base or (policy.base == "optional" and "" in (our_base, their_base)):
        return ours is not None and ours == theirs
    if not (our_base and their_base):
        return False
    try:
        return int(ours or "", int(our_base)) == int(theirs or "", int(their_base))
    except ValueError:
        return False


def _digits_and_base(expression: Expression) -> tuple[str | None, str]:
    match expression:
        case Apply(operation="based", arguments=(Number(value=value),), name=base):
            return str(value), base
        case Number(value=value):
            return str(value), ""
    return None, ""


def _same_ratios(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    """3 : 1 is 6 : 2 and 3; a time of day, 12:00, is only itself."""
    terms = [
        list(side.arguments) if isinstance(side, Apply) and side.operation == "ratio" else None
        for side in (pred, gold)
    ]
    if terms[0] is None or terms[1] is None:
        return _equal(pred, gold, policy)
    if len(terms[0]) != len(terms[1]):
        return False
    first = [Apply("mul", (term, Apply("inv", (terms[0][0],)))) for term in terms[0]]
    second = [Apply("mul", (term, Apply("inv", (terms[1][0],)))) for term in terms[1]]
    return _all(_equal(p, g, policy) for p, g in zip(first, second, strict=True))


def same_numbers(left: Expression, right: Expression) -> bool:
    """Whether two constants are exactly one number."""
    values = _value_at(left, {}), _value_at(right, {})
    return None not in values and agree(*values)


def _equal(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    names = (symbols(pred) | symbols(gold)) - _CONSTANTS
    if not names:
        return _equal_constants(pred, gold, policy)
    if not symbols(pred) >= symbols(gold) - _CONSTANTS and not symbols(pred) - _CONSTANTS:
        return False
    whole = has_operation(pred, _WHOLE_NUMBER_OPERATIONS) or has_operation(gold, _WHOLE_NUMBER_OPERATIONS)
    compared = one_sided = 0
    for k, point in enumerate(points(names, whole)):
        real_only = k >= POSITIVE_POINTS and not whole
        ours, theirs = _value_at(pred, point, real_only), _value_at(gold, point, real_only)
        if ours is not None and theirs is not None:
            if not agree(ours, theirs):
                return False
            compared += 1
        one_sided += (ours is None) != (theirs is None)
    if compared >= 2:
        return True
    return False if one_sided >= POSITIVE_POINTS else None


def _value_at(expression: Expression, point: Mapping[str, Fraction], real_only: bool = False) -> Value | None:
    try:
        return evaluate(expression, point, real_only)
    except (UnreadableError, KeyError):
        return None


def _equal_constants(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    ours, theirs = _value_at(pred, {}), _value_at(gold, {})
    if ours is None or theirs is None:
        return None if ours is theirs else False
    if (
        agree(ours, theirs)
        or _rounded_to(pred, ours, theirs, policy)
        or _rounded_to(gold, theirs, ours, policy)
    ):
        return True
    if not policy.relative_tolerance or (_literal(pred) is None and _literal(gold) is None):
        return False
    return bool(distance(ours, theirs) <= abs(theirs) * policy.relative_tolerance)


def _rounded_to(written: Expression, value: Value, other: Value, policy: GraderPolicy) -> bool:
    """Whether a decimal is another number rounded to the digits that it shows."""
    literal = _literal(written)
    if literal is None or not is_exact(value):
        return False
    resolution, digits = literal
    other = real(other)
    if other is None:
        return False
    away = distance(value, other)
    if digits >= _FLOAT_DIGITS and within(away, abs(value) * _FLOAT_NOISE):
        return True
    if is_exact(other) and _terminates(other.denominator):
        return False  # it has an exact decimal form, and this is another
    return digits >= policy.significant_digits and within(away, resolution / 2)


def _literal(expression: Expression) -> tuple[Fraction, int] | None:
    """The resolution and number of significant digits of a decimal literal, perhaps times a power of ten."""
    match expression:
        case Number(decimal=True, resolution=resolution, digits=digits):
            return resolution, digits
        case Apply(operation="neg", arguments=(inner,)):
            return _literal(inner)
        case Apply(
            operation="mul",
            arguments=(
                Number(decimal=True) as mantissa,
                Apply(operation="pow", arguments=(Number(value=base), _)) as power,
            ),
        ) if base == 10:
            try:
                scale = evaluate(power, {})
            except UnreadableError:
                return None
            return (mantissa.resolution * scale, mantissa.digits) if is_exact(scale) else None
    return None


def _terminates(denominator: int) -> bool:
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


_UNIT_FAMILIES = """
cm centimeter centimeters centimetre centimetres
mm millimeter millimeters millimetre millimetres
nm nanometer nanometers
m meter meters metre metres
km kilometer kilometers kilometre kilometres
in inch inches
ft foot feet
yd yard yards
mi mile miles
g gram grams
mg milligram milligrams
kg kilogram kilograms
lb lbs pound pounds
oz ounce ounces
s sec secs second seconds
min mins minute minutes
h hr hrs hour hours
day days
week weeks
month months
year years yr yrs
$ dollar dollars usd
cent cents
l liter liters litre litres
ml milliliter milliliters
j joule joules
kj kilojoule kilojoules
cal calorie calories
kcal kilocalorie kilocalories
w watt watts
n newton newtons
v volt volts
ev
kev
mev
hz hertz
k kelvin
mol mole moles
rad radian radians
erg ergs
"""
_UNIT_NAMES = {name: line.split()[0] for line in _UNIT_FAMILIES.strip().splitlines() for name in line.split()}
_UNIT_TOKEN = re.compile(r"[^\W\d_]+|[$]|\^\s*[{(]?\s*(-?\d{1,3})|/")
_POWER_BEFORE = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWER_BEHIND = {"squared": 2, "cubed": 3}


def _unit(expression: Expression) -> tuple[Expression, str]:
    """An answer without units, and the unit that it ends with, in one name for all spellings if it is known."""
    name = ""
    match expression:
        case Apply(operation="unit", arguments=(inner,), name=written):
            name = _unit_name(written)
            expression = inner
        case Apply(operation="neg", arguments=(Apply(operation="unit", arguments=(inner,), name=written),)):
            name = _unit_name(written)
            expression = Apply("neg", (inner,))
    return _unitless(expression), name


def _letter_unit(expression: Expression) -> tuple[Expression, str]:
    """``5m`` beside an answer with a unit: the letter is one, too, and no unknown."""
    match expression:
        case Apply(operation="mul", arguments=(*factors, Symbol(name=letter))) if (
            letter.lower() in _UNIT_NAMES
        ):
            written = letter
        case Apply(
            operation="mul",
            arguments=(
                *factors,
                Apply(operation="pow", arguments=(Symbol(name=letter), Number(value=power))),
            ),
        ) if letter.lower() in _UNIT_NAMES:
            written = f"{letter}^{power}"
        case _:
            return expression, ""
    return (factors[0] if len(factors) == 1 else Apply("mul", tuple(factors))), _unit_name(written)


def _is_known(unit: str) -> bool:
    return bool(unit) and all(word.partition("^")[0] in _UNIT_NAMES for word in unit.split())


def _unitless(expression: Expression) -> Expression:
    if isinstance(expression, Apply) and expression.operation == "unit":
        return _unitless(expression.arguments[0])
    if not has_operation(expression, frozenset({"unit"})):
        return expression
    return _mapped(expression, _unitless)


def _unit_name(written: str) -> str:
    """One name for all spellings of a unit: its words with their powers, in alphabetical order."""
    powers: dict[str, int] = {}
    sign, before, last = 1, 1, ""
    for token in _UNIT_TOKEN.finditer(written.lower()):
        word = token[0]
        if word in ("/", "per"):
            sign = -1
        elif token[1]:
            if last:
                powers[last] += sign * (int(token[1]) - 1)
        elif word in _POWER_BEFORE:
            before = _POWER_BEFORE[word]
        elif word in _POWER_BEHIND and last:
            powers[last] += sign * (_POWER_BEHIND[word] - 1)
        elif word not in ("unit", "units"):
            last = _UNIT_NAMES.get(word, word)
            powers[last] = powers.get(last, 0) + sign * before
            before = 1
    return " ".join(f"{word}^{power}" for word, power in sorted(powers.items()))
