"""Scored groups: TRL's calling convention, isolation of errors, utilities and statistics."""

import asyncio
import logging
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.observe.definitions import definitions
from maxent_grpo.rewards.registry import RewardFunction, RewardOptions, TrainerState, load_rewards
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.types import Prompt, Rollout


def rollout_of(index, texts, lengths=None, reasons=None, **columns):
    lengths = lengths or [len(text) for text in texts]
    return Rollout(
        prompt=Prompt(
            index, f"Q{index}:", (index,), {"problem": f"q{index}", "answer": str(index)} | columns
        ),
        token_ids=tuple(tuple(range(n)) for n in lengths),
        logps=tuple((0.0,) * n for n in lengths),
        texts=tuple(texts),
        finish_reasons=tuple(reasons or ["stop"] * len(texts)),
        policy_version=0,
    )


ROLLOUTS = [rollout_of(3, ["a", "bb"]), rollout_of(5, ["ccc", "dddd"])]


_BUG = ValueError("no\nway")


def length(completions, **columns):
    return [float(len(c)) for c in completions]


def score(function, rollouts=ROLLOUTS, weight=1.0, **settings):
    reward = RewardFunction("f", function, weight)
    groups, metrics = Scorer([reward], **settings).score(rollouts, step=4)
    return [s for g in groups for s in g.rewards["f"]], [u for g in groups for u in g.utilities], metrics


def value(metrics, name):
    stat = metrics[name]
    return float(stat.value / stat.weight) if stat.kind == "mean" else float(stat.value)


def raising_on(bad, error=_BUG):
    def function(completions, **columns):
        if any(c in bad for c in completions):
            raise error
        return [float(len(c)) for c in completions]

    return function


def test_a_function_gets_aligned_lists_of_everything_trl_passes():
    seen = {}

    def spy(**arguments):
        seen.update(arguments)
        return [0.0] * 4

    rollouts = [rollout_of(i, t, prompt="raw", kind=i) for i, t in ((3, ["a", "bb"]), (5, ["ccc", "dddd"]))]
    score(spy, rollouts)
    assert {name: seen.pop(name) for name in ("trainer_state",)} == {"trainer_state": TrainerState(3, 0)}
    assert callable(seen.pop("log_extra"))
    assert callable(seen.pop("log_metric"))
    assert seen == {
        "prompts": ["Q3:", "Q3:", "Q5:", "Q5:"],
        "completions": ["a", "bb", "ccc", "dddd"],
        "completion_ids": [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]],
        "problem": ["q3", "q3", "q5", "q5"],
        "answer": ["3", "3", "5", "5"],
        "kind": [3, 3, 5, 5],
    }


def test_our_arguments_are_those_of_trls_trainer():
    from trl import GRPOTrainer

    calls = []

    def spy(**arguments):
        calls.append(arguments)
        return [0.0] * 4

    trainer = SimpleNamespace(  # what the method reads, and nothing else
        accelerator=SimpleNamespace(device=torch.device("cpu"), is_main_process=True),
        args=SimpleNamespace(report_to=[]),
        state=SimpleNamespace(global_step=0),
        reward_funcs=[spy],
        reward_processing_classes=[None],
        reward_func_names=["spy"],
        environments=None,
        _log_completion_extra=None,
        _log_metric=None,
    )
    rows = [{"prompt": f"Q{i}:", "problem": f"q{i}", "answer": str(i)} for i in (3, 3, 5, 5)]
    ids = [list(range(n)) for n in (1, 2, 3, 4)]
    method = GRPOTrainer._calculate_rewards.__wrapped__
    texts = ["a", "bb", "ccc", "dddd"]
    method(trainer, rows, [row["prompt"] for row in rows], texts, ids)
    score(spy)
    theirs, ours = calls
    live = {"trainer_state", "log_extra", "log_metric"}
    assert theirs.keys() == ours.keys()
    assert all(theirs[name] == ours[name] for name in theirs.keys() - live)
    assert ours["trainer_state"].global_step == theirs["trainer_state"].global_step + 3  # scored for step 4


