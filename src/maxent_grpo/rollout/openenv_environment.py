"""Environments behind an OpenEnv server as ours, by its WebSocket protocol (``/ws``: reset, step).

The policy reads each observation as JSON, with the schema of an action, and writes an action as JSON; where an action
has one required text, the turn as it is will do. Each call replays the episode from its seed in a session of its own,
so that the environment must be a function of ``reset(seed=…)`` and the actions. Nothing of OpenEnv runs here.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.http import Fault, fetch, read_json
from maxent_grpo.named import one_line

if TYPE_CHECKING:
    from maxent_grpo.types import Prompt

TIMEOUT = 60.0
"""Seconds of one step."""

_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


class _InvalidActionError(ValueError):
    """The server, or its schema, does not take an action."""


class OpenEnvEnvironment:
    """The environment that a server holds, which is asked from the first row on.

    Args:
        url: of the server, ``http://HOST:PORT``.

    Raises:
        UsageError: the package ``websockets`` is not installed, or ``url`` is none.
    """

    def __init__(self, url: str) -> None:
        try:
            import websockets.sync.client as client
        except ImportError as error:
            raise UsageError(
                f"environment: openenv:{url} needs the package websockets: pip install 'maxent-grpo[openenv]'"
            ) from error
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"environment: openenv:{url}: write openenv:http://HOST:PORT")
        self._connect, self._url, self.name = client.connect, url.rstrip("/"), f"openenv:{url}"

    @cached_property
    def _schema(self) -> dict[str, Any]:
        """JSON schema of an action. Raises `UsageError` where no OpenEnv server answers."""
        try:
            answer = fetch(f"{self._url}/schema", timeout=TIMEOUT)
            if answer.status != 200:
                raise Fault(f"HTTP {answer.status} at /schema")
            schema: dict[str, Any] = read_json(answer.content)["action"]
        except (Fault, KeyError) as error:
            raise UsageError(
                f"environment: {self.name}: no OpenEnv server answers there ({one_line(error)})"
            ) from error
        return schema

    def rows(self, size: int) -> list[dict[str, Any]]:
        """``size`` rows: the first observation of the episode with a seed, which stands in the column ``episode``."""
        rows = []
        _ = self._schema  # a missing server is said once, before the first episode
        for seed in range(size):
            first = self._played(seed, ())[0]
            rows.append(
                {"prompt": [{"role": "user", "content": self._said(first, schema=True)}], "episode": seed}
            )
        return rows

    def reply(self, prompt: "Prompt", turns: Sequence[str]) -> Mapping[str, Any] | None:
        """See `Environment.reply`. An action that is none is answered with why, and the environment does not move."""
        last, _, complaint = self._played(_seed(prompt.columns, self.name), turns)
        if last.get("done"):
            return None
        return {"role": "user", "content": complaint or self._said(last)}

    def scores(self, columns: Sequence[Mapping[str, Any]], turns: Sequence[Sequence[str]]) -> list[Any]:
        """The sum of each episode's rewards up to its last turn; an exception where it failed."""
        found: list[Any] = []
        for row, written in zip(columns, turns, strict=True):
            try:
                found.append(self._played(_seed(row, self.name), written)[1])
            except RunError as error:
                found.append(error)
        return found

    def _said(self, result: Mapping[str, Any], *, schema: bool = False) -> str:
        shown: dict[str, Any] = {"observation": result.get("observation", {})}
        if schema:
            shown["action_schema"] = self._schema
        return json.dumps(shown, ensure_ascii=False)

    def _played(self, seed: int, turns: Sequence[str]) -> tuple[dict[str, Any], float, str | None]:
        """The last result, the sum of the rewards, and what was wrong with the last turn.

        Raises:
            RunError: the server does not answer, or reports an error of its own.
        """
        address = "ws" + self._url.removeprefix("http") + "/ws"
        try:
            with self._connect(address, open_timeout=TIMEOUT, max_size=None) as socket:

                def ask(kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
                    socket.send(json.dumps({"type": kind, "data": data}))
                    answer: dict[str, Any] = json.loads(socket.recv(timeout=TIMEOUT))
                    said = answer.get("data") or {}
                    if answer.get("type") != "error":
                        return dict(said)
                    message = f"{said.get('message')} ({said.get('code')})"
                    if said.get("code") == "VALIDATION_ERROR":
                        raise _InvalidActionError(message)
                    raise RunError(f"environment: {self.name}: {message}")

                result, total, complaint = ask("reset", {"seed": seed}), 0.0, None
                for turn in turns:
                    if result.get("done"):
                        break
                    try:
                        result, complaint = ask("step", self._action(turn)), None
                        total += float(result.get("reward") or 0.0)
                    except _InvalidActionError as error:
                        complaint = f"That is no action: {' '.join(str(error).split())[:500]}"
                socket.send(json.dumps({"type": "close"}))
        except (OSError, EOFError, json.JSONDecodeError) as error:
            raise RunError(f"environment: {self.name}: {one_line(error)}; is the server running?") from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "websockets":
                raise
            raise RunError(f"environment: {self.name}: {one_line(error)}") from error
        return result, total, complaint

    def _action(self, turn: str) -> dict[str, Any]:
        """The action that a turn writes, behind a thought or in a fence."""
        text = turn.rpartition("</think>")[2].strip()
        fenced = _FENCED.findall(text)
        try:
            action = json.loads(fenced[-1] if fenced else text)
        except ValueError:
            action = None
        if isinstance(action, dict):
            return action
        required = self._schema.get("required") or []
        fields = self._schema.get("properties") or {}
        if len(required) == 1 and fields.get(required[0], {}).get("type") == "string":
            return {required[0]: text}
        raise _InvalidActionError(
            f"it is not a JSON object with {', '.join(required) or 'the fields of the schema'}"
        )


def _seed(columns: Mapping[str, Any], name: str) -> int:
    if not isinstance(columns.get("episode"), int):
        raise UsageError(f"environment: {name} needs rows of its own episodes; set dataset_name={name}")
    return int(columns["episode"])
