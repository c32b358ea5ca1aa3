"""A real HTTP server that speaks vLLM's protocols: scripted answers and faults, over tokens from a seeded generator.

Its "policy" is a fixed distribution over 16 tokens, so that log-probs can be checked; token 15 ends a completion.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np

from local_server import Traffic, listening

MODEL = "tiny"
END = 15
LOGITS = np.linspace(2.0, -1.0, END + 1)
LOGPS = LOGITS - np.log(np.exp(LOGITS).sum())


@dataclass(frozen=True)
class Asked:
    """One POST."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    number: int  # how many came before it

    @property
    def prompts(self) -> list[list[int]]:
        if "token_ids" in self.body:
            return [self.body["token_ids"]]
        return self.body.get("prompt", self.body.get("prompts"))

    @property
    def tag(self) -> str | None:
        return self.headers.get("X-VLLM-Client-Tag")


@dataclass(frozen=True)
class Answer:
    content: bytes | dict[str, Any]
    status: int = 200
    delay: float = 0.0
    cut: int | None = None  # announce the whole length, send this many bytes, close
    kind: str = "application/json"

    @property
    def bytes(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


Script = Callable[[Asked], Answer | dict[str, Any]]


def draw(asked: Asked, prompt: list[int]) -> tuple[list[int], list[float], str]:
    """Tokens, log-probs and finish reason, a function of (seed, prompt) as a real server's are."""
    settings = asked.body.get("sampling_params", asked.body)
    seed = asked.body.get("generation_kwargs", settings)["seed"]
    if settings["top_k"] == 1:
        return [0], [float(LOGPS[0])], "length"  # reports raw log-probs
    random = np.random.default_rng([seed, *prompt])
    ids: list[int] = []
    while len(ids) < settings["max_tokens"] and (not ids or ids[-1] != END):
        ids.append(int(random.choice(END + 1, p=np.exp(LOGPS))))
    return ids, [float(LOGPS[i]) for i in ids], "stop" if ids[-1] == END else "length"


def completions(asked: Asked, tag: str | None = None) -> dict[str, Any]:
    """A correct answer in the shape of the path that was asked. With ``tag``, every group carries it."""
    choices = []
    for index, prompt in enumerate(asked.prompts):
        ids, logps, reason = draw(asked, prompt)
        choice = {"index": index, "token_ids": ids, "finish_reason": reason}
        if asked.path == "/inference/v1/generate":
            content = [{"token": f"token_id:{i}", "logprob": p} for i, p in zip(ids, logps, strict=True)]
            choice["logprobs"] = {"content": content}
        else:
            choice["logprobs"] = {"token_logprobs": logps, "tokens": [f"token_id:{i}" for i in ids]}
            choice["prompt_token_ids"] = prompt
        if tag is not None:
            choice["metadata"] = {"client_tag": tag}
        choices.append(choice)
    if asked.path == "/generate/":
        parts = [draw(asked, prompt) for prompt in asked.prompts]
        return {"completion_ids": [p[0] for p in parts], "logprobs": [[[lp] for lp in p[1]] for p in parts]}
    return {"model": MODEL, "choices": choices}


def echoing(asked: Asked) -> dict[str, Any]:
    """A correct answer that echoes the sender's tag."""
    return completions(asked, asked.tag)


class StandIn(Traffic[Asked]):
    """The server under test."""

    @property
    def generations(self) -> list[Asked]:
        """Without the probes of the check."""
        return [a for a in self.requests if a.prompts != [[0, 1]]]


@contextmanager
def serving(
    script: Script = completions,
    models: tuple[str, ...] = (MODEL,),
    max_model_len: int = 64,
    openai: bool = True,
    port: int = 0,
    keep_alive: bool = True,
) -> Iterator[StandIn]:
    """A server on this machine. ``script`` answers everything but the check's probes, which are answered well."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1" if keep_alive else "HTTP/1.0"

        def do_GET(self) -> None:
            if self.path == "/health":
                self._send(Answer(b""))
            elif self.path == "/v1/models" and openai:
                self._send(Answer({"data": [{"id": m, "max_model_len": max_model_len} for m in models]}))
            else:
                self._send(Answer({"detail": "Not Found"}, 404))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
            asked = Asked(self.path, dict(self.headers), body, len(stand_in.requests))
            with stand_in.counted(asked):
                answer = script(asked)
                self._send(answer if isinstance(answer, Answer) else Answer(answer))

        def _send(self, answer: Answer) -> None:
            time.sleep(answer.delay)
            try:
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.kind)
                self.send_header("Content-Length", str(len(answer.bytes)))
                self.end_headers()
                self.wfile.write(answer.bytes[: answer.cut])
                if answer.cut is not None:
                    self.close_connection = True
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has given up, as it should

        def log_message(self, *_: Any) -> None:
            pass

    stand_in = StandIn()
    with listening(Handler, port) as stand_in.url:
        yield stand_in
