"""A small OpenAI-compatible server on this machine's loopback, answering with a policy from Transformers.

    python tools/tiny_openai_server.py --model bundled:tiny-policy --port 8000

For tests and smoke runs: one request computes at a time, on the CPU. It serves ``/health``, ``/v1/models``,
``/v1/completions`` and ``/v1/chat/completions`` with ``n``, ``max_tokens``, ``temperature`` (0 is greedy), ``top_p``,
``stop`` and ``seed``: equal seeds give equal texts. ``--port 0`` takes a free port; the first line on stdout is the
address, once the model is loaded.
"""

import argparse
import json
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.errors import UsageError
from maxent_grpo.models.loading import ModelSource, load_policy, load_tokenizer


class Refused(Exception):
    """A request that this server does not take: HTTP 400 with the message."""


class Model:
    """The policy with its tokenizer; one request at a time."""

    def __init__(self, name: str, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name = name
        self._policy = policy.eval()
        self._tokenizer = tokenizer
        self._one_at_a_time = threading.Lock()

    def complete(self, prompt: str, body: Mapping[str, Any]) -> tuple[list[tuple[str, str]], dict[str, int]]:
        """(text, finish reason) of each of ``n`` completions, and the tokens that they took."""
        # as vLLM: a chat template brings its own special tokens, a plain prompt may say that it does
        added = "messages" not in body and bool(body.get("add_special_tokens", True))
        ids = self._tokenizer(prompt, add_special_tokens=added, return_tensors="pt")["input_ids"]
        n, temperature = int(body.get("n") or 1), float(body.get("temperature", 1.0))
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": temperature,
                "top_p": float(body.get("top_p") or 1.0),
            }
        elif n > 1:
            raise Refused("temperature 0 is greedy: n must be 1")
        with self._one_at_a_time, torch.no_grad():
            torch.manual_seed(int(time.time_ns() if body.get("seed") is None else body["seed"]) % 2**63)
            tokens = self._policy.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=int(body.get("max_tokens") or body.get("max_completion_tokens") or 64),
                num_return_sequences=n,
                pad_token_id=self._tokenizer.pad_token_id,
                top_k=0,
                **sampling,
            )[:, ids.shape[1] :]
        completions = [self._finished(row, body.get("stop") or []) for row in tokens.tolist()]
        sampled = sum(length for _, _, length in completions)
        usage = {"prompt_tokens": ids.shape[1], "completion_tokens": sampled}
        return [(text, reason) for text, reason, _ in completions], usage

    def chat_prompt(self, messages: Any) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            )
        except Exception as error:
            raise Refused(f"the chat template does not take these messages: {error}") from error

    def _finished(self, row: list[int], stop: str | Sequence[str]) -> tuple[str, str, int]:
        end = row.index(self._tokenizer.eos_token_id) if self._tokenizer.eos_token_id in row else None
        text = self._tokenizer.decode(row[:end], skip_special_tokens=True)
        reason, length = ("length", len(row)) if end is None else ("stop", end + 1)
        for word in [stop] if isinstance(stop, str) else stop:
            if word in text:
                text, reason = text[: text.index(word)], "stop"
        return text, reason, length


def handler(model: Model) -> type[BaseHTTPRequestHandler]:
    """The HTTP side of ``model``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/health":
                self._reply(200, {})
            elif self.path == "/v1/models":
                self._reply(200, {"object": "list", "data": [{"id": model.name, "object": "model"}]})
            else:
                self._reply(404, _error(f"no such path: {self.path}"))

        def do_POST(self) -> None:
            chat = self.path == "/v1/chat/completions"
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not chat and self.path != "/v1/completions":
                self._reply(404, _error(f"no such path: {self.path}"))
                return
            try:
                request = json.loads(body)
                prompt = model.chat_prompt(request["messages"]) if chat else request["prompt"]
                if not isinstance(prompt, str):
                    raise Refused("prompt: one string is needed")
                texts, usage = model.complete(prompt, request)
            except (Refused, ValueError, KeyError, TypeError) as error:
                self._reply(400, _error(f"{type(error).__name__}: {error}"))
                return
            self._reply(200, _completion(model.name, texts, usage, chat=chat))

        def _reply(self, status: int, content: Mapping[str, Any]) -> None:
            body = json.dumps(content).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has given up

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _completion(
    name: str, texts: Sequence[tuple[str, str]], usage: Mapping[str, int], *, chat: bool
) -> dict[str, Any]:
    choices = [
        {"index": index, "finish_reason": reason}
        | ({"message": {"role": "assistant", "content": text}} if chat else {"text": text})
        for index, (text, reason) in enumerate(texts)
    ]
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": name,
        "choices": choices,
        "usage": dict(usage) | {"total_tokens": sum(usage.values())},
    }


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bundled:tiny-policy", help="a saved model's folder, or a hub id")
    parser.add_argument("--served-model-name", help="its name in requests (default: --model)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    source = ModelSource(options.model)
    try:
        model = Model(options.served_model_name or options.model, load_policy(source), load_tokenizer(source))
    except UsageError as error:
        print(f"tiny_openai_server: {error}", file=sys.stderr)
        return error.exit_code
    try:
        server = ThreadingHTTPServer((options.host, options.port), handler(model))
    except (OSError, OverflowError) as error:
        where = f"{options.host}:{options.port}"
        print(f"tiny_openai_server: cannot listen on {where}: {error}; use another --port", file=sys.stderr)
        return UsageError.exit_code
    print(f"http://{options.host}:{server.server_port}/v1", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
