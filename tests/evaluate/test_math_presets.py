"""Mathematics benchmarks from end to end: public file, scripted server, mathematics grader."""

import json

import pytest

from math_answers import GraderPolicy
from maxent_grpo.evaluate.records import read_records
from maxent_grpo.inference import ArtifactSettings, InferenceModelSpec, run_math_eval_inference
from openai_server import chat, serving


def evaluate(answer, root, preset, file, **changes):
    with serving(answer) as server:
        spec = InferenceModelSpec("served", backend="openai", base_url=server.url, max_retries=0)
        settings = {"seeds": [0], "num_generations": 2, "limit": 6} | changes
        result = run_math_eval_inference(
            [spec],
            dataset=preset,
            eval_overrides={"dataset_name": str(file)},
            artifacts=ArtifactSettings(root_dir=str(root)),
            progress=False,
            **settings,
        )[0]
        return result, server.requests


def test_right_and_wrong_answers_are_told_apart(shared_data, tmp_path):
    file = shared_data / "benchmarks" / "math500.jsonl"
    golds = {row["problem"]: row["answer"] for row in map(json.loads, file.read_text().splitlines())}

    def answer(request):
        gold = golds[request.question]
        right = list(golds).index(request.question) % 2 == 0
        return chat(f"<think>so {gold}</think><answer>{gold if right else 'no idea'}</answer>")

    result, requests = evaluate(answer, tmp_path, "math_500", file)
    assert (result.total, result.correct, result.pass_at_k, result.avg_at_k) == (6, 3, 0.5, 0.5)
    assert requests[0].body["messages"][0]["content"].startswith("You are an expert mathematician.")
    (path,) = tmp_path.rglob("seed_0.jsonl")
    records = read_records(path)
    assert [records[i]["correct"] for i in range(6)] == [True, False] * 3
    assert records[1]["answer_extracted"] == ["no idea", "no idea"]
    assert records[0]["think_generations"][0].startswith("so ")
    assert records[0]["mode_count"] is None


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("aime24", "aime24.jsonl"),
        ("aime25", "aime25.jsonl"),
        ("amc", "amc83.jsonl"),
        ("minerva", "minerva_math.jsonl"),
        ("gsm8k", "gsm8k_test.jsonl"),
        ("olympiadbench", "olympiadbench_oe_to_maths_en.jsonl"),
    ],
)
def test_golds_of_every_benchmark_are_right_answers(shared_data, preset, name):
    from maxent_grpo.evaluate.benchmarks import load_questions, resolve_benchmark
    from maxent_grpo.evaluate.grading import grader_for

    benchmark = resolve_benchmark(preset, {"dataset_name": str(shared_data / "benchmarks" / name)})
    grader = grader_for(benchmark)
    for question in load_questions(benchmark)[:20]:
        gold = question.gold[0] if isinstance(question.gold, list) else question.gold
        right, wrong = grader.judge(question, [f"It is \\boxed{{{gold}}}.", "It is \\boxed{-987654.25}."])
        assert (right.score, wrong.score) == (1.0, 0.0), question


def test_another_policy_does_not_reuse_scores(shared_data, tmp_path):
    from maxent_grpo.errors import UsageError
    from maxent_grpo.evaluate.grading import MathGrader

    file = shared_data / "benchmarks" / "aime24.jsonl"
    evaluate(lambda request: chat("\\boxed{1}"), tmp_path, "aime24", file, limit=1)
    assert MathGrader(GraderPolicy()).fingerprint() == MathGrader().fingerprint()
    other = MathGrader(GraderPolicy(significant_digits=3))
    with pytest.raises(UsageError, match=r"grader\.policy"):
        evaluate(lambda request: chat("\\boxed{1}"), tmp_path, "aime24", file, limit=1, grader=other)
