"""Where an answer is found in a completion."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxent_grpo.tasks.answers import MAX_PLAIN_CHARACTERS, extract_answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{3+4}", "3+4"),
        (r"\boxed{1} or rather \boxed{ 2 }", "2"),
        (r"\boxed{\frac{1}{2}} and so on" + "\nmore", r"\frac{1}{2}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed {7}", "7"),
        (r"a stray } and { before \boxed{7}", "7"),
        (r"\boxed{7} then \boxed{8", "7"),
        (r"\{ \boxed{5\}} \}", r"5\}"),
        (r"\boxed{}", None),
        ("3+4", "3+4"),
        (" 213\n", "213"),
        ("Answer: 213", "213"),
        ("The answer is 213.", "213"),
        ("So the final answer is: **213**", "213"),
        ("= 12", "12"),
        ("`3*4`", "3*4"),
        ("Solution: $3+4$", "3+4"),
        ("-3+5", "-3+5"),
        ("", None),
        ("  \n ", None),
        ("first line\nsecond line", None),
        ("1" * (MAX_PLAIN_CHARACTERS + 1), None),
        ("The answer is:", None),
    ],
)
def test_extraction(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    "response",
    [
        "\\boxed{" * 200_000,
        "{" * 1_000_000,
        "}" * 1_000_000,
        "\\" * 1_000_000,
        "the " * 250_000,
        "\x00" * 1_000_000,
    ],
    ids=["boxes", "opening", "closing", "backslashes", "prefixes", "nulls"],
)
def test_a_megabyte_without_an_answer_has_none_and_takes_no_time(response):
    start = time.perf_counter()
    assert extract_answer(response) is None
    assert time.perf_counter() - start < 0.5


def test_a_box_at_the_end_of_a_megabyte_is_found():
    assert extract_answer("digits " * 150_000 + r"\boxed{42}") == "42"


@given(st.text(max_size=300))
def test_any_text_has_an_answer_or_none(text):
    answer = extract_answer(text)
    assert answer is None or (answer in text and answer)
