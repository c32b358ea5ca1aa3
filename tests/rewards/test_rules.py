"""Rule rewards: the values of each, against Open-R1's patterns and TorchRL's and TRL's own functions."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxent_grpo.rewards import rules
from maxent_grpo.rewards.registry import BUILTIN_REWARDS, RewardOptions, load_rewards

GOOD = "<think>\nso\n</think>\n<answer>\n42\n</answer>"
PIECES = ["<think>", "</think>", "<answer>", "</answer>", "\n", "\n", "x", "```python", "```"]
near_templates = st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.just(GOOD)


def one(function, text, **columns):
    (value,) = function([text], **{name: [column] for name, column in columns.items()})
    assert function([[{"role": "assistant", "content": text}]], **{n: [c] for n, c in columns.items()}) == [
        value
    ]
    return value


@given(near_templates)
@settings(deadline=None, max_examples=300)
def test_format_and_code_format_are_open_r1s_patterns(text):
    form = re.compile(r"^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$", re.DOTALL | re.MULTILINE)
    assert one(rules.format_reward, text) == float(bool(form.match(text)))
    code = r"^<think>\n.*?\n</think>\n<answer>\n.*?```python.*?```.*?\n</answer>$"
    if one(rules.code_format, text):  # theirs may also look for the block behind the answer's end
        assert re.match(code, text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (GOOD, 1.0),
        (GOOD + "\nmore", 1.0),
        (GOOD + " more", 0.0),
        (" " + GOOD, 0.0),
        ("<think>a</think><answer>b</answer>", 0.0),
        ("<think>\n</think>\n<answer>\n</answer>", 0.0),
    ],
)
def test_format(text, value):
    assert one(rules.format_reward, text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (GOOD, 1.0),
        ("<think>\n", 0.25),
        ("<think>\n<think>\n", 0.0),
        ("a\n</think>\nb\n</answer>", 0.5),
        ("<think></think><answer></answer>", 0.0),
        ("", 0.0),
    ],
)
def test_tag_count(text, value):
    assert one(rules.tag_count, text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0.0),
        ("Step 1: a", 1 / 3),
        ("1. a\n2. b", 1 / 3),
        ("a\n- b\n* c", 2 / 3),
        ("First, a. Second, b. Finally, c. Next, d", 1.0),
        ("first, step 1:", 0.0),
    ],
)
def test_reasoning_steps(text, value):
    assert one(rules.reasoning_steps, text) == value


@pytest.mark.parametrize(
    ("text", "n", "value"),
    [
        ("a b c d", 3, 0.0),
        ("a b", 3, 0.0),
        ("", 1, 0.0),
        ("a A a a", 3, -0.5),
        ("a b a b a b", 2, -0.6),
        ("a a a a a", 1, -0.8),
    ],
)
def test_repetition_penalty(text, n, value):
    assert rules.repetition_penalty([text], repetition_n_grams=n) == [pytest.approx(value, abs=1e-12)]


def test_repetition_penalty_is_trls_on_words():
    from trl.rewards import get_repetition_penalty_reward

    texts = ["a b a b a b c", "x y z", "one two one two three one two"]
    theirs = get_repetition_penalty_reward(ngram_size=2, max_penalty=-0.7)
    numbers = {word: i for i, word in enumerate(sorted({w for text in texts for w in text.split()}))}
    ids = [[numbers[word] for word in text.split()] for text in texts]
    ours = rules.repetition_penalty(texts, repetition_n_grams=2, repetition_max_penalty=-0.7)
    assert ours == pytest.approx(theirs(completions=texts, completion_ids=ids))


def test_missing_boxed_answer_penalty():
    texts = [r"so \boxed{1}", r"\boxed {1}", r"\fbox{2}", "boxed 1", ""]
    assert rules.missing_boxed_answer_penalty_math(texts) == [0, 0, 0, -0.05, -0.05]
    assert rules.missing_boxed_answer_penalty_math([""], missing_boxed_answer_penalty=-1.0) == [-1.0]


GSM8K_CASES = [
    ("<think>a</think><answer>72</answer>", "x\n#### 72", 1.0),
    ("<answer> $1,050.00 </answer>", "#### 1050", 1.0),
    ("<answer>72</answer><answer>1</answer>", "#### 72", 1.0),
    ("<answer>72%.</answer>", "#### 72", 1.0),
    ("<answer>71</answer>", "#### 72", 0.1),
    ("<answer>\nseventy\n</answer>", "#### 72", 0.1),
    ("<answer> </answer>", "#### 72", 0.0),
    ("72", "#### 72", 0.0),
    ("<answer>72", "#### 72", 0.0),
]


@pytest.mark.parametrize(("text", "gold", "value"), GSM8K_CASES)
def test_gsm8k(text, gold, value):
    assert one(rules.gsm8k, text, answer=gold) == value


def test_gsm8k_is_torchrls_parser():
    parser = pytest.importorskip("torchrl.envs.llm.reward.gsm8k").GSM8KRewardParser(tokenizer=None)
    for text, gold, value in GSM8K_CASES:
        thought, potential = parser.extract_tags(text)
        result = parser._single_correctness_reward(gold.split("#### ")[1], potential, thought)
        assert float(result["reward"]) == pytest.approx(value)


def test_gsm8k_without_gold_does_not_apply_and_every_gold_of_the_benchmark_accepts_itself(shared_data):
    import json

    assert rules.gsm8k(["<answer>1</answer>"], [None]) == [None]
    with (shared_data / "benchmarks" / "gsm8k_test.jsonl").open() as lines:
        golds = [json.loads(line)["answer"] for line in lines]
    given = [f"<answer>{gold.rpartition('####')[2]}</answer>" for gold in golds]
    assert set(rules.gsm8k(given, golds)) == {1.0}
    assert set(rules.gsm8k(given[1:] + given[:1], golds)) == {0.1, 1.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\boxed{(2 + 3) * 4}", 1.0),
        ("<think>hm</think><answer>4 × (3 + 2)</answer>", 1.0),
        ("<answer>4*(3+2) = 20</answer>", 1.0),
        ("4*(2+3)", 1.0),
        ("<answer>4*5</answer>", 0.0),
        ("<answer>20</answer>", 0.0),
        ("<answer>2**99999999</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_countdown(text, value):
    assert one(rules.countdown, text, target=20, nums=[2, 3, 4]) == value
    assert one(rules.countdown, text, target=20, numbers=[2, 3, 4]) == value


HOSTILE = [
    "<answer>" * 20_000,
    "<think>\n" + "\n</think>\n<answer>\n" * 10_000,
    "<think>\n\n</think>\n<answer>\n" + "\n</answer>x" * 20_000,
    "(" * 100_000,
    "9" * 1_000_000,
    "Step " + "1" * 500_000,
    "```python" * 20_000,
    "\\boxed{" * 20_000,
    "a b " * 100_000,
    "\0\ud800\u202e",
    "10^{10^{10}}",
    "10**10**10",
]


@pytest.mark.parametrize("name", [n for n, builtin in BUILTIN_REWARDS.items() if not builtin.isolated])
def test_rewards_that_run_in_the_trainer_are_quick_on_any_text(name):
    (reward,) = load_rewards([name], options=RewardOptions())
    facts = '{"numbers": [2, 3, 4], "target": 20, "modes": "flat"}'
    n = len(HOSTILE)
    columns = {"answer": ["1"] * n, "target": [20] * n, "nums": [[2, 3, 4]] * n}
    began = time.process_time()
    scores = reward.function(
        prompts=[""] * n,
        completions=HOSTILE,
        completion_ids=[[]] * n,
        **columns,
        task=["countdown"] * n,
        facts=[facts] * n,
    )
    assert len(scores) == n
    assert time.process_time() - began < 3


def test_parameters_of_a_configuration_reach_the_functions():
    options = RewardOptions({"repetition_n_grams": 1, "repetition_max_penalty": -2.0, "unrelated": 3})
    (reward,) = load_rewards(["repetition_penalty"], options=options)
    assert reward.function(completions=["a a"], answer=["1"]) == [-1.0]
