"""The relations that answers are written with: one name for all signs of each, and what each is read backwards."""

_NAMES = {
    r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\approx": "~", r"\in": "in", r"\ni": "ni", r"\equiv": "==",
    r"\to": "->",
    r"\mapsto": "|->", r"\leftarrow": "<-", r"\Rightarrow": "=>", r"\Leftarrow": "<==", r"\Leftrightarrow": "<=>",
    r"\leftrightarrow": "<->",
}  # fmt: skip
_OTHERS = """
simeq sim cong doteq approxeq asymp subset subseteq subsetneq supset supseteq supsetneq perp parallel mid ll gg lll ggg
prec succ preceq succeq precsim succsim propto vdash dashv models vDash Vdash triangleleft triangleright trianglelefteq
trianglerighteq sqsubset sqsupset sqsubseteq sqsupseteq bowtie smile frown hookrightarrow
hookleftarrow twoheadrightarrow
rightsquigarrow rightharpoonup leftharpoonup uparrow downarrow lesssim gtrsim lessgtr gtrless triangleq coloneqq between
xrightarrow nearrow searrow rightleftharpoons leadsto multimap
"""
RELATIONS = {"=": "=", "<": "<", ">": ">", **_NAMES, **{"\\" + name: name for name in _OTHERS.split()}}
"""The sign or command of a relation → its name. A negated one is named "not " and this name."""

_PAIRS = {
    "<": ">", "<=": ">=", "in": "ni", "->": "<-", "=>": "<==", "subset": "supset", "subseteq": "supseteq",
    "subsetneq": "supsetneq", "ll": "gg", "lll": "ggg", "prec": "succ", "preceq": "succeq", "precsim": "succsim",
    "lesssim": "gtrsim", "sqsubset": "sqsupset", "sqsubseteq": "sqsupseteq", "triangleleft": "triangleright",
    "trianglelefteq": "trianglerighteq", "vdash": "dashv", "hookrightarrow": "hookleftarrow",
}  # fmt: skip
_SYMMETRIC = frozenset(
    {
        "=",
        "!=",
        "~",
        "simeq",
        "sim",
        "cong",
        "doteq",
        "approxeq",
        "asymp",
        "==",
        "<=>",
        "<->",
        "perp",
        "parallel",
    }
)
_ORDER = {"<": ">=", ">": "<=", "<=": ">", ">=": "<"}


def backwards(relation: str) -> str | None:
    """The relation that holds from right to left, ``None`` if it has no name: a ⊂ b is b ⊃ a, a | b has none."""
    if relation.startswith("not "):
        inner = backwards(relation.removeprefix("not "))
        return None if inner is None else "not " + inner
    if relation in _SYMMETRIC:
        return relation
    return _PAIRS.get(relation) or next((left for left, right in _PAIRS.items() if right == relation), None)


def plain(relation: str) -> str:
    """``not <`` as ``>=``; others as they are."""
    return _ORDER.get(relation.removeprefix("not "), relation) if relation.startswith("not ") else relation
