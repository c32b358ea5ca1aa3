"""Reward functions in worker processes: what a completion can break, and that it breaks nothing else."""

import math
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from maxent_grpo.errors import RunError
from maxent_grpo.rewards import isolation
from maxent_grpo.rewards.isolation import Isolation, IsolationSettings, RewardTimeoutError, WorkerDiedError
from maxent_grpo.rewards.registry import Location, RewardFunction, load_rewards
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.types import Prompt, Rollout

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


@pytest.fixture
def scorer_of():
    """Makes scorers of functions of `hostile_functions`, and ends their workers."""
    made = []

    def make(*names, rowwise=False, timeout=1.0, memory_mb=1024, workers=1, max_steps=0):
        functions = load_rewards([f"hostile_functions:{name}" for name in names])
        functions = [RewardFunction(f.name, f.function, 1.0, f.location, rowwise) for f in functions]
        made.append(
            Scorer(functions, False, Isolation(IsolationSettings(timeout, memory_mb, workers)), max_steps)
        )
        return made[-1]

    yield make
    for scorer in made:
        scorer.close()


def rollouts_of(*groups):
    return [
        Rollout(
            Prompt(i, f"Q{i}", (i,), {"answer": str(i)}),
            ((0,),) * len(t),
            ((0.0,),) * len(t),
            tuple(t),
            ("stop",) * len(t),
            0,
        )
        for i, t in enumerate(groups)
    ]


def scores_of(scorer, *groups, **how):
    scored, metrics = scorer.score(rollouts_of(*groups), 1, **how)
    (name,) = scored[0].rewards
    return [s for group in scored for s in group.rewards[name]], metrics


def count(metrics, name):
    return float(metrics[f"reward/{name}"].value)


HOSTILE = ["exit", "sys.exit", "segfault", "memory", "raise", "recursion", "nan"]


def test_what_breaks_a_worker_costs_its_completion_the_score_and_nothing_else(scorer_of):
    scorer = scorer_of("obey")
    scores, metrics = scores_of(
        scorer, ["fine", "sleep", "none", "also fine"], ["spin", "good"], HOSTILE, ["print"]
    )
    nan = math.nan
    np.testing.assert_array_equal(scores, [4, nan, nan, 9, nan, 4, *[nan] * len(HOSTILE), 5])
    assert count(metrics, "timeouts") == 2
    assert count(metrics, "errors") == 2 + len(HOSTILE)
    assert count(metrics, "unscored") == 3 + len(HOSTILE)


def test_a_kept_verdict_is_not_asked_for_again_and_a_hang_hangs_once(scorer_of):
    scorer = scorer_of("obey", rowwise=True, timeout=0.5)
    began = time.monotonic()
    scores, metrics = scores_of(scorer, ["sleep"] * 40 + ["a", "a", "bb"])
    again, _ = scores_of(scorer, ["a", "sleep"])
    assert time.monotonic() - began < 15
    np.testing.assert_array_equal(scores, [math.nan] * 40 + [1, 1, 2])
    np.testing.assert_array_equal(again, [1, math.nan])
    assert count(metrics, "timeouts") == 40  # every completion that lost its score, kept verdict or not
    assert scorer.cache_hits == 39 + 1 + 2


def test_a_verdict_begun_early_is_the_same_and_is_asked_for_once(scorer_of):
    scorer = scorer_of("obey", rowwise=True, timeout=0.5)
    for rollout in rollouts_of(["bb", "sleep", "bb"]):
        scorer.begin(rollout, step=1)
    scores, metrics = scores_of(scorer, ["bb", "sleep", "bb", "a"])
    np.testing.assert_array_equal(scores, [2, math.nan, 2, 1])
    assert count(metrics, "timeouts") == 1
    assert scorer.cache_hits == 1  # the second "bb"


def test_nothing_is_begun_of_functions_that_see_the_group_or_run_here(scorer_of):
    assert not scorer_of("compare").begins_early
    assert not Scorer([RewardFunction("here", lambda completions, **_: [0.0], 1.0)]).begins_early


