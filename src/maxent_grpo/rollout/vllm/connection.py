"""A connection to a vLLM server: it asks again, waits for a lost server, reads only its own answers, and counts.

Where the server itself went away, everything waits until it is healthy again, and ``restore`` runs before anything is
asked of it: a server that restarted has its first weights.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from maxent_grpo.errors import RunError
from maxent_grpo.http import Answer, Fault, HTTPClient, Retries, read_json, with_retries
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
"""Characters of a server's own words that an error repeats."""
ANY_TOKEN = 2**31
"""The vocabulary's size where it is not known."""
ECHO_REMEDY = (
    "start vLLM with `--middleware maxent_grpo.rollout.vllm.client_tag.EchoMiddleware`, or put maxent-grpo-vllm-proxy "
    "in front of it; vllm_client_tag_policy=lenient keeps untagged answers, which is safe only for a server of one's "
    "own"
)


@dataclass(frozen=True)
class ServiceFailure:
    """The request that failed. Nothing here is secret: no header, no key, no user or password of an address."""

    service: str
    endpoint: str
    model: str | None
    exception_type: str
    exception_message: str
    """At most `LONGEST_MESSAGE` characters."""
    prompt_count: int = 0
    payload_chars: int = 0
    """Of the request's JSON."""
    payload_size_bytes: int = 0
    status_code: int | None = None
    """None: no answer came."""
    attempt: int = 0
    max_attempts: int = 0
    request_id: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """prompt_hash, client_tag, policy_version …"""


class GenerationServiceError(RunError):
    """A generation service gave no usable completions. ``payload`` holds the facts as plain values."""

    def __init__(self, message: str, failure: ServiceFailure) -> None:
        super().__init__(message)
        self.failure = failure

    @property
    def payload(self) -> dict[str, Any]:
        """The failure as a JSON-ready mapping."""
        return asdict(self.failure)


@dataclass
class GenerationStats:
    """Counts since they were last drained. Every rank has the same names, so that they add up over ranks."""

    requests: int = 0
    """Answered ones, bad answers included."""
    retry_attempts: int = 0
    retry_rounds: int = 0
    """Further rounds for completions that were missing."""
    halved_requests: int = 0
    server_losses: int = 0
    """Times that the server went away and came back."""
    unfinished_completions: int = 0
    """Cut off by the server (an abort), and asked for again."""
    excess_completions: int = 0
    """Not asked for, dropped."""
    filtered_groups: int = 0
    """Other clients' groups, dropped."""
    client_tag_errors: int = 0
    """Answers without a group of this client's."""
    logprobs_missing: int = 0
    """Answers without log-probs."""
    backfilled_completions: int = 0
    """Sampled by the local sampler instead."""
    backfilled_prompts: int = 0
    latency_total: float = 0.0
    latency_max: float = 0.0

    def answered(self, seconds: float) -> None:
        """Count an answer that took ``seconds``, waiting for a free place in the queue not included."""
        self.requests += 1
        self.latency_total += seconds
        self.latency_max = max(self.latency_max, seconds)

    def drain(self) -> Metrics:
        """The counts as ``generation/…`` sums, the latency in milliseconds as mean and maximum; all start over."""
        metrics = {
            f"generation/{f.name}": Stat(_number(getattr(self, f.name)), _number(1), "sum")
            for f in fields(self)
            if f.type is int
        }
        metrics["generation/latency_ms"] = Stat(_number(1000 * self.latency_total), _number(self.requests))
        metrics["generation/latency_ms_max"] = Stat(_number(1000 * self.latency_max), _number(1), "max")
        for f in fields(self):
            setattr(self, f.name, f.default)
        return metrics


def _number(value: float) -> torch.Tensor:
    return torch.tensor(float(value), dtype=torch.float64)


