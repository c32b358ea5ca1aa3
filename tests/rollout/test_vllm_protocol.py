"""The answers of real servers, of their predecessors, and of nobody who means well."""

import math
from typing import Any

import pytest

from maxent_grpo.rollout.vllm.protocol import (
    Limits,
    MissingLogprobs,
    Output,
    ResponseError,
    parse,
)

LIMITS = Limits(vocabulary=100, max_tokens=4)
LOGPS = [-0.5, -1.5]
NAMED = ["token_id:7", "token_id:8"]
CANDIDATES = [[[3, 7], [8, 3]]]
SAME = {"token_ids": [7, 8], "finish_reason": "stop"}


def only(reply: dict[str, Any]) -> Output:
    (group,) = parse(reply, prompts=1, n=1, limits=LIMITS).groups
    (output,) = group
    return output


@pytest.mark.parametrize(
    "reply",
    [
        {"choices": [{**SAME, "logprobs": {"token_logprobs": LOGPS, "tokens": ["a", "b"]}}]},
        {"choices": [{"finish_reason": "stop", "logprobs": {"token_logprobs": LOGPS, "tokens": NAMED}}]},
        {"choices": [{**SAME, "logprobs": {"content": [{"token": "x", "logprob": p} for p in LOGPS]}}]},
        {"results": [{"outputs": [{**SAME, "logprobs": LOGPS}]}]},
        {"results": [{"completion_ids": [7, 8], "finish_reason": "stop", "token_logprobs": LOGPS}]},
        {"results": [{"outputs": [{"metadata": {**SAME, "token_logprobs": LOGPS, "logprob_sum": -2.0}}]}]},
        {"results": [{"outputs": [{**SAME, "output_token_logprobs": [[-0.5, 7, "a"], [-1.5, 8, "b"]]}]}]},
        {"results": [{"outputs": [{**SAME, "logprobs": [{"7": {"logprob": -0.5}}, {"8": {"logprob": -1.5}}]}]}]},
        {"completion_ids": [[7, 8]], "logprobs": [LOGPS]},
        {"completion_ids": [[7, 8]], "logprobs": [[[-0.5], [-1.5]]]},
        {"completion_ids": [[7, 8]], "logprobs": [[[-0.1, -0.5], [-1.5, -9.0]]], "logprob_token_ids": CANDIDATES},
        {"text": ["hi"], "token_ids": [[7, 8]], "logprobs": [LOGPS], "finish_reasons": ["stop"]},
    ],
)  # fmt: skip
def test_every_shape_gives_the_same_completion(reply: dict[str, Any]) -> None:
    found = only(reply)
    assert (found.token_ids, found.logps, found.finished) == ((7, 8), (-0.5, -1.5), "stop")


def flat(*indices: int | None, tokens: list[int] | None = None) -> dict[str, Any]:
    choices = []
    for place, index in enumerate(indices):
        choice = {"token_ids": [tokens[place] if tokens else 10 + place], "finish_reason": "stop"}
        choices.append(
            choice | {"logprobs": {"token_logprobs": [-1.0]}} | ({} if index is None else {"index": index})
        )
    return {"choices": choices}


def ids(reply: dict[str, Any], prompts: int, n: int) -> list[list[int]]:
    return [[output.token_ids[0] for output in group] for group in parse(reply, prompts, n, LIMITS).groups]


def test_singleton_groups_are_joined_prompt_by_prompt() -> None:
    assert ids(flat(0, 1, 2, 3), prompts=2, n=2) == [[10, 11], [12, 13]]
    assert ids(flat(None, None, None, None), prompts=2, n=2) == [[10, 11], [12, 13]]
    assert ids(flat(3, 2, 1, 0), prompts=2, n=2) == [[13, 12], [11, 10]]


def test_missing_completions_leave_gaps_where_indices_say_which() -> None:
    assert ids(flat(0, 3), prompts=2, n=2) == [[10], [11]]
    assert ids(flat(2), prompts=3, n=1) == [[], [], [10]]
    assert ids({"choices": []}, prompts=1, n=1) == [[]]


def test_indices_counted_over_more_than_the_answer_are_not_trusted() -> None:
    assert ids(flat(40, 41, 42, 43), prompts=2, n=2) == [[10, 11], [12, 13]]