def test_the_cache_is_bounded(scorer_of, monkeypatch):
    monkeypatch.setattr(isolation, "CACHE_SIZE", 2)
    scorer = scorer_of("obey", rowwise=True)
    scores_of(scorer, ["a", "b", "c", "a", "c"])
    assert scorer.cache_hits == 1  # c; a had been given up for c
    assert len(scorer._isolation._verdicts) == 2


@pytest.mark.parametrize("rowwise", [False, True])
def test_scores_do_not_depend_on_the_number_of_workers(scorer_of, rowwise):
    groups = [["a", "bb", "exit"], ["ccc", "sleep", "dddd"], ["a", "bb", "exit"]]
    draws = ["draw" if not rowwise else "obey"]
    one, _ = scores_of(scorer_of(*draws, rowwise=rowwise, timeout=0.5), *groups)
    three, _ = scores_of(scorer_of(*draws, rowwise=rowwise, timeout=0.5, workers=3), *groups)
    np.testing.assert_array_equal(one, three)


def test_a_function_that_compares_sees_a_whole_group_and_only_it(scorer_of):
    scores, _ = scores_of(
        scorer_of("compare", workers=2), ["a", "bb", "ccc", "dddd"], ["a", "raise"], ["x", "xx"]
    )
    np.testing.assert_array_equal(scores, [0, 0.25, 0.5, 0.75, 0, math.nan, 0, 0.5])


def test_isolated_functions_may_name_what_trl_passes_and_may_be_async(scorer_of):
    scorer = scorer_of("report", max_steps=100)
    scores, metrics = scores_of(scorer, ["a", "bb"], ["ccc"])
    assert scores == [0.1] * 3
    stat = metrics["reward/logged/characters"]
    assert float(stat.value / stat.weight) == 3.0  # the mean over two calls
    assert scores_of(scorer, ["a"], is_eval=True)[0] == [1.6]
    assert scores_of(scorer_of("later"), ["a", "bb"])[0] == [1.0, 2.0]


def test_a_wrong_number_of_scores_ends_the_run(scorer_of):
    with pytest.raises(RunError, match="'miscount' returned 3 scores for 2 completions"):
        scores_of(scorer_of("miscount"), ["a", "b"])


def test_a_function_that_raises_on_everything_ends_the_run_and_a_step_of_hangs_does_not(scorer_of):
    with pytest.raises(
        RunError, match=r"'obey' failed on all 2 .* \(RewardRaisedError: ValueError: no way\)"
    ):
        scores_of(scorer_of("obey"), ["raise", "raise"])
    scores, metrics = scores_of(scorer_of("obey", timeout=0.3), ["sleep", "exit"])
    assert np.isnan(scores).all()
    assert (count(metrics, "timeouts"), count(metrics, "errors")) == (1, 2)


@pytest.mark.parametrize(
    "text",
    [
        "10^{10^{10}}",
        "(" * 5000,
        "\\frac{" * 5000,
        "9" * 1_000_000,
        "a\0b",
        "\u202eabc\u05d0",
        "\ud800",
        "",
        "\\boxed{" * 3000,
    ],
    ids=["tower", "parentheses", "fractions", "digits", "null", "rtl", "surrogate", "empty", "boxes"],
)
def test_any_text_reaches_a_worker_unchanged(scorer_of, text):
    assert scores_of(scorer_of("obey"), [text, "x"])[0] == [len(text), 1.0]


def test_trls_own_rewards_run_unchanged_on_conversational_prompts():
    from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

    texts = [r"<think>a</think> so \boxed{\frac{1}{2}}", r"\boxed{0.25}", "a b a b a b"]
    chat = [{"role": "user", "content": "half?"}]
    prompt = Prompt(0, "user: half?", (1,), {"solution": r"$\frac{1}{2}$"}, messages=chat)
    rollout = Rollout(prompt, ((1,) * 4, (1,) * 9, (1,) * 20), ((0.0,),) * 3, tuple(texts), ("stop",) * 3, 0)
    overlong = get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=5)
    repetition = get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0)
    rewards = load_rewards(["trl.rewards:accuracy_reward", think_format_reward, overlong, repetition])
    assert [reward.isolated for reward in rewards] == [True, False, False, False]
    scorer = Scorer(rewards, isolation=Isolation(IsolationSettings(timeout=60.0)))
    try:
        (group,), metrics = scorer.score([rollout], 1)
    finally:
        scorer.close()
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    ids = [list(row) for row in rollout.token_ids]
    assert group.rewards["accuracy_reward"] == (1.0, 0.0, 0.0)
    assert group.rewards["think_format_reward"] == tuple(think_format_reward(messages)) == (1.0, 0.0, 0.0)
    assert list(group.rewards.values())[2] == tuple(overlong(completion_ids=ids))
    assert list(group.rewards.values())[3] == tuple(repetition(completions=messages, completion_ids=ids))
    assert count(metrics, "errors") == 0


