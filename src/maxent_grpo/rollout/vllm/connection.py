"""A connection to a vLLM server: it asks again, waits for a lost server, reads only its own answers, and counts.

Where the server itself went away, everything waits until it is healthy again, and ``restore`` runs before anything is
asked of it: a server that restarted has its first weights.
"""

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import torch

from maxent_grpo.errors import RunError
from maxent_grpo.http import (
    WAITING_EVERY,
    Answer,
    Fault,
    HTTPClient,
    Retries,
    read_json,
    say_waiting,
    with_retries,
)
from maxent_grpo.randomness import KeyPart, generator
from maxent_grpo.rollout.settings import ServerSettings
from maxent_grpo.rollout.vllm.client_tag import HEADER, own_part
from maxent_grpo.rollout.vllm.protocol import (
    CompletionRequest,
    Limits,
    MissingLogprobs,
    Output,
    ResponseError,
    parse,
)
from maxent_grpo.stats import Metrics, Stat

T = TypeVar("T")

HEALTH_EVERY = 1.0
HEALTH_TIMEOUT = 10.0
LONGEST_MESSAGE = 512
"""Characters of a server's own words that an error's payload repeats."""
ANY_TOKEN = 2**31
"""The vocabulary's size where it is not known."""
ECHO_REMEDY = (
    "start vLLM with `--middleware maxent_grpo.rollout.vllm.client_tag.EchoMiddleware`, or put maxent-grpo-vllm-proxy "
    "in front of it; vllm_client_tag_policy=lenient keeps untagged answers, which is safe only for a server of one's "
    "own"
)
COUNTED = (
    "requests", "retry_attempts", "retry_rounds", "halved_requests", "server_losses", "unfinished_completions",
    "excess_completions", "filtered_groups", "client_tag_errors", "logprobs_missing", "backfilled_completions",
    "backfilled_prompts",
)  # fmt: skip
"""``generation/…`` metrics, which `observe/metrics.yaml` explains."""


class GenerationServiceError(RunError):
    """A generation service gave no usable completions.

    ``payload`` holds the facts of the request that failed as JSON-ready values. Nothing in it is secret: no header, no
    key, no user or password of an address.
    """

    def __init__(self, message: str, payload: dict[str, Any]) -> None:
        super().__init__(message)
        self.payload = payload


class GenerationStats:
    """Counts since they were last drained. Every rank has the same names, so that they add up over ranks."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._seconds: list[float] = []

    def count(self, name: str, times: int = 1) -> None:
        """Count something of `COUNTED`."""
        assert name in COUNTED, name
        self._counts[name] += times

    def answered(self, seconds: float) -> None:
        """Count an answer that took ``seconds``, waiting for a free place in the queue not included."""
        self.count("requests")
        self._seconds.append(seconds)

    def drain(self) -> Metrics:
        """The counts as ``generation/…`` sums, the latency in milliseconds as mean and maximum; all start over."""
        metrics = {f"generation/{name}": _stat(self._counts[name], 1, "sum") for name in COUNTED}
        total, most = sum(self._seconds), max(self._seconds, default=0.0)
        metrics["generation/latency_ms"] = _stat(1000 * total, self._counts["requests"], "mean")
        metrics["generation/latency_ms_max"] = _stat(1000 * most, 1, "max")
        self._counts, self._seconds = Counter(), []
        return metrics


def _stat(value: float, weight: float, kind: Literal["mean", "sum", "max"]) -> Stat:
    value_, weight_ = (torch.tensor(float(number), dtype=torch.float64) for number in (value, weight))
    return Stat(value_, weight_, kind)


@dataclass(frozen=True)
class Post:
    """A request on the wire. ``key`` is that of the jitter, ``extra`` goes into an error's payload."""

    path: str
    body: Mapping[str, Any]
    key: tuple[KeyPart, ...]
    prompts: int = 0
    request_id: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        return json.dumps(self.body, separators=(",", ":")).encode()


