"""Requests to a generation server: bounded in time and size, tried again with growing pauses.

An attempt that finds no server, runs past its deadline, or comes back as 429, 5xx or something that is not what was
asked for is repeated. A refusal (any other status) is not. Where the server itself went away, everything waits until
it is healthy again, and ``restore`` runs before anything is asked of it: a server that restarted has its first weights.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from maxent_grpo.randomness import KeyPart, generator
from maxent_grpo.rollout.vllm.client_tag import HEADER
from maxent_grpo.rollout.vllm.failures import LONGEST_MESSAGE, GenerationServiceError, ServiceFailure
from maxent_grpo.rollout.vllm.responses import ResponseError, read_json
from maxent_grpo.rollout.vllm.settings import ServerSettings
from maxent_grpo.rollout.vllm.stats import GenerationStats

T = TypeVar("T")

SERVICE = "vllm"
LONGEST_PAUSE = 60.0
HEALTH_EVERY = 1.0
HEALTH_TIMEOUT = 10.0
MAX_ANSWER_BYTES = 256 * 2**20


class PassingFault(Exception):
    """A failure that another attempt may not meet."""

    def __init__(
        self, message: str, status: int | None = None, pause: float = 0.0, lost: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.pause = pause  # seconds that the server asks for
        self.lost = lost  # the connection broke or was refused: the server may have restarted


class LastingFault(Exception):
    """A failure that every attempt would meet."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Post:
    """A request on the wire."""

    path: str
    body: Mapping[str, Any]
    key: tuple[KeyPart, ...]  # of the jitter
    prompts: int = 0
    request_id: str | None = None
    extra: Mapping[str, Any] | None = None  # for the error's payload


@cache
def certificates() -> ssl.SSLContext:
    """The certificates that are trusted, read once: httpx would read them for every client, also for plain http."""
    return httpx.create_ssl_context(trust_env=False)