def test_a_worker_has_no_torch_and_starts_soon():
    program = "import maxent_grpo.rewards.worker, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shown.stdout.split() == ["False", "False"]
    assert (
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5
    )  # CPU: the machine may be busy


def test_a_closed_pool_leaves_no_process(scorer_of):
    scorer = scorer_of("leave_child", "where")
    groups, _ = scorer.score(rollouts_of(["a"]), 1)
    pids = [int(group.rewards[name][0]) for group in groups for name in ("leave_child", "where")]
    assert all(map(alive, pids))
    scorer.close()
    assert gone(pids)


@pytest.mark.parametrize("end", ["return", "raise SystemError", "SIGTERM", "SIGKILL"])
def test_workers_end_with_the_process_that_started_them(tmp_path, end):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(HERE)!r})
        from maxent_grpo.rewards.isolation import Isolation, IsolationSettings
        from maxent_grpo.rewards.registry import CallContext
        from maxent_grpo.rewards.registry import load_rewards
        rewards = load_rewards(["hostile_functions:where", "hostile_functions:obey"])
        isolation = Isolation(IsolationSettings(timeout=100, workers=2))
        rows = [slice(0, 1)]
        pid = isolation.submit(rewards[0], {{"completions": ["a"]}}, rows, CallContext()).scores().values[0]
        isolation.submit(rewards[1], {{"completions": ["spin"]}}, rows, CallContext())
        isolation.submit(rewards[1], {{"completions": ["sleep"]}}, rows, CallContext())
        pids = {{int(pid)}}
        while len(pids) < 2:
            time.sleep(0.01)
            pids |= {{k._worker._process.pid for k in isolation._pool._keepers if k._worker}}
        print(*pids, flush=True)
        {"time.sleep(100)" if end.startswith("SIG") else end if end != "return" else "pass"}
        """)
    )
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(set(pids)) == 2
    if end.startswith("SIG"):
        process.send_signal(getattr(signal, end))
    process.communicate(timeout=20)
    assert gone(pids)


def test_a_script_without_a_main_guard_can_use_workers(tmp_path):
    # As every TRL script is written: what starts workers must not run the script again in each of them.
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(HERE)!r})
        print("started")
        from maxent_grpo.rewards.isolation import Isolation, IsolationSettings
        from maxent_grpo.rewards.registry import CallContext
        from maxent_grpo.rewards.registry import load_rewards
        (reward,) = load_rewards(["hostile_functions:obey"])
        isolation = Isolation(IsolationSettings())
        print(isolation.submit(reward, {{"completions": ["abc"]}}, [slice(0, 1)], CallContext()).scores().values)
        isolation.close()
        """)
    )
    shown = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=30)
    assert shown.stdout.split("\n")[:2] == ["started", "(3.0,)"]


def test_errors_tell_a_deadline_from_a_crash():
    pool = Isolation(IsolationSettings(timeout=0.3, workers=1))
    (reward,) = load_rewards(["hostile_functions:obey"])
    assert reward.location == Location("hostile_functions:obey")
    from maxent_grpo.rewards.registry import CallContext

    try:
        pending = pool.submit(
            reward, {"completions": ["sleep", "exit"]}, [slice(0, 1), slice(1, 2)], CallContext()
        )
        first, second = pending.scores().errors.values()
    finally:
        pool.close()
    assert isinstance(first, RewardTimeoutError)
    assert str(first) == "no score within 0.3 s"
    assert isinstance(second, WorkerDiedError)
    assert str(second) == "the worker exited with code 3"


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids):
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))
