"""The evaluation from the shell: promised lines, exit codes, one line per error."""

import json
import shlex
from pathlib import Path

import pytest

from composed import jobs_of
from maxent_grpo.cli.compose import Composed
from maxent_grpo.cli.main import main, math_eval
from maxent_grpo.cli.request import read_request
from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.settings import read_request as read_evaluation

PROMISED = (
    "command=math-eval inference.dataset=math_500 inference.num_generations=8 inference.seeds=[0,1,2,3,4] "
    "inference.temperature=0.6 "
    "inference.models='[ {model_name_or_path: od2961/Qwen2.5-1.5B-Open-R1-GRPO-math-v1} ]' "
    "inference.collect_generations=false inference.artifacts.root_dir=var/artifacts/inference"
)


def composed(line: str) -> Composed:
    return jobs_of(shlex.split(line))[0]


@pytest.mark.parametrize("command", ["math-eval", "math_eval", "inference"])
def test_the_promised_line_is_understood(command):
    request = read_request(composed(PROMISED.replace("math-eval", command)), "math-eval")
    assert request.command == command
    evaluation = read_evaluation(request.section)
    assert evaluation.models[0].model_name_or_path == "od2961/Qwen2.5-1.5B-Open-R1-GRPO-math-v1"
    assert (evaluation.seeds, evaluation.temperatures) == ((0, 1, 2, 3, 4), (0.6,))


def test_one_command_evaluates_and_writes(tmp_path: Path, capfd):
    line = [
        "inference.models=[bundled:tiny-policy]",
        "inference.dataset=graph_coloring",
        "inference.seeds=[0,1]",
        "inference.num_generations=8",
        "inference.limit=2",
        f"inference.artifacts.root_dir={tmp_path}",
    ]
    assert math_eval(line) == 0
    out = capfd.readouterr().out
    assert "graph_coloring: 2 prompts, 8 samples each, seeds 0, 1" in out
    assert "coverage_at_8" in out
    folder = tmp_path / "bundled-tiny-policy--grpo" / "graph_coloring" / "temp_0p60"
    assert {path.name for path in folder.iterdir()} == {
        *(f"seed_{seed}.{kind}" for seed in (0, 1) for kind in ("jsonl", "fingerprint.json")),
        *("summary.json", "summary.csv", "report.html"),
    }
    assert json.loads((folder / "summary.json").read_text())["total"] == 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["inference.models must contain at least one model spec"]),
        (
            ["inference.models=[m]", "inference.dataset=math_50"],
            2,
            ["Unknown inference dataset 'math_50'", "math_500"],
        ),
        (["inference.models=[m]", "inference.ks=[16]"], 2, ["k=16", "num_generations is 8"]),
        (["inference.models=[m]", "inference.sed=1"], 2, ["inference.sed", "did you mean seeds"]),
        (["inference.models=[m]", "training.seed=1"], 2, ["training is not read by math-eval"]),
        (["inference.models=[/no/model]", "inference.dataset=graph_coloring"], 2, ["/no/model"]),
        (["inference.models=[MISSING]", "inference.dataset=graph_coloring"], 2, ["holds no weights"]),
        (
            ["inference.models=[m]", "inference.eval.dataset_name=/no/rows.jsonl"],
            2,
            ["/no/rows.jsonl", "no such file"],
        ),
        (["inference.models=[m]", "inference.eval.dataset_name=EMPTY"], 2, ["the file is empty"]),
        (["inference.models=[m]", "inference.eval.dataset_name=TWICE"], 2, ["rows 0 and 1 both have id=1"]),
        (
            ["inference.models=[m]", "inference.eval.dataset_name=COLUMNS"],
            2,
            ["no column 'problem'", "it has text"],
        ),
        (
            [
                "inference.models=[{model_name_or_path: m, backend: openai, base_url: 'http://127.0.0.1:9/v1', "
                "max_retries: 0}]",
                "inference.dataset=graph_coloring",
            ],
            1,
            ["endpoint http://127.0.0.1:9/v1", "no answer after 1 attempt"],
        ),
    ],
    ids=lambda value: value[-1][:60] if isinstance(value, list) and value else None,
)
def test_bad_input_is_one_line(tmp_path, capfd, arguments, code, words):
    files = {
        "EMPTY": "",
        "TWICE": '{"problem": "a", "answer": "1", "id": 1}\n' * 2,
        "COLUMNS": '{"text": "a", "answer": "1"}\n',
    }
    for name, content in files.items():
        (tmp_path / f"{name}.jsonl").write_text(content)
        arguments = [argument.replace(name, str(tmp_path / f"{name}.jsonl")) for argument in arguments]
    (tmp_path / "no_weights").mkdir()
    arguments = [argument.replace("MISSING", str(tmp_path / "no_weights")) for argument in arguments]
    root = f"inference.artifacts.root_dir={tmp_path / 'artifacts'}"
    assert main(["command=math-eval", root, *arguments]) == code
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("maxent-grpo: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_training_does_not_read_the_section():
    with pytest.raises(
        UsageError, match="inference is not read by train-maxent; it belongs to command=math-eval"
    ):
        read_request(composed("command=train-maxent inference.seeds=[0]"), None)
