"""The three verifiers: right answers in every form, wrong ones, and text that tries to break them."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxent_grpo.tasks.graph_coloring import colourings
from maxent_grpo.tasks.registry import TASKS
from maxent_grpo.tasks.task import WRONG, Verdict

COUNTDOWN, COLOURING, ARITHMETIC = TASKS["countdown"], TASKS["graph_coloring"], TASKS["arithmetic"]

FLAT = {"numbers": [3, 5, 7], "target": 26, "modes": "flat"}
TREE = {**FLAT, "modes": "tree"}
PATH = {"edges": [[0, 1], [1, 2], [2, 3]], "partial": "1??2"}  # A–B–C–D, B and C hidden
SUM = {"result": 46}

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
    facts = {"countdown": FLAT, "graph_coloring": PATH, "arithmetic": SUM}[task.name]
    start = time.perf_counter()
    assert task.grade(response, facts) == WRONG
    assert time.perf_counter() - start < 0.5


@given(st.text(max_size=60) | st.text(alphabet="0123456789+-*/=(){}\\boxedfrac ", max_size=80))
def test_any_text_gets_a_verdict(text):
    for task, facts in ((COUNTDOWN, FLAT), (COUNTDOWN, TREE), (COLOURING, PATH), (ARITHMETIC, SUM)):
        assert isinstance(task.grade(text, facts), Verdict)


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