class ServerConnection:
    """An asynchronous context with one client. How many requests are in flight is up to the caller."""

    def __init__(
        self, settings: ServerSettings, stats: GenerationStats, restore: Callable[[], None] | None = None
    ) -> None:
        self._settings = settings
        self._stats = stats
        self._restore = restore
        self._restoring = asyncio.Lock()
        self._losses = 0  # how often the server was found gone and came back

    async def __aenter__(self) -> Self:
        settings = self._settings
        headers = dict(settings.extra_headers)
        if settings.api_key:
            headers["Authorization"] = f"Bearer {settings.api_key}"
        if settings.client_tag is not None:
            headers[HEADER] = settings.client_tag
        self._client = httpx.AsyncClient(
            base_url=settings.base_url,
            headers=headers,
            limits=httpx.Limits(max_connections=settings.concurrency + 1),
            timeout=None,  # each attempt has a deadline of its own
            trust_env=False,  # a proxy of the environment would see prompts and keys
            verify=certificates(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def ask(self, post: Post, read: Callable[[dict[str, Any]], T]) -> T:
        """What ``read`` makes of the answer. Raises `GenerationServiceError` when the attempts are used up.

        ``read`` raises `ResponseError` for an answer to be asked for again, `LastingFault` for one that ends the run.
        """
        attempts = self._settings.max_retries + 1
        content = json.dumps(post.body, separators=(",", ":")).encode()
        for attempt in range(1, attempts + 1):
            async with self._restoring:  # nothing is asked of a server that is being restored
                losses = self._losses
            try:
                return read(await self._attempt(post, content))
            except LastingFault as error:
                raise self.failed(post, error, error.status, attempt, f"{error}") from error
            except (PassingFault, ResponseError) as error:
                fault = error if isinstance(error, PassingFault) else PassingFault(str(error), 200)
                if attempt == attempts:
                    tries = f"{attempts} attempts" if attempts > 1 else "one attempt"
                    raise self.failed(
                        post, error, fault.status, attempt, f"{error}; gave up after {tries}"
                    ) from error
                self._stats.retry_attempts += 1
                if fault.lost:
                    await self._wait_until_back(post, losses, attempt)
                else:
                    await asyncio.sleep(max(fault.pause, self._pause(post, attempt)))
        raise AssertionError("the last attempt returns or raises")

    async def get(self, path: str, timeout: float = HEALTH_TIMEOUT) -> tuple[int, bytes]:
        """Status and body. Raises `PassingFault` where no server answers in time."""
        return await self._send("GET", path, None, timeout, {})

    async def wait_until_healthy(self) -> None:
        """Return when /health answers 200. Raises `PassingFault` after ``startup_timeout``."""
        deadline = time.monotonic() + self._settings.startup_timeout
        while True:
            try:
                status, _ = await self.get("/health")
                if status in (401, 403, 404):  # there is a server: what it is, the next request shows
                    return
                fault = PassingFault(f"GET /health answers HTTP {status}", status)
                if status == 200:
                    return
            except PassingFault as error:
                fault = error
            if time.monotonic() >= deadline:
                raise fault
            await asyncio.sleep(min(HEALTH_EVERY, max(0.0, deadline - time.monotonic())))

    def failed(
        self, post: Post, error: BaseException, status: int | None, attempt: int, message: str
    ) -> GenerationServiceError:
        """The error that ends the run. Its line is cleaned of everything secret."""
        content = json.dumps(post.body, separators=(",", ":"))
        settings = self._settings
        cause = error.__cause__ or error
        return GenerationServiceError(
            self.clean(f"vLLM server {settings.endpoint}: {message}"),
            ServiceFailure(
                service=SERVICE,
                endpoint=f"{settings.endpoint}{post.path}",
                model=settings.model,
                exception_type=type(cause).__name__,
                exception_message=self.clean(str(error))[:LONGEST_MESSAGE],
                prompt_count=post.prompts,
                payload_chars=len(content),
                payload_size_bytes=len(content.encode()),
                status_code=status,
                attempt=attempt,
                max_attempts=settings.max_retries + 1,
                request_id=post.request_id,
                extra={"client_tag": settings.client_tag, **(post.extra or {})},
            ),
        )

    def clean(self, text: str) -> str:
        """``text`` in one line and without secrets."""
        for secret in self._settings.secrets:
            text = text.replace(secret, "***")
        return " ".join(text.split())

    async def _attempt(self, post: Post, content: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if post.request_id is not None:
            headers["X-VLLM-Group-Request-ID"] = post.request_id
        started = time.perf_counter()
        status, answer = await self._send("POST", post.path, content, self._settings.timeout, headers)
        self._stats.answered(time.perf_counter() - started)
        if status == 429 or status >= 500:
            raise PassingFault(f"HTTP {status}: {self._excerpt(answer)}", status)
        if status != 200:
            advice = " (the key is read from VLLM_API_KEY)" if status in (401, 403) else ""
            raise LastingFault(
                f"it refuses {post.path} with HTTP {status}{advice}: {self._excerpt(answer)}", status
            )
        return read_json(answer)

    async def _send(
        self, method: str, path: str, content: bytes | None, timeout: float, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        try:
            async with (
                asyncio.timeout(timeout),
                self._client.stream(method, path, content=content, headers=dict(headers)) as response,
            ):
                pieces, size = [], 0
                async for piece in response.aiter_bytes():
                    pieces.append(piece)
                    size += len(piece)
                    if size > MAX_ANSWER_BYTES:
                        raise LastingFault(
                            f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB", response.status_code
                        )
                return response.status_code, b"".join(pieces)
        except TimeoutError as error:
            raise PassingFault(
                f"no whole answer within {timeout:g} s (vllm_request_timeout; a smaller vllm_concurrency helps)"
            ) from error
        except httpx.TransportError as error:
            what = f"{type(error).__name__} {error}".strip()
            raise PassingFault(
                f"the connection failed ({what}): is the server running?", lost=True
            ) from error
        except httpx.DecodingError as error:
            raise PassingFault(f"the answer cannot be decompressed ({error})") from error

    async def _wait_until_back(self, post: Post, losses: int, attempt: int) -> None:
        """The first of the requests that lost the server waits for it and restores it; the others wait for that."""
        async with self._restoring:
            if self._losses > losses:
                return
            await asyncio.sleep(self._pause(post, 1))
            try:
                await self.wait_until_healthy()
            except PassingFault as error:
                waited = f"it was lost and not back within {self._settings.startup_timeout:g} s (vllm_server_timeout)"
                raise self.failed(post, error, error.status, attempt, f"{waited}: {error}") from error
            if self._restore is not None:
                await asyncio.to_thread(self._restore)
            self._losses += 1
            self._stats.server_losses += 1

    def _pause(self, post: Post, attempt: int) -> float:
        """backoff · multiplier^(attempt − 1), and up to half of it more, drawn from the request's key."""
        settings = self._settings
        jitter = generator(*post.key, "retry", attempt).random() / 2
        return min(
            LONGEST_PAUSE, settings.backoff * settings.backoff_multiplier ** (attempt - 1) * (1 + jitter)
        )

    def _excerpt(self, content: bytes) -> str:
        text = self.clean(content[:2000].decode("utf-8", "replace"))
        return (text if len(text) <= 200 else text[:199] + "…") or "(empty)"
