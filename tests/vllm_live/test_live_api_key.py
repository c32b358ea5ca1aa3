"""A server that asks every caller for a key: started the way the launchers start it."""

from pathlib import Path

import httpx
import pytest
from benchmarks.vllm_process import VLLMProcess

from maxent_grpo.tasks.tiny_policy import bundled_policy_path

OPTIONS = (
    *("--dtype", "float32", "--max-model-len", "64", "--enforce-eager", "--no-enable-chunked-prefill"),
    *("--middleware", "maxent_grpo.rollout.vllm.api_key.KeyMiddleware"),
)
KEY = "a-key-of-this-test"


@pytest.mark.nightly
def test_no_endpoint_but_health_answers_without_the_key(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with VLLMProcess(
        bundled_policy_path(), log, options=OPTIONS, environment={"VLLM_API_KEY": KEY}
    ) as server:
        request = {"model": str(server.model), "prompt": [5, 6, 7], "max_tokens": 3, "ignore_eos": True}
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(server.model)}}
        calls = (("/v1/completions", request), ("/collective_rpc", reload), ("/pause", {}), ("/resume", {}))
        with httpx.Client(base_url=server.url, timeout=60) as client:
            assert client.get("/health").status_code == 200
            for header in ({}, {"authorization": "Bearer other"}, {"authorization": KEY}):
                for path, body in calls:
                    assert client.post(path, json=body, headers=header).status_code == 401, path
                for path in ("/v1/models", "/metrics", "/openapi.json"):
                    assert client.get(path, headers=header).status_code == 401, path
            client.headers["authorization"] = f"Bearer {KEY}"
            for path, body in calls:
                assert client.post(path, json=body).status_code == 200, path
            reply = client.post("/v1/completions", json=request).json()
            assert reply["usage"]["completion_tokens"] == 3
        assert KEY not in log.read_text(errors="replace")
