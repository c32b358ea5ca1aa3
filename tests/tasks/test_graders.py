"""The verifiers: right answers in every form, wrong ones, and text that tries to break them."""

import itertools
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxent_grpo.tasks.divisors import COMPOSITES, solutions
from maxent_grpo.tasks.equations import apply_step, equation_text
from maxent_grpo.tasks.graph_coloring import colourings
from maxent_grpo.tasks.lattice_paths import paths
from maxent_grpo.tasks.registry import TASKS
from maxent_grpo.tasks.task import WRONG, Verdict

COUNTDOWN, COLOURING, ARITHMETIC = TASKS["countdown"], TASKS["graph_coloring"], TASKS["arithmetic"]
DIVISORS, EQUATIONS, PATHS = TASKS["divisors"], TASKS["equations"], TASKS["lattice_paths"]

FLAT = {"numbers": [3, 5, 7], "target": 26, "modes": "flat"}
TREE = {**FLAT, "modes": "tree"}
PATH = {"edges": [[0, 1], [1, 2], [2, 3]], "partial": "1??2"}  # A–B–C–D, B and C hidden
SUM = {"result": 46}
THREE = {"inputs": [12, 18, 30]}
LINEAR = {"equation": "2x+6=10", "menu": ["-6", "/2", "-3", "-x"]}
GRID = {"last": [2, 1], "walls": [[1, 0]]}  # three columns, two rows, B1 closed
FACTS = {
    "name_one": {"list": "us_state"},
    "countdown": FLAT,
    "graph_coloring": PATH,
    "arithmetic": SUM,
    "divisors": THREE,
    "equations": LINEAR,
    "lattice_paths": GRID,
}

HOSTILE = [
    "7" * 1_000_000,
    "(" * 3_000 + "3" + ")" * 3_000,
    "\\boxed{" * 50_000,
    "\\boxed{" + "(" * 100_000 + "}",
    "\\boxed{" + "9" * 180 + "}",
    "\x00",
    "3*7\x00+5",
    "\u202e5+7*3",
    "10^{10^{10}}",
    "\\boxed{10^{10^{10}}}",
    "３*７+５",
    "٢١",
    "²",
    "=" * 150,
    "3*7+5=" * 20,
    "",
]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("response", HOSTILE, ids=lambda text: repr(text[:10]))
def test_hostile_responses_are_wrong_at_once(task, response):
    facts = FACTS[task.name]
    start = time.perf_counter()
    assert task.grade(response, facts) == WRONG
    assert time.perf_counter() - start < 0.5


@given(
    st.text(max_size=60)
    | st.text(alphabet="0123456789+-*/=(){}\\boxedfrac ", max_size=80)
    | st.text(alphabet="n0123456789%/*-+:abcdRD,() ", max_size=8)
)
def test_any_text_gets_a_verdict(text):
    for name, facts in (*FACTS.items(), ("countdown", TREE)):
        assert isinstance(TASKS[name].grade(text, facts), Verdict)


@pytest.mark.parametrize(
    "response",
    [
        "3*7+5",
        "5 + 7 × 3",
        "(7*3)+5 = 26",
        "26 = 5+3*7",
        r"The answer is \boxed{3 \times 7 + 5}",
        r"\boxed{x = 3\cdot7+5}",
        "Answer: 5-(-3)*7",
        "3*7+5 = 5+21",
        "3*7+5 = 25",
    ],
)
def test_countdown_accepts_a_solution_however_it_is_written(response):
    assert COUNTDOWN.grade(response, FLAT) == Verdict(True, "3*7+5")


@pytest.mark.parametrize(
    "response",
    [
        "26",
        "3*7",
        "3*7+5+0",
        "3*5+7",
        "3*7+5*1",
        "37-5-6",
        "3*7+5 = 3*5+7",  # two different attempts
        "26 = 26 = 3*7+5",
        "3*7+5, 5+3*7",
        "3*7+5/(3-3)",
    ],
)
def test_countdown_refuses_what_is_no_single_solution_with_exactly_the_numbers(response):
    assert COUNTDOWN.grade(response, FLAT) == WRONG


