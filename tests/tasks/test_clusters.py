"""Which completions give the same answer."""

import pytest

from maxent_grpo.tasks.registry import answer_clusters, answer_string, mode_count


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{4}", "4"),
        (r"first \boxed{3}, no: \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("thus <answer> 12\n apples </answer>.", "12 apples"),
        ("<answer>1</answer> or rather <answer>2</answer>", "2"),
        (r"<answer>7</answer> and \boxed{8}", "8"),
        (r"\boxed{}", None),
        ("<answer></answer>", None),
        ("the answer is 5", None),
        (r"\boxed{5", None),
        ("", None),
    ],
)
def test_the_answer_is_in_the_last_box_else_the_last_tag(text: str, expected: str | None) -> None:
    assert answer_string(text) == expected


def test_equal_answers_share_a_cluster_and_the_unparseable_stand_alone() -> None:
    texts = [r"\boxed{1}", "no idea", "<answer>1</answer>", r"\boxed{2}", "no idea"]
    first, unsure, again, other, unsure_too = answer_clusters(texts, {})
    assert first == again
    assert len({first, unsure, other, unsure_too}) == 4


def test_where_none_parses_every_completion_is_a_cluster() -> None:
    assert len(set(answer_clusters(["a", "a", "b"], {}))) == 3


def test_procedural_tasks_answer_with_a_plain_line() -> None:
    columns = {"task": "graph_coloring"}
    first, same, other = answer_clusters(["123", "The answer is 123.", "132"], columns)
    assert first == same != other


def test_right_answers_are_those_of_the_prompt_else_those_found() -> None:
    assert mode_count([0, 1, 1], [True, True, True], {"modes": ["a", "b", "c"]}) == 3
    assert mode_count([0, 1, 1, 2], [True, True, True, False], {}) == 2
    assert mode_count([0, 1], [False, False], {}) == 1
