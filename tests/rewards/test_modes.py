"""Answer modes of right completions: which rule gives the key, and how keys become numbers of a batch."""

import json
import logging
import math
from dataclasses import asdict

import pytest
import torch

from maxent_grpo.errors import UsageError
from maxent_grpo.rewards.isolation import Isolation, IsolationSettings
from maxent_grpo.rewards.modes import load_mode_key
from maxent_grpo.rewards.registry import RewardOptions, load_rewards
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.tasks.registry import find_task, load_rows
from maxent_grpo.train.checkpoint import group_from_json
from maxent_grpo.train.collate import collate
from maxent_grpo.types import Prompt, Rollout


def rollout_of(texts, **columns):
    prompt = Prompt(0, "Q", (1, 2), columns)
    lengths = [max(1, len(text)) for text in texts]
    return Rollout(
        prompt=prompt,
        token_ids=tuple((3,) * n for n in lengths),
        logps=tuple((0.0,) * n for n in lengths),
        texts=tuple(texts),
        finish_reasons=("stop",) * len(texts),
        policy_version=0,
    )


def groups_of(rollouts, rewards, **settings):
    scorer = Scorer(load_rewards(rewards), **settings)
    try:
        return scorer.score(rollouts, 1)[0]
    finally:
        scorer.close()


def modes(texts, rewards, mode_key=None, **columns):
    return groups_of([rollout_of(texts, **columns)], rewards, mode_key=mode_key)[0].modes


def everything_is_right(completions, **columns):
    return [1.0] * len(completions)


def not_none(completions, **columns):
    return [None if "none" in c else float("no" not in c) for c in completions]


def test_a_tasks_verifier_names_the_right_answers_and_only_those():
    row = next(r for r in load_rows("graph_coloring", "train", "train_size=8") if len(r["modes"]) > 1)
    task = find_task("graph_coloring")
    first, second = (task.spell(mode, json.loads(row["facts"])) for mode in row["modes"][:2])
    found = modes([first, "no colours", f" {second} ", first], ["task_reward"], **row)
    assert found == (row["modes"][0], None, row["modes"][1], row["modes"][0])


BOX = r"\boxed{%s}"


def test_of_a_list_of_golds_the_first_that_equals_the_answer_by_value_is_the_key():
    texts = [BOX % text for text in ("0.5", r"\frac{1}{2}", "3", "2", "x")]
    found = modes(texts, ["boxed_accuracy_math"], answer=["3", "1/2", "0.50", 2])
    assert found == ("1/2", "1/2", "3", "2", None)


def test_right_answers_of_one_gold_are_one_mode():
    texts = [BOX % text for text in ("0.5", r"\frac{1}{2}", "3")]
    assert modes(texts, ["boxed_accuracy_math"], answer="1/2") == ("1/2", "1/2", None)


def test_a_list_that_is_one_answer_is_one_mode():
    rewards = load_rewards(
        ["boxed_accuracy_math"], options=RewardOptions({"grader_policy": {"gold_list": "all"}})
    )
    scorer = Scorer(rewards)
    rollout = rollout_of([BOX % "1, 2", BOX % "2, 1", BOX % "1"], answer=["1", "2"])
    (group,), _ = scorer.score([rollout], 1)
    scorer.close()
    assert group.right == (True, True, False)
    assert group.modes == ("1, 2", "1, 2", None)


def test_a_users_reward_with_a_list_of_golds_is_matched_by_value_and_else_by_text():
    texts = ["Texas", "I name\nCalifornia.", "<answer>Ohio</answer>", "a long\nstory"]
    found = modes(texts, [everything_is_right], answer=["California", "Texas"])
    assert found == ("Texas", "California", "Ohio", None)


def test_without_golds_the_answers_text_is_the_key():
    texts = [r"so \boxed{a  b}", "<answer>a b</answer>", "The answer is: c.", "no", "two\nlines"]
    assert modes(texts, [not_none]) == ("a b", "a b", "c", None, None)


