"""Environments of the package ``verifiers`` (0.4) as ours: its own stack runs the episode, and the policy is its model.

A server on this machine speaks OpenAI's protocol to that stack and answers from the turns that the policy has written.
Where they are used up, the episode has reached the policy's next turn, and what it was asked last is the environment's
reply. Episodes are replayed from their turns: nothing is kept between two calls, as an `Environment` promises, so an
episode must depend on its task and the turns alone. Imports no torch, and ``verifiers`` only when made.
"""

import asyncio
import functools
import gc
import itertools
import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.named import one_line

if TYPE_CHECKING:
    from maxent_grpo.types import Prompt

AT_ONCE = 8
"""Episodes that are scored at the same time."""

TIMEOUT = 600.0
"""Seconds of one episode."""


class VerifiersEnvironment:
    """The environment around a taskset.

    Args:
        taskset: the id of an installed taskset.
        config: settings of ``verifiers``' ``[env]`` block (``{"taskset": {"difficulty": 2}}``); the taskset's id is put
            in. A seat without a harness of its own gets the ``null`` harness, one without a runtime runs in a
            subprocess of this machine.

    Raises:
        UsageError: ``verifiers`` is not installed, or has no such taskset.
    """

    def __init__(self, taskset: str, config: Mapping[str, Any] | None = None) -> None:
        try:
            import verifiers.v1 as stack
            from verifiers.v1.configs.agent import agent_config_fields
            from verifiers.v1.utils import loaders
        except ImportError as error:
            raise UsageError(
                f"environment: verifiers:{taskset} needs the package verifiers ({one_line(error)}): "
                "pip install 'verifiers>=0.4,<0.5'"
            ) from error
        self._stack, self._loaders, self.name = stack, loaders, f"verifiers:{taskset}"
        self._given: dict[str, Any] = dict(config or {})
        self._given["taskset"] = dict(self._given.get("taskset") or {}) | {"id": taskset}
        try:
            self._seats = list(agent_config_fields(self._config(None, {})))
            self._tasks = list(self._loaders.load_environment(self._config(1)).taskset)
        except Exception as error:  # of somebody's code, which can raise anything: this cannot be used
            raise UsageError(f"environment: {self.name} cannot be made ({one_line(error)})") from error
        self._serving = threading.Lock()
        self._runs: dict[int, _Run] = {}
        self._numbers = itertools.count()

    def rows(self) -> list[dict[str, Any]]:
        """A row for each task: its chat, and its number in the column ``episode``."""
        rows = []
        for number, task in enumerate(self._tasks):
            said = task.data.prompt
            if said is None:  # the environment speaks first
                asked, episode = self._played([(number, ())], capped=False)[0]
                if asked is None:
                    trouble = _trouble(episode) or "it ends before the policy speaks"
                    raise UsageError(f"dataset '{self.name}': task {number}: {trouble}")
                chat = [{"role": m["role"], "content": _text(m["content"])} for m in asked]
                rows.append({"prompt": chat, "episode": number})
                continue
            chat = [{"role": "user", "content": said}] if isinstance(said, str) else list(map(_message, said))
            if task.data.system_prompt:
                chat.insert(0, {"role": "system", "content": task.data.system_prompt})
            rows.append({"prompt": chat, "episode": number})
        return rows

    def reply(self, prompt: "Prompt", turns: Sequence[str]) -> Mapping[str, Any] | None:
        """See `Environment.reply`.

        Raises:
            RunError: the episode failed.
        """
        asked, episode = self._played([(self._number(prompt.columns), turns)], capped=False)[0]
        if asked is not None:
            return _after_the_last_turn(asked)
        if trouble := _trouble(episode):
            raise RunError(f"environment: {self.name}, row {prompt.index}: {trouble}")
        return None

    def scores(self, columns: Sequence[Mapping[str, Any]], turns: Sequence[Sequence[str]]) -> list[Any]:
        """The environment's reward of each episode, which is ended after its turns; an exception where it failed."""
        found: list[Any] = []
        episodes = [(self._number(row), written) for row, written in zip(columns, turns, strict=True)]
        for _, episode in self._played(episodes, capped=True):
            if trouble := _trouble(episode):
                found.append(RuntimeError(f"{self.name}: {trouble}"))
            elif len(episode.traces) != 1:
                found.append(
                    RuntimeError(f"{self.name}: {len(episode.traces)} agents, and one policy is trained")
                )
            else:
                found.append(float(episode.traces[0].reward))
        return found

    def _number(self, columns: Mapping[str, Any]) -> int:
        if not isinstance(columns.get("episode"), int):
            raise UsageError(
                f"environment: {self.name} needs rows of its own tasks; set dataset_name={self.name}, and a "
                "prompt column 'prompt'"
            )
        return int(columns["episode"])

    def _config(self, max_turns: int | None, seats: Mapping[str, Any] | None = None) -> Any:
        """The configuration in which every seat ends after ``max_turns`` turns."""
        given = dict(self._given)
        if seats is None:
            for seat in self._seats:
                own: dict[str, Any] = {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}} | dict(
                    given.get(seat) or {}
                )
                if max_turns is not None:
                    own["max_turns"] = max_turns
                given[seat] = own
        return self._loaders.resolve_env_config(given)

    def _played(
        self, episodes: Sequence[tuple[int, Sequence[str]]], *, capped: bool
    ) -> list[tuple[Any, Any]]:
        """For each episode what the policy was asked after its turns, or the finished episode."""

        async def all_of_them() -> list[tuple[Any, Any]]:
            gate = asyncio.Semaphore(AT_ONCE)
            async with AsyncExitStack() as stack:
                environments: dict[int | None, Any] = {}
                for cap in {len(turns) if capped else None for _, turns in episodes}:
                    environments[cap] = self._loaders.load_environment(self._config(cap))
                    await stack.enter_async_context(environments[cap].serving())

                async def one(number: int, turns: Sequence[str]) -> tuple[Any, Any]:
                    async with gate:
                        return await self._play(
                            environments[len(turns) if capped else None], number, turns, url
                        )

                played = await asyncio.gather(*(one(number, turns) for number, turns in episodes))
            gc.collect()  # pipes of ended programs, which would complain once the loop is closed
            await asyncio.sleep(0)
            return played

        http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Model, self._runs))
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}"
        try:
            return _in_a_loop_of_its_own(all_of_them)
        finally:
            http.shutdown()
            http.server_close()

    async def _play(self, environment: Any, number: int, turns: Sequence[str], url: str) -> tuple[Any, Any]:
        place = next(self._numbers)
        run = self._runs[place] = _Run(turns, asyncio.get_running_loop())
        client = self._stack.EvalClientConfig(base_url=f"{url}/{place}/v1", api_key_var="MAXENT_GRPO_NO_KEY")
        context = self._stack.ModelContext(model="policy", client=client)
        episode = asyncio.ensure_future(environment.run_episode(self._tasks[number], context))
        asked = asyncio.ensure_future(run.asked.wait())
        try:
            await asyncio.wait({episode, asked}, timeout=TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            if run.tools:
                raise UsageError(f"environment: {self.name} offers tools, which this package does not call")
            if episode.done():
                return None, episode.result()
            if run.messages is None:
                raise RunError(f"environment: {self.name}: no word within {TIMEOUT:g} s")
            return run.messages, None
        finally:
            for task in (episode, asked):
                task.cancel()
            await asyncio.gather(episode, asked, return_exceptions=True)
            del self._runs[place]


class _Run:
    """One replay: the turns to answer with, and what was asked when there were no more."""

    def __init__(self, turns: Sequence[str], loop: asyncio.AbstractEventLoop) -> None:
        self._turns, self._loop = list(turns), loop
        self.asked = asyncio.Event()
        self.messages: list[dict[str, Any]] | None = None
        self.tools = False
        self._shown: int | None = None  # assistant's messages that the task itself begins with

    def answer(self, body: Mapping[str, Any]) -> str | None:
        """The turn that the request asks for, by the assistant's messages in it; None: it is not written yet."""
        if body.get("tools"):
            self.tools = True
            self._loop.call_soon_threadsafe(self.asked.set)
            return None
        said = sum(message["role"] == "assistant" for message in body["messages"])
        self._shown = said if self._shown is None else self._shown
        written = said - self._shown
        if written < len(self._turns):
            return self._turns[written]
        self.messages = body["messages"]
        self._loop.call_soon_threadsafe(self.asked.set)
        return None


class _Model(BaseHTTPRequestHandler):
    """The policy as a chat endpoint, whole or streamed."""

    protocol_version = "HTTP/1.1"

    def __init__(self, runs: Mapping[int, _Run], *arguments: Any) -> None:
        self._runs = runs
        super().__init__(*arguments)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        run = self._runs.get(int(self.path.split("/")[1]))
        said = None if run is None else run.answer(body)
        base = {"id": "turn", "created": 0, "model": "policy"}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        if said is None:
            self._send(
                400,
                "application/json",
                json.dumps({"error": {"message": "the policy's next turn is not written"}}),
            )
        elif body.get("stream"):
            chunks: list[dict[str, Any]] = [
                {
                    "choices": [
                        {"index": 0, "delta": {"role": "assistant", "content": said}, "finish_reason": None}
                    ]
                },
                {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
                {"choices": [], "usage": usage},
            ]
            events = [json.dumps(base | {"object": "chat.completion.chunk"} | chunk) for chunk in chunks]
            self._send(
                200, "text/event-stream", "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
            )
        else:
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
            whole = base | {"object": "chat.completion", "choices": [choice], "usage": usage}
            self._send(200, "application/json", json.dumps(whole))

    def _send(self, status: int, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def handle(self) -> None:
        """Its asker may be gone: a replay ends where the policy's turns do."""
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *arguments: Any) -> None:
        """Nothing: a replayed turn is no news."""


def _in_a_loop_of_its_own(work: Any) -> Any:
    """The result of the coroutine function, run in a thread of its own: the caller may have a loop already."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((asyncio.run(work()), None))
        except BaseException as error:  # noqa: BLE001 - raised again where it was asked for; SystemExit too
            outcome.append((None, error))

    thread = threading.Thread(target=run, name="verifiers")
    thread.start()
    thread.join()
    result, error = outcome[0]
    if isinstance(error, SystemExit):
        raise UsageError(f"environment: verifiers gave up: {error}")
    if error is not None:
        raise error
    return result


def _message(message: Any) -> dict[str, str]:
    return {"role": str(message.role), "content": _text(message.content)}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = [part if isinstance(part, dict) else part.model_dump() for part in content or ()]
    if any(part.get("type") != "text" for part in parts):
        raise UsageError("environment: a message holds more than text, which the policy cannot read")
    return "\n\n".join(str(part["text"]) for part in parts)


def _after_the_last_turn(messages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
    new = messages[last + 1 :]
    return {
        "role": str(new[0]["role"]),
        "content": "\n\n".join(_text(message.get("content")) for message in new),
    }


def _trouble(episode: Any) -> str | None:
    """Why an episode has no verdict."""
    errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
    return (
        None
        if episode.ok
        else f"{errors[0].type}: {' '.join(str(errors[0].message).split())[:300]}"
        if errors
        else "failed"
    )
