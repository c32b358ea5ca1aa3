"""Exact match inside the think/answer template."""

import json
import math
import time
from datetime import date
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maxent_grpo.errors import UsageError
from maxent_grpo.rewards.math import (
    GoldError,
    accuracy,
    answer_body,
    canonical_answer,
    check_golds,
    gold_answers,
    pure_accuracy_math,
)


def completion(answer, thought="so"):
    return f"<think>{thought}</think>\n<answer>{answer}</answer>"


def score(text, gold):
    return pure_accuracy_math([text], [gold])[0]


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think><answer>7</answer>",
        "<THINK>a\nb</Think> and thus <Answer> 7\n</ANSWER>",
        "<think></think><answer>7</answer> trailing words",
        "<think>a</think><answer>8</answer><answer>7</answer>",
    ],
)
def test_a_completion_that_follows_the_template_scores_by_its_answer(text):
    assert score(text, "7") == 1.0
    assert score(text, "8") == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "<answer>7</answer>",
        "Well, <think>a</think><answer>7</answer>",
        "\n<think>a</think><answer>7</answer>",
        "<think>a</think><answer>7",
        "<think>a<answer>7</answer></think>",
        "<answer>7</answer><think>a</think>",
        "<think>a</think>7</answer>",
    ],
)
def test_a_completion_that_breaks_the_template_scores_nothing(text):
    assert score(text, "7") == 0.0
    assert answer_body(text) is None


def test_an_answer_inside_the_thought_is_none():
    text = "<think><answer>1</answer></think><answer>2</answer>"
    assert (score(text, "1"), score(text, "2")) == (0.0, 1.0)


def test_chats_are_scored_by_their_first_message():
    assert score([{"role": "assistant", "content": completion("7")}], "7") == 1.0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (" 72 ", "72"),
        ("5.00", "5"),
        ("+5", "5."),
        ("-0.0", "0"),
        (".5", "0.50"),
        ("1,050", "1050"),
        ("12,345,678.90", "12345678.9"),
        ("23", "023"),
        ("27", 27.0),
        ("$72$", "72"),
        (r"\$72", "72"),
        (r"1\,000", "1000"),
        (r"\frac{1}{2}", "1/2"),
        (r"\frac{x+1}{2}", "(x+1)/2"),
        (r"\frac{\frac{1}{2}}{3}", r"\frac{1/2}{3}"),
        (r"\left( 3, 4 \right)", "(3,4)"),
        ("(A)", "A"),
        ("(-3)", "-3"),
        (r"(\sqrt{2})", r"\sqrt{2}"),
        ("{7}", "7"),
        ("2π", r"2\pi"),
        ("∞", r"\infty"),
        ("−4", "-4"),
        ("x^{2} + 1", "x^{2}+1"),
    ],
)
def test_forms_of_one_answer_are_equal(answer, gold):
    assert score(completion(answer), gold) == 1.0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("7", "8"),
        ("", "0"),
        ("-5", "5"),
        ("0.5", "1/2"),
        ("2(3)", "23"),
        ("2 (3)", "23"),
        ("(2)(3)", "23"),
        (r"2\frac{1}{2}", r"\frac{21}{2}"),
        ("(-2)^2", "-2^2"),
        ("f(x)", "fx"),
        ("1,23", "123"),
        ("(1,234)", "1234"),
        (r"\leftarrow", "arrow"),
        ("x", "X"),
        ("1e3", "1000"),
    ],
)
def test_different_answers_stay_different(answer, gold):
    assert score(completion(answer), gold) == 0.0


def test_the_gold_of_gsm8k_follows_its_last_hashes():
    assert gold_answers("48/2 = <<48/2=24>>24\n#### 72") == [" 72"]
    assert score(completion("1050"), "so 1,050\n#### 1,050") == 1.0


def test_a_list_of_golds_offers_alternatives():
    golds = ["4.5e33\n", "4.5\\times10^{33}\n"]
    assert [score(completion(g), golds) for g in golds] == [1.0, 1.0]
    assert score(completion("4.5"), golds) == 0.0


@pytest.mark.parametrize("gold", [None, "", " ", [], [None]])
def test_without_a_gold_the_reward_does_not_apply(gold):
    assert score(completion("7"), gold) is None


