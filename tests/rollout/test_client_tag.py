import asyncio
import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from maxent_grpo.rollout.vllm.client_tag import (
    EchoMiddleware,
    TaggedEvents,
    derive_tag,
    own_part,
    tag_of,
    with_tag,
)


def test_the_tag_is_explicit_or_of_the_environment_or_of_the_ranks() -> None:
    environ = {"VLLM_CLIENT_TAG": "trainer-3"}
    assert derive_tag("mine", 1, 2, environ) == "mine"
    assert derive_tag(None, 1, 2, environ) == "trainer-3"
    assert derive_tag(None, 1, 2, {}) == "rank-1-of-2"
    assert derive_tag(None, 0, 1, {}) is None


@pytest.mark.parametrize("tag", ["a\r\nX-Evil: 1", "tränen", "x" * 129, " padded", "a\x00b"])
def test_a_tag_that_is_no_header_value_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="is no tag"):
        derive_tag(tag, 0, 1, {})


@pytest.mark.parametrize(
    "group",
    [
        {"client_tag": "a"},
        {"metadata": {"client_tag": "a"}},
        {"meta": {"request": {"client_tag": "a"}}},
        {"extra": {"context": {"meta": {"metadata": {"request": {"client_tag": "a"}}}}}},
    ],
)
def test_a_tag_is_found_to_depth_five(group: dict[str, Any]) -> None:
    assert tag_of(group) == "a"


def test_no_deeper_and_nowhere_else() -> None:
    deep: dict[str, Any] = {"client_tag": "a"}
    for _ in range(6):
        deep = {"meta": deep}
    assert tag_of(deep) is None
    assert tag_of({"payload": {"client_tag": "a"}}) is None
    assert tag_of({"client_tag": 7}) is None
    assert tag_of("client_tag") is None


def mixed(ranks: int, each: int) -> dict[str, Any]:
    """An answer that holds the groups of several ranks, in turn."""
    return {
        "results": [
            {"metadata": {"client_tag": f"rank-{r}"}, "outputs": [{"text": f"{r}.{i}"}]}
            for i in range(each)
            for r in range(ranks)
        ]
    }


def test_one_rank_keeps_exactly_its_groups_and_says_how_many_it_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG):
        filtered = own_part(mixed(ranks=6, each=16), "rank-0", "strict")
    assert [group["outputs"][0]["text"] for group in filtered.reply["results"]] == [
        f"0.{i}" for i in range(16)
    ]
    assert (filtered.kept, filtered.dropped) == (16, 80)
    assert caplog.messages == ["Filtered 80 extraneous vLLM result groups for client_tag=rank-0"]


def test_nothing_is_filtered_or_logged_without_a_tag_or_without_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert own_part(mixed(2, 3), None, "strict").kept == 6
        assert own_part(mixed(1, 3), "rank-0", "strict").dropped == 0
    assert caplog.messages == []


def test_nested_outputs_are_filtered_where_the_result_has_no_tag() -> None:
    outputs = [
        {"text": t, "metadata": {"client_tag": tag}} for t, tag in (("x", "a"), ("y", "b"), ("z", "a"))
    ]
    filtered = own_part({"results": [{"outputs": outputs}, {"outputs": outputs[1:2]}]}, "a", "strict")
    (group,) = filtered.reply["results"]
    assert [output["text"] for output in group["outputs"]] == ["x", "z"]
    assert filtered.dropped == 1


@pytest.mark.parametrize(("policy", "kept"), [("strict", 1), ("lenient", 2)])
def test_untagged_groups_go_or_stay_by_policy_and_others_always_go(policy: Any, kept: int) -> None:
    reply = {"choices": [{"index": 0}, {"client_tag": "b"}, {"client_tag": "a"}]}
    filtered = own_part(reply, "a", policy)
    assert (filtered.kept, filtered.dropped, filtered.untagged) == (kept, 3 - kept, 1)


def test_bare_lists_take_the_tag_at_the_top() -> None:
    reply = {"completion_ids": [[1]], "metadata": {"client_tag": "a"}}
    assert own_part(reply, "a", "strict").reply == reply
    assert own_part(reply, "b", "lenient").kept == 0
    assert own_part({"completion_ids": [[1]]}, "a", "strict").kept == 0
    assert own_part({"completion_ids": [[1]]}, "a", "lenient").kept == 1


def test_what_the_echo_adds_the_filter_finds() -> None:
    for reply in (
        {"choices": [{"index": 0}, {"index": 1, "metadata": {"x": 1}}]},
        {"results": [{"outputs": [{"text": "a"}]}, {"outputs": []}]},
        {"completion_ids": [[1], [2]]},
    ):
        tagged = with_tag(reply, "a")
        assert own_part(tagged, "a", "strict").dropped == 0
        assert own_part(tagged, "b", "strict").kept == 0
    assert with_tag({"choices": [{"metadata": {"x": 1}}]}, "a")["choices"][0]["metadata"] == {
        "x": 1,
        "client_tag": "a",
    }
    assert with_tag([1], "a") == [1]
    assert with_tag({"choices": "?"}, "a")["choices"] == "?"