def test_a_completion_without_a_score_has_no_mode_and_a_group_without_a_judge_has_none():
    assert modes(["none", "x"], [not_none]) == (None, "x")
    (group,) = groups_of([rollout_of(["x", "y"])], [everything_is_right, not_none])
    assert group.right is None
    assert group.modes is None


def own(text, columns):
    return None if text == "nothing" else f"{columns['kind']}:{text[0]}"


def test_a_users_function_names_every_right_answer_whatever_the_row(tmp_path, monkeypatch):
    row = load_rows("arithmetic", "train", "train_size=1")[0]
    found = modes(["ab", "ac", "nothing", "no"], [not_none], mode_key=own, kind="k", **row)
    assert found == ("k:a", "k:a", None, None)
    (tmp_path / "own_modes.py").write_text("def length(text, columns):\n    return str(len(text))\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_mode_key(None) is None
    assert load_mode_key("own_modes:length")("abc", {}) == "3"
    with pytest.raises(UsageError, match="mode_key: module 'own_modes' has no 'size'"):
        load_mode_key("own_modes:size")


def test_a_users_function_that_fails_costs_that_completion_its_key_and_is_logged_once(caplog):
    def bad(text, columns):
        return {"i": 3}.get(text, text) if text != "x" else {}["gone"]

    with caplog.at_level(logging.WARNING):
        assert modes(["x", "i", "fine", "x"], [not_none], mode_key=bad) == (None, None, "fine", None)
    assert [r.getMessage() for r in caplog.records if "mode_key failed" in r.getMessage()] == [
        "mode_key failed on a completion, which therefore counts for no mode (KeyError: 'gone'); further failures are "
        "not logged"
    ]


def test_a_comparison_that_is_lost_leaves_no_key():
    """A worker without memory answers nothing: no key is better than a wrong one."""
    isolation = Isolation(IsolationSettings(timeout=30.0))
    scorer = Scorer(load_rewards(["accuracy"]), isolation=isolation)
    rollout = rollout_of(["1"], answer=["1", "2"])
    answers = iter([(math.nan, 0.0), (math.nan, 1.0), (0.0, 0.0)])
    keys = [scorer._modes([rollout], [(True,)], lambda *_: next(answers))[0] for _ in range(3)]
    scorer.close()
    assert keys == [(None,), ("2",), ("1, 2",)]


def test_modes_are_kept_by_originals_and_by_the_json_of_checkpoints():
    (group,) = groups_of([rollout_of(["a", "no", "b"])], [not_none])
    assert group.originals().modes == ("a", None, "b")
    assert group_from_json(asdict(group)) == group


def test_a_batch_numbers_known_modes_first_then_new_ones_both_sorted():
    groups = groups_of([rollout_of(["b", "no", "c", "a", "c"]), rollout_of(["no"] * 5)], [not_none])
    plain = collate(groups, pad_id=0, on_policy=True)
    assert plain.modes.tolist() == [[1, -1, 2, 0, 2], [-1] * 5]
    assert plain.mode_history is None
    batch = collate(groups, pad_id=0, on_policy=True, histories=[{"d": 4, "c": 2}, {"z": 1}])
    assert batch.modes.tolist() == [[3, -1, 0, 2, 0], [-1] * 5]
    assert batch.mode_history.tolist() == [[2, 4, 0, 0], [1, 0, 0, 0]]
    second = batch.select([1])
    assert second.modes.tolist() == [[-1] * 5]
    assert second.mode_history.tolist() == [[1, 0, 0, 0]]
    assert torch.equal(batch.to(torch.device("cpu")).mode_history, batch.mode_history)


def test_a_batch_without_a_judge_has_no_modes():
    groups = groups_of([rollout_of(["x", "y"])], [everything_is_right, not_none])
    assert collate(groups, pad_id=0, on_policy=True, histories=[{}]).modes is None
