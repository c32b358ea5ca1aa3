"""Name one …: what the verifier takes as one name, and what the lists promise."""

import pytest

from maxent_grpo.tasks.name_one import EXAMPLES, WORDINGS, NameOne, name_lists, normal_form
from maxent_grpo.tasks.registry import load_rows
from maxent_grpo.tasks.task import WRONG

TASK = NameOne()
STATES, AFRICA, EUROPE = {"list": "us_state"}, {"list": "africa"}, {"list": "europe"}


@pytest.mark.parametrize(
    ("response", "facts", "name"),
    [
        ("Texas", STATES, "Texas"),
        (" texas. ", STATES, "Texas"),
        ("TEXAS\n\nTexas is a state", STATES, "Texas"),
        ("**New York**", STATES, "New York"),
        ("The answer is Iowa.", STATES, "Iowa"),
        (r"Well, \boxed{Ohio}", STATES, "Ohio"),
        ("The Gambia", AFRICA, "Gambia"),
        ("Ivory Coast", AFRICA, "Côte d'Ivoire"),
        ("Cote d’Ivoire", AFRICA, "Côte d'Ivoire"),
        ("Guinea Bissau", AFRICA, "Guinea-Bissau"),
        ("the U.K.", EUROPE, "United Kingdom"),
        ("Bosnia & Herzegovina", EUROPE, "Bosnia and Herzegovina"),
        ("Türkiye", EUROPE, "Turkey"),
        ("aluminum", {"list": "element"}, "Aluminium"),
        ("12", {"divides": 36}, "12"),
        ("May", {"list": "month", "by": "begins", "letter": "M"}, "May"),
    ],
)
def test_one_right_name_is_right_however_it_is_spelled(response, facts, name):
    verdict = TASK.grade(response, facts)
    assert (verdict.correct, verdict.mode) == (True, name)


@pytest.mark.parametrize(
    ("response", "facts"),
    [
        ("Texas, Ohio", STATES),
        ("Texas or Ohio", STATES),
        ("Texas/Ohio", STATES),
        ("Texas\nOhio", STATES),
        ("Texas\n- Ohio\n- Utah", STATES),
        ("1. Texas", STATES),
        ("Texas is a state", STATES),
        ("Dallas", STATES),
        ("", STATES),
        ("\n \n", STATES),
        ("Niger and Nigeria", AFRICA),
        ("Mercury, Venus", {"list": "planet"}),
        ("Pluto", {"list": "planet"}),
        ("June", {"list": "month", "by": "begins", "letter": "M"}),
        ("5", {"divides": 36}),
        ("012", {"divides": 36}),
    ],
)
def test_anything_else_and_several_names_are_wrong(response, facts):
    assert TASK.grade(response, facts) == WRONG


def test_lists_have_no_name_twice_and_every_alias_means_one_of_its_list():
    for name, one in name_lists().items():
        forms = [normal_form(text) for text in (*one.answers, *one.aliases)]
        assert len(set(forms)) == len(forms), name
        assert set(one.aliases.values()) <= set(one.answers), name
        assert one.split in ("train", "eval")
    sizes = {name: len(name_lists()[name].answers) for name in ("us_state", "africa", "element", "month")}
    assert sizes == {"us_state": 50, "africa": 54, "element": 118, "month": 12}


def test_lists_of_evaluation_are_held_out_and_the_control_has_one_answer():
    asked = {
        split: {p.facts.get("list") for p in TASK.problems(split, 1000, 0)} for split in ("train", "eval")
    }
    assert asked["train"] & asked["eval"] <= {None}  # divisors, of other numbers
    assert len(asked["train"]) == 9
    assert len(asked["eval"]) == 11
    assert all(len(p.modes) == 1 for p in TASK.problems("control", 1000, 0))
    assert all(len(p.modes) > 1 for s in ("train", "eval") for p in TASK.problems(s, 1000, 0))


def test_a_row_is_a_chat_with_two_examples_unless_it_is_to_be_a_bare_question():
    row = load_rows("name_one", "train", "kinds=lists")[0]
    *turns, last = row["problem"]
    assert [m["role"] for m in turns] == ["user", "assistant"] * len(EXAMPLES)
    assert turns[0] == {"role": "user", "content": "Name one fruit."}
    assert last["role"] == "user"
    bare = load_rows("name_one", "train", "kinds=lists,examples=0")[0]
    assert bare["problem"] == last["content"]


def test_wordings_ask_for_the_same():
    one, all_of_them = (TASK.problems("train", 100, 0, "lists", wordings) for wordings in (1, 4))
    assert len(all_of_them) == len(WORDINGS) * len(one) == 32
    assert {p.modes for p in all_of_them} == {p.modes for p in one}
    examples = {p.turns[0]["content"] for p in all_of_them}
    assert examples == {wording.format(thing="fruit") for wording in WORDINGS}
