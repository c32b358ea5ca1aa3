"""An OpenAI-compatible server as backend: what is sent, what is survived, and what ends the evaluation."""

import json
import time
from dataclasses import replace

import pytest

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.evaluate.benchmarks import Question, resolve_benchmark
from maxent_grpo.evaluate.endpoint import EndpointBackend
from maxent_grpo.evaluate.grading import MathGrader, grader_for
from maxent_grpo.evaluate.math_eval import flatten
from maxent_grpo.evaluate.records import read_records
from maxent_grpo.evaluate.result_files import results_table, summary
from maxent_grpo.evaluate.settings import read_request
from maxent_grpo.inference import ArtifactSettings, InferenceModelSpec, run_math_eval_inference
from openai_server import Reply, Request, bundled_policy, chat, serving

QUESTIONS = [Question(index, f"question {index}", "1") for index in range(4)]


def spec_of(url: str, **changes) -> InferenceModelSpec:
    settings = {
        "backend": "openai",
        "base_url": url,
        "concurrency": 4,
        "request_timeout": 5.0,
        "max_retries": 3,
    }
    return InferenceModelSpec("served", **(settings | changes))


def ask(spec: InferenceModelSpec, n: int = 2, questions=QUESTIONS, seed: int = 0, system: str | None = None):
    with EndpointBackend(spec, system, first_pause=0.01) as backend:
        sampled = backend.sample(questions, seed=seed, temperature=0.7, num_generations=n)
        return {one.index: one for one in sampled}


def test_each_completion_is_a_request_of_its_own_with_a_seed_of_its_own():
    with serving(lambda request: chat(f"{request.question} seed {request.body['seed']}")) as server:
        found = ask(spec_of(server.url, generation_kwargs={"top_k": 5}), system="be brief")
    assert sorted(found) == [0, 1, 2, 3]
    for index, one in found.items():
        assert all(text.startswith(f"question {index} seed ") for text in one.completions)
    assert len({request.body["seed"] for request in server.requests}) == len(server.requests) == 8
    body = server.requests[0].body
    assert server.requests[0].path == "/v1/chat/completions"
    assert body["messages"][0] == {"role": "system", "content": "be brief"}
    assert (
        body["model"],
        body["n"],
        body["temperature"],
        body["top_p"],
        body["top_k"],
        body["max_tokens"],
    ) == (("served", 1, 0.7, 0.9, 5, 768))
    assert server.most_at_once <= 4


def test_seeds_depend_on_the_sample_and_not_on_the_order_or_company():
    with serving(lambda request: chat(str(request.body["seed"]))) as server:
        together = ask(spec_of(server.url))
        alone = ask(spec_of(server.url, concurrency=1), questions=QUESTIONS[2:3])
        other_seed = ask(spec_of(server.url), seed=1)
    assert alone[2].completions == together[2].completions
    assert other_seed[2].completions != together[2].completions


def test_requests_run_side_by_side_up_to_the_bound():
    with serving(lambda request: replace(chat("x"), delay=0.1)) as server:
        ask(spec_of(server.url, concurrency=3), n=3)
    assert server.most_at_once == 3


@pytest.mark.parametrize(
    "fault",
    [
        Reply(b"overloaded", status=503),
        Reply(b"slow down", status=429, headers={"Retry-After": "0.05"}),
        Reply(b"<html>gateway</html>"),
        Reply(b'{"choices": []}'),
        Reply(b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}'),
        Reply(b"\xff\xfe{"),
        replace(chat("late"), delay=1.0),
        Reply(b'{"choices": [' + b" " * 50, drip=0.02),
    ],
    ids=["503", "429", "html", "no-choice", "no-text", "no-utf8", "hangs", "drips"],
)
def test_passing_faults_cost_a_retry_and_nothing_else(fault):
    def answer(request: Request) -> Reply:
        return fault if request.number % 2 == 0 else chat(request.question)

    with serving(answer) as server:
        found = ask(spec_of(server.url, request_timeout=0.4, concurrency=1), n=1)
    assert {index: one.completions for index, one in found.items()} == {
        i: (f"question {i}",) for i in range(4)
    }
    assert len(server.requests) == 8


def test_a_server_that_stays_broken_ends_the_evaluation_in_one_line():
    with serving(lambda request: Reply(b"no\nway", status=500)) as server, pytest.raises(RunError) as error:
        ask(spec_of(server.url, max_retries=2))
    message = str(error.value)
    assert "no answer after 3 attempt(s), last: HTTP 500: no way" in message
    assert server.url in message
    assert "\n" not in message


def test_no_server_at_all_is_one_line():
    with serving(lambda request: chat("x")) as server:
        url = server.url
    with pytest.raises(
        RunError, match=r"endpoint http://127\.0\.0\.1:\d+/v1 \(served\): no answer after 2 attempt"
    ):
        ask(spec_of(url, max_retries=1))


