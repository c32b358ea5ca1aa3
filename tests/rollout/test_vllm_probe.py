"""What is found out about a server before it is asked for anything."""

import socket
import time
from dataclasses import replace
from typing import Any

import pytest
from served import KEY, PROMPTS, SETTINGS, sampler_of

from maxent_grpo.errors import UsageError
from maxent_grpo.rollout.vllm.connection import GenerationServiceError
from vllm_stand_in import Asked, completions, serving


def test_no_server_is_an_error_that_says_what_to_do(tokenizer: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(
        GenerationServiceError,
        match=r"not healthy within 0\.3 s .*ConnectError.*start it with `vllm serve MODEL`",
    ) as caught:
        sampler_of(url, tokenizer).check()
    assert time.monotonic() - started < 5
    assert caught.value.payload["status_code"] is None
    assert caught.value.payload["exception_type"] == "ConnectError"


@pytest.mark.parametrize(
    ("models", "wanted", "message"),
    [
        (("tiny",), "big", "it does not serve 'big'; it serves tiny: set vllm_model to the right one"),
        (("a", "b"), None, "no model is named and it serves several; it serves a, b"),
    ],
)
def test_another_model_is_refused_at_the_start(
    models: Any, wanted: Any, message: str, tokenizer: Any
) -> None:
    with serving(models=models) as server, pytest.raises(GenerationServiceError, match=message):
        sampler_of(server.url, tokenizer, model=wanted).check()


def test_what_is_found_out_at_the_start(tokenizer: Any) -> None:
    with serving() as server:
        info = sampler_of(server.url, tokenizer).check(SETTINGS)
        assert (info.protocol, info.model, info.max_model_len, info.logprobs_mode) == (
            "openai",
            "tiny",
            64,
            "raw",
        )
    with serving(openai=False) as server:
        assert sampler_of(server.url, tokenizer).check().protocol == "trl"


def test_a_server_without_the_echo_is_refused_at_the_start(tokenizer: Any) -> None:
    refusal = r"does not echo client_tag='mine' \(policy strict\); start vLLM with `--middleware"
    with serving(completions) as server:
        with pytest.raises(GenerationServiceError, match=refusal):
            sampler_of(server.url, tokenizer, client_tag="mine", tag_policy="strict").check(SETTINGS)
        sampler_of(server.url, tokenizer, client_tag="mine", tag_policy="lenient").check(SETTINGS)


def processed(asked: Asked) -> dict[str, Any]:
    """A server with --logprobs-mode processed_logprobs: one token left to choose from has log-prob 0."""
    reply = completions(asked)
    if asked.body["top_k"] == 1:
        reply["choices"][0]["logprobs"]["token_logprobs"] = [0.0]
    return reply


def certain(asked: Asked) -> dict[str, Any]:
    """A policy that is sure of its first token, so that nothing can be told from it."""
    reply = completions(asked)
    reply["choices"][0] |= {"token_ids": [0], "finish_reason": "length"}
    reply["choices"][0]["logprobs"] = {"token_logprobs": [0.0]}
    return reply


@pytest.mark.parametrize(
    ("script", "mode", "settings", "message"),
    [
        (completions, "raw", {}, None),
        (completions, "raw", {"top_p": 0.9}, None),
        (completions, "raw", {"temperature": 0.0}, None),
        (completions, "raw", {"temperature": 0.7}, "start it with --logprobs-mode processed_logprobs"),
        (completions, "raw", {"temperature": 0.7, "for_learning": False}, None),
        (processed, "processed", {}, None),
        (processed, "processed", {"temperature": 0.7}, None),
        (processed, "processed", {"top_k": 5}, "start it with --logprobs-mode raw_logprobs, or drop top_p"),
        (
            processed,
            "processed",
            {"temperature": 0.7, "min_p": 0.1},
            "use temperature 1, or drop the truncation",
        ),
        (certain, None, {}, None),
        (certain, None, {"temperature": 0.7}, "processed_logprobs"),
        (certain, None, {"top_p": 0.9}, "raw_logprobs"),
    ],
)
def test_log_probs_other_than_the_learners_are_refused(
    script: Any, mode: str | None, settings: dict[str, Any], message: str | None, tokenizer: Any
) -> None:
    with serving(script) as server:
        sampler = sampler_of(server.url, tokenizer)
        asked = replace(SETTINGS, **settings)
        if message is None:
            assert sampler.check(asked).logprobs_mode == mode
        else:
            with pytest.raises(UsageError, match=message):
                sampler.check(asked)


def test_a_prompt_that_the_server_cannot_hold_is_named(tokenizer: Any) -> None:
    long = replace(PROMPTS[0], index=41, token_ids=(3,) * 59)
    with serving(max_model_len=64) as server:
        with pytest.raises(UsageError, match=r"prompt 41 has 59 tokens .* max_prompt_length to 58"):
            sampler_of(server.url, tokenizer).sample([*PROMPTS, long], SETTINGS, KEY, 0)
        assert server.generations == []