def test_the_utility_is_the_weighted_sum_of_the_scores_given():
    def odd(completions, **columns):
        return [10.0 if len(c) % 2 else None for c in completions]

    scorer = Scorer(load_rewards([length, odd], [0.5, -1.0]))
    groups, metrics = scorer.score(ROLLOUTS, 0)
    assert [g.utilities for g in groups] == [(-9.5, 1.0), (-8.5, 2.0)]
    assert [g.rollout for g in groups] == ROLLOUTS
    assert groups[1].rewards["length"] == (3.0, 4.0)
    assert groups[1].rewards["odd"][0] == 10.0
    assert math.isnan(groups[1].rewards["odd"][1])
    assert value(metrics, "rewards/odd/mean") == 10.0
    assert value(metrics, "reward/errors") == 0


def test_not_applicable_everywhere_is_no_error_and_no_utility():
    scores, utilities, metrics = score(lambda **columns: [None] * 4)
    assert all(map(math.isnan, scores + utilities))
    assert (value(metrics, "reward/errors"), value(metrics, "reward/unscored")) == (0, 4)
    assert float(metrics["rewards/f/mean"].weight) == 0


@pytest.mark.parametrize(("weight", "left"), [(1.0, math.nan), (0.0, 4.0)])
def test_a_lost_score_takes_the_utility_and_an_abstention_does_not(weight, left):
    def odd(completions, **columns):
        return [None if len(c) == 2 else math.nan if len(c) == 4 else 10.0 for c in completions]

    scorer = Scorer(load_rewards([length, odd], [1.0, weight]))
    groups, metrics = scorer.score(ROLLOUTS, 0)
    found = [utility for group in groups for utility in group.utilities]
    np.testing.assert_array_equal(found, [1.0 + weight * 10, 2.0, 3.0 + weight * 10, left])
    assert value(metrics, "reward/unscored") == math.isnan(left)


def accuracy(completions, **columns):
    return [float(len(c) % 2) for c in completions]


def form(completions, **columns):
    return [1.0 for c in completions]


@pytest.mark.parametrize(
    ("weights", "shares"),
    [([1.0, 1.0], (1.0, 0.0)), ([0.1, 0.9], (0.9, 0.0)), ([1.0, 0.0], (0.0, 0.0))],
)
def test_right_is_what_the_correctness_reward_says(weights, shares):
    groups, _ = Scorer(load_rewards([form, accuracy], weights)).score(ROLLOUTS, 0)
    assert [g.right for g in groups] == [(True, False)] * 2
    assert [g.correctness for g in groups] == [shares] * 2


def test_two_functions_that_nobody_knows_do_not_tell_what_is_right():
    groups, _ = Scorer(load_rewards([form, length])).score(ROLLOUTS, 0)
    assert (groups[0].right, groups[0].correctness) == (None, None)
    named = RewardOptions(correctness="length")
    groups, _ = Scorer(load_rewards([form, length], options=named)).score(ROLLOUTS, 0)
    assert groups[0].right == (True, True)
    with pytest.raises(UsageError, match="correctness_reward: 'lenght' is none of the reward functions"):
        load_rewards([form, length], options=RewardOptions(correctness="lenght"))


def test_an_answer_that_was_cut_off_or_not_judged_is_not_right():
    rollouts = [rollout_of(0, ["aa", "b", "c"], reasons=["stop", "length", "stop"])]
    judge = RewardFunction("f", lambda completions, **_: [None, 1.0, 1.0])
    (group,), _ = Scorer([judge], zero_truncated=True).score(rollouts, 0)
    assert group.right == (False, False, True)
    assert group.originals().right == group.right
    (group,), _ = Scorer([judge]).score(rollouts, 0)
    assert group.right == (False, True, True)


