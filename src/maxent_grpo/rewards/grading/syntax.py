"""A small parser for final answers in TeX or plain text: its entry, and its top layer of lists and relations.

It reads what answers are written in, and refuses the rest with `UnreadableError`: a model's text is data
here, never code. Its work is bounded by `MAX_TOKENS` and `MAX_DEPTH` (`tokens`). The layers below are
`arithmetic` and, under that, `operands`; each is a class that leaves to those above it what is in brackets.
"""

from maxent_grpo.rewards.grading.arithmetic import Arithmetic
from maxent_grpo.rewards.grading.expressions import (
    Apply,
    Bracketed,
    Expression,
    Listed,
    Related,
    UnreadableError,
)
from maxent_grpo.rewards.grading.tokens import tokenised

_RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=",
    r"\le": "<=", r"\leq": "<=", r"\leqslant": "<=", r"\ge": ">=", r"\geq": ">=", r"\geqslant": ">=",
    r"\lt": "<", r"\gt": ">", r"\ne": "!=", r"\neq": "!=", r"\approx": "~", r"\simeq": "~", r"\sim": "~",
    r"\in": "in", r"\equiv": "==", r"\cong": "~", r"\doteq": "~",
    r"\to": "->", r"\rightarrow": "->", r"\mapsto": "->", r"\Rightarrow": "=>", r"\implies": "=>",
    r"\iff": "<=>", r"\Leftrightarrow": "<=>", r"\subseteq": "subset", r"\subset": "subset",
    r"\perp": "perp", r"\parallel": "parallel", r"\mid": "mid",
}  # fmt: skip
_SETS = {r"\cup": "union", r"\cap": "intersection", r"\setminus": "without", r"\backslash": "without"}


def parse(spelled: str, thousands: bool = True) -> Expression:
    """Read an answer in the spelling of `respell`.

    Args:
        spelled: the answer.
        thousands: read "1,234" outside brackets as one number, and not as two.

    Raises:
        UnreadableError: anything that is not an answer in this grammar, or too much of it.
    """
    parser = _Answers(tokenised(spelled, thousands))
    expression = parser.answer()
    parser.expect("finish", "")
    return expression


class _Answers(Arithmetic):
    """Reads a whole answer."""

    def answer(self) -> Expression:
        groups = [self._items(",")]
        while self._accept(";"):
            if self._next.kind != "finish":
                groups.append(self._items(","))
        if len(groups) == 1:
            return _listed(groups[0])
        return Listed(tuple(_listed(group, tuple_like=True) for group in groups))

    def _items(self, *separators: str) -> list[Expression]:
        items = [self._relation()]
        while self._accept(*separators):
            if self._next.kind == "finish" or self._next.text in (")", "]", r"\}", "}", ";"):
                break
            items.append(self._relation())
        return items

    def _relation(self) -> Expression:
        self._enter()
        sides: list[Expression] = [self._set_expression()]
        relations: list[str] = []
        while (relation := self._relation_sign()) is not None:
            relations.append(relation)
            sides.append(self._set_expression())
        self._depth -= 1
        return Related(tuple(sides), tuple(relations)) if relations else sides[0]

    def _relation_sign(self) -> str | None:
        token = self._next
        if token.kind not in ("sign", "command"):
            return None
        text = "=" if token.text == ":=" else token.text
        if text == "|" and self._bars == 1 and self._tokens[self._at - 2].text == r"\{":
            text = r"\mid"
        if text == r"\not":
            self._at += 1
            inner = self._relation_sign()
            if inner not in ("=", "in"):
                raise UnreadableError("a negated relation")
            return "!=" if inner == "=" else "notin"
        relation = _RELATIONS.get(text)
        if relation is not None:
            self._at += 1
        return relation

    def _set_expression(self) -> Expression:
        left = self._ratio()
        while self._next.text in _SETS and self._next.kind == "command":
            operation = _SETS[self._take().text]
            right = self._ratio()
            if operation == "union" and isinstance(left, Apply) and left.operation == "union":
                left = Apply("union", (*left.arguments, right))
            else:
                left = Apply(operation, (left, right))
        return left

    def _ratio(self) -> Expression:
        terms = [self.sum()]
        while self._next.text == ":" and self._next.kind == "sign":
            self._at += 1
            terms.append(self.sum())
        return Apply("ratio", tuple(terms)) if len(terms) > 1 else terms[0]


def _listed(items: list[Expression], tuple_like: bool = False) -> Expression:
    if len(items) == 1:
        return items[0]
    return Bracketed("(", ")", tuple(items)) if tuple_like else Listed(tuple(items))
