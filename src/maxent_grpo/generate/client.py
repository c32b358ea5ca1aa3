"""A client of servers that speak OpenAI's protocol: vLLM, SGLang, llama.cpp, a hosted model.

At most ``concurrency`` requests are open. A request that finds no server, runs past its deadline, or comes back as
429, 5xx or something that is no completion is tried again after a growing pause with jitter. What then has no answer
is an outcome too: the caller decides whether one failed request ends the work.
"""

import asyncio
import json
import os
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from maxent_grpo.errors import RunError
from maxent_grpo.rollout.event_loop import event_loop

FIRST_PAUSE = 0.5  # seconds before the first retry, doubled for each further one
LONGEST_PAUSE = 30.0
JITTER = (0.75, 1.25)  # factors of a pause, so that requests that failed together do not come back together
MAX_REPLY_BYTES = 64 * 2**20  # of one completion; more is not an answer but a fault
UNUSABLE = (401, 403, 404, 405)
"""Statuses that every other request would get as well: no key, no right, no such model, no such path."""

Key = TypeVar("Key")


class RequestFailed(Exception):
    """One request has no answer; others may have. ``passing``: it may have one later, as the attempts ran out."""

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


class _PassingError(Exception):
    """A failure that another attempt may not meet."""

    def __init__(self, message: str, pause: float = 0.0) -> None:
        super().__init__(message)
        self.pause = pause  # seconds that the server asks for


@dataclass(frozen=True)
class Reply:
    """One completion as the server gave it."""

    text: str
    finish_reason: str  # "stop", or "length" where the completion was cut off
    tokens: int = 0  # of the completion, where the server counts them


@dataclass(frozen=True)
class Endpoint:
    """Where requests go, and how patiently."""

    base_url: str  # up to and with /v1
    model: str  # the name that the server knows it by
    api_key_env: str = "OPENAI_API_KEY"  # the key is read from this variable once, and shown nowhere
    concurrency: int = 16  # requests in flight
    timeout: float = 600.0  # seconds of one attempt, all of it
    retries: int = 4  # after the first attempt
    first_pause: float = FIRST_PAUSE

    @property
    def place(self) -> str:
        """The endpoint in words, without a password that its URL may hold."""
        url = httpx.URL(self.base_url).copy_with(username=None, password=None, query=None)
        return f"endpoint {url} ({self.model})"


class Client:
    """See the module. Requests run in a thread of their own, so that a notebook may call this too."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._key = os.environ.get(endpoint.api_key_env, "")

    def outcomes(
        self, jobs: Iterator[tuple[Key, Mapping[str, Any]]]
    ) -> Iterator[tuple[Key, Reply | RequestFailed]]:
        """The outcome of each job's request body, in the order in which they come.

        ``jobs`` is read as far as there is room for requests. Raises `RunError` where no request can have an answer;
        leaving the iterator early cancels what runs.
        """
        running: dict[Future[Reply], Key] = {}
        with event_loop() as loop:
            client = self._new_client()
            while True:
                while len(running) < self._endpoint.concurrency and (job := next(jobs, None)) is not None:
                    key, body = job
                    running[asyncio.run_coroutine_threadsafe(self._complete(client, body), loop)] = key
                if not running:
                    asyncio.run_coroutine_threadsafe(client.aclose(), loop).result()
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    key = running.pop(future)
                    try:
                        outcome: Reply | RequestFailed = future.result()
                    except RequestFailed as error:
                        outcome = error
                    yield key, outcome

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx.Limits(max_connections=self._endpoint.concurrency),
            timeout=None,  # each attempt has a deadline of its own
        )

    async def _complete(self, client: httpx.AsyncClient, body: Mapping[str, Any]) -> Reply:
        """One completion, with retries. Raises `RequestFailed` when the attempts are used up."""
        attempts = self._endpoint.retries + 1
        for attempt in range(1, attempts + 1):
            try:
                return await self._attempt(client, body)
            except _PassingError as error:
                if attempt == attempts:
                    raise RequestFailed(
                        f"{self._endpoint.place}: no answer after {attempts} attempt(s), last: {error}",
                        passing=True,
                    ) from error
                doubled = self._endpoint.first_pause * 2.0 ** (attempt - 1)
                pause = min(max(doubled, error.pause), LONGEST_PAUSE)
                await asyncio.sleep(pause * random.SystemRandom().uniform(*JITTER))
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, client: httpx.AsyncClient, body: Mapping[str, Any]) -> Reply:
        path = "completions" if "prompt" in body else "chat/completions"
        url = f"{self._endpoint.base_url.rstrip('/')}/{path}"
        timeout = self._endpoint.timeout
        try:
            async with asyncio.timeout(timeout), client.stream("POST", url, json=body) as response:
                content = await _read(response)
        except TimeoutError as error:
            raise _PassingError(f"no whole reply within {timeout:g} s") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _PassingError(f"{type(error).__name__}: {error}") from error
        status = response.status_code
        if status == 429 or status >= 500:
            raise _PassingError(f"HTTP {status}: {self._excerpt(content)}", _retry_after(response.headers))
        if status != 200:
            advice = f" (the key is read from {self._endpoint.api_key_env})" if status in (401, 403) else ""
            message = (
                f"{self._endpoint.place}: the server refuses the request with HTTP {status}{advice}: "
                f"{self._excerpt(content)}"
            )
            if status in UNUSABLE:
                raise RunError(message)
            raise RequestFailed(message, passing=False)
        return self._reply(content, body.get("stop") or ())

    def _reply(self, content: bytes, stops: Any) -> Reply:
        try:
            reply = json.loads(content)
            choice = reply["choices"][0]
            reason, stop = choice.get("finish_reason"), choice.get("stop_reason")
            text = _message_text(choice["message"], reason) if "message" in choice else choice["text"]
            tokens = (reply.get("usage") or {}).get("completion_tokens")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _PassingError(f"the reply is no completion: {self._excerpt(content)}") from error
        if not isinstance(text, str):
            raise _PassingError(f"the reply holds no text: {self._excerpt(content)}")
        if isinstance(stop, str) and stop in stops and not text.endswith(stop):
            # Servers cut the stop string off; here a completion keeps it, as every sampler's does.
            text += stop
        return Reply(
            text, "length" if reason == "length" else "stop", tokens if isinstance(tokens, int) else 0
        )

    def _excerpt(self, content: bytes) -> str:
        return excerpt(content, self._key)


def excerpt(content: bytes, key: str) -> str:
    """A reply for use inside a message: one line, short, and without the key should the server repeat it."""
    text = " ".join(content[:2000].decode("utf-8", "replace").split())
    text = text.replace(key, "***") if key else text
    return (text if len(text) <= 200 else text[:199] + "…") or "(empty)"


def _message_text(message: Mapping[str, Any], finish_reason: Any) -> Any:
    """The text of a chat message. A thought that the server has set apart goes back between its tags."""
    content = message.get("content")
    thought = message.get("reasoning_content") or message.get("reasoning")
    if thought:
        return f"<think>{thought}</think>{content or ''}"
    return "" if content is None and finish_reason == "length" else content


async def _read(response: httpx.Response) -> bytes:
    pieces, size = [], 0
    async for piece in response.aiter_bytes():
        pieces.append(piece)
        size += len(piece)
        if size > MAX_REPLY_BYTES:
            raise httpx.DecodingError(f"a reply of more than {MAX_REPLY_BYTES >> 20} MiB")
    return b"".join(pieces)


def _retry_after(headers: httpx.Headers) -> float:
    try:
        return float(headers.get("retry-after", ""))
    except ValueError:  # absent, or a date
        return 0.0