def test_truncated_completions_lose_their_utility_only_if_asked():
    rollouts = [rollout_of(0, ["aa", "bbb"], reasons=["length", "stop"])]
    assert score(length, rollouts)[1] == [2.0, 3.0]
    scores, utilities, metrics = score(length, rollouts, zero_truncated=True)
    assert (scores, utilities) == ([2.0, 3.0], [0.0, 3.0])
    assert value(metrics, "completions/clipped_frac") == 0.5


@settings(deadline=None)
@given(st.sets(st.sampled_from(["a", "bb", "ccc", "dddd"]), max_size=3))
def test_only_the_completions_that_make_a_function_raise_lose_their_score(bad):
    scores, utilities, metrics = score(raising_on(bad))
    expected = [math.nan if t in bad else float(len(t)) for t in ("a", "bb", "ccc", "dddd")]
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(utilities, expected)
    assert value(metrics, "reward/errors") == value(metrics, "reward/unscored") == len(bad)


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, "1", [1.0], 1e300, 1j, torch.ones(2), 10**400]
)
def test_a_score_that_is_no_finite_number_is_an_error_of_its_completion_alone(bad):
    scores, utilities, metrics = score(lambda **columns: [1.0, bad, 2.0, None])
    np.testing.assert_array_equal(scores, [1.0, math.nan, 2.0, math.nan])
    np.testing.assert_array_equal(utilities, scores)
    assert (value(metrics, "reward/errors"), value(metrics, "reward/unscored")) == (1, 2)


@pytest.mark.parametrize(
    "returned",
    [
        [True, 0, 2, 3],
        (1, 0.0, 2.0, 3.0),
        np.array([1, 0, 2, 3], dtype=np.float32),
        torch.tensor([1.0, 0.0, 2.0, 3.0]),
        [np.float64(1), np.bool_(False), torch.tensor(2), np.int64(3)],
    ],
)
def test_numbers_of_any_kind_are_scores(returned):
    assert score(lambda **columns: returned)[0] == [1.0, 0.0, 2.0, 3.0]


def test_failures_are_logged_once_per_function_with_the_exception(caplog):
    scorer = Scorer([RewardFunction("f", raising_on({"bb", "ccc"}))])
    with caplog.at_level(logging.WARNING):
        scorer.score(ROLLOUTS, 1)
        scorer.score(ROLLOUTS, 2)
    (record,) = caplog.records
    assert (
        "'f' failed on 2 of 4 completions at step 1, first for prompt 3 (ValueError: no way)"
        in record.message
    )
    assert record.exc_info[0] is ValueError


def test_a_function_that_fails_on_everything_ends_the_run_with_its_reason():
    def needs_gold(completions, gold):
        return [0.0] * len(completions)

    with pytest.raises(RunError) as caught:
        score(needs_gold)
    message = str(caught.value)
    assert message.startswith("reward function 'f' failed on all 4 completions at step 4 (TypeError: ")
    assert "called as f(prompts=[…], completions=[…], completion_ids=[…], problem=[…], answer=[…])" in message
    assert "\n" not in message
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize("returned", [None, 1.0, torch.tensor(1.0)])
def test_something_that_is_no_list_ends_the_run(returned):
    with pytest.raises(RunError, match="failed on all 4 completions"):
        score(lambda **columns: returned)


@pytest.mark.parametrize("count", [0, 3, 5])
def test_a_wrong_number_of_scores_ends_the_run(count):
    with pytest.raises(RunError, match=f"'f' returned {count} scores for 4 completions"):
        score(lambda **columns: [0.0] * count)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_a_reward_error(error):
    with pytest.raises(error):
        score(raising_on({"a"}, error()))


def test_async_functions_are_awaited_on_one_loop_for_the_whole_run():
    loops = []

    async def judge(completions, **columns):
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        if "bb" in completions:
            raise ValueError("no")
        return [float(len(c)) for c in completions]

    class Judge:
        async def __call__(self, completions, **columns):
            return await judge(completions, **columns)

    for function in (judge, Judge()):
        scorer = Scorer([RewardFunction("f", function)])
        for step in (1, 2):
            groups, _ = scorer.score(ROLLOUTS, step)
            np.testing.assert_array_equal(groups[0].rewards["f"], [1.0, math.nan])
        assert len(set(loops)) == 1
        scorer.close()
        assert loops[0].is_closed()
        loops.clear()


