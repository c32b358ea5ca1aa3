"""The server sampler against a scripted server: what it asks, what it makes of answers, how it fails."""

import json
import re
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from served import KEY, PROMPTS, SETTINGS, counts, sampler_of

from maxent_grpo.errors import RunError
from maxent_grpo.randomness import integer_seed
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.vllm.connection import GenerationServiceError
from maxent_grpo.rollout.weight_sync.control import SyncFailed, VLLMControl
from vllm_stand_in import LOGPS, Answer, Asked, completions, echoing, serving


@pytest.mark.parametrize("api", ["openai", "generate", "trl"])
def test_one_request_per_completion_and_every_completion_in_its_place(api: Any, tokenizer: Any) -> None:
    with serving() as server:
        sampler = sampler_of(server.url, tokenizer, api=api)
        rollouts = sampler.sample(PROMPTS, SETTINGS, KEY, policy_version=7)
        assert len(server.generations) == 20
    assert [rollout.prompt for rollout in rollouts] == PROMPTS
    for rollout in rollouts:
        assert len(set(rollout.token_ids)) > 1  # a group is not one completion over and over
        for ids, logps, reason in zip(rollout.token_ids, rollout.logps, rollout.finish_reasons, strict=True):
            assert list(logps) == pytest.approx([LOGPS[i] for i in ids], abs=1e-12)
            assert reason == ("stop" if ids[-1] == 15 else "length")
        assert rollout.policy_version == 7
        decoded = tokenizer.batch_decode([list(ids) for ids in rollout.token_ids], skip_special_tokens=True)
        assert rollout.texts == tuple(decoded)
    assert counts(sampler) == {"requests": 21.0}  # and one probe


def test_what_is_asked_for_names_every_parameter(tokenizer: Any) -> None:
    settings = replace(SETTINGS, top_p=0.9, stop=("</a>",))
    with serving() as server:
        sampler_of(server.url, tokenizer, stop_token_ids=(15,)).sample(PROMPTS[:1], settings, KEY, 0)
        asked = sorted(server.generations, key=lambda a: a.body["seed"])
    assert [a.body["seed"] for a in asked] == sorted(integer_seed(*KEY, 0, 0, g) for g in range(4))
    assert {name: value for name, value in asked[0].body.items() if name != "seed"} == {
        "model": "tiny", "prompt": [[3, 4, 5]], "n": 1, "max_tokens": 6, "temperature": 1.0, "top_p": 0.9, "top_k": 0,
        "min_p": 0.0, "repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "stop": ["</a>"],
        "stop_token_ids": [15], "include_stop_str_in_output": True, "skip_special_tokens": False, "logprobs": 0,
        "return_token_ids": True, "return_tokens_as_token_ids": True, "stream": False,
    }  # fmt: skip
    assert len({a.headers["X-VLLM-Group-Request-ID"] for a in asked}) == 1


def test_equal_keys_repeat_and_other_seeds_steps_and_prompts_do_not(tokenizer: Any) -> None:
    with serving() as server:
        sampler = sampler_of(server.url, tokenizer)
        first = sampler.sample(PROMPTS, SETTINGS, KEY, 0)
        assert sampler_of(server.url, tokenizer).sample(PROMPTS, SETTINGS, KEY, 0) == first
        assert [sampler.sample([p], SETTINGS, KEY, 0)[0] for p in PROMPTS] == first
        fewer = sampler.sample(PROMPTS, replace(SETTINGS, num_generations=2), KEY, 0)
        assert [r.token_ids for r in fewer] == [r.token_ids[:2] for r in first]
        for other in ((1, "completion", 3), (0, "completion", 4), (0, "evaluation", 3)):
            assert [r.token_ids for r in sampler.sample(PROMPTS, SETTINGS, other, 0)] != [
                r.token_ids for r in first
            ]


def test_requests_in_flight_are_bounded(tokenizer: Any) -> None:
    def slow(asked: Asked) -> Answer:
        return Answer(completions(asked), delay=0.02)

    with serving(slow) as server:
        sampler_of(server.url, tokenizer, concurrency=3).sample(PROMPTS, SETTINGS, KEY, 0)
        assert server.most_at_once == 3


# What goes wrong once, or at one request, costs another attempt and nothing else.

