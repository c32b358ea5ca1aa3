"""Whether two parsed answers are one, under a policy: values, relations, or objects of several parts.

`same` brings both to simplest form and sends them on. ``True`` and ``False`` are verdicts; ``None`` means that nothing
here could decide. Lists, tuples, matrices are compared here, sets of numbers in `sets`, relations in `relations`,
single values in `values`.
"""

from functools import partial

from math_answers.evaluation import spend
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
    has_operation,
    mapped,
    parts,
    substituted,
    symbols,
)
from math_answers.matrices import folded
from math_answers.policy import GraderPolicy
from math_answers.relations import (
    head_of,
    heads_of,
    is_constant,
    is_single_name,
    same_claims,
    same_heads,
)
from math_answers.sets import interval_of, is_set, same_real_sets
from math_answers.values import MAX_ITEMS, Same, distinct, every, matched, same_numbers, same_values

_CONSTANT = Symbol("C")
_SIGN_CHOICES = frozenset({"pm", "mp"})
_NO_INTERVALS = frozenset({("(", ")"), ("{", "}"), ("<", ">")})
_DOMAINS = frozenset({"mathbb R", "mathbb Z", "mathbb Q", "mathbb N", "mathbb C", "R", "Z", "Q", "N"})
_MAX_REPEATED = 20  # answers among which repetitions are looked for