def test_countdown_mode_is_the_key_that_the_facts_name():
    assert COUNTDOWN.grade("5+7*3", FLAT).mode == "3*7+5"
    assert COUNTDOWN.grade("5+7*3", TREE).mode == "((3*7)+5)"


@pytest.mark.parametrize("response", ["31", "3, 1", "1 3 1 2", "1312", r"\boxed{31}", "The answer is 31."])
def test_colouring_accepts_hidden_or_all_colours(response):
    assert COLOURING.grade(response, PATH) == Verdict(True, "1312")


@pytest.mark.parametrize("response", ["32", "11", "22", "2", "213", "3312", "14", "2312", "ab", "??", "1??2"])
def test_colouring_refuses_clashes_wrong_lengths_and_changed_colours(response):
    assert COLOURING.grade(response, PATH) == WRONG


def test_colouring_right_answers_are_exactly_the_listed_modes():
    for problem in COLOURING.problems("train", 40, seed=3):
        hidden = problem.facts["partial"].count("?")
        given = ("".join(colours) for colours in itertools.product("123", repeat=hidden))
        verdicts = [COLOURING.grade(answer, problem.facts) for answer in given]
        assert sorted(v.mode for v in verdicts if v.correct) == sorted(problem.modes)


@pytest.mark.parametrize(
    ("vertices", "edges", "count"),
    [
        (4, [], 81),
        (3, [(0, 1), (1, 2), (0, 2)], 6),
        (4, [(0, 1), (1, 2), (2, 3)], 24),
        (4, [(0, 1), (1, 2), (2, 3), (0, 3)], 18),
    ],
)
def test_colourings_agree_with_the_chromatic_polynomial(vertices, edges, count):
    assert len(colourings(vertices, edges)) == count


def test_the_complete_graph_on_four_vertices_has_no_colouring():
    assert colourings(4, tuple(itertools.combinations(range(4), 2))) == []


@pytest.mark.parametrize("response", ["46", "12+34=46", r"\boxed{46}", "The answer is 46.", "+46"])
def test_arithmetic_accepts_the_result(response):
    assert ARITHMETIC.grade(response, SUM) == Verdict(True, "46")


@pytest.mark.parametrize("response", ["45", "46=45", "4 6", "-46", "46.5", "46 or 47"])
def test_arithmetic_refuses_other_numbers(response):
    assert ARITHMETIC.grade(response, SUM) == WRONG


def test_arithmetic_reads_a_typographic_minus():
    assert ARITHMETIC.grade("−3", {"result": -3}).correct


@pytest.mark.parametrize(
    ("response", "mode"),
    [
        ("2", "2,2,2"),
        ("n//2", "6,9,15"),
        (" n // 6 ", "2,3,5"),
        ("lambda n: n//3", "4,6,10"),
        ("f(n) = n//6", "2,3,5"),
        (r"The answer is \boxed{n//2}.", "6,9,15"),
        ("90//n", None),
        ("n", None),
        ("1", None),
        ("n//1", None),
        ("n//0", None),
        ("n%0", None),
        ("n/2", None),
        ("5-3", "2,2,2"),
        ("-2", None),
        ("n//2//3", None),
        ("(n//2)", None),
        ("n**1", None),
        ("n//200", None),
        ("__import__('os')", None),
        ("n//6 n//6", None),
    ],
)
def test_divisors_are_expressions_whose_values_divide_properly(response, mode):
    assert DIVISORS.grade(response, THREE).mode == mode


def test_divisors_right_answers_are_those_of_the_whole_grammar():
    terms = ["n", *map(str, range(100))]
    grammar = terms + [
        left + op + right for op in ("+", "-", "*", "//", "%") for left in terms for right in terms
    ]
    for inputs in ((12, 18, 30), (20, 81, 87), (96, 97 - 1 - 6, 98)):
        facts = {"inputs": list(inputs)}
        values: dict[str, list[str]] = {}
        for text in grammar:
            try:
                row = [eval(text, {}, {"n": n}) for n in inputs]  # texts of our own
            except ZeroDivisionError:
                continue
            if all(1 < value < n and n % value == 0 for value, n in zip(row, inputs, strict=True)):
                values.setdefault(",".join(map(str, row)), []).append(text)
        assert set(solutions(inputs)) == set(values)
        for mode, texts in values.items():
            assert DIVISORS.spell(mode, facts) == min(texts, key=lambda text: (len(text), text))
            assert {DIVISORS.grade(text, facts).mode for text in texts} == {mode}


