"""Generation against a real HTTP server with scripted replies and faults, and against the tiny model server."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from generation_files import lines, settings_of

from maxent_grpo.data import templates
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.generate.engine import BuiltinEngine
from maxent_grpo.generate.run import FAILED_IN_A_ROW, generate
from maxent_grpo.generate.settings import GenerateSettings
from openai_server import Reply, Request, chat, serving

ROWS = 12


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"question {i}", "level": i % 3, "answer": str(i)} for i in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def counted(text: str, tokens: int) -> Reply:
    reply = chat(text)
    return replace(
        reply, body=json.dumps(json.loads(reply.body) | {"usage": {"completion_tokens": tokens}}).encode()
    )


def run(settings: GenerateSettings):
    return generate(settings, engine=BuiltinEngine(settings, first_pause=0.01), progress=False)


def test_every_row_is_asked_as_the_settings_say_and_kept_with_its_columns(data, tmp_path):
    with serving(lambda request: counted(f"{request.question} {request.body['seed']}", 7)) as server:
        settings = settings_of(
            server.url, data, tmp_path, num_generations=3, temperature=0.7, top_p=0.9, max_new_tokens=99,
            prompt_template="Level {{ level }}: {{ instruction }}", system_prompt="be brief", client_replicas=2,
        )  # fmt: skip
        report = run(settings)
    assert (report.rows, report.generated, report.tokens, report.failures) == (ROWS, ROWS, 7 * 3 * ROWS, {})
    rows = {row["generation_row"]: row for row in lines(tmp_path)}
    assert sorted(rows) == list(range(ROWS))
    assert len(lines(tmp_path)) == ROWS
    assert rows[5]["generation_prompt"] == "Level 2: question 5"
    assert (rows[5]["answer"], rows[5]["level"], rows[5]["generation_model"]) == ("5", 2, "served")
    assert all(text.startswith("Level 2: question 5 ") for text in rows[5]["generation"])
    assert len({text for row in rows.values() for text in row["generation"]}) == 3 * ROWS  # a seed each
    assert rows[0]["generation_tokens"] == [7, 7, 7]
    assert rows[0]["generation_finish_reasons"] == ["stop"] * 3
    body = server.requests[0].body
    assert body["messages"][0] == {"role": "system", "content": "be brief"}
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["n"]) == (0.7, 0.9, 99, 1)
    assert server.most_at_once <= 8


def test_requests_run_side_by_side_up_to_the_bound(data, tmp_path):
    with serving(lambda request: replace(chat("x"), delay=0.05)) as server:
        run(settings_of(server.url, data, tmp_path, input_batch_size=3, client_replicas=2))
    assert server.most_at_once == 6


def test_unset_sampling_settings_are_left_to_the_server(data, tmp_path):
    with serving(lambda request: chat("x")) as server:
        run(settings_of(server.url, data, tmp_path, seed=None, limit=1))
    assert not {"temperature", "top_p", "seed"} & server.requests[0].body.keys()


def test_a_column_of_another_usual_name_is_found(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"problem": "one", "generations": ["taken"]}\n')
    with serving(lambda request: chat(request.question)) as server:
        run(settings_of(server.url, path, tmp_path))
    assert (lines(tmp_path)[0]["generation"], lines(tmp_path)[0]["generations"]) == (["one"], ["taken"])


@pytest.mark.parametrize(
    "fault",
    [
        Reply(b"overloaded", status=503),
        Reply(b"slow down", status=429, headers={"Retry-After": "0.05"}),
        Reply(b"<html>gateway</html>"),
        Reply(b'{"choices": []}'),
        replace(chat("late"), delay=1.0),
    ],
    ids=["503", "429", "html", "no-choice", "hangs"],
)
def test_passing_faults_cost_a_retry_and_nothing_else(data, tmp_path, fault):
    def answer(request: Request) -> Reply:
        return fault if request.number % 2 == 0 else chat(request.question)

    with serving(answer) as server:
        run(settings_of(server.url, data, tmp_path, timeout=0.3, input_batch_size=1, limit=4))
    assert [row["generation"] for row in lines(tmp_path)] == [[f"question {i}"] for i in range(4)]
    assert len(server.requests) == 8


def test_rows_that_fail_are_named_counted_and_tried_again_by_the_next_call(data, tmp_path):
    def answer(request: Request) -> Reply:
        return Reply(b"prompt too long", status=400) if request.question in bad else chat(request.question)

    bad = {"question 3", "question 7"}
    with serving(answer) as server:
        settings = settings_of(server.url, data, tmp_path)
        with pytest.raises(RunError) as error:
            run(settings)
        assert f"2 of {ROWS} rows have no completion (row 3: endpoint " in str(error.value)
        assert "HTTP 400: prompt too long" in str(error.value)
        assert "\n" not in str(error.value)
        assert [row["row"] for row in lines(tmp_path, "failures.jsonl")] == [3, 7]
        assert len(lines(tmp_path)) == ROWS - 2
        bad.clear()
        asked = len(server.requests)
        report = run(settings)
        assert (report.generated, report.kept, len(server.requests) - asked) == (2, ROWS - 2, 2)
    assert sorted(row["generation_row"] for row in lines(tmp_path)) == list(range(ROWS))
    assert not (tmp_path / "out" / "failures.jsonl").exists()


def test_a_row_that_failed_for_a_passing_reason_gets_a_second_round(data, tmp_path):
    seen: dict[str, int] = {}

    def answer(request: Request) -> Reply:
        seen[request.question] = seen.get(request.question, 0) + 1
        down = request.question == "question 2" and seen[request.question] <= 2
        return Reply(b"down", status=500) if down else chat("x")

    with serving(answer) as server:
        report = run(settings_of(server.url, data, tmp_path, retries=1))
    assert seen["question 2"] == 3
    assert (report.generated, report.failures) == (ROWS, {})


def test_a_row_without_a_prompt_is_a_failed_row(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "  "}\n{"prompt": null}\n')
    with serving(lambda request: chat("x")) as server, pytest.raises(RunError, match="2 of 3 rows have no"):
        run(settings_of(server.url, path, tmp_path))
    errors = [row["error"] for row in lines(tmp_path, "failures.jsonl")]
    assert errors == ["the prompt is empty", "column prompt holds no text but NoneType"]
    assert len(server.requests) == 1


def test_failed_rows_may_be_allowed_and_stay_visible(data, tmp_path):
    from datasets import load_from_disk

    def answer(request: Request) -> Reply:
        return Reply(b"no", status=422) if request.question == "question 1" else chat(request.question)

    with serving(answer) as server:
        settings = settings_of(
            server.url, data, tmp_path, allow_failed_rows=True, output_format="dataset", limit=4
        )
        report = run(settings)
    assert list(report.failures) == [1]
    assert "1 failed" in report.summary()
    saved = load_from_disk(str(tmp_path / "out" / "dataset"))
    assert saved["prompt"][:] == [f"question {i}" for i in range(4)]
    assert saved["generation"][:] == [["question 0"], None, ["question 2"], ["question 3"]]
    assert "HTTP 422" in saved["generation_error"][1]
    assert saved["generation_error"][0] is None


def test_a_server_that_is_gone_ends_the_call_before_every_row_has_waited_for_it(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{i}"}) + "\n" for i in range(200)))
    with serving(lambda request: Reply(b"", status=500)) as server:
        settings = settings_of(server.url, path, tmp_path, retries=0, input_batch_size=8)
        with pytest.raises(RunError, match=f"{FAILED_IN_A_ROW} rows in a row have no completion"):
            run(settings)
    assert len(server.requests) <= FAILED_IN_A_ROW + 8
    assert len(lines(tmp_path, "failures.jsonl")) == FAILED_IN_A_ROW


@pytest.mark.parametrize("status", [401, 404])
def test_what_every_request_would_be_told_ends_the_call_at_once(data, tmp_path, monkeypatch, status):
    monkeypatch.setenv("MY_KEY", "sk-secret")

    def answer(request: Request) -> Reply:
        return Reply(f"no: {request.headers['Authorization']}".encode(), status=status)

    with (
        serving(answer) as server,
        pytest.raises(RunError, match=rf"HTTP {status}.*no: Bearer \*\*\*") as error,
    ):
        run(settings_of(server.url, data, tmp_path, api_key_env="MY_KEY"))
    assert "sk-secret" not in str(error.value)
    assert len(server.requests) <= 4
    assert not any("sk-secret" in path.read_text() for path in (tmp_path / "out").iterdir())


def test_other_settings_are_not_mixed_into_a_folder(data, tmp_path):
    with serving(lambda request: chat("x")) as server:
        settings = settings_of(server.url, data, tmp_path, limit=2)
        run(settings)
        with pytest.raises(
            UsageError, match=r"temperature: None in the file, 0.5 here.*resume=false starts it over"
        ):
            run(replace(settings, temperature=0.5))
        assert run(replace(settings, limit=3)).kept == 2
        assert run(replace(settings, temperature=0.5, resume=False)).kept == 0
    assert len(lines(tmp_path)) == 2


def test_a_folder_of_datasets_has_the_rows_in_their_order(data, tmp_path):
    from datasets import load_from_disk

    with serving(
        lambda request: replace(chat(request.question), delay=0.002 * (7 * request.number % 5))
    ) as server:
        report = run(settings_of(server.url, data, tmp_path, output_format="dataset", num_generations=2))
    saved = load_from_disk(str(tmp_path / "out" / "dataset"))
    assert saved["answer"][:] == [str(i) for i in range(ROWS)]
    assert saved["generation"][:] == [[f"question {i}"] * 2 for i in range(ROWS)]
    assert "generation_error" not in saved.column_names
    assert [path.name for path in report.paths] == ["rows.jsonl", "dataset"]
    assert not (tmp_path / "out" / ".cache").exists()


def test_a_lone_surrogate_is_kept_in_the_lines_and_an_escape_in_the_folder(data, tmp_path):
    from datasets import load_from_disk

    with serving(lambda request: chat("before \ud800 after")) as server:
        run(settings_of(server.url, data, tmp_path, output_format="dataset"))
    assert {row["generation"][0] for row in lines(tmp_path)} == {"before \ud800 after"}
    saved = load_from_disk(str(tmp_path / "out" / "dataset"))
    assert {text for (text,) in saved["generation"]} == {"before \\ud800 after"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hf_dataset": ""}, "hf_dataset: name the rows"),
        ({"model": ""}, "model: name the model"),
        ({"vllm_server_url": ""}, "vllm_server_url must be provided for generation jobs"),
        ({"vllm_server_url": "localhost:8000"}, "starts with http"),
        ({"num_generations": 0}, "num_generations=0: must be ≥ 1"),
        ({"temperature": 0.0, "num_generations": 2}, "greedy"),
        ({"prompt_column": "text"}, "has no text; it has prompt, level, answer"),
        ({"prompt_template": "{{ instruction"}, "not a Jinja template"),
        ({"prompt_template": "hello"}, "reads nothing of a row"),
        (
            {"prompt_template": "{{ instruktion }}"},
            "there is no instruktion; it may read instruction and the columns",
        ),
        ({"output_column": "level"}, "has a column 'level' already"),
        ({"private": True}, "nothing is pushed"),
        ({"hf_output_dataset": "org/name"}, "hf_output_dataset: HF_HUB_OFFLINE is set"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_asked(data, tmp_path, changes, message):
    with serving(lambda request: chat("x")) as server, pytest.raises(UsageError, match=message):
        run(settings_of(server.url, data, tmp_path, **changes))
    assert server.requests == []


def test_a_template_cannot_reach_python(data, tmp_path):
    template = "{{ instruction.__class__.__mro__[1].__subclasses__() }}"
    with serving(lambda request: chat("x")) as server, pytest.raises(RunError, match="SecurityError"):
        run(settings_of(server.url, data, tmp_path, limit=1, prompt_template=template))
    assert server.requests == []


def test_a_template_that_does_not_end_fails_its_row(data, tmp_path, monkeypatch):
    if sys.gettrace() is not None:
        pytest.skip("coverage or a debugger watches")
    monkeypatch.setattr(templates, "RENDER_SECONDS", 0.3)
    template = "{% for a in range(90000) %}{% for b in range(90000) %}{% if instruction == a %}x{% endif %}"
    template += "{% endfor %}{% endfor %}"
    with serving(lambda request: chat("x")) as server, pytest.raises(RunError, match="EndlessTemplateError"):
        run(settings_of(server.url, data, tmp_path, limit=1, prompt_template=template))
    assert server.requests == []


@pytest.mark.slow
def test_killed_and_started_again_every_row_is_there_exactly_once(data, tmp_path):
    def answer(request: Request) -> Reply:
        return replace(chat(f"{request.question} {request.body['seed']}"), delay=0.15)

    def command(url: str, out: Path) -> list[str]:
        flags = f"--hf-dataset {data} --model served --vllm-server-url {url} --input-batch-size 2 --num-generations 2"
        return [sys.executable, "-m", "maxent_grpo.generate", *flags.split(), "--output-dir", str(out)]

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with serving(answer) as server:
        rows = tmp_path / "out" / "rows.jsonl"
        for least in (1, 5):
            process = subprocess.Popen(command(server.url, rows.parent), env=environment)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and process.poll() is None:
                if rows.exists() and rows.read_bytes().count(b"\n") >= least:
                    break
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert len(lines(tmp_path)) < ROWS
        rows.write_bytes(rows.read_bytes() + b'{"prompt": "torn')
        ended = subprocess.run(
            command(server.url, rows.parent), env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        assert "were there" in ended.stdout
        run(settings_of(server.url, data, tmp_path, num_generations=2, output_dir=str(tmp_path / "whole")))
    resumed = sorted(lines(tmp_path), key=lambda row: row["generation_row"])
    assert [row["generation_row"] for row in resumed] == list(range(ROWS))
    whole = [json.loads(line) for line in (tmp_path / "whole" / "rows.jsonl").read_text().splitlines()]
    assert resumed == sorted(whole, key=lambda row: row["generation_row"])
