"""tools/vllm_client_tag_smoke.py against scripted servers; tests/vllm_live runs it against a real one."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from maxent_grpo.rollout.vllm.client_tag import with_tag
from vllm_stand_in import Answer, Asked, serving

TOOL = Path(__file__).resolve().parents[2] / "tools" / "vllm_client_tag_smoke.py"


@pytest.fixture(scope="module")
def smoke() -> Any:
    spec = importlib.util.spec_from_file_location("vllm_client_tag_smoke", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts(asked: Asked, logprobs: Any = None) -> dict[str, Any]:
    count = len(asked.body["prompt"]) * asked.body["n"]
    choices = [
        {"index": i, "text": "4", "token_ids": [4], "logprobs": logprobs, "finish_reason": "stop"}
        for i in range(count)
    ]
    return {"model": "tiny", "choices": choices}


def run(smoke: Any, url: str, *options: str) -> int:
    return smoke.main(["--no-launch", "--port", url.rpartition(":")[2], *options])


def test_an_echo_is_seen(smoke: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda asked: with_tag(texts(asked, {"token_logprobs": [-1.0]}), str(asked.tag))) as server:
        options = "--client-tag a-7 --n 3 --prompts x y --return-logprobs --temperature 0.5"
        assert run(smoke, server.url, *options.split()) == 0
        (asked,) = server.requests
    assert capsys.readouterr().out == "server echoed client_tag 'a-7' in 6 completions\n"
    assert (asked.tag, asked.body["client_tag"], asked.body["temperature"]) == ("a-7", "a-7", 0.5)


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (
            texts,
            (),
            "0 of 4 completions carry metadata.client_tag 'smoke-rank-0', expected 4; start vLLM with",
        ),
        (lambda a: with_tag(texts(a), "other"), (), "0 of 4 completions carry"),
        (lambda a: with_tag(texts(a), "smoke-rank-0"), ("--return-logprobs",), "comes with no log-probs"),
        (lambda _: Answer(b"busy", 500), (), "HTTP 500: busy"),
        (lambda _: Answer(b"{"), (), "cut off or not JSON"),
        (lambda _: Answer(b"{}", delay=1.0), ("--request-timeout", "0.1"), "no whole answer within 0.1 s"),
    ],
)
def test_a_server_without_echo_fails(
    smoke: Any, script: Any, options: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(script) as server:
        assert run(smoke, server.url, *options) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--model: name what to serve"),
        (
            ("--no-launch", "--max-model-len", "9"),
            "--max-model-len: is for the server, and --no-launch starts none",
        ),
        (
            ("--no-launch", "--client-tag", "ö"),
            "--client-tag: 'ö' is not 1 to 128 printable ASCII characters",
        ),
    ],
)
def test_a_wrong_request_is_told_in_one_line(
    smoke: Any, options: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke.main(list(options)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"vllm_client_tag_smoke: {message}")
    assert err.count("\n") == 1


def test_a_server_that_does_not_start_is_reported_with_its_log(
    smoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = tmp_path / "vllm"
    fake.write_text('#!/bin/sh\necho "serving $*, group port $VLLM_GROUP_PORT"; exit 3\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    log = tmp_path / "server.log"
    options = "--model m --dtype float32 --group-port 29535 --enforce-eager --server-log"
    assert smoke.main([*options.split(), str(log)]) == 1
    err = capsys.readouterr().err
    assert "vllm serve ended with code 3 at its start" in err
    assert (
        "serving serve m --middleware maxent_grpo.rollout.vllm.client_tag.EchoMiddleware --host 127.0.0.1 --port 29525 "
        "--tensor-parallel-size 1 --dtype float32 --gpu-memory-utilization 0.9 --enforce-eager, group port 29535"
    ) in err