@dataclass(frozen=True)
class Post:
    """A request on the wire."""

    path: str
    body: Mapping[str, Any]
    key: tuple[KeyPart, ...]
    """Of the jitter."""
    prompts: int = 0
    request_id: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """For the error's payload."""

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
        self._losses = 0
        """Times that the server was found gone and came back."""

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
            self._stats.retry_attempts += 1
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

    async def get(self, path: str, timeout: float = HEALTH_TIMEOUT) -> Answer:
        """The answer. Raises `Fault` where no server gives one in time."""
        return await self._client.send("GET", path, timeout=timeout)

    async def wait_until_healthy(self) -> None:
        """Return when /health answers 200. Raises `Fault` after ``startup_timeout``."""
        deadline = time.monotonic() + self._settings.startup_timeout
        while True:
            try:
                status = (await self.get("/health")).status
                if status in (200, 401, 403, 404):  # there is a server: what it is, the next request shows
                    return
                fault = Fault(f"GET /health answers HTTP {status}", status)
            except Fault as error:
                fault = error
            if time.monotonic() >= deadline:
                raise fault
            await asyncio.sleep(min(HEALTH_EVERY, max(0.0, deadline - time.monotonic())))

    def failed(self, post: Post, fault: Fault, message: str) -> GenerationServiceError:
        """The error that ends the run. Its line is cleaned of everything secret."""
        settings, content = self._settings, post.content
        return GenerationServiceError(
            self._client.clean(f"vLLM server {settings.endpoint}: {message}"),
            ServiceFailure(
                service="vllm",
                endpoint=f"{settings.endpoint}{post.path}",
                model=settings.model,
                exception_type=type(fault.__cause__ or fault).__name__,
                exception_message=self._client.clean(str(fault))[:LONGEST_MESSAGE],
                prompt_count=post.prompts,
                payload_chars=len(content.decode()),
                payload_size_bytes=len(content),
                status_code=fault.status,
                attempt=fault.attempt,
                max_attempts=settings.max_retries + 1,
                request_id=post.request_id,
                extra={"client_tag": settings.client_tag, **post.extra},
            ),
        )

    async def _attempt(self, post: Post, content: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if post.request_id is not None:
            headers["X-VLLM-Group-Request-ID"] = post.request_id
        started = time.perf_counter()
        answer = await self._client.send(
            "POST", post.path, timeout=self._settings.timeout, content=content, headers=headers
        )
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
            self._stats.server_losses += 1

    def _pause(self, post: Post, attempt: int, asked: float = 0.0) -> float:
        return self._retries.after(attempt, asked, generator(*post.key, "retry", attempt).random())


@dataclass
class ResponseCheck:
    """Reads the answers of one server, keeps what is this client's, and counts what is wrong with them."""

    settings: ServerSettings
    stats: GenerationStats
    vocabulary: int | None
    """Rows of the model's embedding; None: token ids are not checked against it."""
    _without_logps: int = field(default=0, init=False)
    """Answers, in a row."""

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
            self.stats.logprobs_missing += 1
            self._without_logps += 1
            if 0 < self.settings.logprob_fail_after <= self._without_logps:
                often = (
                    f"{self._without_logps} answers in a row; the learner needs those of the sampled tokens"
                )
                raise Fault(f"{error}, {often}", passing=False) from error
            raise
        self._without_logps = 0
        self.stats.excess_completions += parsed.excess
        for prompt, outputs in zip(request.prompts, parsed.groups, strict=True):
            for output in outputs:
                if output.prompt_token_ids not in (None, prompt.token_ids):
                    raise ResponseError(
                        f"a completion continues another prompt than prompt {prompt.index}: answers were mixed up"
                    )
        return [outputs[0] if outputs else None for outputs in parsed.groups]

    def _own(self, reply: dict[str, Any]) -> dict[str, Any]:
        """The answer without other clients' groups. Raises `Fault` where nothing is left of it."""
        tag, policy = self.settings.client_tag, self.settings.tag_policy
        filtered = own_part(reply, tag, policy)
        self.stats.filtered_groups += filtered.dropped
        if filtered.kept or not filtered.dropped:
            return filtered.reply
        self.stats.client_tag_errors += 1
        if filtered.untagged:
            message = f"its answer does not echo client_tag={tag!r} (policy {policy}); {ECHO_REMEDY}"
        else:
            message = (
                f"all {filtered.dropped} groups of its answer carry other tags than client_tag={tag!r}: what stands "
                "between this client and the server mixes up answers"
            )
        raise Fault(message, passing=False) if self.settings.tag_fail_fast else ResponseError(message)
