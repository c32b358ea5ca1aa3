"""Rewards that need the math grader: which answer counts, and how length enters."""

import math

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.rewards.math import accuracy, boxed_accuracy_math, cosine, length
from maxent_grpo.rewards.registry import RewardOptions, load_rewards


@pytest.mark.parametrize(
    ("text", "by_last_line", "by_box"),
    [
        (r"so \boxed{\frac{1}{2}}", 1.0, 1.0),
        (r"\boxed{1} no, \boxed{0.5}", 1.0, 1.0),
        ("<think>3</think><answer>1/2</answer>", 1.0, 1.0),
        (r"<answer>1/2</answer> \boxed{3}", 1.0, 1.0),
        (r"<think>Maybe \boxed{1/2}? No.</think> <answer>3</answer>", 0.0, 0.0),
        (r"<think>Maybe \boxed{3}? No.</think> \boxed{1/2}", 1.0, 1.0),
        (r"<think>It is \boxed{1/2}", 0.0, 0.0),
        ("I think that\n1/2\n", 1.0, 0.0),
        ("1/2\nis it", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_which_answer_counts(text, by_last_line, by_box):
    chat = [{"role": "assistant", "content": text}]
    for completion in (text, chat):
        assert accuracy([completion], ["0.5"]) == [by_last_line]
        assert boxed_accuracy_math([completion], [r"\frac12"]) == [by_box]


def test_a_row_without_gold_does_not_apply():
    for function in (accuracy, boxed_accuracy_math, cosine, length):
        assert function([r"\boxed{1}", r"\boxed{1}"], [None, "1"])[0] is None


def test_cosine_goes_from_high_to_low_over_the_length():
    right, wrong = r"\boxed{1}", r"\boxed{2}"
    texts = [right.ljust(100), right.rjust(50), wrong.ljust(100), wrong.rjust(50), right.ljust(200)]
    rewards = cosine(texts, ["1"] * 5, cosine_max_len=100)
    assert rewards == pytest.approx([0.5, 0.75, -0.5, -0.25, 1.0])
    mid = 0.5 + 0.25 * (1 + math.cos(math.pi * 9 / 100))
    assert cosine([right], ["1"], cosine_max_len=100) == pytest.approx([mid])


def test_cosine_is_trls_up_to_its_length():
    from trl.rewards import get_cosine_scaled_reward

    texts = [r"\boxed{1}", r"\boxed{2}", r"\boxed{1}".ljust(60), r"\boxed{2}".ljust(60)]
    theirs = get_cosine_scaled_reward(100, -1.0, -0.5, 0.5, 1.0)(
        [[{"content": t}] for t in texts], ["$1$"] * 4, [[0] * len(t) for t in texts]
    )
    ours = cosine(
        texts, ["1"] * 4, cosine_min_value_wrong=-1.0, cosine_max_value_wrong=-0.5, cosine_max_len=100
    )
    assert ours == pytest.approx(theirs)


def test_length_prefers_the_shorter_of_a_group():
    right, wrong = r"\boxed{1}", r"\boxed{2}"
    texts = [right, right.ljust(19), wrong.ljust(14), wrong.ljust(19), wrong]
    assert length(texts, ["1"] * 5) == pytest.approx([0.5, -0.5, 0.0, -0.5, 0.0])
    assert length([right, wrong], ["1"] * 2) == [0.0, 0.0]


@pytest.mark.parametrize("name", ["accuracy", "boxed_accuracy_math", "cosine", "length"])
def test_the_graders_policy_is_a_setting_of_every_reward_that_grades(name):
    policy = {"extraction": ["last_number"], "relative_tolerance": 0.01}
    texts, golds = ["It is 3.14 here", "It may well be 3.3 here"], ["3.1415", "3.1415"]
    (reward,) = load_rewards([name], options=RewardOptions({"grader_policy": policy}, isolation=False))
    first, second = reward.function(completions=texts, answer=golds)
    assert first > 0 >= second
    (usual,) = load_rewards([name], options=RewardOptions({"grader_policy": None}, isolation=False))
    assert all(score <= 0 for score in usual.function(completions=texts, answer=golds))
    (isolated,) = load_rewards([name], options=RewardOptions({"grader_policy": policy}))
    assert hash(isolated.location)
    for wrong in ({"extract": "boxed"}, {"units": "never"}, {"significant_digits": "x"}):
        with pytest.raises(UsageError, match=r"^grader_policy: "):
            load_rewards([name], options=RewardOptions({"grader_policy": wrong}))