def test_a_failure_does_not_wait_for_requests_that_hang():
    def answer(request: Request) -> Reply:
        return Reply(b"bad", status=404) if "3" in request.question else replace(chat("x"), delay=3.0)

    began = time.monotonic()
    with serving(answer) as server, pytest.raises(RunError, match="refuses the request with HTTP 404: bad"):
        ask(spec_of(server.url, request_timeout=60.0), n=1)
    assert time.monotonic() - began < 2.5


def test_the_key_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")

    def answer(request: Request) -> Reply:
        return Reply(f"bad key {request.headers['Authorization']}".encode(), status=401)

    with serving(answer) as server, pytest.raises(RunError) as error:
        ask(spec_of(server.url, api_key_env="MY_KEY"))
    assert server.requests[0].headers["Authorization"] == "Bearer sk-secret"
    assert "HTTP 401 (the key is read from MY_KEY): bad key Bearer ***" in str(error.value)


def test_a_password_in_the_url_is_not_shown():
    with serving(lambda request: Reply(b"no", status=403)) as server, pytest.raises(RunError) as error:
        ask(spec_of(server.url.replace("http://", "http://user:hidden@")))
    assert server.requests[0].headers["Authorization"].startswith("Basic ")
    assert "hidden" not in str(error.value)


def test_what_servers_take_out_of_a_text_goes_back():
    replies = [
        chat("a <answer>1", stop_reason="</answer>"),
        chat("2", message={"reasoning_content": "hm"}),
        chat(None, "length"),
        chat("3", "length"),
    ]
    with serving(lambda request: replies[request.number]) as server:
        found = ask(spec_of(server.url, stop_sequences=("</answer>",), concurrency=1), n=1)
    assert [found[i].completions[0] for i in range(4)] == [
        "a <answer>1</answer>",
        "<think>hm</think>2",
        "",
        "3",
    ]
    assert [found[i].finish_reasons[0] for i in range(4)] == ["stop", "stop", "length", "length"]
    assert server.requests[0].body["stop"] == ["</answer>"]


@pytest.mark.parametrize(
    ("stops", "reply", "text", "counted"),
    [
        (["</answer>"], chat("<think>2</think><answer>7"), "<think>2</think><answer>7</answer>", False),
        (["</answer>"], chat("<answer>7</answer>"), "<answer>7</answer>", False),
        (["</answer>"], chat("<answer>7", "length"), "<answer>7", False),
        (["</answer>"], chat("<answer>7", stop_reason=None), "<answer>7", False),  # it says: by an end token
        (["</answer>"], chat("7"), "7", True),
        (["</answer>", "</s>"], chat("<answer>7"), "<answer>7", True),
        (["END"], chat("<answer>7</answer>"), "<answer>7</answer>", True),
        ([], chat("<answer>7"), "<answer>7", False),
    ],
)
def test_a_stop_string_goes_back_where_it_is_certain_and_is_counted_elsewhere(
    stops, reply, text, counted, caplog
):
    with serving(lambda request: reply) as server:
        found = ask(spec_of(server.url, stop_sequences=tuple(stops)))
    assert {completion for one in found.values() for completion in one.completions} == {text}
    lines = [record.getMessage() for record in caplog.records if "no stop_reason" in record.getMessage()]
    assert len(lines) == counted
    assert not counted or ("8 completions ended" in lines[0] and repr(stops[0]) in lines[0])


def evaluate_file(tmp_path, answer, **changes):
    tmp_path.mkdir(exist_ok=True)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"problem": "question {i}", "answer": "{i}"}}\n' for i in range(4)))
    with serving(answer) as server:
        return run_math_eval_inference(
            [spec_of(server.url, **changes)],
            dataset="mine",
            eval_overrides={"dataset_name": str(data)},
            seeds=[0],
            num_generations=2,
            artifacts=ArtifactSettings(root_dir=str(tmp_path / "root")),
            progress=False,
        )[0]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_the_server_refuses_ends_that_prompt_and_is_asked_again(tmp_path, status):
    def right(request: Request) -> Reply:
        return chat(f"<answer>{request.question[-1]}</answer>")

    def answer(request: Request) -> Reply:
        return Reply(b"too long", status=status) if "2" in request.question else right(request)

    result = evaluate_file(tmp_path, answer)
    assert (result.total, result.accuracy, result.prompt_indices) == (3, 1.0, (0, 1, 3))
    assert f"HTTP {status}: too long" in result.errors[2]
    assert "1 prompts have no answer and count in no figure" in results_table([result])
    assert list(summary(result)["prompts_without_answer"]) == ["2"]
    (path,) = tmp_path.rglob("errors_seed_0.jsonl")
    (row,) = map(json.loads, path.read_text().splitlines())
    assert row == {"prompt_index": 2, "error": result.errors[2]}

    asked = []
    again = evaluate_file(tmp_path, lambda request: asked.append(request.question) or right(request))
    assert set(asked) == {"question 2"}
    assert (again.total, again.errors) == (4, {})
    assert not path.exists()


