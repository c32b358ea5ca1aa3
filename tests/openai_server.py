"""A real HTTP server that speaks OpenAI's protocol: scripted replies and faults, or the bundled policy."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from local_server import Traffic, listening

Answer = Callable[["Request"], "Reply"]


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    number: int  # how many requests came before it

    @property
    def question(self) -> str:
        return self.body["prompt"] if "prompt" in self.body else self.body["messages"][-1]["content"]


@dataclass(frozen=True)
class Reply:
    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds before the first byte
    drip: float = 0.0  # seconds between bytes


def chat(text: str | None, finish_reason: str = "stop", **extra: Any) -> Reply:
    """A well-formed chat completion; ``extra`` goes beside the message, ``message`` into it."""
    message = {"role": "assistant", "content": text} | extra.pop("message", {})
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, **extra}
    return Reply(json.dumps({"object": "chat.completion", "choices": [choice]}).encode())


@contextmanager
def serving(answer: Answer) -> Iterator[Traffic[Request]]:
    """A server on a free port of this machine, with ``answer`` behind it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = Request(self.path, dict(self.headers), body, len(server.requests))
            with server.counted(request):
                reply = answer(request)
                time.sleep(reply.delay)
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(reply.body)))
                    self.end_headers()
                    for piece in [reply.body] if not reply.drip else [bytes([byte]) for byte in reply.body]:
                        self.wfile.write(piece)
                        self.wfile.flush()
                        time.sleep(reply.drip)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client has given up, as it should

        def log_message(self, *_: Any) -> None:
            pass

    server: Traffic[Request] = Traffic()
    with listening(Handler) as address:
        server.url = f"{address}/v1"
        yield server


def bundled_policy() -> Answer:
    """Answers by Transformers' ``generate``, seeded by the request."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from maxent_grpo.tasks.tiny_policy import bundled_policy_path

    tokenizer = AutoTokenizer.from_pretrained(bundled_policy_path())
    model = AutoModelForCausalLM.from_pretrained(bundled_policy_path(), dtype=torch.float32).eval()
    one_at_a_time = threading.Lock()

    def answer(request: Request) -> Reply:
        ids = tokenizer.apply_chat_template(
            request.body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with one_at_a_time, torch.no_grad():
            torch.manual_seed(request.body["seed"])
            tokens = model.generate(
                **ids,
                do_sample=True,
                temperature=request.body["temperature"],
                top_p=request.body["top_p"],
                max_new_tokens=request.body["max_tokens"],
            )
        return chat(tokenizer.decode(tokens[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))

    return answer
