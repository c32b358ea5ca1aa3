"""Rows, the configuration string, and the reward in TRL's signature."""

import json
from typing import ClassVar

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.tasks.registry import TASKS, grade_response, load_rows, task_reward
from maxent_grpo.tasks.task import Problem, Verdict


@pytest.mark.parametrize("name", TASKS)
def test_rows_hold_everything_that_grading_needs(name):
    rows = load_rows(name, "train", "train_size=20")
    assert len(rows) == 20
    for row in rows:
        assert set(row) == {"problem", "answer", "modes", "task", "facts"}
        assert grade_response(row["task"], row["answer"], row["facts"]).mode in row["modes"]
        assert json.loads(json.dumps(row)) == row


def test_default_sizes_and_the_pool_where_it_is_smaller():
    assert [len(load_rows("graph_coloring", split)) for split in ("train", "eval", "control")] == [
        192,
        96,
        96,
    ]
    assert [len(load_rows("countdown", split)) for split in ("train", "eval", "control")] == [44, 34, 96]


def test_test_and_validation_are_the_eval_split():
    rows = load_rows("arithmetic", "eval", "seed=3")
    assert (
        load_rows("arithmetic", "test", "seed=3")
        == rows
        == load_rows("arithmetic", "validation", " seed = 3, ")
    )
    assert load_rows("arithmetic", "eval", "seed=4") != rows


def test_options_reach_the_task():
    rows = load_rows("countdown", "eval", "numbers=3,modes=tree,eval_size=5,train_size=7")
    assert len(rows) == 5
    assert json.loads(rows[0]["facts"])["modes"] == "tree"
    assert any("-" in row["problem"] for row in load_rows("arithmetic", "train", "operations=+-,largest=9"))


@pytest.mark.parametrize(
    ("name", "split", "config", "message"),
    [
        (
            "countdwn",
            "train",
            "",
            r"task: there is no 'countdwn' \(did you mean countdown\?\); known: countdown, gr.*; your own: module:NAME",
        ),
        ("countdown", "dev", "", "task 'countdown' has no split 'dev': use one of train, eval"),
        (
            "countdown",
            "train",
            "number=4",
            r"'number=4': unknown key \(did you mean numbers\?\): the keys are seed",
        ),
        ("countdown", "train", "numbers=5", "'numbers=5': numbers is one of 3, 4"),
        ("countdown", "train", "numbers", "'numbers' is not key=value"),
        ("countdown", "train", "seed=-1", "seed is a whole number of at least 0"),
        ("countdown", "train", "seed=²", "seed is a whole number"),
        ("countdown", "train", "train_size=0", "train_size is a whole number of at least 1"),
        ("countdown", "train", "seed=1,seed=2", "seed is given twice"),
        (
            "countdown",
            "train",
            "train_size=100",
            "has only 44 train problems with these options; .*numbers=4",
        ),
        ("graph_coloring", "train", "numbers=4", "unknown key: the keys are seed, train_size"),
    ],
)
def test_a_bad_request_is_refused_with_its_remedy(name, split, config, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_rows(name, split, config)
    assert "\n" not in str(caught.value)


def test_task_reward_reads_text_and_chats_and_ignores_other_columns():
    row = load_rows("arithmetic", "train")[0]
    right, wrong = row["answer"], row["answer"] + "0"
    chats = [[{"role": "assistant", "content": text}] for text in (right, wrong)]
    columns = {
        "task": ["arithmetic"] * 2,
        "facts": [row["facts"]] * 2,
        "prompts": ["", ""],
        "trainer_state": None,
    }
    assert task_reward(completions=[right, wrong], **columns) == [1.0, 0.0]
    assert task_reward(completions=chats, **columns) == [1.0, 0.0]


def test_task_reward_refuses_columns_of_another_length():
    with pytest.raises(ValueError, match="zip"):
        task_reward([], ["arithmetic"], ["{}"])


class Parity:
    """Is a number odd? A task that stands outside the package."""

    name = "parity"
    default_sizes: ClassVar = {"train": 4, "eval": 2, "control": 2}
    choices: ClassVar = {}

    def problems(self, split, size, seed):
        return [Problem(f"{n}?", str(n % 2), (str(n % 2),), {"n": n}) for n in range(seed, seed + size)]

    def grade(self, response, facts):
        right = response.strip() == str(facts["n"] % 2)
        return Verdict(right, response.strip() if right else None)

    def spell(self, mode, facts):
        return mode


def test_a_task_of_ones_own_is_named_by_its_module():
    name = f"{__name__}:Parity"
    rows = load_rows(name, "train", "seed=3")
    assert [row["answer"] for row in rows] == ["1", "0", "1", "0"]
    assert rows[0]["task"] == name
    texts, columns = ["1", "1", "1", "0"], {key: [row[key] for row in rows] for key in ("task", "facts")}
    assert task_reward(texts, **columns) == [1.0, 0.0, 1.0, 1.0]
    with pytest.raises(UsageError, match="must name a task"):
        load_rows("json:dumps", "train")