def test_excess_completions_are_counted_and_left_out() -> None:
    parsed = parse(flat(0, 1, 2), prompts=2, n=1, limits=LIMITS)
    assert ([len(group) for group in parsed.groups], parsed.excess) == ([1, 1], 1)
    nested = {"results": [{"outputs": flat(None, None, None)["choices"]}] * 3}
    parsed = parse(nested, prompts=2, n=2, limits=LIMITS)
    assert ([len(group) for group in parsed.groups], parsed.excess) == ([2, 2], 1 + 1 + 3)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_wrong_number_of_groups_without_indices_is_an_error(count: int) -> None:
    with pytest.raises(ResponseError, match=f"{count} groups for 2 prompts of 2 completions each"):
        parse(flat(*[None] * count), prompts=2, n=2, limits=LIMITS)


def broken(**changes: Any) -> dict[str, Any]:
    choice = {**SAME, "logprobs": {"token_logprobs": LOGPS}} | changes
    return {"choices": [{name: value for name, value in choice.items() if value is not ...}]}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"data": 1, "error": 2}, r"neither choices, results, completion_ids nor text \(it holds data, error\)"),
        ({"choices": "no"}, "choices is not a list of objects"),
        ({"choices": [3]}, "choices is not a list of objects"),
        ({"text": ["hi"]}, "text without token ids"),
        ({"completion_ids": [[1]], "logprobs": [[-1.0], [-1.0]]}, "completion_ids has 1 entries and logprobs has 2"),
        (broken(token_ids=..., text="hi"), "a completion holds text without token ids"),
        (broken(token_ids=...), "no token ids"),
        (broken(token_ids=[7, "8"]), "token_ids is not a list of integers"),
        (broken(token_ids=[7, True]), "token_ids is not a list of integers"),
        (broken(token_ids=[7, 100]), "token id 100 is outside the vocabulary of 100: the server has another model"),
        (broken(token_ids=[7, -1]), "token id -1 is outside"),
        (broken(token_ids=[1, 2, 3, 4, 5]), "has 5 tokens, asked for were at most 4"),
        (broken(token_ids=[7]), "1 tokens and 2 log-probs"),
        (broken(finish_reason="length"), "ended for length after 2 of 4 tokens: the server's --max-model-len"),
        (broken(logprobs={"token_logprobs": [-0.5, math.nan]}), "a log-prob is nan, not a finite number"),
        (broken(logprobs={"token_logprobs": [-0.5, "low"]}), "a log-prob is low, not a finite number"),
        (broken(logprobs={"token_logprobs": [-0.5, 0.7]}), "a log-prob is 0.7, above 0"),
        (broken(prompt_token_ids="abc"), "prompt_token_ids is not a list of integers"),
        (broken(token_ids=..., logprobs={"tokens": ["token_id:" + "9" * 40]}), "is no token id"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(reply: dict[str, Any], message: str) -> None:
    with pytest.raises(ResponseError, match=message):
        parse(reply, prompts=1, n=1, limits=LIMITS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logprobs": None}, "comes with no log-probs"),
        ({"logprobs": ..., "cumulative_logprob": -2.0}, "only the sum of its log-probs"),
        ({"logprobs": {"token_logprobs": [-0.5, None]}}, "no log-probs"),
        (
            {"logprobs": [[-0.1, -0.5], [-0.2, -0.3]]},
            "no log-probs",
        ),  # candidates, and nothing says which was sampled
    ],
)
def test_missing_log_probs_are_an_error_of_their_own(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MissingLogprobs, match=message):
        only(broken(**changes))


@pytest.mark.parametrize("reason", ["abort", "error", None, 3])
def test_a_completion_that_was_cut_off_is_not_finished(reason: Any) -> None:
    assert only(broken(finish_reason=reason)).finished is None


def test_a_server_without_finish_reasons_is_read_by_length() -> None:
    full, short = (only({"completion_ids": [[1] * n], "logprobs": [[-1.0] * n]}).finished for n in (4, 3))
    assert (full, short) == ("length", "stop")


def test_rounding_above_zero_is_zero() -> None:
    assert only(broken(logprobs={"token_logprobs": [1e-7, -1.0]})).logps == (0.0, -1.0)
