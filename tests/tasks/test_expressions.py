"""The parser: what it reads, what it refuses, and that hostile text costs nothing."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxent_grpo.tasks.expressions import (
    MAX_CHARACTERS,
    ExpressionError,
    Negation,
    Number,
    Operation,
    evaluate,
    numbers_in,
    parse,
)

HOSTILE = [
    "",
    " ",
    "7" * 1_000_000,
    "(" * 1_000_000,
    "(" * 5_000 + "1" + ")" * 5_000,
    "(" * 99 + "1" + ")" * 99,
    "-" * 150 + "1",
    "\\frac{" * 30 + "1",
    "1\x00+2",
    "\u202e1+2",
    "10^{10^{10}}",
    "9**9**9**9",
    "9//2",
    "٣+٤",
    "²+³",
    "𝟏+𝟐",
    "1,000",
    "1.5+2",
    "1e9",
    "1 2",
    "2(3)",
    "(1",
    "1)",
    "1+",
    "*1",
    "\\frac{1}2",
    "\\sqrt{4}",
    "{1}",
    "__import__('os')",
    "1/0",
    "1/(2-2)",
    "\\",
]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3+4*5", 23),
        ("(3+4)*5", 35),
        ("10-4-3", 3),
        ("24/4/3", 2),
        ("2*3/4", Fraction(3, 2)),
        ("-3+5", 2),
        ("3*-4", -12),
        ("--3", 3),
        ("+3", 3),
        ("-(2-7)", 5),
        ("3 × 4 ÷ 2 − 1", 5),
        ("3·4⋅5", 60),
        ("3 x 4", 12),
        (r"3 \times 4 \cdot 5 \div 6", 10),
        (r"\frac{12}{3+1}*5", 15),
        (r"\dfrac{1}{\tfrac{1}{3}}", 3),
        (r"\left(3+4\right)\,\times 2", 14),
        ("$3+4$", 7),
        (r"\(3+4\)", 7),
    ],
)
def test_value(text, value):
    assert evaluate(parse(text)) == value


def test_operators_associate_to_the_left_and_signs_bind_tightest():
    assert parse("1-2-3") == Operation("-", Operation("-", Number(1), Number(2)), Number(3))
    assert parse("-1*2") == Operation("*", Negation(Number(1)), Number(2))


def test_numbers_are_listed_in_order_of_appearance():
    assert numbers_in(parse("-(12*3)/(4-3)")) == [12, 3, 4, 3]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_hostile_text_is_refused_at_once(text):
    start = time.perf_counter()
    with pytest.raises(ExpressionError):
        evaluate(parse(text))
    assert time.perf_counter() - start < 0.1


def test_the_longest_chain_is_read_without_deep_recursion():
    assert evaluate(parse("+".join(["1"] * (MAX_CHARACTERS // 2)))) == MAX_CHARACTERS // 2


@given(st.text(alphabet="0123456789+-*/(){}\\frac x×÷−\x00", max_size=220))
def test_any_text_is_an_expression_or_an_expression_error(text):
    try:
        value = evaluate(parse(text))
    except ExpressionError:
        return
    assert isinstance(value, Fraction)


def _expressions():
    numbers = st.integers(0, 99).map(str)
    return st.recursive(
        numbers,
        lambda inner: (
            st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda parts: f"({''.join(parts)})")
            | inner.map(lambda text: f"(-{text})")
        ),
        max_leaves=12,
    )


@given(_expressions())
def test_values_equal_those_of_python(text):
    assert evaluate(parse(text)) == eval(text)
