"""The proxy as a process of its own thread, in front of scripted servers."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import pytest

from local_server import listening
from maxent_grpo.errors import UsageError
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.rollout.settings import ServerSettings
from maxent_grpo.rollout.vllm.client_tag import tag_of
from maxent_grpo.rollout.vllm.server import VLLMServerSampler
from maxent_grpo.types import Prompt
from maxent_grpo.vllm_proxy import Budgets, ProxiedServer, Proxy, choose, server_url
from vllm_stand_in import Answer, Asked, StandIn, completions, serving

SETTINGS = SamplingSettings(num_generations=4, max_completion_length=6)
KEY = (0, "completion", 3)
STEERING = ["/pause?mode=wait", "/collective_rpc", "/resume", "/reset_prefix_cache"]
RELOAD = {"method": "reload_weights", "kwargs": {"weights_path": "x"}}


def answering(asked: Asked) -> Answer | dict[str, Any]:
    """Completions without any echo, and 200 for whatever steers a server."""
    return completions(asked) if asked.path in ("/v1/completions", "/generate/") else {"message": "done"}


@contextmanager
def proxying(urls: list[str], **options: Any) -> Iterator[str]:
    """The address of a proxy over ``urls``."""
    proxy = Proxy([ProxiedServer(url) for url in urls], **({"health_interval": 0.05} | options))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listening = proxy.listening("127.0.0.1", 0)
    try:
        port = asyncio.run_coroutine_threadsafe(listening.__aenter__(), loop).result(10)
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(listening.__aexit__(None, None, None), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def servers() -> Iterator[list[StandIn]]:
    with ExitStack() as stack:
        yield [stack.enter_context(serving(answering, keep_alive=False)) for _ in range(2)]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "not within 10 s"
        time.sleep(0.02)


def states(url: str) -> dict[str, tuple[bool, bool]]:
    listed = httpx.get(f"{url}/proxy/status").json()["servers"]
    return {server["url"]: (server["healthy"], server["stale"]) for server in listed}


def sampler_of(url: str, tokenizer: Any, **given: Any) -> VLLMServerSampler:
    settings = ServerSettings(url, backoff=0.01, retry_sleep=0.01, startup_timeout=2.0, **given)
    return VLLMServerSampler(settings, tokenizer, vocabulary=16)


def test_two_ranks_share_the_proxy_and_get_exactly_their_own_groups(
    servers: list[StandIn], tokenizer: Any
) -> None:
    """The servers echo nothing: the proxy does. Each rank has prompts of its own."""
    prompts = [[Prompt(10 * r + i, "", (3, r, i), {}) for i in range(3)] for r in range(2)]
    with serving(answering) as lone:
        expected = [sampler_of(lone.url, tokenizer).sample(p, SETTINGS, KEY, 0) for p in prompts]
    with proxying([server.url for server in servers]) as url:
        found: dict[int, Any] = {}

        def rank(r: int) -> None:
            sampler = sampler_of(
                url, tokenizer, client_tag=f"rank-{r}-of-2", tag_policy="strict", concurrency=4
            )
            found[r] = sampler.sample(prompts[r], SETTINGS, KEY, 0)

        ranks = [threading.Thread(target=rank, args=(r,)) for r in range(2)]
        [thread.start() for thread in ranks]
        [thread.join(20) for thread in ranks]
    assert [found[0], found[1]] == expected
    asked = Counter(a.tag for server in servers for a in server.generations)
    assert asked == {"rank-0-of-2": 12, "rank-1-of-2": 12}
    assert all(len(server.generations) >= 6 for server in servers)  # the least loaded one is asked


def test_tags_are_pinned_to_one_server_each(servers: list[StandIn], tokenizer: Any) -> None:
    prompts = [Prompt(i, "", (3, i), {}) for i in range(3)]
    with proxying([server.url for server in servers], pin_by_tag=True) as url:
        for r in range(6):
            tag = f"rank-{r}-of-6"
            sampler_of(url, tokenizer, client_tag=tag, tag_policy="strict").sample(prompts, SETTINGS, KEY, 0)
    tags = [{a.tag for a in server.requests} for server in servers]
    assert tags[0] & tags[1] == set()
    assert len(tags[0] | tags[1]) == 6


def test_a_pinned_tag_moves_only_when_its_server_is_gone() -> None:
    backends = [ProxiedServer(f"http://host{i}", healthy=True) for i in range(4)]
    tags = [f"rank-{r}-of-64" for r in range(64)]
    before = {tag: choose(backends, tag, pin_by_tag=True) for tag in tags}
    assert len({backend.url for backend in before.values() if backend}) == 4
    gone = backends[2]
    gone.healthy = False
    for tag in tags:
        after = choose(backends, tag, pin_by_tag=True)
        assert after is not gone
        assert after is before[tag] or before[tag] is gone


def test_the_least_loaded_server_is_chosen_and_none_that_is_down_or_stale() -> None:
    busy, idle, down, stale = (ProxiedServer(name, healthy=True) for name in "abcd")
    busy.in_flight, down.healthy, stale.stale = 3, False, True
    assert choose([busy, idle, down, stale], None, pin_by_tag=False) is idle
    assert choose([down, stale], None, pin_by_tag=False) is None


def test_what_steers_the_servers_goes_to_all_of_them(servers: list[StandIn]) -> None:
    with proxying([server.url for server in servers]) as url:
        for path in STEERING:
            answer = httpx.post(f"{url}{path}", json=RELOAD if path == "/collective_rpc" else None)
            assert (answer.status_code, answer.headers["X-VLLM-Servers"]) == (200, "2")
    for server in servers:
        assert [a.path for a in server.requests] == STEERING


def test_a_control_request_that_one_server_refuses_fails_and_that_server_is_left_out(
    servers: list[StandIn],
) -> None:
    def refusing(asked: Asked) -> Answer | dict[str, Any]:
        return Answer(b"out of memory", 500) if asked.path == "/collective_rpc" else answering(asked)

    with serving(refusing, keep_alive=False) as broken, proxying([servers[0].url, broken.url]) as url:
        answer = httpx.post(f"{url}/collective_rpc", json=RELOAD)
        assert answer.status_code == 502
        message = answer.json()["error"]["message"]
        assert message == f"/collective_rpc failed on 1 of 2 servers: {broken.url}: HTTP 500: out of memory"
        assert states(url) == {servers[0].url: (True, False), broken.url: (True, True)}


def test_a_restarted_server_waits_for_weights(servers: list[StandIn], tokenizer: Any) -> None:
    prompts = [Prompt(i, "", (3, i), {}) for i in range(3)]
    with ExitStack() as stack:
        mortal = serving(answering, keep_alive=False)
        doomed = mortal.__enter__()
        port = int(doomed.url.rpartition(":")[2])
        url = stack.enter_context(proxying([servers[0].url, doomed.url]))
        assert httpx.post(f"{url}/collective_rpc", json=RELOAD).status_code == 200
        mortal.__exit__(None, None, None)
        eventually(lambda: states(url)[doomed.url] == (False, True))
        reborn = stack.enter_context(serving(answering, keep_alive=False, port=port))
        eventually(lambda: states(url)[doomed.url] == (True, True))
        sampler = sampler_of(url, tokenizer)
        sampler.sample(prompts, SETTINGS, KEY, 0)
        assert reborn.requests == []  # it has its first weights still
        assert httpx.post(f"{url}/collective_rpc", json=RELOAD).status_code == 200
        assert states(url) == {servers[0].url: (True, False), doomed.url: (True, False)}
        sampler.sample(prompts, SETTINGS, KEY, 1)
        assert len(reborn.generations) > 1


def test_a_server_that_dies_is_left_out_and_the_run_goes_on(servers: list[StandIn], tokenizer: Any) -> None:
    prompts = [Prompt(i, "", (3, i), {}) for i in range(3)]
    mortal = serving(answering, keep_alive=False)
    doomed = mortal.__enter__()
    with proxying([servers[0].url, doomed.url], health_interval=60.0) as url:
        sampler = sampler_of(url, tokenizer)
        before = sampler.sample(prompts, SETTINGS, KEY, 0)
        mortal.__exit__(None, None, None)
        assert sampler.sample(prompts, SETTINGS, KEY, 0) == before  # found out by the first request to it
        assert states(url)[doomed.url][0] is False


def test_without_a_usable_server_the_answer_says_why() -> None:
    with proxying(["http://127.0.0.1:9"]) as url:
        assert httpx.get(f"{url}/health").status_code == 503
        answer = httpx.post(f"{url}/v1/completions", json={})
        assert answer.status_code == 503
        message = answer.json()["error"]["message"]
        assert message.startswith("no vLLM server is usable (http://127.0.0.1:9: ClientConnectorError")
        assert httpx.post(f"{url}/pause").json()["error"]["message"] == "no vLLM server is healthy for /pause"


def test_a_server_that_hangs_is_a_504(servers: list[StandIn]) -> None:
    with serving(lambda _: Answer(b"{}", delay=1.0)) as slow, proxying([slow.url], timeout=0.1) as url:
        answer = httpx.post(f"{url}/v1/completions", json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, 504)


def test_an_error_of_the_server_passes_and_so_do_other_pages(servers: list[StandIn]) -> None:
    with serving(lambda _: Answer({"error": "no such model"}, 404)) as server, proxying([server.url]) as url:
        answer = httpx.post(f"{url}/v1/completions", json={"client_tag": "a"})
        assert (answer.status_code, answer.json()) == (404, {"error": "no such model"})
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "tiny"


@pytest.mark.parametrize("given", [{"headers": {"X-VLLM-Client-Tag": "a"}}, {"body": {"client_tag": "a"}}])
def test_the_tag_of_header_or_body_is_echoed(given: dict[str, Any], servers: list[StandIn]) -> None:
    body = {"prompt": [[3]], "seed": 1, "top_k": 0, "max_tokens": 2} | given.get("body", {})
    with proxying([servers[0].url]) as url:
        reply = httpx.post(f"{url}/v1/completions", json=body, headers=given.get("headers")).json()
    assert reply["choices"][0]["metadata"] == {"client_tag": "a"}


@pytest.mark.parametrize("text", ["ftp://x", "http://", "http://host:1/v1"])
def test_what_is_no_server_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no server address; write http://host:port"):
        server_url(text)


def test_the_command_teaches_and_refuses_in_one_line() -> None:
    command = [sys.executable, "-m", "maxent_grpo.vllm_proxy"]
    told = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "maxent-grpo-vllm-proxy http://127.0.0.1:8001 http://127.0.0.1:8002 --port 8000" in told
    refused = subprocess.run([*command, "a", "http://a"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr) == (2, "maxent-grpo-vllm-proxy: a server is named twice\n")


def test_json_of_the_proxy_is_json(servers: list[StandIn]) -> None:
    with proxying([servers[0].url]) as url:
        assert json.loads(httpx.get(f"{url}/health").text) == {"usable": 1, "servers": 1}


JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain"}


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({**JSON, "Origin": "http://evil.example"}, b"{}", 403),
        ({**JSON, "Origin": "null"}, b"{}", 403),
        ({**JSON, "Sec-Fetch-Site": "cross-site"}, b"{}", 403),
        ({**JSON, "Sec-Fetch-Site": "same-site"}, b"{}", 403),
        # DNS rebinding: the page believes that this address is its own
        ({**JSON, "Host": "evil.example", "Origin": "http://evil.example"}, b"{}", 403),
        ({"Origin": "http://evil.example"}, b"", 403),
        (TEXT, b"{}", 415),
        ({}, b"{}", 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"a=b", 415),
        (JSON, b"{}", 200),
        ({"Content-Type": "application/json; charset=utf-8"}, b"{}", 200),
        ({}, b"", 200),
    ],
)
def test_orders_are_json_of_a_program_and_never_of_a_page(
    headers: dict[str, str], content: bytes, status: int, servers: list[StandIn]
) -> None:
    with proxying([servers[0].url]) as url:
        answer = httpx.post(f"{url}/collective_rpc", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert len(servers[0].requests) == (status == 200)


def test_a_page_of_another_origin_generates_nothing_and_one_of_this_address_does(
    servers: list[StandIn],
) -> None:
    with proxying([servers[0].url]) as url:
        body = {"prompt": [[3]], "seed": 1, "top_k": 0, "max_tokens": 2}
        foreign = httpx.post(f"{url}/v1/completions", json=body, headers={"Origin": "http://evil.example"})
        own = httpx.post(f"{url}/v1/completions", json=body, headers={"Origin": url})
    assert (foreign.status_code, own.status_code, len(servers[0].requests)) == (403, 200, 1)


def test_a_redirect_of_a_server_is_not_followed(servers: list[StandIn]) -> None:
    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(307)
            self.send_header("Location", servers[0].url + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with listening(Redirecting, 0) as redirecting, proxying([redirecting]) as url:
        order = httpx.post(f"{url}/collective_rpc", json=RELOAD, follow_redirects=True)
        assert order.status_code == 502
        assert "HTTP 307" in order.json()["error"]["message"]
        eventually(lambda: states(url)[redirecting] == (True, True))
    with listening(Redirecting, 0) as redirecting, proxying([redirecting]) as url:
        asked = httpx.post(f"{url}/v1/completions", json={}, follow_redirects=True)
        assert (asked.status_code, "Location" in asked.headers) == (502, False)
    assert servers[0].requests == []


FORGED = [
    b'{"choices": [{"client_tag": "b", "meta": {"client_tag": "b"}, "text": "x"}], "client_tag": "b"}',
    rb'{"results": [{"outputs": [{"extra": {"client\u005ftag": "b"}}]}], "metadata": {"client\u005ftag": "b"}}',
]


@pytest.mark.parametrize("answer", FORGED)
def test_a_tag_in_an_answer_is_the_requests_alone(answer: bytes) -> None:
    with serving(lambda _: Answer(answer)) as server, proxying([server.url]) as url:
        tagged = httpx.post(f"{url}/v1/completions", json={"client_tag": "a"}).json()
        untagged = httpx.post(f"{url}/v1/completions", json={}).json()
    groups = [tagged, *tagged.get("choices", []), *tagged.get("results", [])]
    assert [tag_of(group) for group in groups] == ["a"] * len(groups)
    assert '"b"' not in json.dumps([tagged, untagged])
    assert tag_of(untagged) is None


def test_a_stream_carries_the_requests_tag_alone() -> None:
    events = b'data: {"choices": [{"text": "x", "client_tag": "b"}]}\n\ndata: [DONE]\n\n'
    answer = Answer(events, kind="text/event-stream")
    with serving(lambda _: answer) as server, proxying([server.url]) as url:
        tagged = httpx.post(f"{url}/v1/completions", json={"client_tag": "a", "stream": True}).text
        untagged = httpx.post(f"{url}/v1/completions", json={"stream": True}).text
    assert tag_of(json.loads(tagged.splitlines()[0].removeprefix("data: "))["choices"][0]) == "a"
    assert '"b"' not in tagged + untagged
    assert tagged.endswith("data: [DONE]\n\n")


def closed_within(connection: socket.socket, seconds: float) -> bytes:
    """What arrived until the other side closed."""
    connection.settimeout(seconds)
    parts = []
    try:
        while part := connection.recv(4096):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def connected(url: str, sent: bytes) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(sent)
    return connection


HALF = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_half_open_connections_are_dropped_and_a_slow_answer_is_not(servers: list[StandIn]) -> None:
    budgets = Budgets(idle_seconds=0.4)
    with serving(lambda _: Answer(b"{}", delay=1.5)) as slow, proxying([slow.url], budgets=budgets) as url:
        connections = [connected(url, sent) for sent in (b"", b"POST / HT", HALF, HALF) for _ in range(10)]
        answer = httpx.post(f"{url}/v1/completions", json={})
        assert answer.status_code == 200
        for connection in connections:
            with closing(connection):
                assert closed_within(connection, 5) == b""


def test_bodies_have_a_deadline_and_a_common_bound(servers: list[StandIn]) -> None:
    budgets = Budgets(largest_request=1000, held_bodies=1500, body_seconds=1.0, idle_seconds=10)
    with proxying([servers[0].url], budgets=budgets) as url:
        too_large = httpx.post(f"{url}/v1/completions", content=b"x" * 1001, headers=JSON)
        unfinished = connected(url, HALF + b"Content-Length: 900\r\n\r\n" + b" " * 800)
        time.sleep(0.3)
        too_many = httpx.post(f"{url}/v1/completions", content=b" " * 900, headers=JSON)
        with closing(unfinished):
            unfinished.settimeout(5)
            slow = unfinished.recv(4096)
        body = json.dumps({"prompt": [[3]], "seed": 1, "top_k": 0, "max_tokens": 2}) + " " * 800
        fine = httpx.post(f"{url}/v1/completions", content=body, headers=JSON)
    assert (too_large.status_code, too_many.status_code, fine.status_code) == (413, 503, 200)
    assert slow.startswith(b"HTTP/1.1 408 ")


def test_large_json_is_parsed_in_another_process(servers: list[StandIn]) -> None:
    """Python's parser holds the lock of its process, so that a thread would not do."""
    proxy = Proxy([], budgets=Budgets(parsed_here=100))

    async def parsed() -> tuple[int, int]:
        async with proxy.listening("127.0.0.1", 0):
            return await proxy._parsed(100, os.getpid), await proxy._parsed(101, os.getpid)

    small, large = asyncio.run(parsed())
    assert small == os.getpid() != large
    with proxying([servers[0].url], budgets=Budgets(parsed_here=10)) as url:
        body = {"prompt": [[3]], "seed": 1, "top_k": 0, "max_tokens": 2, "client_tag": "a"}
        reply = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
    assert reply["choices"][0]["metadata"] == {"client_tag": "a"}


def test_the_command_says_where_it_listens_and_a_busy_port_is_one_line() -> None:
    command = [sys.executable, "-m", "maxent_grpo.vllm_proxy", "http://127.0.0.1:9", "--port"]
    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        port = line.partition("127.0.0.1:")[2].split()[0]
        refused = subprocess.run([*command, port], capture_output=True, text=True, check=False)
        running.terminate()
        assert running.wait(20) == 0
    assert line.startswith("maxent-grpo-vllm-proxy: listening on http://127.0.0.1:")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"maxent-grpo-vllm-proxy: cannot listen on 127.0.0.1:{port}: ")
