"""HTTP requests, bounded in time and size and tried again after growing pauses: the package's one client.

An attempt that finds no server, runs past its deadline, or comes back as 429, 5xx or something that was not asked for
may be repeated (`Fault.passing`); any other status is a refusal. Messages are one line, without keys and passwords.
"""

import asyncio
import json
import random
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

T = TypeVar("T")

MAX_BYTES = 256 * 2**20
LONGEST_EXCERPT = 200
"""Characters of a server's own words in a message."""


class Fault(Exception):
    """A request without a usable answer."""

    def __init__(
        self,
        message: str,
        status: int | None = None,
        *,
        passing: bool = True,
        lost: bool = False,
        pause: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.status = status
        """None: no answer came."""
        self.passing = passing
        """Another attempt may not meet it."""
        self.lost = lost
        """The connection broke or was refused: the server may have restarted."""
        self.pause = pause
        """Seconds that the server asks for."""
        self.attempt = 1
        """Number of the attempt that met it."""


@dataclass(frozen=True)
class Answer:
    """A server's answer, whatever its status."""

    status: int
    content: bytes
    headers: httpx.Headers


@dataclass(frozen=True)
class Retries:
    """Attempts at one request, and the seconds between them."""

    attempts: int = 1
    pause: float = 1.0
    """Before the second attempt, grown by ``multiplier`` from then on; up to half of it more by jitter."""
    multiplier: float = 2.0
    longest: float = 60.0

    def after(self, attempt: int, asked: float = 0.0, jitter: float | None = None) -> float:
        """Seconds to wait after attempt number ``attempt``: at least those ``asked`` for; ``jitter`` is in [0, 1)."""
        share = random.SystemRandom().random() if jitter is None else jitter
        grown = self.pause * self.multiplier ** (attempt - 1) * (1 + share / 2)
        return min(self.longest, max(grown, asked))


async def with_retries(
    attempt: Callable[[], Awaitable[T]],
    retries: Retries,
    recover: Callable[[Fault], Awaitable[None]] | None = None,
) -> T:
    """The result of ``attempt``, made again after faults that pass.

    Args:
        recover: awaited between two attempts; the pause of ``retries`` if None.

    Raises:
        Fault: the last one, or the first that no attempt can mend.
    """
    for number in range(1, retries.attempts + 1):
        try:
            return await attempt()
        except Fault as fault:
            fault.attempt = number
            if not fault.passing or number == retries.attempts:
                raise
            pause = retries.after(number, fault.pause)
            await (asyncio.sleep(pause) if recover is None else recover(fault))
    raise AssertionError("the last attempt returns or raises")


class HTTPClient:
    """An asynchronous context with connections to one server. The number of requests in flight is up to the caller.

    Args:
        base_url: what paths are appended to; a user and password in it are used and never shown.
        secrets: texts that no message may contain, should a server repeat them.
        key_source: where the key is read from, for the message of a 401 or 403.
        timeout_remedy: what helps against a deadline that passed, for its message.
        trust_env: send requests through the proxies of the environment, which then see prompts and keys.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        secrets: Sequence[str] = (),
        key_source: str = "",
        timeout_remedy: str = "",
        connections: int | None = None,
        max_bytes: int = MAX_BYTES,
        trust_env: bool = False,
    ) -> None:
        self._secrets, self._key_source, self._max_bytes = secrets, key_source, max_bytes
        self._timeout_remedy = f" ({timeout_remedy})" if timeout_remedy else ""
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers=headers,
            limits=httpx.Limits(max_connections=connections),
            timeout=None,  # each attempt has a deadline of its own
            trust_env=trust_env,
            verify=certificates(trust_env),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connections up."""
        await self._client.aclose()

    async def send(self, method: str, path: str, *, timeout: float, **request: Any) -> Answer:
        """The whole answer to one request; ``request`` as httpx takes it.

        Raises:
            Fault: there is none within ``timeout`` seconds and the client's bytes.
        """
        try:
            async with asyncio.timeout(timeout), self._client.stream(method, path, **request) as response:
                pieces, size = [], 0
                async for piece in response.aiter_bytes():
                    pieces.append(piece)
                    size += len(piece)
                    if size > self._max_bytes:
                        raise Fault(
                            f"an answer of more than {self._max_bytes >> 20} MiB",
                            response.status_code,
                            passing=False,
                        )
                return Answer(response.status_code, b"".join(pieces), response.headers)
        except TimeoutError as error:
            raise Fault(f"no whole answer within {timeout:g} s{self._timeout_remedy}") from error
        except httpx.TransportError as error:
            what = f"{type(error).__name__} {error}".strip()
            raise Fault(f"the connection failed ({what}): is the server running?", lost=True) from error
        except httpx.DecodingError as error:
            raise Fault(f"the answer cannot be decompressed ({error})") from error

    def checked(self, answer: Answer, refusal: str) -> bytes:
        """The content of a success. ``refusal`` begins the message where there is none, as in "it refuses /pause".

        Raises:
            Fault: any other status than 200; passing for 429 and 5xx.
        """
        status, said = answer.status, self.excerpt(answer.content)
        if status == 429 or status >= 500:
            raise Fault(f"HTTP {status}: {said}", status, pause=_retry_after(answer.headers))
        if status != 200:
            keyed = self._key_source and status in (401, 403)
            advice = f" (the key is read from {self._key_source})" if keyed else ""
            raise Fault(f"{refusal} with HTTP {status}{advice}: {said}", status, passing=False)
        return answer.content

    def clean(self, text: str) -> str:
        """``text`` in one line and without secrets."""
        return redacted(text, self._secrets)

    def excerpt(self, content: bytes) -> str:
        """The beginning of an answer, for use inside a message."""
        return excerpt(content, self._secrets)


def redacted(text: str, secrets: Sequence[str]) -> str:
    """``text`` in one line, ``***`` in place of secrets."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return " ".join(text.split())


def excerpt(content: bytes, secrets: Sequence[str]) -> str:
    """The beginning of ``content``, for use inside a message."""
    text = redacted(content[:2000].decode("utf-8", "replace"), secrets)
    return shortened(text, LONGEST_EXCERPT) or "(empty)"


def read_json(content: bytes) -> dict[str, Any]:
    """The JSON object in ``content``.

    Raises:
        Fault: it is anything else, cut-off JSON included.
    """
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError) as error:
        kind = "cut off or not JSON" if content.lstrip()[:1] in (b"{", b"[") else "not JSON"
        message = f"the answer of {len(content)} bytes is {kind} ({shortened(str(error))})"
        raise Fault(message, 200) from error
    if not isinstance(reply, dict):
        raise Fault(f"the answer is a JSON {type(reply).__name__}, not an object", 200)
    return reply


def shortened(value: object, length: int = 80) -> str:
    """``value`` as one line of at most ``length`` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= length else text[: length - 1] + "…"


@cache
def certificates(trust_env: bool) -> ssl.SSLContext:
    """The trusted certificates, read once: httpx would read them for every client, also for plain http."""
    return httpx.create_ssl_context(trust_env=trust_env)


def fetch(url: str, method: str = "GET", *, timeout: float, **request: Any) -> Answer:
    """The answer to one request, synchronously.

    Raises:
        Fault: there is none.
    """

    async def ask() -> Answer:
        async with HTTPClient("") as client:
            return await client.send(method, url, timeout=timeout, **request)

    return run_to_end(ask())


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``. When this call is interrupted, what still runs is cancelled."""
    with event_loop() as loop:
        return asyncio.run_coroutine_threadsafe(work, loop).result()


@contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own: the caller may have one already, as notebooks do.

    On leaving, what still runs is cancelled: a failure does not wait for requests that hang.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="requests", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _retry_after(headers: httpx.Headers) -> float:
    try:
        return float(headers.get("retry-after", ""))
    except ValueError:  # absent, or a date
        return 0.0


WAITING_EVERY = 30.0
"""Seconds between two lines of `say_waiting`."""


def say_waiting(address: str, left: float) -> None:
    """Tell a person why nothing happens, whatever the log level is."""
    print(f"waiting for vLLM server {address} ({left:.0f} s left)", file=sys.stderr, flush=True)
