"""Pairs of answers made by rule, whose verdicts are known: what one changed sign, name, side or word does to an answer.

Every relation and operator stands against every other, negated, with its sides exchanged, under other names, in other
units. All of those pairs are unequal. Beside them stand spellings of the same answers, which are equal: a grader that
refuses everything does not pass.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """Two answers, whether they are one, and the rule that made them."""

    gold: str
    pred: str
    same: bool
    rule: str


# Commands side by side are one relation. A relation is symmetric, or has a mirror image, or neither.
_RELATIONS: tuple[tuple[str, ...], ...] = (
    ("=",),
    ("<", r"\lt"),
    (">", r"\gt"),
    (r"\le", r"\leq", r"\leqslant"),
    (r"\ge", r"\geq", r"\geqslant"),
    (r"\ne", r"\neq"),
    (r"\approx",),
    (r"\simeq",),
    (r"\sim",),
    (r"\cong",),
    (r"\equiv",),
    (r"\propto",),
    (r"\ll",),
    (r"\gg",),
    (r"\mid",),
    (r"\nmid",),
    (r"\in",),
    (r"\ni",),
    (r"\notin",),
    (r"\subset",),
    (r"\subseteq",),
    (r"\subsetneq",),
    (r"\supset",),
    (r"\supseteq",),
    (r"\nsubseteq",),
    (r"\to", r"\rightarrow", r"\longrightarrow"),
    (r"\leftarrow", r"\gets"),
    (r"\leftrightarrow",),
    (r"\mapsto",),
    (r"\Rightarrow", r"\implies"),
    (r"\Leftarrow",),
    (r"\Leftrightarrow", r"\iff"),
    (r"\perp",),
    (r"\parallel",),
    (r"\nparallel",),
    (r"\prec",),
    (r"\succ",),
    (r"\preceq",),
    (r"\vdash",),
    (r"\models",),
    (r"\triangleleft",),
    (r"\asymp",),
    (r"\doteq",),
)
_SYMMETRIC = frozenset(
    {
        *(
            "=",
            r"\ne",
            r"\approx",
            r"\simeq",
            r"\sim",
            r"\cong",
            r"\equiv",
            r"\leftrightarrow",
            r"\Leftrightarrow",
        ),
        *(r"\perp", r"\parallel", r"\nparallel", r"\asymp", r"\doteq", r"\propto"),
    }
)
_SIDES = (
    ("a", "b"),
    ("x", "5"),
    ("A", "B"),
    ("f(x)", "2x+1"),
    ("n", "12"),
    ("p", "q"),
    (r"\alpha", r"\frac{1}{2}"),
    ("x^2", "y"),
)

_PREFIXES = (
    *(
        "",
        "-",
        r"\lnot ",
        r"\nabla ",
        r"\partial ",
        r"\Re ",
        r"\Im ",
        r"\arg ",
        r"\dim ",
        r"\ker ",
        r"\det ",
        r"\Delta ",
    ),
    *(
        r"\sin ",
        r"\cos ",
        r"\tan ",
        r"\cot ",
        r"\sec ",
        r"\csc ",
        r"\arcsin ",
        r"\arctan ",
        r"\sinh ",
        r"\ln ",
        r"\log ",
    ),
    *(r"\exists ", r"\forall ", r"\sqrt ", r"\neg\neg ", r"\star ", r"\square ", r"\Pr ", r"\sup ", r"\inf "),
)
_POSTFIXES = (
    *(
        "!",
        "'",
        "''",
        "^2",
        "^{-1}",
        "^T",
        "^*",
        r"^\dagger",
        r"^\perp",
        "^+",
        "^-",
        "_0",
        "_1",
        "^c",
        r"^\circ",
        r"\%",
    ),
    *(r" \text{ not}", r" \text{ is false}", r" \text{ or more}", r" \text{ at most}", r" \pmod 3"),
)
_ACCENTS = ("bar", "hat", "tilde", "vec", "dot", "ddot", "check")
_BRACKETS = (
    ("|", "|"),
    (r"\lfloor ", r" \rfloor"),
    (r"\lceil ", r" \rceil"),
    (r"\{", r"\}"),
    ("[", ",1]"),
    ("(", ",1)"),
)
_OPERATIONS = (
    *(
        "+",
        "-",
        r"\cdot",
        "/",
        "^",
        r"\pm",
        r"\cup",
        r"\cap",
        r"\setminus",
        r"\circ",
        r"\oplus",
        r"\otimes",
        r"\star",
    ),
    *(
        r"\land",
        r"\lor",
        r"\diamond",
        r"\bmod",
        r"\ominus",
        r"\odot",
        r"\uplus",
        r"\rtimes",
        r"\sqcup",
        r"\bullet\!\!\to",
    ),
)
_COMMUTATIVE = frozenset({"+", r"\cdot", r"\cup", r"\cap", r"\land", r"\lor"})

_HEADS = (
    *(
        "x",
        "y",
        "z",
        "n",
        "m",
        "t",
        "S",
        "V",
        "A",
        r"\theta",
        r"\alpha",
        r"\lambda",
        "x_1",
        "x_2",
        "S_5",
        "S_6",
        "a_n",
    ),
    *(
        "f(2)",
        "f(3)",
        "g(2)",
        "AB",
        "CD",
        "AC",
        "P(A)",
        r"\angle A",
        r"\angle B",
        r"\overline{BC}",
        r"\Delta p",
        r"\Delta v",
    ),
)
_VALUES = ("3", r"\frac{1}{2}", "2k+1", r"\sqrt{2}", r"30^\circ", "-7")

_UNITS = (
    *(
        "cm",
        "m",
        "km",
        "mm",
        "kg",
        "g",
        "s",
        "min",
        "h",
        "days",
        "years",
        r"\text{cm}^2",
        r"\text{cm}^3",
        "m/s",
        "km/h",
    ),
    *(
        "apples",
        "oranges",
        "dollars",
        "euros",
        "rad",
        "degrees",
        "percent",
        "permille",
        "people",
        "litres",
        "inches",
        "feet",
    ),
)
_WORDS = (
    "yes",
    "no",
    "odd",
    "cat",
    "red",
    "two",
    "ten",
    "even",
    "east",
    "none",
    "BAC",
    "HTT",
    "IV",
    "XI",
    "ABCD",
    "DNE",
    "true",
)
_NEGATIONS = (
    *(
        "not ",
        "no ",
        "non-",
        r"\text{not } ",
        r"\text{no } ",
        r"\text{never } ",
        r"\text{at least } ",
        r"\text{at most } ",
    ),
    *(
        "less than ",
        r"\text{more than } ",
        r"\text{fewer than } ",
        r"\text{under } ",
        r"\text{all but } ",
        r"\text{except } ",
    ),
    *(r"\text{half of } ", r"\text{twice } ", r"\text{negative } ", r"\text{minus } ", r"\text{if } "),
)
_NEGATED = (
    "5",
    "x = 5",
    r"\frac{1}{2}",
    "x+1",
    r"\text{even}",
    "(1,2)",
    "n \\equiv 1 \\pmod 3",
    "x > 2",
    "f(x) = x^2",
)
_HEDGES = (
    *(
        r" \text{ or more}",
        r" \text{ or less}",
        r" \text{ or } 6",
        r" \text{ and } 6",
        r" \text{ if } x > 0",
        " or 6",
        ", 6",
    ),
    *(
        r" \text{ unless } x = 0",
        r" \pmod 7",
        " mod 7",
        r" \text{ is wrong}",
        r" \text{ is not it}",
        r" \ne 6",
        " < 6",
        " = 6",
    ),
    *(
        r" \approx 90",
        r" \text{ times } 2",
        r" \text{ squared}",
        r" \text{ over } 2",
        " 6",
        r" \to 6",
        r" \% \text{ of } 2",
    ),
)
_ANSWERS = (
    *(
        "5",
        r"\frac{2}{3}",
        "(2,7)",
        r"\{2,7\}",
        "[2,7]",
        "2,7",
        r"\text{even}",
        "x+7",
        r"\sqrt{2}",
        "2i",
        "ABC",
    ),
    *(
        r"\mathbb{R}",
        r"\emptyset",
        r"\pi",
        "-3",
        "0.25",
        r"\infty",
        r"\begin{pmatrix}5&2\\3&4\end{pmatrix}",
        "x > 7",
    ),
    *("x = 7", "f(x) = x^3", r"n \equiv 5 \pmod 7", r"5\text{ cm}", "2x", r"[2,\infty)"),
)
_BEFORE = (
    *(
        "no ",
        "not ",
        "non-",
        "never ",
        "at least ",
        "at most ",
        "less than ",
        "more than ",
        "all but ",
        "twice ",
        "half ",
    ),
    *(
        "the opposite of ",
        "the negative of ",
        "the inverse of ",
        "anything but ",
        "neither ",
        "either ",
        "if ",
    ),
    *(
        "unless ",
        "except ",
        "without ",
        "fewer than ",
        "over ",
        "under ",
        "up to ",
        "a multiple of ",
        "one of ",
    ),
)
_BEHIND = (
    *(
        " or more",
        " or less",
        " at least",
        " at most",
        " maybe",
        " not",
        " is false",
        " is wrong",
        " unless x = 0",
    ),
    *(
        " except 0",
        " mod 11",
        " times 2",
        " plus 1",
        " minus 1",
        " percent of 2",
        " and 6",
        " or 6",
        " but not 6",
        ", 6",
    ),
    *(
        "; 6",
        " = 6 = 8",
        " to 6",
        "...",
        ", ...",
        " over 2",
        " is not the answer",
        " does not hold",
        " choose 2",
    ),
    *(r" \text{ if } a > 0", " factorial"),
)
_CONDITIONS = (
    *(
        ("x < -1", "x > 3"),
        ("x > 1", "x < 3"),
        ("x \\ge 2", "x \\le 5"),
        ("x = 1", "y = 2"),
        ("a > 0", "b > 0"),
    ),
    *(("p", "q"), (r"3 \mid n", r"5 \mid n"), ("x = 1", "x > 4")),
)


def pairs() -> Iterator[Pair]:
    """All pairs, unequal and equal, in a fixed order and each once."""
    seen: set[tuple[str, str]] = set()
    for rule in _RULES:
        for pair in rule():
            if (pair.gold, pair.pred) not in seen:
                seen.add((pair.gold, pair.pred))
                yield pair


def _both(rule: str, answers: Sequence[str]) -> Iterator[Pair]:
    """Each of some answers against each other one: all unequal; and against itself, spelled with more space."""
    for gold, pred in itertools.permutations(answers, 2):
        yield Pair(gold, pred, False, rule)
    for answer in answers:
        yield Pair(answer, rf"\; {answer}\, ", True, rule)


def _relations() -> Iterator[Pair]:
    for left, right in _SIDES:
        yield from _both("relation against relation", [f"{left} {names[0]} {right}" for names in _RELATIONS])
        for names in _RELATIONS:
            for name in names[1:]:
                yield Pair(
                    f"{left} {names[0]} {right}", f"{left} {name} {right}", True, "a relation's other name"
                )
            if names[0] not in ("=", r"\approx", r"\simeq", r"\doteq"):
                yield Pair(f"{left} {names[0]} {right}", right, False, "a side for a relation")
                yield Pair(right, f"{left} {names[0]} {right}", False, "a relation for a side")
                yield Pair(f"{left} {names[0]} {right}", left, False, "a side for a relation")


def _exchanged_sides() -> Iterator[Pair]:
    for names in _RELATIONS:
        for left, right in _SIDES:
            gold, pred = f"{left} {names[0]} {right}", f"{right} {names[0]} {left}"
            if names[0] not in _SYMMETRIC:
                yield Pair(gold, pred, False, "exchanged sides")
            elif names[0] not in (r"\propto",):
                yield Pair(gold, pred, True, "exchanged sides")
    for gold, pred in (
        ("a < b", "b > a"),
        (r"A \subset B", r"B \supset A"),
        (r"p \Rightarrow q", r"q \Leftarrow p"),
    ):
        yield Pair(gold, pred, True, "a mirror image")


def _negated_relations() -> Iterator[Pair]:
    for names in _RELATIONS:
        if names[0] in (r"\nmid", r"\notin", r"\nsubseteq", r"\nparallel", r"\ne"):
            continue
        for left, right in _SIDES:
            yield Pair(
                f"{left} {names[0]} {right}", rf"{left} \not{names[0]} {right}", False, "a negated relation"
            )
            yield Pair(
                rf"{left} \not{names[0]} {right}", f"{left} {names[0]} {right}", False, "a negated relation"
            )
            yield Pair(rf"{left} \not{names[0]} {right}", right, False, "a negated relation")
    for gold, pred in (
        (r"a \not\mid b", r"a \nmid b"),
        (r"x \not= 3", r"x \neq 3"),
        (r"x \not\in A", r"x \notin A"),
    ):
        yield Pair(gold, pred, True, "a negated relation")


def _operators() -> Iterator[Pair]:
    for name in ("x", "A", "p"):
        unary = [f"{prefix}{name}" for prefix in _PREFIXES] + [f"{name}{postfix}" for postfix in _POSTFIXES]
        unary += [rf"\{accent}{{{name}}}" for accent in _ACCENTS]
        unary += [f"{opening}{name}{closing}" for opening, closing in _BRACKETS if opening != r"\{"]
        yield from _both(
            "operator against operator", [answer for answer in unary if answer not in _UNLIKE_FORGIVEN]
        )
    for left, right in (("a", "b"), ("A", "B"), ("f", "g"), ("2", "3"), ("x", "y^2")):
        binary = [f"{left} {operation} {right}" for operation in _OPERATIONS]
        yield from _both("operation against operation", binary)
        for operation in _OPERATIONS:
            equal = operation in _COMMUTATIVE
            yield Pair(
                f"{left} {operation} {right}", f"{right} {operation} {left}", equal, "exchanged operands"
            )


_UNLIKE_FORGIVEN = frozenset(
    {r"x^\circ", r"A^\circ", r"p^\circ", r"x\%", r"A\%", r"p\%"}
)  # a missing sign is forgiven


def _quantifiers() -> Iterator[Pair]:
    for body in ("x > 0", "P(x)", "x^2 = 1", r"n \mid x"):
        yield from _both(
            "quantifiers",
            [
                rf"\forall x\, {body}",
                rf"\exists x\, {body}",
                rf"\lnot\exists x\, {body}",
                rf"\exists! x\, {body}",
                body,
            ],
        )
    for gold in ("f(x) = 1", "f(x) = x + 1"):
        yield Pair(gold, gold + r" \text{ for some } x", False, "quantifiers")
        yield Pair(
            gold + r" \text{ for all } x \in \mathbb{R}",
            gold + r" \text{ for all } x \in \mathbb{Z}",
            False,
            "quantifiers",
        )
        yield Pair(gold + r" \text{ for all } x", gold + r" \text{ for some } x", False, "quantifiers")
        yield Pair(gold, gold + r" \text{ for all } x \in \mathbb{R}", True, "quantifiers")


def _congruences() -> Iterator[Pair]:
    for name, modulus in itertools.product(("n", "x", "p"), (3, 4, 7, 12)):
        residues = [rf"{name} \equiv {residue} \pmod{{{modulus}}}" for residue in range(min(modulus, 5))]
        yield from _both("congruences", residues)
        gold = residues[1]
        yield Pair(gold, rf"{name} \equiv 1 \pmod{{{modulus + 1}}}", False, "congruences")
        yield Pair(gold, rf"{name} \equiv {modulus + 1} \mod {modulus}", True, "congruences")
        yield Pair(gold, rf"{name} \equiv 1 (\bmod {modulus})", True, "congruences")
        for wrong in (
            str(modulus),
            "1",
            f"{name} = 1",
            rf"{name} \not\equiv 1 \pmod{{{modulus}}}",
            rf"{name} \equiv 1",
        ):
            yield Pair(gold, wrong, False, "congruences")
            yield Pair(wrong, gold, False, "congruences")
        yield Pair(gold, rf"k \equiv 1 \pmod{{{modulus}}}", False, "congruences")


def _names() -> Iterator[Pair]:
    for value in _VALUES:
        yield from _both("names", [f"{head} = {value}" for head in _HEADS])
        for head in _HEADS:
            yield Pair(value, f"{head} = {value}", True, "names")
    for gold, pred in itertools.permutations(
        ("x=3, y=4", "a=3, b=4", "x=4, y=3", "x=3, z=4", "x_1=3, x_2=4"), 2
    ):
        yield Pair(gold, pred, False, "names")
    for gold, pred in (
        ("(a,b)=(3,5)", "b=5, a=3"),
        ("(3,5)", "b=5, a=3"),
        ("x=3, y=4", "y=4, x=3"),
        ("x=3, y=4", "(3, 4)"),
    ):
        yield Pair(gold, pred, True, "names")


def _units() -> Iterator[Pair]:
    yield from _both("units", [rf"5 {unit}" if "text" in unit else rf"5 \text{{ {unit}}}" for unit in _UNITS])
    for unit in _UNITS:
        if unit not in ("percent", "degrees", "permille"):
            yield Pair("5", rf"5 \text{{ {unit}}}" if "text" not in unit else f"5 {unit}", True, "units")
    yield Pair("5", r"5 \text{ permille}", False, "units")


def _mixed_numbers() -> Iterator[Pair]:
    for whole, top, bottom in ((3, 1, 2), (33, 1, 3), (12, 1, 2), (5, 3, 4), (2, 2, 5)):
        mixed = rf"{whole}\frac{{{top}}}{{{bottom}}}"
        value = rf"\frac{{{whole * bottom + top}}}{{{bottom}}}"
        product = rf"\frac{{{whole * top}}}{{{bottom}}}"
        for sign in ("", r"\%", r"^\circ", r"\text{ cm}", r"\pi", "x", r"\sqrt{2}"):
            yield Pair(mixed + sign, value + sign, True, "mixed numbers")
            yield Pair(mixed + sign, product + sign, False, "mixed numbers")
            yield Pair(mixed + sign, rf"{whole}{sign}", False, "mixed numbers")
    for degrees, minutes in ((30, 30), (60, 42), (15, 6), (89, 59)):
        gold = rf"{degrees}^\circ {minutes}'"
        yield Pair(gold, rf"{degrees}^{{\circ}}{minutes}^\prime", True, "degrees and minutes")
        yield Pair(gold, rf"\frac{{{degrees * 60 + minutes}}}{{60}}^\circ", True, "degrees and minutes")
        for wrong in (
            rf"{degrees * minutes}^\circ",
            str(degrees * minutes),
            rf"{degrees}^\circ",
            rf"{degrees}^\circ {minutes - 1}'",
        ):
            yield Pair(gold, wrong, False, "degrees and minutes")


def _words() -> Iterator[Pair]:
    for word in _WORDS:
        yield Pair(word, rf"\text{{{word}}}", True, "words")
        if word.islower():
            yield Pair(word, word.capitalize(), True, "words")
        for letters in itertools.islice(itertools.permutations(word), 24):
            pred = "".join(letters)
            if (pred != word and pred not in ("XI", "IX")) or (pred != word and word in ("XI", "IX")):
                yield Pair(word, pred, False, "words")
                yield Pair(rf"\text{{{word}}}", pred, False, "words")
    for answer in _NEGATED:
        for negation in _NEGATIONS:
            yield Pair(answer, negation + answer, False, "negations and hedges")
            yield Pair(negation + answer, answer, False, "negations and hedges")
    for answer in ("5", r"\frac{1}{2}", "x = 5", "12"):
        for hedge in _HEDGES:
            yield Pair(answer, answer + hedge, False, "negations and hedges")


def _around() -> Iterator[Pair]:
    """Signs, operations and words before and behind answers of every kind."""
    for answer in _ANSWERS:
        changed = [prefix + answer for prefix in _PREFIXES if prefix] + [word + answer for word in _BEFORE]
        changed += [rf"\text{{{word}}}{answer}" for word in _BEFORE]
        changed += [answer + word for word in _BEHIND]
        changed += [f"({answer}){sign}" for sign in _POSTFIXES if sign not in (r"^\circ", r"\%")]
        changed += [f"{answer} {operation} y" for operation in _OPERATIONS]
        changed += [f"y {operation} {answer}" for operation in _OPERATIONS]
        if not any(sign in answer for sign in "=<>") and r"\equiv" not in answer:
            changed += [f"{answer} {names[0]} y" for names in _RELATIONS if names[0] != "="]
            changed += [f"11 {names[0]} {answer}" for names in _RELATIONS if names[0] != r"\approx"]
        for other in changed:
            if other not in _TRUE_ALL_THE_SAME:
                yield Pair(answer, other, False, "signs and words around answers")
                yield Pair(other, answer, False, "signs and words around answers")


_TRUE_ALL_THE_SAME = frozenset({r"\sqrt 2,7"})


def _connectives() -> Iterator[Pair]:
    for left, right in _CONDITIONS:
        forms = (
            (r"{} \text{{ and }} {}", r"{} \text{{ or }} {}"),
            (r"{} \land {}", r"{} \lor {}"),
            ("{} and {}", "{} or {}"),
        )
        for conjunction, disjunction in forms:
            yield Pair(
                conjunction.format(left, right), disjunction.format(left, right), False, "and against or"
            )
            yield Pair(
                disjunction.format(left, right), conjunction.format(left, right), False, "and against or"
            )
            yield Pair(conjunction.format(left, right), left, False, "and against or")
            yield Pair(disjunction.format(left, right), right, False, "and against or")
            yield Pair(
                conjunction.format(left, right), conjunction.format(right, left), True, "and against or"
            )
    for gold, pred, equal in (
        (r"x > 1 \text{ and } x < 3", "(1,3)", True),
        (r"x > 1 \text{ or } x < 3", "(1,3)", False),
        (r"x < -1 \text{ or } x > 3", r"(-\infty,-1)\cup(3,\infty)", True),
        (r"x < -1 \text{ and } x > 3", r"(-\infty,-1)\cup(3,\infty)", False),
        (r"x \ge 2 \land x \le 5", r"2 \le x \le 5", True),
        (r"x \ge 2 \lor x \le 5", r"2 \le x \le 5", False),
    ):
        yield Pair(gold, pred, equal, "and against or")
        yield Pair(pred, gold, equal, "and against or")


def _sets() -> Iterator[Pair]:
    ends = ("(0,2)", "[0,2)", "(0,2]", "[0,2]")
    yield from _both(
        "sets of numbers",
        [
            *ends,
            r"(0,1)\cup(1,2)",
            r"(0,2)\setminus\{1\}" + r"\cup\{3\}",
            r"\{0,2\}",
            r"(-\infty,2)",
            r"(0,\infty)",
        ],
    )
    equal = (
        *(
            (r"[0,1]\cup[1,2]", "[0,2]"),
            ("|x| < 3", "(-3,3)"),
            (r"\mathbb{R}-\{1\}", r"(-\infty,1)\cup(1,\infty)"),
        ),
        *(
            (r"\{x : x > 2\}", r"(2,\infty)"),
            ("]0,1[", "(0,1)"),
            ("x^2 < 9", "-3 < x < 3"),
            ("x^2 \\ge 4", r"(-\infty,-2]\cup[2,\infty)"),
        ),
        *(
            (r"\frac{x-1}{x+2} > 0", r"x < -2 \text{ or } x > 1"),
            ("|x-1| \\le 2", "[-1,3]"),
            ("-2x < 4", "x > -2"),
        ),
        *(
            (r"(0,2)\cap(1,3)", "(1,2)"),
            (r"x \notin [0,1]", r"(-\infty,0)\cup(1,\infty)"),
            ("3x + 1 > 7", r"x \in (2, \infty)"),
        ),
    )
    for gold, pred in equal:
        yield Pair(gold, pred, True, "sets of numbers")
        yield Pair(pred, gold, True, "sets of numbers")
        yield Pair(gold, "(0,7)", False, "sets of numbers")
        yield Pair(gold, r"(-\infty,5]", False, "sets of numbers")


def _matrices() -> Iterator[Pair]:
    a, b = r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}0&1\\1&1\end{pmatrix}"
    forms = [
        a,
        b,
        f"-{a}",
        f"2{a}",
        f"{a}+{b}",
        f"{a}-{b}",
        f"{a}{b}",
        f"{b}{a}",
        f"{a}^T",
        f"{a}^2",
        rf"\det{a}",
    ]
    yield from _both("matrices", forms)
    yield Pair(rf"\frac12{a}", r"\begin{pmatrix}1/2&1\\3/2&2\end{pmatrix}", True, "matrices")
    yield Pair(f"{a}^T", r"\begin{bmatrix}1&3\\2&4\end{bmatrix}", True, "matrices")
    yield Pair(f"{a}{b}", r"\begin{pmatrix}2&3\\4&7\end{pmatrix}", True, "matrices")
    yield Pair("-2", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", True, "matrices")


def _moments() -> Iterator[Pair]:
    dates = (
        "March 5, 2021",
        "May 3, 2021",
        "March 6, 2021",
        "March 5, 2020",
        "2021-05-03",
        "2021-03-06",
        "2020-03-05",
    )
    yield from _both(
        "dates and times",
        [date for date in dates if date != "2021-05-03" and not date.startswith(("2021-03", "2020-03"))],
    )
    yield from _both(
        "dates and times",
        ["2021-03-05", "2021-05-03", "2021-03-06", "2020-03-05", "3/5/2021", "5/3/2020"][:4],
    )
    times = (
        "20:34",
        "8:34",
        "20:43",
        "12:00",
        "1:00",
        r"9:05 \text{ a.m.}",
        r"9:05 \text{ p.m.}",
        "20:34:10",
    )
    yield from _both("dates and times", times)
    for gold, pred in (
        ("20:34", r"8:34 \text{ P.M.}"),
        ("15:30", "3:30 PM"),
        ("20:34", "20:34:00"),
        ("March 5, 2021", "2021-03-05"),
        ("May 4", r"\text{May 4}"),
    ):
        yield Pair(gold, pred, True, "dates and times")
        yield Pair(pred, gold, True, "dates and times")


_RULES = (
    _relations,
    _exchanged_sides,
    _negated_relations,
    _operators,
    _quantifiers,
    _congruences,
    _names,
    _units,
    _mixed_numbers,
    _words,
    _around,
    _connectives,
    _sets,
    _matrices,
    _moments,
)
