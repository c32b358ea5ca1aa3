"""Whose answer it is: client tags, where one server answers several clients."""

import logging
from typing import Any

import pytest
from served import KEY, PROMPTS, SETTINGS, counts, sampler_of

from maxent_grpo.rollout.vllm.connection import GenerationServiceError
from vllm_stand_in import Asked, completions, echoing, serving


def test_two_ranks_get_their_own_groups_of_a_server_that_answers_for_both(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def for_everybody(asked: Asked) -> dict[str, Any]:
        mine, other = completions(asked, asked.tag), completions(asked, "rank-9-of-9")
        for choice in other["choices"]:
            choice["token_ids"] = [15]
            choice["logprobs"] = {"token_logprobs": [-1.0]}
        return {"model": "tiny", "choices": [*other["choices"], *mine["choices"], *other["choices"]]}

    with serving() as server:
        alone = sampler_of(server.url, tokenizer).sample(PROMPTS, SETTINGS, KEY, 0)
    with serving(for_everybody) as server, caplog.at_level(logging.DEBUG):
        for rank in range(2):
            tag = f"rank-{rank}-of-2"
            sampler = sampler_of(server.url, tokenizer, client_tag=tag, tag_policy="strict")
            assert sampler.sample(PROMPTS, SETTINGS, KEY, 0) == alone
            assert counts(sampler)["filtered_groups"] == 2 * 21
            asked = [a for a in server.generations if a.tag == tag]
            assert len(asked) == 20
            assert {a.body["client_tag"] for a in asked} == {tag}
    assert "Filtered 2 extraneous vLLM result groups for client_tag=rank-0-of-2" in caplog.messages


def test_a_server_without_echo_is_refused_at_the_start_under_the_strict_policy(tokenizer: Any) -> None:
    with serving(completions) as server:
        sampler = sampler_of(server.url, tokenizer, client_tag="rank-0-of-2", tag_policy="strict")
        with pytest.raises(
            GenerationServiceError,
            match=r"does not echo client_tag='rank-0-of-2' \(policy strict\); start vLLM with `--middleware "
            r"maxent_grpo\.rollout\.vllm\.client_tag\.EchoMiddleware`, or put maxent-grpo-vllm-proxy in front",
        ):
            sampler.check()
        assert len(server.requests) == 1  # fails fast
        assert sampler.info is None
        lenient = sampler_of(server.url, tokenizer, client_tag="rank-0-of-2", tag_policy="lenient").check()
        assert lenient.echoes_tag is False
    with serving(echoing) as server:
        strict = sampler_of(server.url, tokenizer, client_tag="rank-0-of-2", tag_policy="strict")
        assert strict.check().echoes_tag is True


@pytest.mark.parametrize(("fail_fast", "asked"), [(True, 1), (False, 3)])
def test_an_answer_for_others_alone_ends_the_run_at_once_or_after_retries(
    fail_fast: bool, asked: int, tokenizer: Any
) -> None:
    def for_others(asked: Asked) -> dict[str, Any]:
        return completions(asked, asked.tag if asked.prompts == [[0, 1]] else "rank-1-of-2")

    with serving(for_others) as server:
        sampler = sampler_of(
            server.url, tokenizer, client_tag="rank-0-of-2", tag_policy="strict", tag_fail_fast=fail_fast,
            max_retries=2, concurrency=1,
        )  # fmt: skip
        with pytest.raises(GenerationServiceError, match="all 1 groups of its answer carry other tags than"):
            sampler.sample(PROMPTS, SETTINGS, KEY, 0)
        assert len(server.generations) == asked
    assert counts(sampler)["client_tag_errors"] == asked
