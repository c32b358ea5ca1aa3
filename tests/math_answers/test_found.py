"""What was found wrong with this grader and with others, kind by kind."""

import random
import time

import pytest
from benchmarks.grader_sweep import pairs
from found_cases import FOUND

from math_answers import GraderPolicy, equivalent, grade, reply


@pytest.mark.parametrize(
    ("gold", "pred", "same"),
    [pytest.param(*case, id=f"{kind}-{i}") for kind, cases in FOUND.items() for i, case in enumerate(cases)],
)
def test_kinds_that_graders_have_got_wrong(gold, pred, same):
    assert equivalent(pred, gold).right is same


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (r"<think>Maybe \boxed{7}? No.</think>" + "\n<answer>5</answer>", "5"),
        (r"<think>Maybe \boxed{5}? No, 7.</think>" + "\n<answer>7</answer>", "7"),
        (r"<answer>5</answer> and \boxed{7}", "5"),
        (r"\boxed{7} <answer>\boxed{5}</answer>", "5"),
        (r"<think>\boxed{7}</think> so \boxed{5}", "5"),
        (r"It was opened by the prompt: \boxed{7}.</think> \boxed{5}", "5"),
        (r"<think>a</think>\boxed{7}<think>b</think>\boxed{5}", "5"),
        (r"<thinking>\boxed{7}</thinking>\boxed{5}", "5"),
        (r"[THINK]\boxed{7}[/THINK]\boxed{5}", "5"),
        (r"◁think▷\boxed{7}◁/think▷\boxed{5}", "5"),
        (r"<|channel|>analysis<|message|>\boxed{7}<|end|><|channel|>final<|message|>\boxed{5}", "5"),
        (r"<think><answer>7</answer></think><answer>5</answer>", "5"),
    ],
)
def test_what_follows_the_thought_decides(text, right):
    verdicts = {gold: grade(text, gold).right for gold in ("5", "7")}
    assert verdicts == {"5": right == "5", "7": right == "7"}


@pytest.mark.parametrize(
    "text",
    [
        r"<think>It is \boxed{5}",
        r"<think>It is <answer>5</answer>",
        r"<think>a</think><think>\boxed{5}",
        r"<think>\boxed{5}</think>",
        r"<|channel|>analysis<|message|>\boxed{5}",
    ],
)
def test_an_unfinished_thought_has_no_answer(text):
    for extraction in (("answer_tag", "boxed"), ("boxed", "phrase", "last_number", "whole")):
        verdict = grade(text, "5", GraderPolicy(extraction=extraction))
        assert (verdict.right, verdict.reason) == (False, "no_answer")


def test_a_text_without_a_thought_is_all_reply():
    assert reply("5") == "5"
    assert reply("<think>a</think>5") == "5"
    assert reply("<think>a") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{9} \boxed{9} \boxed{42}", "42"),
        (r"\boxed{5}" + "\n\n" + r"\boxed{7}", "7"),
        (r"\boxed{5}, \boxed{7}", "5 , 7"),
        (r"\boxed{5} and \boxed{7}", "5 , 7"),
        (r"<answer>7} , 8, {9</answer>", "7} , 8, {9"),
    ],
)
def test_boxes_are_joined_by_words_and_not_by_space(text, answer):
    assert grade(text, "irrelevant").extracted == answer


def test_several_boxes_of_a_gold_are_its_answers():
    assert equivalent("1, 2", r"\boxed{1}\boxed{2}").right
    assert equivalent("2, 1", r"The roots are $\boxed{1}$ as well as $\boxed{2}$").right


def _faults(some):
    found = []
    for pair in some:
        if equivalent(pair.pred, pair.gold).right is not pair.same:
            found.append(pair)
    return found


def test_the_sweep_in_steps():
    assert _faults(pair for i, pair in enumerate(pairs()) if i % 37 == 0 or pair.same) == []


@pytest.mark.slow
def test_the_sweep():
    assert _faults(pairs()) == []


_ROWS = r"\\".join("&".join(f"{i}x+{j}" for i in range(8)) for j in range(8))
PIECES = r"""
\frac \sqrt \begin{pmatrix} \end{pmatrix} \begin{cases} \end{cases} \\ \text{ \{ \} } { ( ) [ ] |
\left \right \infty \pi \cdot \times \binom \sum_{k=1}^n \int_0^1 \lim_{x\to0} \mathbb{R} \emptyset
\in \cup \setminus \pm \pmod{5} and or not for all x where 12:30 March 2021-03-05 $ \$ 5 2.5 1e9 %
^\circ ' ... \ldots 个 答案是 ° √ ½ ≤ is \boxed{ <think> </think> <answer> \choose \not \lnot \And \land
\lor \overline{3} 0.333... AB NaCl \phi(9) mod = < > + - * / ^ _ , ; : ! & x y f( g(x) \bar \vec
\star \circ ** `
"""


def test_texts_of_random_pieces_never_raise_and_never_are_their_successor():
    draw, pieces = random.Random(0), PIECES.split()
    golds = ["5", "x+1", "(1,2)", "x>2", "x=3", r"n \equiv 1 \pmod 3", r"\text{even}", "[0,1]"]
    for _ in range(1500):
        text = draw.choice(("", " ")).join(draw.choices(pieces, k=draw.randint(1, 12)))
        gold = draw.choice(golds)
        assert grade(text, gold).right in (True, False)
        assert equivalent(gold, text).right in (True, False)
        assert equivalent(text + " ", text).right or not text.strip(" $.,;:\\")


def test_what_is_lost_beside_a_large_constant_is_not_passed_over():
    assert not equivalent(r"y = x + e^{70} + 1", r"y = x + e^{70}").right
    assert not equivalent(r"10^{40}\sqrt{2} + 1", r"10^{40}\sqrt{2}").right


LONG = {
    "powers of a matrix": r"\begin{pmatrix}" + _ROWS + r"\end{pmatrix}^8",
    "roots of many": r" \land ".join(f"x^7-{i}x+1>0" for i in range(1, 60)),
    "list": ",".join(rf"\sqrt{{{i}}}+x" for i in range(100)),
    "union": r"\cup".join(f"({2 * i},{2 * i + 1})" for i in range(200)),
    "sums of functions": "+".join(rf"\Gamma(x+{i}/7)" for i in range(60)),
    "totients": "+".join(rf"\phi({10**9 - i})" for i in range(100)),
    "words": "It is " * 600 + "7",
    "remark": "5 (" + "since (" * 500,
    "negated": r"\text{not } x = \frac{e^{t}}{3} + ce^{-2t}",
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_a_verdict_comes_in_bounded_time_in_this_process(name):
    equivalent(r"\sqrt{2}", r"\sqrt{3}")
    for gold in (r"x = \frac{e^{t}}{3} + ce^{-2t}", r"(-\infty,2)\cup(3,5)", "1,2,3", LONG[name] + " + 1"):
        start = time.process_time()
        assert not equivalent(LONG[name], gold).right or "union" in name
        assert time.process_time() - start < 2.0


def test_too_much_work_is_said_and_not_done():
    answer = LONG["roots of many"]
    assert equivalent(answer, r"x > 2 \land x < 3").reason == "undecided"
