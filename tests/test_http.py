"""The HTTP client against a real server: deadlines, bounds, retries, and messages without secrets."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from local_server import listening
from maxent_grpo.http import Fault, HTTPClient, Retries, fetch, read_json, run_to_end, with_retries


@contextmanager
def answering(status: int = 200, body: bytes = b"{}", delay: float = 0.0, **headers: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(delay)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with listening(Handler) as url:
        yield url


def test_an_answer_comes_whole_whatever_its_status() -> None:
    with answering(503, b"busy") as url:
        answer = fetch(url, timeout=5.0)
    assert (answer.status, answer.content) == (503, b"busy")


def test_a_deadline_bounds_the_whole_answer() -> None:
    with answering(delay=0.5) as url, pytest.raises(Fault, match=r"no whole answer within 0\.1 s") as caught:
        fetch(url, timeout=0.1)
    assert caught.value.passing
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_a_server_that_is_not_there_is_lost() -> None:
    with answering() as url:
        pass
    with pytest.raises(
        Fault, match=r"the connection failed \(ConnectError .*is the server running\?"
    ) as caught:
        fetch(url, timeout=5.0)
    assert caught.value.lost


def test_an_answer_that_is_too_long_is_refused_for_good() -> None:
    async def ask(url: str) -> None:
        async with HTTPClient(url, max_bytes=2**20) as client:
            await client.send("GET", "/", timeout=5.0)

    large = b"x" * (2**20 + 1)
    with answering(body=large) as url, pytest.raises(Fault, match="an answer of more than 1 MiB") as caught:
        run_to_end(ask(url))
    assert not caught.value.passing


@pytest.mark.parametrize(
    ("status", "passing"), [(429, True), (500, True), (400, False), (401, False), (302, False)]
)
def test_refusals_last_and_failures_of_the_server_pass(status: int, passing: bool) -> None:
    async def ask(url: str) -> None:
        async with HTTPClient(url, secrets=["sk-1", ""], key_source="MY_KEY") as client:
            client.checked(await client.send("GET", "/", timeout=5.0), "it refuses /")

    with answering(status, b"no:\nsk-1", Retry_After="7") as url, pytest.raises(Fault) as caught:
        run_to_end(ask(url))
    assert (caught.value.passing, caught.value.status) == (passing, status)
    assert str(caught.value).endswith("no: ***")
    assert ("the key is read from MY_KEY" in str(caught.value)) is (status == 401)
    assert caught.value.pause == (7.0 if passing else 0.0)


def test_passing_faults_are_tried_again_and_lasting_ones_are_not() -> None:
    def tried(faults: list[Fault], attempts: int) -> tuple[int, int | None]:
        waiting = iter(faults)
        calls = 0

        async def attempt() -> int:
            nonlocal calls
            calls += 1
            fault = next(waiting, None)
            if fault is not None:
                raise fault
            return calls

        try:
            return asyncio.run(with_retries(attempt, Retries(attempts, pause=0.0))), None
        except Fault as fault:
            return calls, fault.attempt

    assert tried([Fault("a"), Fault("b")], attempts=3) == (3, None)
    assert tried([Fault("a"), Fault("b")], attempts=2) == (2, 2)
    assert tried([Fault("a", passing=False)], attempts=3) == (1, 1)


def test_pauses_grow_with_jitter_and_wait_as_long_as_is_asked() -> None:
    retries = Retries(pause=1.0, multiplier=3.0, longest=20.0)
    assert [retries.after(n, jitter=0.0) for n in (1, 2, 3, 4)] == [1.0, 3.0, 9.0, 20.0]
    assert retries.after(2, jitter=0.5) == 3.75
    assert (retries.after(1, asked=8.0), retries.after(1, asked=80.0)) == (8.0, 20.0)
    assert 1.0 <= retries.after(1) < 1.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the answer of 0 bytes is not JSON"),
        (b"<html>busy</html>", "not JSON"),
        (b'{"choices": [{"token_ids": [1, 2', "cut off or not JSON"),
        (b"[1, 2]", "is a JSON list, not an object"),
        (b"[" * 100_000, "cut off or not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cut off or not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
def test_what_is_not_a_json_object_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(Fault, match=message) as caught:
        read_json(content)
    assert len(str(caught.value)) < 200


def test_a_json_object_is_read() -> None:
    assert read_json(json.dumps({"choices": [1]}).encode()) == {"choices": [1]}