class ServerConnection:
    """An asynchronous context with one client. The number of requests in flight is up to the caller."""

    def __init__(
        self, settings: ServerSettings, stats: GenerationStats, restore: Callable[[], None] | None = None
    ) -> None:
        self._settings, self._stats, self._restore = settings, stats, restore
        tag = {} if settings.client_tag is None else {HEADER: settings.client_tag}
        self._client = HTTPClient(
            settings.base_url,
            headers=settings.headers | tag,
            secrets=settings.secrets,
            key_source="VLLM_API_KEY",
            timeout_remedy="vllm_request_timeout; a smaller vllm_concurrency helps",
            connections=settings.concurrency + 1,
        )
        self._retries = Retries(settings.max_retries + 1, settings.backoff, settings.backoff_multiplier)
        self._restoring = asyncio.Lock()
        self._losses = 0  # times that the server was found gone and came back

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask(self, post: Post, read: Callable[[dict[str, Any]], T]) -> T:
        """The result of ``read`` on the answer; it raises `Fault` for an answer that is not good.

        Raises:
            GenerationServiceError: the attempts are used up, or a fault would meet all of them.
        """
        content, losses = post.content, 0

        async def attempt() -> T:
            nonlocal losses
            async with self._restoring:  # nothing is asked of a server that is being restored
                losses = self._losses
            return read(await self._attempt(post, content))

        async def recover(fault: Fault) -> None:
            self._stats.count("retry_attempts")
            if fault.lost:
                await self._wait_until_back(post, losses, fault.attempt)
            else:
                await asyncio.sleep(self._pause(post, fault.attempt, fault.pause))

        try:
            return await with_retries(attempt, self._retries, recover)
        except Fault as fault:
            tries = f"{fault.attempt} attempts" if fault.attempt > 1 else "one attempt"
            ending = f"; gave up after {tries}" if fault.passing else ""
            raise self.failed(post, fault, f"{fault}{ending}") from fault

    async def get(self, path: str) -> Answer:
        """The answer. Raises `Fault` where no server gives one in time."""
        return await self._client.send("GET", path, timeout=HEALTH_TIMEOUT)

    async def wait_until_healthy(self) -> None:
        """Return when /health answers 200. Raises `Fault` after ``startup_timeout``."""
        deadline, told = time.monotonic() + self._settings.startup_timeout, -math.inf
        while True:
            try:
                status = (await self.get("/health")).status
                if status in (200, 401, 403, 404):  # there is a server: what it is, the next request shows
                    return
                fault = Fault(f"GET /health answers HTTP {status}", status)
            except Fault as error:
                fault = error
            now = time.monotonic()
            if now >= deadline:
                raise fault
            if now - told >= WAITING_EVERY:
                told = now
                say_waiting(self._settings.endpoint, deadline - now)
            await asyncio.sleep(min(HEALTH_EVERY, max(0.0, deadline - time.monotonic())))

    def failed(self, post: Post, fault: Fault, message: str) -> GenerationServiceError:
        """The error that ends the run, cleaned of everything secret."""
        settings, content = self._settings, post.content
        payload = {
            "service": "vllm",
            "endpoint": f"{settings.endpoint}{post.path}",
            "model": settings.model,
            "exception_type": type(fault.__cause__ or fault).__name__,
            "exception_message": self._client.clean(str(fault))[:LONGEST_MESSAGE],
            "prompt_count": post.prompts,
            "payload_chars": len(content.decode()),
            "payload_size_bytes": len(content),
            "status_code": fault.status,  # None: no answer came
            "attempt": fault.attempt,
            "max_attempts": settings.max_retries + 1,
            "request_id": post.request_id,
            "extra": {"client_tag": settings.client_tag, **post.extra},
        }
        return GenerationServiceError(
            self._client.clean(f"vLLM server {settings.endpoint}: {message}"), payload
        )

    async def _attempt(self, post: Post, content: bytes) -> dict[str, Any]:
        name = {} if post.request_id is None else {"X-VLLM-Group-Request-ID": post.request_id}
        headers = {"Content-Type": "application/json", **name}
        started, timeout = time.perf_counter(), self._settings.timeout
        answer = await self._client.send("POST", post.path, timeout=timeout, content=content, headers=headers)
        self._stats.answered(time.perf_counter() - started)
        return read_json(self._client.checked(answer, f"it refuses {post.path}"))

    async def _wait_until_back(self, post: Post, losses: int, attempt: int) -> None:
        """The first of the requests that lost the server waits for it and restores it; the others wait for that."""
        async with self._restoring:
            if self._losses > losses:
                return
            await asyncio.sleep(self._pause(post, 1))
            try:
                await self.wait_until_healthy()
            except Fault as fault:
                fault.attempt = attempt
                waited = f"it was lost and not back within {self._settings.startup_timeout:g} s (vllm_server_timeout)"
                raise self.failed(post, fault, f"{waited}: {fault}") from fault
            if self._restore is not None:
                await asyncio.to_thread(self._restore)
            self._losses += 1
            self._stats.count("server_losses")

    def _pause(self, post: Post, attempt: int, asked: float = 0.0) -> float:
        return self._retries.after(attempt, asked, generator(*post.key, "retry", attempt).random())


