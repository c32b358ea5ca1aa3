"""A server whose every endpoint asks for the key. vLLM's own check covers ``/v1`` and the like, not the endpoints that
change weights.

    VLLM_API_KEY=… vllm serve MODEL --middleware maxent_grpo.rollout.vllm.api_key.KeyMiddleware

Standard library only: a server imports this module.
"""

import os
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

VARIABLE = "VLLM_API_KEY"
OPEN = ("/health", "/ping")
"""Paths that say no more than that there is a server."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class KeyMiddleware:
    """ASGI middleware: HTTP 401 without ``Authorization: Bearer`` and the key of VLLM_API_KEY.

    Raises `ValueError` at the server's start where the variable is not set: a server that is to ask for a key and has
    none would be open.
    """

    def __init__(self, app: Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]) -> None:
        key = os.environ.get(VARIABLE, "")
        if not key:
            raise ValueError(f"KeyMiddleware: {VARIABLE} is not set")
        self._app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in OPEN:
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if secrets.compare_digest(given, self._expected):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})
