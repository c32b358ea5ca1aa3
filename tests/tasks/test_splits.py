"""Problems: reproducible, of the promised shape, and never in two splits."""

import itertools
import re

import pytest

from maxent_grpo.tasks.registry import TASKS
from maxent_grpo.tasks.task import region

SPLITS = ("train", "eval", "control", "warm_start")
VARIANTS = [
    ("countdown", {"numbers": 3, "modes": "flat"}),
    ("countdown", {"numbers": 3, "modes": "tree"}),
    ("graph_coloring", {}),
    ("arithmetic", {}),
    ("arithmetic", {"operations": "+-*", "largest": 9}),
    ("divisors", {"level": 1}),
    ("divisors", {"level": 3}),
    ("equations", {"level": 1}),
    ("equations", {"level": 3}),
    ("lattice_paths", {"level": 1}),
    ("lattice_paths", {"level": 3}),
    ("arithmetic", {"form": "chat"}),
    ("countdown", {"form": "chat"}),
    ("name_one", {}),
    ("name_one", {"kinds": "lists", "wordings": 4}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_no_two_splits_share_a_problem_whatever_the_seeds(name, options):
    questions = [
        {p.question for seed in (0, 1) for p in TASKS[name].problems(split, 150, seed, **options)}
        for split in SPLITS
    ]
    for one, other in itertools.combinations(questions, 2):
        assert not one & other


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_problems_depend_on_the_seed_and_on_nothing_else(name, options):
    first, again, other = (TASKS[name].problems("train", 30, seed, **options) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    assert len({problem.question for problem in first}) == len(first)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_larger_split_starts_with_the_smaller_one(name, options):
    assert TASKS[name].problems("eval", 30, 0, **options)[:10] == TASKS[name].problems(
        "eval", 10, 0, **options
    )


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_mode_can_be_spelled_and_is_graded_as_itself(name, options, split):
    task = TASKS[name]
    for problem in task.problems(split, 60, 1, **options):
        assert len(set(problem.modes)) == len(problem.modes) >= 1
        for mode in problem.modes:
            verdict = task.grade(task.spell(mode, problem.facts), problem.facts)
            assert verdict.correct
            assert verdict.mode == mode
        assert task.grade(problem.answer, problem.facts).mode in problem.modes


def test_countdown_problems_have_two_to_eight_modes_and_the_control_one():
    for kind in ("flat", "tree"):
        task = TASKS["countdown"]
        assert all(2 <= len(p.modes) <= 8 for p in task.problems("train", 100, 0, numbers=3, modes=kind))
        assert all(len(p.modes) == 1 for p in task.problems("control", 60, 0, numbers=3, modes=kind))


def test_four_number_countdown_fills_its_default_sizes():
    task = TASKS["countdown"]
    for split, size in task.default_sizes.items():
        assert len(task.problems(split, size, 0, numbers=4)) == size


def test_colouring_problems_have_the_stated_shape():
    task = TASKS["graph_coloring"]
    for split, hidden, completions in (("train", 3, range(4, 25)), ("control", 2, range(1, 2))):
        for problem in task.problems(split, 60, 0):
            n, edges = len(problem.facts["partial"]), problem.facts["edges"]
            assert n in (4, 5, 6)
            assert n - 2 <= len(edges) <= 8
            assert problem.facts["partial"].count("?") == hidden
            assert len(problem.modes) in completions


def test_questions_read_as_shown():
    """The bundled policy was trained on these wordings: a change of one asks for a new warm start."""
    first = {
        name: task.problems("train", 1, 0)[0].question for name, task in TASKS.items() if name != "name_one"
    }
    assert first == {
        "countdown": "Make 2 from 4 7 9 with +-*/",
        "graph_coloring": "3-color B2 C3, AB BC CD CE DE: ADE?",
        "arithmetic": "48+18=?",
        "divisors": "f(n) divides 20 81 87: f?",
        "equations": "Solve 4x+5=-7 by a:-7 b:/2 c:/4 d:-5: ?",
        "lattice_paths": "Walk A1 to D5 not C1 B2 C2 D2 A5: RD?",
    }


@pytest.mark.parametrize("name", ["divisors", "equations", "lattice_paths"])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_levels_have_two_to_twelve_modes_and_their_control_one(name, level):
    task = TASKS[name]
    assert all(2 <= len(p.modes) <= 12 for p in task.problems("train", 60, 0, level=level))
    assert all(len(p.modes) == 1 for p in task.problems("control", 30, 0, level=level))


def test_a_higher_level_is_longer():
    def widths(name, measure):
        problems = (TASKS[name].problems("eval", 60, 0, level=level) for level in (1, 2, 3))
        return [{measure(problem.facts) for problem in part} for part in problems]

    assert widths("divisors", lambda facts: len(facts["inputs"])) == [{3}, {4}, {5}]
    assert widths("equations", lambda facts: len(facts["menu"])) == [{4}, {5}, {6}]
    assert [max(found) for found in widths("lattice_paths", lambda facts: sum(facts["last"]))] == [8, 10, 12]


@pytest.mark.parametrize("name", ["graph_coloring", "divisors", "equations", "lattice_paths"])
def test_more_than_two_thousand_train_problems_are_there(name):
    """A run of 100 steps of 16 prompts meets none of them twice."""
    assert len({problem.question for problem in TASKS[name].problems("train", 2_048, 0)}) == 2_048


def test_regions_have_their_shares():
    found = [region("any", str(index)) for index in range(10_000)]
    shares = {split: found.count(split) / len(found) for split in SPLITS}
    assert shares == pytest.approx({"warm_start": 0.4, "train": 0.3, "eval": 0.2, "control": 0.1}, abs=0.015)


def test_arithmetic_operands_stay_in_range():
    task = TASKS["arithmetic"]
    problems = [p for split in SPLITS for p in task.problems(split, 10_000, 0, operations="+-*", largest=49)]
    assert len(problems) == 50 * 50 + 50 * 51 // 2 + 13 * 13
    assert all(int(p.answer) >= 0 for p in problems)


@pytest.mark.parametrize(
    ("name", "example"), [("arithmetic", "What is 2+3?"), ("countdown", "Make 14 from 2, 5, 7. ")]
)
def test_a_chat_asks_for_the_same_and_its_examples_are_right(name, example):
    task = TASKS[name]
    bare, chat = (task.problems("train", 20, 0, form=form) for form in ("bare", "chat"))
    assert [(p.answer, p.modes, p.facts) for p in chat] == [(p.answer, p.modes, p.facts) for p in bare]
    assert chat[0].turns[0]["content"].startswith(example)
    shown = [m["content"] for m in chat[0].turns]
    for asked, answer in zip(shown[::2], shown[1::2], strict=True):
        numbers = [int(word) for word in re.findall(r"[0-9]+", asked)]
        facts = {"target": numbers[0], "numbers": numbers[1:], "modes": "flat"}
        assert task.grade(answer, {"result": sum(numbers)} if name == "arithmetic" else facts).correct