@dataclass
class ResponseCheck:
    """Reads the answers of one server, keeps what is this client's, and counts what is wrong with them.

    ``vocabulary`` are the rows of the model's embedding; None: token ids are not checked against it.
    """

    settings: ServerSettings
    stats: GenerationStats
    vocabulary: int | None
    _without_logps: int = field(default=0, init=False)  # answers, in a row

    def completions(
        self, reply: dict[str, Any], request: CompletionRequest, model: str | None, max_tokens: int
    ) -> list[Output | None]:
        """This client's completions in an answer, one per member, None where it is missing.

        Raises:
            Fault: the answer is not good; not a passing fault where every other one would be the same.
        """
        own = self._own(reply)
        served = own.get("model")
        if isinstance(served, str) and model not in (None, served):
            message = (
                f"it answers with model {served[:80]!r} instead of {model!r}; serve that, or set vllm_model"
            )
            raise Fault(message, passing=False)
        try:
            parsed = parse(own, len(request.prompts), 1, Limits(self.vocabulary or ANY_TOKEN, max_tokens))
        except MissingLogprobs as error:
            self.stats.count("logprobs_missing")
            self._without_logps += 1
            if 0 < self.settings.logprob_fail_after <= self._without_logps:
                often = (
                    f"{self._without_logps} answers in a row; the learner needs those of the sampled tokens"
                )
                raise Fault(f"{error}, {often}", passing=False) from error
            raise
        self._without_logps = 0
        self.stats.count("excess_completions", parsed.excess)
        for prompt, outputs in zip(request.prompts, parsed.groups, strict=True):
            if any(output.prompt_token_ids not in (None, prompt.token_ids) for output in outputs):
                raise ResponseError(
                    f"a completion continues another prompt than prompt {prompt.index}: answers were mixed up"
                )
        return [outputs[0] if outputs else None for outputs in parsed.groups]

    def _own(self, reply: dict[str, Any]) -> dict[str, Any]:
        """The answer without other clients' groups. Raises `Fault` where nothing is left of it."""
        tag, policy = self.settings.client_tag, self.settings.tag_policy
        filtered = own_part(reply, tag, policy)
        self.stats.count("filtered_groups", filtered.dropped)
        if filtered.kept or not filtered.dropped:
            return filtered.reply
        self.stats.count("client_tag_errors")
        if filtered.untagged:
            message = f"its answer does not echo client_tag={tag!r} (policy {policy}); {ECHO_REMEDY}"
        else:
            message = (
                f"all {filtered.dropped} groups of its answer carry other tags than client_tag={tag!r}: what stands "
                "between this client and the server mixes up answers"
            )
        raise Fault(message, passing=False) if self.settings.tag_fail_fast else ResponseError(message)