def same(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    """Whether ``pred`` says what ``gold`` says."""
    spend(1)
    (pred, ours), (gold, theirs) = _without_domains(_simplest(pred)), _without_domains(_simplest(gold))
    if pred == gold and not (ours and theirs and set(ours.values()) != set(theirs.values())):
        return True
    if ours and theirs and set(ours.values()) != set(theirs.values()):
        return False
    verdict = _same(pred, gold, policy)
    if verdict is False and _CONSTANT in parts(gold) and symbols(pred) - symbols(gold) == {"c"}:
        return _same(substituted(pred, "c", _CONSTANT), gold, policy)  # of integration
    if verdict is False and (ours or theirs):
        return _same(_with_their_parameter(pred, gold, ours, theirs), gold, policy)
    return verdict


def _same(pred: Expression, gold: Expression, policy: GraderPolicy) -> bool | None:
    inside = partial(same, policy=policy)
    for operation in ("residue", "cases", "and", "or", "set of"):
        found = [isinstance(side, Apply) and side.operation == operation for side in (pred, gold)]
        if all(found) and operation in ("and", "or") and _same_special(operation, pred, gold, inside):
            return True
        if any(found) and not is_set(pred) | is_set(gold):
            return _same_special(operation, pred, gold, inside) if all(found) else _unlike(pred, gold, inside)
    if is_set(pred) or is_set(gold):
        verdict = _same_structures(pred, gold, policy, inside)
        if verdict is True:
            return True
        by_value = same_real_sets(pred, gold)
        if by_value is None:
            ours, theirs = interval_of(pred), interval_of(gold)
            if (ours is None) != (theirs is None):
                return inside(ours or pred, theirs or gold)
        return verdict if by_value is None else by_value
    return _same_structures(pred, gold, policy, inside)


def _same_structures(pred: Expression, gold: Expression, policy: GraderPolicy, inside: Same) -> bool | None:
    if isinstance(gold, Listed) or isinstance(pred, Listed):
        return same_lists(pred, gold, policy, inside)
    if isinstance(gold, Related) or isinstance(pred, Related):
        return same_claims(pred, gold, policy, inside)
    return same_objects(pred, gold, policy, inside)


def _same_special(operation: str, pred: Expression, gold: Expression, same: Same) -> bool | None:
    ours, theirs = parts(pred), parts(gold)
    if operation == "residue":
        return _same_residues(ours, theirs, same)
    if operation == "set of":
        return every(map(same, ours, theirs))
    if operation == "cases":
        return matched(ours, theirs, lambda p, g: every(map(same, parts(p), parts(g))))
    return matched(ours, theirs, same)


def _unlike(pred: Expression, gold: Expression, same: Same) -> bool | None:
    """A definition of a function by cases, on one side only with the function's name."""
    for side, other in ((pred, gold), (gold, pred)):
        match side, other:
            case (Related(sides=(_, value), relations=("=",)), Apply(operation="cases")):
                return same(value, other) if side is pred else same(other, value)
    return False


def _same_residues(pred: "tuple[Expression, ...]", gold: "tuple[Expression, ...]", same: Same) -> bool | None:
    """Congruent numbers modulo the same number, of the same unknown where both name one."""
    if pred[1] != gold[1] and not (is_constant(pred[1]) and same_numbers(pred[1], gold[1])):
        return False
    (our_head, ours), (their_head, theirs) = _congruence(pred[0]), _congruence(gold[0])
    if our_head is not None and their_head is not None and not same(our_head, their_head):
        return False
    match ours, theirs, pred[1]:
        case (Number(value=p), Number(value=g), Number(value=modulus)) if modulus and (
            p.denominator == g.denominator == modulus.denominator == 1
        ):
            return (p - g) % modulus == 0
    return same(ours, theirs)


def _congruence(claim: Expression) -> tuple[Expression | None, Expression]:
    match claim:
        case Related(sides=(left, right), relations=("==" | "=",)):
            return (
                (right, _negated(left))
                if is_constant(left) and not is_constant(right)
                else (left, _negated(right))
            )
    return None, _negated(claim)


def _negated(value: Expression) -> Expression:
    """−1 as a literal."""
    match value:
        case Apply(operation="neg", arguments=(Number(value=number, decimal=False),)):
            return Number(-number)
    return value


# -- simplest form ------------------------------------------------------------------------------------------------


def _simplest(expression: Expression) -> Expression:
    """With ± written out as two answers, matrices worked out, and (x, y) = (1, 2) as x = 1, y = 2."""
    expression = folded(expression)
    match expression:
        case Related(sides=(Bracketed(items=names), Bracketed(items=values)), relations=("=",)) if len(
            names
        ) == len(values) and all(map(is_single_name, names)):
            return Listed(
                tuple(Related((name, value), ("=",)) for name, value in zip(names, values, strict=True)),
                "and",
            )
        case Listed(items=items, joiner=joiner):
            answers = [item for part in items for item in _answers(_point(part))]
            return _grouped(answers, joiner) if len(answers) != 1 else answers[0]
        case Bracketed(opening="{", items=items):
            return Bracketed("{", "}", tuple(item for part in items for item in _answers(part)))
        case Related(sides=(_, right), relations=("=",)) if has_operation(right, _SIGN_CHOICES):
            return Listed(tuple(_answers(expression)), "or")
    answers = _answers(_point(expression))
    joiner = "and" if isinstance(expression, Related) and "!=" in expression.relations else "or"
    return answers[0] if len(answers) == 1 else Listed(tuple(answers), joiner)


def _point(expression: Expression) -> Expression:
    """A(1, 2) as A = (1, 2)."""
    match expression:
        case Apply(
            operation="mul",
            arguments=(
                Symbol(name=name) as head,
                Bracketed(opening="(", closing=")", items=(_, _, *_)) as place,
            ),
        ) if len(name.partition("_")[0]) == 1 and name[0].isupper():
            return Related((head, place), ("=",))
    return expression


def _grouped(answers: list[Expression], joiner: str) -> Expression:
    """Solutions of several unknowns one after the other, "x = 1, y = 2 or x = 2, y = 1", as pairs."""
    heads = [head_of(answer) for answer in answers]
    size = len(set(heads))
    if 1 < size < len(heads) and None not in heads and heads == heads[:size] * (len(heads) // size):
        groups = [Listed(tuple(answers[i : i + size]), "and") for i in range(0, len(answers), size)]
        return Listed(tuple(groups), "or")
    return Listed(tuple(answers), joiner)


def _answers(expression: Expression) -> list[Expression]:
    if not has_operation(expression, _SIGN_CHOICES):
        return [expression]
    return [_signed(expression, plus) for plus in (True, False)]


def _signed(expression: Expression, plus: bool) -> Expression:
    if isinstance(expression, Apply) and expression.operation in _SIGN_CHOICES:
        inner = _signed(expression.arguments[0], plus)
        return inner if plus == (expression.operation == "pm") else Apply("neg", (inner,))
    return mapped(expression, lambda part: _signed(part, plus))


def _without_domains(expression: Expression) -> tuple[Expression, dict[str, str]]:
    """``x = nπ, n ∈ ℤ`` without what its parameter n may be, and that: ``{"n": "mathbb Z"}``."""
    if not isinstance(expression, Listed):
        return expression, {}
    domains: dict[str, str] = {}
    rest: list[Expression] = []
    for item in expression.items:
        match item:
            case Related(sides=(Symbol(name=name), Symbol(name=domain)), relations=("in",)) if (
                domain in _DOMAINS
            ):
                domains[name] = domain.removeprefix("mathbb ")
            case _:
                rest.append(item)
    used = frozenset().union(*map(symbols, rest)) if rest else frozenset()
    bounded = {name for item in rest if isinstance(item, Related) and is_set(item) for name in symbols(item)}
    if not domains or not set(domains) <= used or set(domains) & bounded:
        return expression, {}
    return (rest[0] if len(rest) == 1 else Listed(tuple(rest), expression.joiner)), domains


def _with_their_parameter(
    pred: Expression, gold: Expression, ours: dict[str, str], theirs: dict[str, str]
) -> Expression:
    """The answer with its parameter called as the gold's: 2kπ, k ∈ ℤ is 2nπ."""
    mine = (symbols(pred) - symbols(gold) - CONSTANTS) & (set(ours) or symbols(pred))
    other = (symbols(gold) - symbols(pred) - CONSTANTS) & (set(theirs) or symbols(gold))
    if len(mine) == len(other) == 1 and all(len(name) == 1 for name in (*mine, *other)):
        return substituted(pred, next(iter(mine)), Symbol(next(iter(other))))
    return pred


# -- several answers ----------------------------------------------------------------------------------------------


def same_lists(pred: Expression, gold: Expression, policy: GraderPolicy, same: Same) -> bool | None:
    """Whether ``pred`` and ``gold``, one of them several answers side by side, are the same answers.

    Args:
        pred: the answer, in simplest form.
        gold: the right answer, in simplest form.
        policy: the conventions; which orders count.
        same: compares two items by these conventions.
    """
    if _joined_otherwise(pred, gold):
        return False
    ours, theirs = _items(pred), _items(gold)
    if ours is None or theirs is None:
        return False
    if any(
        isinstance(side, Bracketed) and (side.opening, side.closing) not in kinds
        for side, kinds in ((gold, _NO_INTERVALS), (pred, {*_NO_INTERVALS, ("[", "]")}))
    ):
        return False
    if not same_heads(_outer_heads(pred), _outer_heads(gold)):
        return False
    ordered = (_is_tuple(pred) or _is_tuple(gold)) and policy.tuple_order == "strict"
    sets = [isinstance(side, Bracketed) and side.opening == "{" for side in (pred, gold)]
    if any(sets):
        ours, theirs = distinct(ours, same), distinct(theirs, same)
    elif _MAX_REPEATED >= len(ours) > len(theirs) > 1 and not ordered and policy.list_order == "free":
        ours = distinct(ours, same)  # solutions with their multiplicity
    if len(ours) != len(theirs) or len(ours) > MAX_ITEMS:
        return False
    strict = policy.list_order == "strict" and not any(sets)
    ours, theirs = _without_numbering(ours, theirs)
    names = [[head_of(item) for item in items] for items in (ours, theirs)]
    several = [_are_different(heads) for heads in names]
    alternatives = [
        isinstance(side, Listed) and side.joiner == "or" and (different or ordered)
        for side, different in zip((pred, gold), several, strict=True)
    ]
    if alternatives[0] != alternatives[1]:  # "2 or 3" is no pair
        return False
    if all(several):
        return matched(ours, theirs, same)
    if any(several):
        if several[0] and (order := _alphabetical(names[0])) is not None:
            ours = [ours[i] for i in order]
        if several[1] or ordered or strict:
            return every(map(same, ours, theirs))
        return matched(ours, theirs, same)
    return every(map(same, ours, theirs)) if ordered or strict else matched(ours, theirs, same)


def _joined_otherwise(pred: Expression, gold: Expression) -> bool:
    """Whether one says "and" and the other "or" of what is no list of solutions: x = 1 and y = 2."""
    match pred, gold:
        case (Listed(joiner=ours, items=items), Listed(joiner=theirs)) if {ours, theirs} == {"and", "or"}:
            heads = {head_of(item) for item in items}
            solutions = len(heads) == 1 and None not in heads
            return not (solutions or all(map(is_constant, items)))
    return False


def _without_numbering(
    ours: list[Expression], theirs: list[Expression]
) -> tuple[list[Expression], list[Expression]]:
    """x_1 = 1, x_2 = 2 as values, where the other side says x = 1, 2."""
    names = [{_name(head_of(item)) for item in items} for items in (ours, theirs)]
    bases = {name.partition("_")[0] for side in names for name in side} - {""}
    if len(bases) == 1 and {""} not in names and any(side <= {*bases, ""} for side in names):
        return [_value(item) for item in ours], [_value(item) for item in theirs]
    return ours, theirs


def _name(head: Expression | None) -> str:
    return head.name if isinstance(head, Symbol) else ""


def _value(item: Expression) -> Expression:
    return item.sides[-1] if isinstance(item, Related) and head_of(item) is not None else item


def _are_different(heads: list[Expression | None]) -> bool:
    return None not in heads and len(set(heads)) == len(heads) > 1


def _alphabetical(heads: list[Expression | None]) -> list[int] | None:
    """The order in which b = 5, a = 3 gives the pair (3, 5)."""
    names = [head.name if isinstance(head, Symbol) else "" for head in heads]
    if any(len(name.partition("_")[0]) != 1 for name in names):
        return None
    return sorted(range(len(names)), key=lambda i: names[i])


def _outer_heads(expression: Expression) -> "tuple[Expression, ...]":
    return heads_of(expression) if isinstance(expression, Related) else ()


# -- objects of several parts -------------------------------------------------------------------------------------


def same_objects(pred: Expression, gold: Expression, policy: GraderPolicy, same: Same) -> bool | None:
    """Whether ``pred`` and ``gold``, neither a list nor a relation, are one object or value.

    Args:
        pred: the answer, in simplest form.
        gold: the right answer, in simplest form.
        policy: the conventions.
        same: compares two entries by these conventions.
    """
    operations = [side.operation if isinstance(side, Apply) else "" for side in (pred, gold)]
    if (
        any(operation in ("union", "intersection") for operation in operations)
        and operations[0] == operations[1]
    ):
        return matched(_members(pred), _members(gold), same) or None
    if "without" in operations or any(operation in ("union", "intersection") for operation in operations):
        return every(map(same, parts(pred), parts(gold))) if operations[0] == operations[1] else None
    if isinstance(pred, Matrix) and isinstance(gold, Matrix):
        if [len(row) for row in pred.rows] != [len(row) for row in gold.rows]:
            return False
        return every(map(same, parts(pred), parts(gold)))
    if isinstance(pred, Matrix) or isinstance(gold, Matrix):
        return _same_as_matrix(pred, gold, policy, same)
    if isinstance(pred, Bracketed) and isinstance(gold, Bracketed):
        return _same_bracketed(pred, gold, policy, same)
    for side, other in ((pred, gold), (gold, pred)):
        if isinstance(side, Bracketed):
            # "[5]" and "{5}" for a single answer; anything longer is another kind of object.
            alone = len(side.items) == 1 and side.opening + side.closing in ("[]", "{}", "<>")
            return (
                same(*((side.items[0], other) if side is pred else (other, side.items[0])))
                if alone
                else False
            )
    return same_values(pred, gold, policy)


def _members(expression: Expression) -> list[Expression]:
    """The sets that a union or an intersection is made of."""
    assert isinstance(expression, Apply)
    return [
        member
        for argument in expression.arguments
        for member in (
            _members(argument)
            if isinstance(argument, Apply) and argument.operation == expression.operation
            else [argument]
        )
    ]


def _same_as_matrix(pred: Expression, gold: Expression, policy: GraderPolicy, same: Same) -> bool | None:
    """A row or column beside the list of its entries, a matrix beside the list of its rows."""
    matrix, other = (pred, gold) if isinstance(pred, Matrix) else (gold, pred)
    assert isinstance(matrix, Matrix)
    if policy.vectors != "as_tuples" or not isinstance(other, Bracketed) or other.opening == "{":
        return False
    if len(matrix.rows) > 1 and all(isinstance(item, Bracketed) for item in other.items):
        rows = tuple(item.items for item in other.items if isinstance(item, Bracketed))
        entries = [entry for row in rows for entry in row]
        if [len(row) for row in rows] != [len(row) for row in matrix.rows]:
            return False
    elif len(matrix.rows) == 1 or len(matrix.rows[0]) == 1:
        entries = list(other.items)
    else:
        return False
    mine = list(parts(matrix))
    if len(mine) != len(entries):
        return False
    return every(map(same, mine, entries)) if matrix is pred else every(map(same, entries, mine))


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
    return every(map(same, pred.items, gold.items))


def _items(expression: Expression) -> list[Expression] | None:
    match expression:
        case Listed(items=items) | Bracketed(items=items):
            return list(items)
        case Matrix(rows=rows) if len(rows) == 1 or len(rows[0]) == 1:
            return [entry for row in rows for entry in row]
        case Related(sides=(_, value), relations=("=",)) if heads_of(expression):
            return _items(value)
        case Related(sides=(_, Bracketed(opening="{", items=items)), relations=("in",)):
            return list(items)
    return None


def _is_tuple(expression: Expression) -> bool:
    match expression:
        case Bracketed(opening=opening, closing=closing):
            return (opening, closing) in (("(", ")"), ("<", ">"))
        case Related(sides=(_, value)):
            return _is_tuple(value)
    return isinstance(expression, Matrix)