@pytest.mark.parametrize(
    "gold", [np.float64(7), np.int64(7), np.str_("7"), np.array(["8", "7"]), torch.tensor(7), 7.0]
)
def test_scalars_and_arrays_of_numpy_and_torch_are_the_numbers_they_hold(gold):
    assert score(completion("7"), gold) == 1.0
    assert accuracy([r"\boxed{7}"], [gold]) == [1.0]
    assert accuracy([r"\boxed{9}"], [gold]) == [0.0]


@pytest.mark.parametrize(
    ("gold", "why"),
    [
        (
            {"ground_truth": "7", "style": "rule"},
            "a mapping with the keys ground_truth, style: .* COLUMN.KEY",
        ),
        (math.nan, "is NaN"),
        (np.float32("nan"), "is NaN"),
        (b"7", "of type bytes"),
        (True, "is True, a truth value"),
        (np.bool_(False), "is False, a truth value"),
        (["7", {"a": 1}], "a mapping with the keys a"),
        (date(2026, 1, 2), "of type date"),
    ],
)
def test_golds_that_no_answer_equals_are_refused_by_row_and_column(gold, why):
    with pytest.raises(GoldError, match=why):
        accuracy([r"\boxed{7}"], [gold])
    with pytest.raises(UsageError, match=f"^row 3, column 'reward_model': the gold answer .*{why}"):
        check_golds([(2, "7"), (3, gold)], "reward_model")


@settings(deadline=None)
@given(st.decimals(-(10**12), 10**12, places=3), st.decimals(-(10**12), 10**12, places=3))
def test_spellings_of_a_decimal_number_are_equal_and_other_numbers_are_not(value, other):
    plain, spelt = canonical_answer(f"{value:f}"), canonical_answer(f"{value:+,.6f}")
    assert plain == spelt
    assert Decimal(plain) == value
    assert (canonical_answer(f"{other:f}") == plain) == (other == value)


@settings(deadline=None)
@given(st.text(alphabet="0123456789.,-+(){}\\ $frac^xπ", max_size=40))
def test_the_normal_form_of_any_text_is_the_normal_form_of_its_padded_self(text):
    assert canonical_answer(text) == canonical_answer(f"  {text}\n")


@pytest.mark.parametrize(
    "unit",
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "</think><answer>",
        "\\frac{",
        "\\frac{a}{",
        "((((",
        "{",
        " ",
        "1,",
        "<",
    ],
)
@pytest.mark.parametrize(
    "frame", ["{}", "<think>{}", "<think>a</think><answer>{}", "<think>a</think><answer>{}</answer>"]
)
def test_a_hostile_megabyte_is_scored_in_a_moment(unit, frame):
    text = frame.format(unit * (1_000_000 // len(unit)))
    start = time.perf_counter()
    assert score(text, "7") == 0.0
    assert time.perf_counter() - start < 5.0  # seconds; quadratic time would be hours


@pytest.mark.parametrize("unit", ["\\frac{", "\\frac{a}{", "(", "{", "1,", "\\left", "\\sqrt{", "(1", "$"])
def test_hostile_answers_of_the_longest_normalised_length_are_quick(unit):
    text = completion((unit * 4096)[:4096])
    start = time.perf_counter()
    assert score(text, "7") == 0.0
    assert time.perf_counter() - start < 1.0  # seconds


def test_deeply_nested_fractions_are_normalised_whole():
    nested = "x"
    for _ in range(400):
        nested = rf"\frac{{{nested}}}{{}}"
    assert len(nested) < 4096
    assert "frac" not in canonical_answer(nested)


def test_every_gsm8k_gold_answers_itself_and_not_its_neighbour(shared_data):
    lines = (shared_data / "benchmarks" / "gsm8k_train.jsonl").read_text().splitlines()
    golds = [json.loads(line)["answer"] for line in lines]
    finals = [gold.rpartition("####")[2].strip() for gold in golds]
    assert pure_accuracy_math([completion(f) for f in finals], golds) == [1.0] * len(golds)
    without_commas = [completion(f.replace(",", "")) for f in finals]
    assert pure_accuracy_math(without_commas, golds) == [1.0] * len(golds)
    off_by_one = [completion(str(int(f.replace(",", "")) + 1)) for f in finals]
    assert pure_accuracy_math(off_by_one, golds) == [0.0] * len(golds)