def through_middleware(
    answer: bytes,
    question: bytes = b"{}",
    header: bytes | None = None,
    content_type: bytes = b"application/json",
    status: int = 200,
    pieces: int = 1,
    extra: tuple[tuple[bytes, bytes], ...] = (),
) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Headers and body messages that leave an application behind the middleware."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", content_type), (b"content-length", str(len(answer)).encode()), *extra]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        size = -(-len(answer) // pieces)
        for i in range(pieces):
            part = answer[i * size : (i + 1) * size]
            await send({"type": "http.response.body", "body": part, "more_body": i + 1 < pieces})

    halves = [question[:3], question[3:]]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": halves.pop(0), "more_body": bool(halves)}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if header is None else [(b"x-vllm-client-tag", header)]
    scope = {"type": "http", "method": "POST", "headers": headers}
    asyncio.run(EchoMiddleware(application)(scope, receive, send))
    return dict(sent[0]["headers"]), [message["body"] for message in sent[1:]]


@pytest.mark.parametrize("how", [{"header": b"rank-0"}, {"question": b'{"client_tag": "rank-0"}'}])
def test_the_middleware_echoes_header_and_body_and_counts_the_bytes_anew(how: Any) -> None:
    answer = b'{"choices": [{"index": 0}, {"index": 1}], "model": "\xc3\xa9"}'
    headers, bodies = through_middleware(answer, pieces=3, **how)
    reply = json.loads(b"".join(bodies))
    assert [choice["metadata"]["client_tag"] for choice in reply["choices"]] == ["rank-0", "rank-0"]
    assert reply["model"] == "é"
    assert int(headers[b"content-length"]) == len(b"".join(bodies))


def test_the_header_wins_over_the_body() -> None:
    _, (body,) = through_middleware(b'{"choices": [{}]}', question=b'{"client_tag": "b"}', header=b"a")
    assert json.loads(body)["choices"][0]["metadata"]["client_tag"] == "a"


@pytest.mark.parametrize(
    "how",
    [
        {"header": None},
        {"header": b"x" * 129},
        {"header": b"caf\xe9"},
        {"question": b"{" * 50_000},
        {"question": b"[1]"},
        {"header": b"a", "status": 400},
        {"header": b"a", "extra": ((b"content-encoding", b"gzip"),)},
        {"header": b"a", "content_type": b"text/plain"},
    ],
)
def test_everything_else_passes_untouched(how: Any) -> None:
    answer = b'{ "choices" : [ {} ] }'
    headers, bodies = through_middleware(answer, **how)
    assert (b"".join(bodies), headers[b"content-length"]) == (answer, b"22")


def test_a_stream_passes_piece_by_piece() -> None:
    _, bodies = through_middleware(
        b"data: 1\n\ndata: 2\n\n", header=b"a", content_type=b"text/event-stream", pieces=3
    )
    assert len(bodies) == 3


def test_an_answer_that_is_no_json_passes() -> None:
    assert through_middleware(b'{"cut', header=b"a")[1] == [b'{"cut']


def test_a_server_imports_the_middleware_without_torch() -> None:
    code = (
        "import sys, maxent_grpo.rollout.vllm.client_tag\n"
        "sys.exit(', '.join({'torch', 'transformers', 'numpy', 'httpx', 'aiohttp'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


STREAM = (
    b': hello\n\ndata: {"choices": [{"text": "a", "client_tag": "b"}]}\n\n'
    b'event: x\r\ndata: {"choices":\r\ndata: [{"text": "b"}]}\r\n\r\ndata: [DONE]\n\n'
)


def events_of(stream: bytes) -> list[Any]:
    """The JSON of each event, by a reader of its own: lines, and an event at each empty one."""
    found, said = [], []
    for line in stream.decode().splitlines():
        if line.startswith("data:"):
            said.append(line[5:].strip())
        elif not line and said:
            found.append(json.loads("".join(said)) if said != ["[DONE]"] else "[DONE]")
            said = []
    return found


@pytest.mark.parametrize("size", [1, 2, 7, 50, 1000])
def test_events_of_a_stream_carry_the_requests_tag_however_they_arrive(size: int) -> None:
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    tagged, untagged = TaggedEvents("a"), TaggedEvents(None)
    said = b"".join(map(tagged.fed, pieces)) + tagged.end()
    first, second, end = events_of(said)
    assert [tag_of(event["choices"][0]) for event in (first, second)] == ["a", "a"]
    assert [event["choices"][0]["text"] for event in (first, second)] == ["a", "b"]
    assert (end, b'"b"}' in said.replace(b'"text":"b"}', b"")) == ("[DONE]", False)
    assert said.startswith(b": hello\n\n")
    assert b"event: x\r\n" in said
    plain = b"".join(map(untagged.fed, pieces)) + untagged.end()
    assert tag_of(events_of(plain)[0]["choices"][0]) is None
    assert plain.endswith(STREAM[STREAM.index(b"event:") :])  # nothing to take out: byte for byte


def test_an_event_is_passed_on_when_it_is_whole() -> None:
    events = TaggedEvents("a")
    assert events.fed(b'data: {"x": 1}\n') == b""
    assert events_of(events.fed(b"\n")) == [{"x": 1, "metadata": {"client_tag": "a"}}]
    assert events.fed(b"data: cut") == b""
    assert events.end() == b"data: cut"
