"""From names to reward functions, and what a wrong name is told."""

import functools
import math

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.rewards.math import pure_accuracy_math
from maxent_grpo.rewards.registry import correctness_of, load_rewards


def brief(completions, **columns):
    return [1.0 / (1 + len(c)) for c in completions]


class Judge:
    def __call__(self, completions, **columns):
        return [0.0] * len(completions)


def test_names_paths_and_callables_are_loaded_in_order_with_their_weights():
    rewards = load_rewards(["pure_accuracy_math", "statistics:mean", brief, Judge()], [1, 0.5, -2.0, 0])
    assert [(r.name, r.weight) for r in rewards] == [
        ("pure_accuracy_math", 1.0),
        ("mean", 0.5),
        ("brief", -2.0),
        ("Judge", 0.0),
    ]
    assert rewards[0].function is pure_accuracy_math


def test_without_weights_each_function_weighs_one():
    assert [r.weight for r in load_rewards(["pure_accuracy_math", functools.partial(brief, scale=2)])] == [
        1.0,
        1.0,
    ]


def test_the_reward_of_the_procedural_tasks_is_known_by_name():
    (reward,) = load_rewards(["task_reward"])
    assert callable(reward.function)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "pure_acuracy_math",
            r"reward_funcs: there is no 'pure_acuracy_math' \(did you mean pure_accuracy_math\?\); known: ",
        ),
        ("zzz", r"there is no 'zzz'; known: .*task_reward, .*; your own: module:NAME"),
        (
            "no_such_module:score",
            r"'no_such_module' of .* cannot be imported \(ModuleNotFoundError: .*PYTHONPATH",
        ),
        ("math:no_such", r"module 'math' has no 'no_such'"),
        ("math:pi", r"'math:pi' must name a function, and is a float"),
        ("math:", "there is no 'math:'"),
        (3, "3 is neither a name nor a callable"),
    ],
)
def test_what_cannot_be_loaded_is_named_with_a_remedy(spec, said):
    with pytest.raises(UsageError, match=said) as caught:
        load_rewards([spec])
    assert "\n" not in str(caught.value)


def test_a_module_that_raises_on_import_is_a_usage_error(tmp_path, monkeypatch):
    (tmp_path / "broken_rewards.py").write_text("raise RuntimeError('two\\nlines')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UsageError, match=r"'broken_rewards' of .* cannot be imported \(RuntimeError: two lines\)"
    ):
        load_rewards(["broken_rewards:score"])


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, 1.0, 1.0]])
def test_weights_that_do_not_fit_are_never_replaced(weights):
    with pytest.raises(
        UsageError, match=rf"reward_weights has {len(weights)} entries for 2 reward functions"
    ):
        load_rewards(["pure_accuracy_math", brief], weights)


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused(weight):
    with pytest.raises(UsageError, match="the weight of 'brief' is"):
        load_rewards([brief], [weight])


def test_two_functions_of_one_name_and_no_function_are_refused():
    with pytest.raises(UsageError, match="two functions are called 'brief'"):
        load_rewards([brief, brief])
    with pytest.raises(UsageError, match="reward_funcs is empty"):
        load_rewards([])


def test_lambdas_partials_and_objects_of_one_name_are_told_apart():
    class Judge:
        def __call__(self, completions, **_):
            return [0.0] * len(completions)

    specs = [
        lambda completions, **_: [0.0],
        lambda completions, **_: [1.0],
        functools.partial(brief),
        Judge(),
        Judge(),
    ]
    names = [reward.name for reward in load_rewards([*specs, functools.partial(brief)])]
    assert names == ["<lambda>", "<lambda>_2", "brief", "Judge", "Judge_2", "brief_2"]
    with pytest.raises(UsageError, match="two functions are called 'Judge'"):
        load_rewards([specs[3], specs[3]])


@pytest.mark.parametrize(
    ("names", "asked", "judge"),
    [
        (["format", "accuracy", "gsm8k"], None, "accuracy"),
        (["format", "accuracy", "gsm8k"], "gsm8k", "gsm8k"),
        (["format", "binary_code"], None, "binary_code"),
        (["accuracy_reward", "own"], None, "accuracy_reward"),
        (["own"], None, "own"),
        (["own", "format"], None, None),
        (["own", "format"], "my.module:own", "own"),
    ],
)
def test_one_reward_tells_what_is_right(names, asked, judge):
    assert correctness_of(names, asked) == judge