def test_divisors_inputs_are_the_composites_below_99():
    primes = [n for n in range(2, 99) if all(n % d for d in range(2, n))]
    assert sorted([*COMPOSITES, *primes]) == list(range(2, 99))


@pytest.mark.parametrize(
    ("response", "mode"),
    [
        ("ab", "2x=4, x=2"),
        ("B, C", "x+3=5, x=2"),
        (r"\boxed{b c}", "x+3=5, x=2"),
        ("cba", None),  # x+3/2=7/2, then −6
        ("da", None),  # x+6=10−x, then x=4−x
        ("ccb", "2x+3=7, 2x=4, x=2"),
        ("abb", None),  # a step after x stands alone
        ("a", None),
        ("", None),
        ("e", None),
        ("abcda", None),
    ],
)
def test_equations_are_right_where_x_stands_alone_at_the_end_and_not_before(response, mode):
    assert EQUATIONS.grade(response, LINEAR).mode == mode


def test_equations_refuse_what_comes_back():
    facts = {"equation": "x+2=5", "menu": ["+2", "-2", "*2", "/2"]}
    assert EQUATIONS.grade("b", facts).mode == "x=3"
    assert EQUATIONS.grade("abb", facts) == EQUATIONS.grade("cdb", facts) == WRONG
    assert EQUATIONS.grade("b", {"equation": "7=x+2", "menu": ["+2", "-2"]}).mode == "5=x"


def test_equations_that_are_the_same_by_two_steps_are_one_mode():
    facts = {"equation": "4x=8", "menu": ["/4", "/2", "-2x", "+0x"]}
    assert EQUATIONS.grade("a", facts).mode == "x=2"
    assert EQUATIONS.grade("bb", facts).mode == "2x=4, x=2"
    assert EQUATIONS.grade("da", facts) == WRONG  # +0x leaves the equation as it was


def test_equations_stay_exact():
    equation = (1, 0, 0, 7, 1)
    for step in ("/3", "+2x", "*6", "-x", "-5"):
        equation = apply_step(step, equation)
    assert equation_text(equation) == "13x-5=11x+9"
    assert equation_text((1, -2, 0, 3, 4)) == "1/4x-1/2=3/4"


@pytest.mark.parametrize("level", [1, 2])
def test_equations_right_answers_are_exactly_the_listed_modes(level):
    for problem in EQUATIONS.problems("train", 12, seed=3, level=level):
        letters = "abcdef"[: len(problem.facts["menu"])]
        given = ("".join(steps) for n in range(1, 5) for steps in itertools.product(letters, repeat=n))
        verdicts = [EQUATIONS.grade(answer, problem.facts) for answer in given]
        assert {v.mode for v in verdicts if v.correct} == set(problem.modes)


@pytest.mark.parametrize(
    ("response", "mode"),
    [
        ("DRR", "DRR"),
        ("d, r, r", "DRR"),
        ("RDR", None),
        ("DR", None),
        ("DRRD", None),
        ("DDR", None),
        ("DXR", None),
    ],
)
def test_paths_lead_to_the_last_cell_past_no_wall(response, mode):
    assert PATHS.grade(response, GRID).mode == mode


def test_paths_right_answers_are_exactly_the_listed_modes():
    for problem in PATHS.problems("train", 30, seed=3):
        steps = sum(problem.facts["last"])
        given = map("".join, itertools.product("RD", repeat=steps))
        verdicts = [PATHS.grade(answer, problem.facts) for answer in given]
        assert sorted(v.mode for v in verdicts if v.correct) == sorted(problem.modes)


def test_paths_without_walls_are_counted_by_the_binomial():
    assert len(paths((4, 3), [])) == math.comb(7, 3)
    assert paths((1, 1), [(1, 0), (0, 1)]) == []
