"""Every endpoint of a server asks for the key, but those that only say that it is there."""

import asyncio
from typing import Any

import pytest

from maxent_grpo.rollout.vllm.api_key import KeyMiddleware


def status_of(path: str, headers: list[tuple[bytes, bytes]]) -> int:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(KeyMiddleware(app)(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    "path", ["/collective_rpc", "/update_weights", "/v1/completions", "/health/x", "/docs"]
)
def test_the_key_opens_and_nothing_else(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "k1")
    assert status_of(path, []) == 401
    for wrong in (b"", b"k1", b"Bearer k2", b"bearer k1 ", b"Basic k1", "Bearer é".encode()):
        assert status_of(path, [(b"authorization", wrong)]) == 401
    assert status_of(path, [(b"authorization", b"Bearer k1")]) == 200
    assert status_of("/health", []) == 200


def test_a_server_without_a_key_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(ValueError, match="VLLM_API_KEY is not set"):
        KeyMiddleware(lambda *_: asyncio.sleep(0))