ONCE = {
    "an error of the server": Answer({"error": "CUDA out of memory"}, 500),
    "too many requests": Answer(b"busy", 429),
    "garbage": Answer(b"\x00\xff not json"),
    "cut-off JSON": Answer(b'{"choices": [{"token_ids": [1, 2'),
    "a connection that closes early": Answer(b'{"choices": []}', cut=5),
    "no log-probs": Answer({"choices": [{"index": 0, "token_ids": [1], "finish_reason": "stop", "text": "a"}]}),
    "too many tokens": Answer(
        {"choices": [{"token_ids": [1] * 7, "logprobs": {"token_logprobs": [-1.0] * 7}, "finish_reason": "length"}]}
    ),
    "an answer to another prompt": Answer(
        {"choices": [{"token_ids": [15], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "stop",
                      "prompt_token_ids": [9, 9]}]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", ONCE.values(), ids=ONCE.keys())
def test_a_passing_fault_changes_nothing_but_the_counts(fault: Answer, tokenizer: Any) -> None:
    with serving() as server:
        undisturbed = sampler_of(server.url, tokenizer).sample(PROMPTS, SETTINGS, KEY, 0)
    seen: Counter[int] = Counter()

    def once_each(asked: Asked) -> Answer | dict[str, Any]:
        seen[asked.body["seed"]] += 1
        first = asked.prompts != [[0, 1]] and seen[asked.body["seed"]] == 1
        return fault if first and asked.body["seed"] % 3 == 0 else completions(asked)

    with serving(once_each) as server:
        sampler = sampler_of(server.url, tokenizer, logprob_fail_after=0)
        assert sampler.sample(PROMPTS, SETTINGS, KEY, 0) == undisturbed
    faulty = sum(integer_seed(*KEY, *p.key, g) % 3 == 0 for p in PROMPTS for g in range(4))
    assert faulty > 3
    assert counts(sampler)["retry_attempts"] == faulty


LASTING: dict[str, tuple[Answer, dict[str, Any], str, int | None]] = {
    "hangs": (Answer(b"", delay=1.0), {"timeout": 0.2}, r"no whole answer within 0\.2 s .*gave up after 2", None),
    "500": (Answer({"error": "CUDA out of memory"}, 500), {}, "HTTP 500: .*CUDA out of memory.*gave up after 2", 500),
    "400": (Answer({"message": "max_tokens"}, 400), {}, "refuses /v1/completions with HTTP 400: .*max_tokens", 400),
    "401": (Answer(b"Unauthorized", 401), {}, r"HTTP 401 \(the key is read from VLLM_API_KEY\)", 401),
    "garbage": (Answer(b"\x00\xff"), {}, "the answer of 2 bytes is not JSON .*gave up after 2 attempts", 200),
    "cut JSON": (Answer(b'{"choices": [{'), {}, "cut off or not JSON", 200),
    "another model": (Answer({"model": "big", "choices": []}), {}, "answers with model 'big' instead of 'tiny'", None),
    "no log-probs": (ONCE["no log-probs"], {"max_retries": 9}, "comes with no log-probs, 3 answers in a row", None),
    "wrong counts": (ONCE["too many tokens"], {}, "has 7 tokens, asked for were at most 6", 200),
    "mixed up": (ONCE["an answer to another prompt"], {}, "continues another prompt than prompt 0", 200),
    "no groups": (Answer({"choices": []}), {"max_completion_rounds": 2}, "4 completions of 1 prompts are missing", 200),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "given", "message", "status"), LASTING.values(), ids=LASTING.keys())
def test_a_lasting_fault_ends_the_run_with_one_line(
    answer: Answer,
    given: dict[str, Any],
    message: str,
    status: int | None,
    tokenizer: Any,
) -> None:
    def script(asked: Asked) -> Answer | dict[str, Any]:
        return completions(asked) if asked.prompts == [[0, 1]] else answer

    with serving(script) as server:
        sampler = sampler_of(server.url, tokenizer, **({"max_retries": 1} | given))
        with pytest.raises(GenerationServiceError, match=message) as caught:
            sampler.sample(PROMPTS[:1], SETTINGS, KEY, 11)
    line = str(caught.value)
    assert line.startswith(f"vLLM server {server.url}: ")
    assert "\n" not in line
    payload = caught.value.payload
    json.dumps(payload)
    assert payload["service"] == "vllm"
    assert payload["endpoint"] == f"{server.url}/v1/completions"
    assert payload["status_code"] == status
    assert payload["prompt_count"] == 1
    assert len(payload["exception_message"]) <= 512


def test_the_payload_of_an_error_holds_the_facts(tokenizer: Any) -> None:
    def script(asked: Asked) -> Answer | dict[str, Any]:
        return echoing(asked) if asked.prompts == [[0, 1]] else Answer(b"x" * 3000, 503)

    with serving(script) as server:
        sampler = sampler_of(server.url, tokenizer, max_retries=2, client_tag="r0", concurrency=1)
        with pytest.raises(GenerationServiceError) as caught:
            sampler.sample(PROMPTS[:1], SETTINGS, KEY, 11)
        sent = server.generations[0]
    payload = caught.value.payload
    assert (payload["attempt"], payload["max_attempts"], payload["status_code"]) == (3, 3, 503)
    assert payload["request_id"] == sent.headers["X-VLLM-Group-Request-ID"]
    assert payload["payload_size_bytes"] == int(sent.headers["Content-Length"])
    assert payload["extra"]["client_tag"] == "r0"
    assert payload["extra"]["policy_version"] == 11
    assert re.fullmatch("[0-9a-f]{16}", payload["extra"]["prompt_hash"])
    assert isinstance(caught.value, RunError)
    assert caught.value.exit_code == 1


def test_no_secret_reaches_a_message(tokenizer: Any) -> None:
    def parrot(asked: Asked) -> Answer | dict[str, Any]:
        heard = asked.headers["Authorization"] + asked.headers["X-Key"]
        return completions(asked) if asked.prompts == [[0, 1]] else Answer(f"you said {heard}".encode(), 400)

    with serving(parrot) as server:
        url = server.url.replace("http://", "http://me:hunter4@")
        sampler = sampler_of(url, tokenizer, api_key="hunter2", extra_headers={"X-Key": "hunter3"})
        with pytest.raises(GenerationServiceError, match="you said Basic") as caught:
            sampler.sample(PROMPTS[:1], SETTINGS, KEY, 0)
    assert "hunter" not in str(caught.value) + json.dumps(caught.value.payload) + repr(sampler)


# Completions that are missing


def test_what_the_server_cuts_off_is_asked_for_in_further_rounds(tokenizer: Any) -> None:
    seen: Counter[int] = Counter()

    def aborting(asked: Asked) -> dict[str, Any]:
        reply = completions(asked)
        seen[asked.body["seed"]] += 1
        if asked.prompts != [[0, 1]] and seen[asked.body["seed"]] == 1 and asked.body["seed"] % 2:
            reply["choices"][0]["finish_reason"] = "abort"
        return reply

    with serving() as server:
        undisturbed = sampler_of(server.url, tokenizer).sample(PROMPTS, SETTINGS, KEY, 0)
    with serving(aborting) as server:
        sampler = sampler_of(server.url, tokenizer)
        assert sampler.sample(PROMPTS, SETTINGS, KEY, 0) == undisturbed
    odd = sum(integer_seed(*KEY, *p.key, g) % 2 for p in PROMPTS for g in range(4))
    found = counts(sampler)
    assert (found["unfinished_completions"], found["retry_rounds"]) == (odd, 1)


def test_a_group_is_completed_by_the_local_sampler_only_where_that_is_allowed(
    tokenizer: Any, policy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lost = integer_seed(*KEY, *PROMPTS[1].key, 2)

    def losing(asked: Asked) -> dict[str, Any]:
        return {"model": "tiny", "choices": []} if asked.body["seed"] == lost else completions(asked)

    local = LocalSampler(policy, tokenizer)
    with serving(losing) as server:
        strict = sampler_of(server.url, tokenizer)
        with pytest.raises(
            GenerationServiceError, match="1 completions of 1 prompts are missing after 4 rounds"
        ):
            strict.sample(PROMPTS, SETTINGS, KEY, 5)
        sampler = sampler_of(server.url, tokenizer, backfill=local)
        rollouts = sampler.sample(PROMPTS, SETTINGS, KEY, 5)
        alone = sampler_of(server.url, tokenizer).sample(PROMPTS[:1], SETTINGS, KEY, 5)
    own = local.sample([PROMPTS[1]], SETTINGS, KEY, 5)[0]
    assert (rollouts[1].token_ids[2], rollouts[1].logps[2]) == (own.token_ids[2], own.logps[2])
    assert rollouts[0] == alone[0]
    assert "1 completions of 1 prompts come from the local sampler instead of the vLLM server" in caplog.text
    found = counts(sampler)
    assert (found["backfilled_completions"], found["backfilled_prompts"], found["retry_rounds"]) == (1, 1, 3)


def test_a_server_that_fails_is_backfilled_too_with_its_reason_in_the_log(
    tokenizer: Any, policy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(asked: Asked) -> Answer | dict[str, Any]:
        return completions(asked) if asked.prompts == [[0, 1]] else Answer(b"boom", 500)

    local = LocalSampler(policy, tokenizer)
    with serving(failing) as server:
        sampler = sampler_of(server.url, tokenizer, backfill=local, max_retries=0)
        rollouts = sampler.sample(PROMPTS, SETTINGS, KEY, 5)
    assert rollouts == local.sample(PROMPTS, SETTINGS, KEY, 5)
    assert counts(sampler)["backfilled_completions"] == 20
    assert "HTTP 500: boom" in caplog.text


def test_a_failing_request_of_several_prompts_is_halved_and_nothing_changes(tokenizer: Any) -> None:
    with serving() as server:
        sampler = sampler_of(server.url, tokenizer, prompts_per_request=5)
        whole = sampler.sample(PROMPTS, SETTINGS, KEY, 0)
        assert [len(a.prompts) for a in server.generations] == [5] * 4

    def small_only(asked: Asked) -> Answer | dict[str, Any]:
        return Answer(b"too large", 413) if len(asked.prompts) > 2 else completions(asked)

    with serving(small_only) as server:
        sampler = sampler_of(server.url, tokenizer, prompts_per_request=5)
        assert sampler.sample(PROMPTS, SETTINGS, KEY, 0) == whole
        sizes = Counter(len(a.prompts) for a in server.generations)
    assert sizes == {5: 4, 2: 8, 3: 4, 1: 4}
    assert counts(sampler)["halved_requests"] == 8


def test_equal_prompts_never_share_a_seed(tokenizer: Any) -> None:
    twins = [PROMPTS[0], replace(PROMPTS[0], index=9)]
    with serving() as server:
        first, second = sampler_of(server.url, tokenizer, prompts_per_request=4).sample(
            twins, SETTINGS, KEY, 0
        )
    assert first.token_ids != second.token_ids


def test_a_server_that_comes_back_gets_its_weights_before_it_is_asked(tokenizer: Any) -> None:
    """Killed after a few answers, started again a moment later on the same port."""
    events: list[str] = []
    enough = threading.Event()

    def until_killed(asked: Asked) -> Answer | dict[str, Any]:
        if len(server.generations) > 6:
            enough.set()
            return Answer(b'{"choices": []}', cut=3)  # what a client sees of a process that dies
        return completions(asked)

    def after_restart(asked: Asked) -> dict[str, Any]:
        events.append("asked")
        return completions(asked)

    with serving() as server:
        undisturbed = sampler_of(server.url, tokenizer).sample(PROMPTS, SETTINGS, KEY, 0)
    found: list[Any] = []
    with serving(until_killed, keep_alive=False) as server:
        port = int(server.url.rpartition(":")[2])
        sampler = sampler_of(
            server.url,
            tokenizer,
            restore=lambda: events.append("weights"),
            concurrency=4,
            startup_timeout=10.0,
            backoff=0.3,
        )
        work = threading.Thread(target=lambda: found.append(sampler.sample(PROMPTS, SETTINGS, KEY, 0)))
        work.start()
        assert enough.wait(5)
    time.sleep(0.2)
    with serving(after_restart, port=port):
        work.join(10)
    assert found == [undisturbed]
    recorded = counts(sampler)
    losses = int(recorded["server_losses"])  # the dying server may break connections more than once
    assert events == ["weights"] * losses + ["asked"] * (len(events) - losses)
    assert losses >= 1
    assert recorded["retry_attempts"] >= losses


def test_every_rank_reports_the_same_names_and_draining_starts_over(tokenizer: Any) -> None:
    with serving() as server:
        sampler = sampler_of(server.url, tokenizer)
        idle = sampler.drain_stats()
        sampler.sample(PROMPTS, SETTINGS, KEY, 0)
        busy = sampler.drain_stats()
    assert idle.keys() == busy.keys() == sampler.drain_stats().keys()
    assert busy["generation/latency_ms"].kind == "mean"
    assert float(busy["generation/latency_ms"].weight) == 21
    assert float(busy["generation/latency_ms_max"].value) >= float(busy["generation/latency_ms"].value) / 21
    assert counts(sampler) == {}


def test_waiting_for_a_server_is_said_at_once_with_the_time_that_is_left(
    tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sampler = sampler_of("http://user:hunter2@127.0.0.1:9", tokenizer, startup_timeout=0.5)
    with pytest.raises(GenerationServiceError):
        sampler.sample(PROMPTS, SETTINGS, KEY, 0)
    said = capsys.readouterr().err
    assert re.fullmatch(r"waiting for vLLM server http://127\.0\.0\.1:9 \([01] s left\)\n", said)


def test_the_wait_of_a_weight_sync_is_said_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SyncFailed):
        VLLMControl("http://127.0.0.1:9").wait_until_healthy(0.5)
    assert capsys.readouterr().err.startswith("waiting for vLLM server http://127.0.0.1:9 (")