def test_a_function_that_edits_its_arguments_does_not_change_what_others_see():
    def vandal(completions, answer, **columns):
        completions[:] = ["x"] * len(completions)
        answer.clear()
        return [0.0] * len(completions)

    groups, _ = Scorer(load_rewards([vandal, length])).score(ROLLOUTS, 0)
    assert [g.rewards["length"] for g in groups] == [(1.0, 2.0), (3.0, 4.0)]


def test_the_metrics_are_those_documented_and_add_up_over_ranks():
    rollouts = [
        rollout_of(0, ["a", "bbb"], reasons=["stop", "length"]),
        rollout_of(1, ["cc", "cc"]),
        rollout_of(2, ["ddddd", "d"], lengths=[6, 2]),
    ]
    whole = score(length, rollouts)[2]
    first, second = score(length, rollouts[:1])[2], score(length, rollouts[1:])[2]
    defined = {metric.name for metric in definitions() if metric.part == "rewards"}
    found = {"train/" + name.replace("/f/", "/<name>/") for name in whole}
    assert found == defined - {"train/reward/logged/<name>"}
    expected = {
        "rewards/f/mean": 14 / 6,
        "rewards/f/std": (math.sqrt(2) + 0 + math.sqrt(8)) / 3,
        "completions/mean_length_sampled": 16 / 6,
        "completions/min_length_sampled": 1,
        "completions/max_length_sampled": 6,
        "completions/mean_length_terminated": 13 / 5,
        "completions/clipped_frac": 1 / 6,
        "reward/errors": 0,
        "reward/timeouts": 0,
        "reward/unscored": 0,
    }
    for name, number in expected.items():
        assert value(whole, name) == pytest.approx(number, rel=1e-12)
        a, b = first[name], second[name]
        combine = {"min": torch.minimum, "max": torch.maximum}.get(whole[name].kind, torch.add)
        assert torch.isclose(combine(a.value, b.value), whole[name].value)


def test_task_rows_are_scored_right_by_their_own_answers_and_wrong_otherwise():
    from maxent_grpo.tasks.registry import load_rows

    rows = load_rows("arithmetic", "train", "train_size=4")
    rollouts = [rollout_of(i, [row["answer"], "no idea"], **row) for i, row in enumerate(rows)]
    groups, metrics = Scorer(load_rewards(["task_reward"])).score(rollouts, 0)
    assert [g.utilities for g in groups] == [(1.0, 0.0)] * 4
    assert value(metrics, "rewards/task_reward/mean") == 0.5


@pytest.mark.parametrize("chat", [False, True])
def test_a_thought_that_the_prompts_template_opens_is_part_of_what_tag_rewards_read(chat):
    text = "3 plus 4 is 7.\n</think>\n<answer>\n7\n</answer>"
    opened, plain = rollout_of(7, [text]), rollout_of(7, [text])
    messages = [{"role": "user", "content": "3+4="}] if chat else None
    opened = replace(opened, prompt=replace(opened.prompt, text="<|a|>\n<think>\n", messages=messages))
    plain = replace(plain, prompt=replace(plain.prompt, messages=messages))
    names = ["format", "tag_count", "pure_accuracy_math", "repetition_penalty"]
    scorer = Scorer(load_rewards(names))
    groups, _ = scorer.score([opened, plain], step=1)
    assert [groups[0].rewards[name] for name in names[:3]] == [(1.0,)] * 3
    assert [groups[1].rewards[name] for name in names[:3]] == [(0.0,), (0.75,), (0.0,)]
    assert groups[0].rewards["repetition_penalty"] == groups[1].rewards["repetition_penalty"]
