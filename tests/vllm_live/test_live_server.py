"""The server that the other tests of this folder share."""

import httpx
from benchmarks.vllm_process import VLLMProcess


def test_server_answers_with_token_ids(vllm_server: VLLMProcess) -> None:
    request = {
        "model": str(vllm_server.model),
        "prompt": [5, 6, 7],
        "max_tokens": 4,
        "n": 2,
        "seed": 1,
        "logprobs": 0,
        "return_token_ids": True,
        "ignore_eos": True,
    }
    reply = httpx.post(f"{vllm_server.url}/v1/completions", json=request, timeout=60).json()
    assert [len(choice["token_ids"]) for choice in reply["choices"]] == [4, 4]
