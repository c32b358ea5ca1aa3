"""A client of servers that speak OpenAI's protocol: vLLM, SGLang, llama.cpp, a hosted model.

At most ``concurrency`` requests are open. A request that `maxent_grpo.http` cannot get an answer to is an outcome too:
the caller decides whether one failed request ends the work.
"""

import asyncio
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from maxent_grpo.errors import RunError
from maxent_grpo.http import Fault, HTTPClient, Retries, event_loop, with_retries
from maxent_grpo.rollout.settings import public_url

FIRST_PAUSE = 0.5  # seconds before the first retry, doubled for each further one
LONGEST_PAUSE = 30.0
MAX_REPLY_BYTES = 64 * 2**20  # of one completion; more is not an answer but a fault
UNUSABLE = (401, 403, 404, 405)
"""Statuses that every other request would get as well: no key, no right, no such model, no such path."""

Key = TypeVar("Key")

_CLOSING_TAG = re.compile(r"</([^<>/]+)>")


class RequestFailed(Exception):
    """One request has no answer; others may have. ``passing``: it may have one later, as the attempts ran out."""

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class Reply:
    """One completion as the server gave it."""

    text: str
    finish_reason: str
    """ "stop", or "length" where the completion was cut off."""
    tokens: int = 0
    """Of the completion, where the server counts them."""
    may_lack_stop: bool = False
    """A stop string may have been cut off, and nothing tells whether and which."""
    prompt_tokens: int = 0
    """Where the server counts them."""


@dataclass(frozen=True)
class Endpoint:
    """The address of requests, and the patience with them."""

    base_url: str
    """Up to and with /v1."""
    model: str
    """The name that the server knows it by."""
    api_key_env: str = "OPENAI_API_KEY"
    """The key is read from this variable once, and shown nowhere."""
    concurrency: int = 16
    """Requests in flight."""
    timeout: float = 600.0
    """Seconds of one attempt, all of it."""
    retries: int = 4
    """After the first attempt."""
    first_pause: float = FIRST_PAUSE

    @property
    def place(self) -> str:
        """The endpoint in words, without a password that its URL may hold."""
        return f"endpoint {public_url(self.base_url)} ({self.model})"

    @property
    def key(self) -> str:
        """The secret itself."""
        return os.environ.get(self.api_key_env, "")


class Client:
    """Asks one endpoint. Requests run in a thread of their own, so that a notebook may call this too."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._key = endpoint.key
        self._retries = Retries(endpoint.retries + 1, endpoint.first_pause, longest=LONGEST_PAUSE)

    @property
    def place(self) -> str:
        """The endpoint in words."""
        return self._endpoint.place

    def outcomes(
        self, jobs: Iterator[tuple[Key, Mapping[str, Any]]]
    ) -> Iterator[tuple[Key, Reply | RequestFailed]]:
        """The outcome of each job's request body, in the order in which they come.

        ``jobs`` is read as far as there is room for requests; leaving the iterator early cancels what runs.

        Raises:
            RunError: no request can have an answer.
        """
        running: dict[Future[Reply], Key] = {}
        with event_loop() as loop:
            client = HTTPClient(
                self._endpoint.base_url,
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                secrets=[self._key],
                key_source=self._endpoint.api_key_env,
                connections=self._endpoint.concurrency,
                max_bytes=MAX_REPLY_BYTES,
                trust_env=True,
            )
            while True:
                while len(running) < self._endpoint.concurrency and (job := next(jobs, None)) is not None:
                    key, body = job
                    running[asyncio.run_coroutine_threadsafe(self._complete(client, body), loop)] = key
                if not running:
                    asyncio.run_coroutine_threadsafe(client.close(), loop).result()
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    key = running.pop(future)
                    try:
                        outcome: Reply | RequestFailed = future.result()
                    except RequestFailed as error:
                        outcome = error
                    yield key, outcome

    async def _complete(self, client: HTTPClient, body: Mapping[str, Any]) -> Reply:
        """One completion, with retries. Raises `RequestFailed` when the attempts are used up."""
        path = "/completions" if "prompt" in body else "/chat/completions"

        async def attempt() -> Reply:
            answer = await client.send("POST", path, timeout=self._endpoint.timeout, json=body)
            content = client.checked(answer, "the server refuses the request")
            return _reply(content, _texts(body.get("stop")), client)

        try:
            return await with_retries(attempt, self._retries)
        except Fault as fault:
            tried = f"no answer after {fault.attempt} attempt(s), last: " if fault.passing else ""
            message = f"{self._endpoint.place}: {tried}{fault}"
            if fault.status in UNUSABLE:
                raise RunError(message) from fault
            raise RequestFailed(message, passing=fault.passing) from fault


def _reply(content: bytes, stops: Any, client: HTTPClient) -> Reply:
    try:
        reply = json.loads(content)
        choice = reply["choices"][0]
        reason, stop = choice.get("finish_reason"), choice.get("stop_reason")
        text = _message_text(choice["message"], reason) if "message" in choice else choice["text"]
        usage = reply.get("usage") or {}
        tokens, read = usage.get("completion_tokens"), usage.get("prompt_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Fault(f"the reply is no completion: {client.excerpt(content)}") from error
    if not isinstance(text, str):
        raise Fault(f"the reply holds no text: {client.excerpt(content)}")
    if "stop_reason" not in choice:
        stop, unknown = _cut_stop(text, reason, stops)
    else:
        unknown = False
    if isinstance(stop, str) and stop in stops and not text.endswith(stop):
        # Servers cut the stop string off; here a completion keeps it, as every sampler's does.
        text += stop
    return Reply(
        text,
        "length" if reason == "length" else "stop",
        tokens if isinstance(tokens, int) else 0,
        unknown,
        read if isinstance(read, int) else 0,
    )


def _cut_stop(text: str, reason: Any, stops: Sequence[str]) -> tuple[str | None, bool]:
    """The stop string that a server without ``stop_reason`` has cut off ``text``, and whether that remains open.

    It is certain where one stop string is asked for and its tag is open: ``<answer>7`` under ``</answer>``.
    """
    if reason != "stop" or not stops or any(stop in text for stop in stops):
        return None, False
    closing = _CLOSING_TAG.fullmatch(stops[0])
    if len(stops) == 1 and closing and f"<{closing[1]}>" in text:
        return stops[0], False
    return None, True


def _texts(stop: Any) -> Sequence[str]:
    """``stop`` of a request, which the protocol takes as one text too."""
    return [stop] if isinstance(stop, str) else stop or ()


def _message_text(message: Mapping[str, Any], finish_reason: Any) -> Any:
    """The text of a chat message. A thought that the server has set apart goes back between its tags."""
    content = message.get("content")
    thought = message.get("reasoning_content") or message.get("reasoning")
    if thought:
        return f"<think>{thought}</think>{content or ''}"
    return "" if content is None and finish_reason == "length" else content
