"""Answers from a server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp, a hosted model.

One request per completion, so that each has a seed of its own, derived from (seed, question, sample), and can be
tried again alone. At most ``concurrency`` requests are open. A request that finds no server, runs past its deadline,
or comes back as 429, 5xx or something that is no completion is tried again after a growing pause; when one request
has used up its attempts the evaluation stops, and what was answered until then is kept.
"""

import asyncio
import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from maxent_grpo.errors import RunError
from maxent_grpo.evaluate.prompting import QUESTION, messages_of, plain_template
from maxent_grpo.evaluate.questions import Question
from maxent_grpo.evaluate.records import Sampled
from maxent_grpo.evaluate.settings import InferenceModelSpec
from maxent_grpo.randomness import integer_seed

FIRST_PAUSE = 0.5  # seconds before the first retry, doubled for each further one
LONGEST_PAUSE = 30.0
MAX_REPLY_BYTES = 64 * 2**20  # of one completion; more is not an answer but a fault


class _PassingError(Exception):
    """A failure that another attempt may not meet."""

    def __init__(self, message: str, pause: float = 0.0) -> None:
        super().__init__(message)
        self.pause = pause  # seconds that the server asks for


@dataclass(frozen=True)
class _Reply:
    text: str
    finish_reason: str


class EndpointBackend:
    """See the module. The key is read from the environment variable ``api_key_env`` and shown nowhere."""

    def __init__(
        self, spec: InferenceModelSpec, system_prompt: str | None, first_pause: float = FIRST_PAUSE
    ) -> None:
        self._spec = spec
        self._system_prompt = system_prompt
        self._template = plain_template(spec)
        self._first_pause = first_pause
        self._key = os.environ.get(spec.api_key_env, "")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Connections live as long as one call of `sample`."""

    def sample(
        self, questions: Sequence[Question], *, seed: int, temperature: float, num_generations: int
    ) -> Iterator[Sampled]:
        jobs = iter([(question, g) for question in questions for g in range(num_generations)])
        replies: dict[int, dict[int, _Reply]] = defaultdict(dict)
        running: dict[Future[_Reply], tuple[Question, int]] = {}
        with _event_loop() as loop:
            client = self._new_client()
            while True:
                while len(running) < self._spec.concurrency and (job := next(jobs, None)) is not None:
                    question, g = job
                    body = self._body(
                        question, temperature, integer_seed(seed, "endpoint", question.index, g)
                    )
                    running[asyncio.run_coroutine_threadsafe(self._complete(client, body), loop)] = job
                if not running:
                    asyncio.run_coroutine_threadsafe(client.aclose(), loop).result()
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    question, g = running.pop(future)
                    replies[question.index][g] = future.result()
                    if len(replies[question.index]) == num_generations:
                        yield self._sampled(question, replies.pop(question.index))

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx.Limits(max_connections=self._spec.concurrency),
            timeout=None,  # each attempt has a deadline of its own
        )

    def _sampled(self, question: Question, replies: Mapping[int, _Reply]) -> Sampled:
        ordered = [replies[g] for g in sorted(replies)]
        return Sampled(
            question.index,
            self._prompt_text(question),
            tuple(reply.text for reply in ordered),
            tuple(reply.finish_reason for reply in ordered),
        )

    def _prompt_text(self, question: Question) -> str:
        if self._template is not None:
            return self._template.replace(QUESTION, question.text)
        return "\n".join(
            f"{message['role'].upper()}: {message['content']}"
            for message in messages_of(question, self._system_prompt)
        )

    def _body(self, question: Question, temperature: float, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._spec.model_name_or_path,
            "temperature": temperature,
            "top_p": self._spec.top_p,
            "max_tokens": self._spec.max_new_tokens,
            "n": 1,
            "seed": seed,
            "stream": False,
            **self._spec.generation_kwargs,
        }
        if self._spec.stop_sequences:
            body["stop"] = list(self._spec.stop_sequences)
        if self._template is not None:
            return body | {"prompt": self._prompt_text(question)}
        if self._spec.chat_template is not None:
            body["chat_template"] = self._spec.chat_template  # vLLM's; others refuse it, as they must
        return body | {"messages": messages_of(question, self._system_prompt)}

    async def _complete(self, client: httpx.AsyncClient, body: Mapping[str, Any]) -> _Reply:
        """One completion, with retries. Raises `RunError` when the attempts are used up."""
        attempts = self._spec.max_retries + 1
        for attempt in range(1, attempts + 1):
            try:
                return await self._attempt(client, body)
            except _PassingError as error:
                if attempt == attempts:
                    raise RunError(
                        f"{self._where()}: no answer after {attempts} attempt(s), last: {error}; what was answered is "
                        "kept: start the same command again once the server is well"
                    ) from error
                doubled = self._first_pause * 2.0 ** (attempt - 1)
                await asyncio.sleep(min(max(doubled, error.pause), LONGEST_PAUSE))
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, client: httpx.AsyncClient, body: Mapping[str, Any]) -> _Reply:
        path = "completions" if "prompt" in body else "chat/completions"
        url = f"{str(self._spec.base_url).rstrip('/')}/{path}"
        try:
            async with (
                asyncio.timeout(self._spec.request_timeout),
                client.stream("POST", url, json=body) as response,
            ):
                content = await _read(response)
        except TimeoutError as error:
            raise _PassingError(f"no whole reply within {self._spec.request_timeout:g} s") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _PassingError(f"{type(error).__name__}: {error}") from error
        status = response.status_code
        if status == 429 or status >= 500:
            raise _PassingError(f"HTTP {status}: {self._excerpt(content)}", _retry_after(response.headers))
        if status != 200:
            advice = f" (the key is read from {self._spec.api_key_env})" if status in (401, 403) else ""
            raise RunError(
                f"{self._where()}: the server refuses the request with HTTP {status}{advice}: {self._excerpt(content)}"
            )
        return self._reply(content)

    def _reply(self, content: bytes) -> _Reply:
        try:
            choice = json.loads(content)["choices"][0]
            reason, stop = choice.get("finish_reason"), choice.get("stop_reason")
            text = _message_text(choice["message"], reason) if "message" in choice else choice["text"]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _PassingError(f"the reply is no completion: {self._excerpt(content)}") from error
        if not isinstance(text, str):
            raise _PassingError(f"the reply holds no text: {self._excerpt(content)}")
        if isinstance(stop, str) and stop in self._spec.stop_sequences and not text.endswith(stop):
            text += (
                stop  # servers cut the stop string off; here a completion keeps it, as every sampler's does
            )
        return _Reply(text, "length" if reason == "length" else "stop")

    def _where(self) -> str:
        url = httpx.URL(str(self._spec.base_url)).copy_with(username=None, password=None, query=None)
        return f"endpoint {url} ({self._spec.model_name_or_path})"

    def _excerpt(self, content: bytes) -> str:
        """A reply for use inside a message: one line, short, and without the key should the server repeat it."""
        text = " ".join(content[:2000].decode("utf-8", "replace").split())
        text = text.replace(self._key, "***") if self._key else text
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


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own: the caller may have one already, as notebooks do.

    On leaving, what still runs is cancelled: a failure does not wait for requests that hang.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="endpoint", daemon=True)
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