def test_where_every_prompt_is_refused_the_evaluation_ends(tmp_path):
    with pytest.raises(RunError, match=r"no prompt has an answer, .*HTTP 400: no top_k here"):
        evaluate_file(tmp_path, lambda request: Reply(b"no top_k here", status=400))


def test_the_graders_policy_is_set_per_model_or_benchmark_and_is_part_of_the_fingerprint(tmp_path):
    def answer(request: Request) -> Reply:
        return chat(f"I think it is {request.question[-1]}")

    assert evaluate_file(tmp_path / "a", answer).accuracy == 0.0
    lenient = {"extraction": ["boxed", "last_number"]}
    assert evaluate_file(tmp_path / "b", answer, grader_policy=lenient).accuracy == 1.0
    with pytest.raises(UsageError, match=r"grader.options.extraction: unknown in the file, \['boxed'"):
        evaluate_file(tmp_path / "a", answer, grader_policy=lenient)
    with pytest.raises(UsageError, match="grader_policy: unknown option 'extract'; known are extraction"):
        evaluate_file(tmp_path / "c", answer, grader_policy={"extract": "boxed"})
    request = {
        "models": ["m"],
        "eval": {"dataset_name": "x.jsonl", "grader_policy": {"extraction": "last_number"}},
    }
    found = read_request(request)
    benchmark = resolve_benchmark("mine", found.eval)
    grader = grader_for(benchmark, {"units": "ignored"})
    assert grader.fingerprint()["options"] == {"extraction": ["last_number"], "units": "ignored"}
    assert "options" not in str(flatten({"grader": MathGrader().fingerprint()}))


def test_the_weights_behind_an_endpoint_are_no_part_of_its_fingerprint():
    backend = EndpointBackend(spec_of("http://localhost:1/v1", revision="abc"), None)
    assert backend.fingerprint()["model"] == {"served_name": "served", "revision": "abc"}


def test_a_plain_template_goes_to_the_completions_route():
    with serving(lambda request: Reply(b'{"choices": [{"text": "4", "finish_reason": "stop"}]}')) as server:
        found = ask(spec_of(server.url, prompt_template="Q: {question}\nA:"), n=1)
    assert server.requests[0].path == "/v1/completions"
    assert {request.body["prompt"] for request in server.requests} == {
        f"Q: question {i}\nA:" for i in range(4)
    }
    assert found[0].prompt == "Q: question 0\nA:"


def test_an_evaluation_over_a_real_model_resumes_after_the_server_died(tmp_path):
    policy = bundled_policy()

    def evaluate(answer, root):
        with serving(answer) as server:
            return run_math_eval_inference(
                [spec_of(server.url, max_retries=0, max_new_tokens=16, concurrency=2)],
                dataset="graph_coloring",
                seeds=[0],
                num_generations=4,
                temperature=1.0,
                limit=6,
                artifacts=ArtifactSettings(root_dir=str(root)),
                progress=False,
            )[0]

    whole = evaluate(policy, tmp_path / "whole")
    assert 0.1 < whole.avg_at_k < 0.8  # the policy's mean@8 at temperature 1 is 0.37
    assert whole.pass_at_k > whole.pass_at_1
    with pytest.raises(RunError, match="HTTP 500"):
        evaluate(
            lambda request: Reply(b"", status=500) if request.number > 10 else policy(request),
            tmp_path / "killed",
        )
    (path,) = (tmp_path / "killed").rglob("seed_0.jsonl")
    assert 0 < len(read_records(path)) < 6
    # Another port, the same served model: the answers are still good.
    assert evaluate(policy, tmp_path / "killed").metrics == whole.metrics


@pytest.mark.parametrize("bos", ["<s>", "<|begin_of_text|>", "<bos>"])
def test_a_template_that_spells_bos_has_the_server_add_none(bos):
    templates = {f"{bos}[INST] {{question}} [/INST]": False, "Q: {question} A:": None}
    prints = []
    for template, added in templates.items():
        with serving(
            lambda request: Reply(b'{"choices": [{"text": "1", "finish_reason": "stop"}]}')
        ) as server:
            spec = spec_of(server.url, prompt_template=template)
            ask(spec, n=1)
            prints.append(EndpointBackend(spec, None).fingerprint()["backend"])
        bodies = [request.body for request in server.requests]
        assert {body.get("add_special_tokens") for body in bodies} == {added}
        assert sorted(body["prompt"] for body in bodies)[0] == template.replace("{question}", "question 0")
    assert "bos" in prints[0]
    assert "bos" not in prints[1]
