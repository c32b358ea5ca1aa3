"""The engine on distilabel against a real HTTP server: every row, failures by their reasons, a kill, refusals."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from generation_files import lines, settings_of

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.generate.run import generate
from maxent_grpo.generate.settings import GenerateSettings
from openai_server import Reply, Request, chat, serving

ROWS = 6
HONOURED = {"engine": "distilabel", "seed": None, "temperature": 0.7, "top_p": 0.9}

needs_distilabel = pytest.mark.skipif(
    importlib.util.find_spec("distilabel") is None, reason="distilabel is not installed"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(ROWS)))
    return path


def settings_here(url: str, data: Path, tmp_path: Path, **changes: Any) -> GenerateSettings:
    """Settings that this engine honours; what fails is not asked again."""
    return settings_of(url, data, tmp_path, **({"retries": 0} | HONOURED | changes))


def as_json(reply: Reply) -> Reply:
    """The OpenAI client reads a reply as JSON where it says that it is."""
    return replace(reply, headers=reply.headers | {"Content-Type": "application/json"})


def answered(request: Request, tokens: int = 7) -> Reply:
    body = json.loads(chat(f"{request.question}, {request.number}").body) | {
        "usage": {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}
    }
    return as_json(Reply(json.dumps(body).encode()))


@needs_distilabel
def test_every_row_is_asked_as_the_settings_say(data, tmp_path):
    with serving(lambda request: replace(answered(request), delay=0.05)) as server:
        settings = settings_here(
            server.url, data, tmp_path, num_generations=3, max_new_tokens=99, system_prompt="be brief",
            prompt_template="{{ instruction }}\n", client_replicas=2,
        )  # fmt: skip
        report = generate(settings, progress=False)
    assert (report.rows, report.generated, report.tokens, report.failures) == (ROWS, ROWS, 7 * 3 * ROWS, {})
    assert server.most_at_once == 8
    rows = {row["generation_row"]: row for row in lines(tmp_path)}
    assert sorted(rows) == list(range(ROWS))
    assert len({text for row in rows.values() for text in row["generation"]}) == 3 * ROWS
    assert all(text.startswith("question 5\n, ") for text in rows[5]["generation"])
    assert rows[5]["generation_tokens"] == [7] * 3
    assert rows[5]["generation_finish_reasons"] == ["unknown"] * 3
    body = server.requests[0].body
    assert body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "question 0\n"},
    ]
    asked = (body["model"], body["temperature"], body["top_p"], body["max_tokens"], body["n"])
    assert asked == ("served", 0.7, 0.9, 99, 1)
    assert "seed" not in body


@needs_distilabel
def test_a_failing_row_takes_no_other_with_it_and_is_tried_again_by_the_next_call(data, tmp_path):
    faults = {
        "question 1": as_json(Reply(b'{"error": {"message": "prompt too long"}}', status=400)),
        "question 2": Reply(b"<html>gateway</html>"),
        "question 3": as_json(Reply(b'{"choices": []}')),
        "question 4": as_json(chat(None)),
    }
    with serving(lambda request: faults.get(request.question) or answered(request)) as server:
        settings = settings_here(server.url, data, tmp_path)
        with pytest.raises(
            RunError, match=rf"4 of {ROWS} rows have no completion \(row 1: endpoint "
        ) as error:
            generate(settings, progress=False)
        assert "\n" not in str(error.value)
        errors = {row["row"]: row["error"] for row in lines(tmp_path, "failures.jsonl")}
        assert [row["generation_row"] for row in lines(tmp_path)] == [0, 5]
        assert "HTTP 400: " in errors[1]
        assert "prompt too long" in errors[1]
        assert "the reply is no completion" in errors[2]
        assert "the reply holds no text" in errors[3]
        assert "the reply holds no text" in errors[4]
        asked = [request.question for request in server.requests]
        assert [asked.count(f"question {i}") for i in range(ROWS)] == [1, 1, 2, 2, 2, 1]  # passing: once more
        faults.clear()
        report = generate(settings, progress=False)
    assert (report.generated, report.kept) == (4, 2)
    assert sorted(row["generation_row"] for row in lines(tmp_path)) == list(range(ROWS))


@needs_distilabel
def test_its_client_tries_passing_faults_again(data, tmp_path):
    def answer(request: Request) -> Reply:
        fault = as_json(Reply(b"{}", status=503, headers={"Retry-After": "0.01"}))
        return fault if request.number % 2 == 0 else answered(request)

    with serving(answer) as server:
        generate(
            settings_here(server.url, data, tmp_path, retries=1, input_batch_size=1, limit=3), progress=False
        )
    assert len(server.requests) == 6


@needs_distilabel
@pytest.mark.parametrize("status", [401, 404])
def test_what_every_request_would_be_told_ends_the_call(data, tmp_path, monkeypatch, status):
    monkeypatch.setenv("MY_KEY", "sk-secret")

    def answer(request: Request) -> Reply:
        return Reply(f"no: {request.headers['authorization']}".encode(), status=status)

    with serving(answer) as server, pytest.raises(RunError, match=rf"HTTP {status}.*no: Bearer \*\*\*"):
        generate(settings_here(server.url, data, tmp_path, api_key_env="MY_KEY"), progress=False)
    assert len(server.requests) == 4
    assert not any("sk-secret" in path.read_text() for path in (tmp_path / "out").iterdir())


@needs_distilabel
def test_a_server_that_is_gone_is_named(data, tmp_path):
    with serving(lambda request: chat("x")) as server:
        url = server.url
    with pytest.raises(RunError, match=r"row 0: endpoint http.*APIConnectionError: Connection error"):
        generate(settings_here(url, data, tmp_path), progress=False)


@needs_distilabel
def test_engines_are_not_mixed_in_a_folder(data, tmp_path):
    with serving(answered) as server:
        settings = settings_here(server.url, data, tmp_path, limit=1)
        generate(settings, progress=False)
        with pytest.raises(UsageError, match="engine: distilabel in the file, unknown here"):
            generate(replace(settings, engine="builtin"), progress=False)


@needs_distilabel
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 0}, "engine=distilabel cannot carry out seed=0: .* set seed=null, or leave engine out"),
        ({"temperature": None}, "temperature: it always sends one"),
        ({"top_p": None}, "top_p: it always sends one"),
        ({"timeout": 0.5}, "timeout=0.5: it takes whole seconds"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_is_asked(data, tmp_path, changes, message):
    with serving(answered) as server, pytest.raises(UsageError, match=message):
        generate(settings_here(server.url, data, tmp_path, **changes), progress=False)
    assert server.requests == []


def test_without_the_package_the_extra_is_named(data, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "distilabel" else find_spec(name)
    )
    with pytest.raises(UsageError, match=r"not installed; pip install 'maxent-grpo\[distilabel\]'"):
        generate(settings_here("http://127.0.0.1:9/v1", data, tmp_path), progress=False)


@pytest.mark.nightly
@needs_distilabel
def test_killed_and_started_again_every_row_is_there_exactly_once_and_no_process_is_left(data, tmp_path):
    flags = (
        f"--hf-dataset {data} --model served --input-batch-size 2 --output-dir {tmp_path / 'out'} "
        "--engine distilabel --seed null --temperature 0.7 --top-p 0.9 --vllm-server-url"
    ).split()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    rows = tmp_path / "out" / "rows.jsonl"
    with serving(lambda request: replace(answered(request), delay=0.3)) as server:
        command = [sys.executable, "-m", "maxent_grpo.generate", *flags, server.url]
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if rows.exists() and rows.read_bytes().count(b"\n") >= 2:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)  # nobody else is in its group
        before = len(lines(tmp_path))
        assert 2 <= before < ROWS
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert f"{before} were there" in ended.stdout
    assert sorted(row["generation_row"] for row in lines(tmp_path)) == list(range(ROWS))
    assert len(server.requests) <= ROWS + 2  # at most one batch was asked twice
