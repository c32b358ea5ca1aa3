"""Tables over artifacts and LightEval results."""

import json
import sys
from pathlib import Path

import pytest

from maxent_grpo.errors import UsageError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import eval_math_delta
import math_eval_table
from math_eval_table import dataset_of, read_lighteval, read_scores, row_of, table_cells, tables_text


def write(
    root: Path,
    model: str,
    dataset: str,
    seed: int,
    scores: list[list[float]],
    style: str = "grpo",
    label: str = "x",
) -> None:
    path = root / model.replace("/", "-") / dataset / "temp_0p60" / f"seed_{seed}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "dataset_id": dataset,
            "model_id": model,
            "model_label": label,
            "style": style,
            "temperature": 0.6,
            "seed": seed,
            "num_generations": len(row),
            "prompt_index": index,
            "generations": [""] * len(row),
            "answer_modes": [None] * len(row),
            "mode_count": None,
            "scores": row,
            "pass_at_1_ok": row[0] >= 1,
        }
        for index, row in enumerate(scores)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    right, wrong, late = [1.0] * 8, [0.0] * 8, [0.0] * 7 + [1.0]
    write(tmp_path, "runs/mine/checkpoint-100", "math_500", 0, [right, wrong])
    write(tmp_path, "runs/mine/checkpoint-100", "math_500", 1, [late, late])
    write(tmp_path, "runs/mine/checkpoint-50", "math_500", 0, [right, right])
    write(tmp_path, "runs/mine/checkpoint-50", "zebra", 0, [right[:4], wrong[:4]])
    write(tmp_path, "runs/mine/checkpoint-50", "aime24", 0, [wrong])
    return tmp_path


def test_tables_average_over_seeds_and_sort_by_step(root):
    scores = read_scores(root)
    heading, lines = table_cells(scores, "Pass@1", precision=1, min_datasets=1)
    assert heading == ["family", "ckpt", "style", "temp", "math_500", "aime24", "zebra", "avg"]
    assert lines == [
        ["mine", "checkpoint-50", "grpo", "0.6", "100.0", "0.0", "50.0", "50.0"],
        ["mine", "checkpoint-100", "grpo", "0.6", "25.0", "-", "-", "25.0"],
    ]
    assert table_cells(scores, "Pass@8", 0, 1)[1][1][4] == "75"  # seed means 0.5 and 1.0
    assert table_cells(scores, "Avg@8", 2, 1)[1][1][4] == "31.25"  # 0.5 and 0.125
    assert table_cells(scores, "Pass@8", 1, 1)[1][0][6] == "-"  # four samples have no Pass@8
    assert [line[1] for line in table_cells(scores, "Pass@1", 1, 2)[1]] == ["checkpoint-50"]


def test_the_tool_prints_three_tables_and_draws(root, capsys, tmp_path):
    plot = tmp_path / "plots" / "p.png"
    assert (
        math_eval_table.main(["--artifact-root", str(root), "--precision", "0", "--plot-name", str(plot)])
        == 0
    )
    out = capsys.readouterr().out
    assert [line.strip() for line in out.splitlines() if "@" in line] == ["Pass@1", "Pass@8", "Avg@8"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert math_eval_table.main(["--artifact-root", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("math_eval_table: ")


def test_any_k_with_intervals_and_unbiased(root, capsys):
    scores = read_scores(root, [2, 4], unbiased=True)
    assert scores.tables == ["Pass@1 unbiased", "Pass@2 unbiased", "Avg@2", "Pass@4 unbiased", "Avg@4"]
    # checkpoint-100: seed 0 has one prompt all right and one all wrong; in seed 1 one of 8 samples is right
    assert table_cells(scores, "Pass@2 unbiased", 2, 1)[1][1][4] == "37.50"
    first = table_cells(scores, "Pass@2 unbiased", 1, 1, intervals=True)[1][0]
    assert first[4] == "100.0 [100.0, 100.0]"
    assert first[5] == "0.0"  # one prompt has no interval
    assert read_scores(root, [1]).tables == ["Pass@1", "Avg@1"]
    assert math_eval_table.main(["--artifact-root", str(root), "--ks", "4", "8", "--intervals"]) == 0
    out = capsys.readouterr().out
    assert "4 samples per prompt, so no figure for k=8" in out
    assert "50.0 [0.0, 100.0]" in out
    assert math_eval_table.main(["--artifact-root", str(root), "--ks", "16"]) == 2
    assert "--ks 16: from 1 to 8, the samples that there are" in capsys.readouterr().err


def test_few_samples_give_tables_of_their_own_k(tmp_path):
    write(tmp_path, "m", "math_500", 0, [[0.0, 1.0, 0.0, 0.0]])
    scores = read_scores(tmp_path)
    assert scores.tables == ["Pass@1", "Pass@4", "Avg@4"]
    assert table_cells(scores, "Avg@4", 0, 1)[1][0][4] == "25"


def test_two_specs_of_one_model_can_be_told_apart(tmp_path):
    write(tmp_path / "a", "m", "math_500", 0, [[1.0] * 8], label="brief")
    write(tmp_path / "b", "m", "math_500", 0, [[0.0] * 8], label="long")
    assert [line[:5] for line in table_cells(read_scores(tmp_path), "Pass@1", 0, 1)[1]] == [
        ["m", "-", "grpo brief", "0.6", "100"],
        ["m", "-", "grpo long", "0.6", "0"],
    ]
    write(tmp_path / "c", "m", "math_500", 0, [[0.0] * 8], label="brief")  # no second seed of the first
    lines = table_cells(read_scores(tmp_path), "Pass@1", 0, 1)[1]
    assert [line[4] for line in lines] == ["100", "0", "0"]
    assert str(tmp_path / "c") in lines[1][2]


def test_a_revision_and_a_plain_name_are_rows():
    assert row_of("org/m", "l", "s", 0.6, "step_300").step == 300
    assert row_of("org/m", "l", "s", 0.6, "c929c65").checkpoint == "c929c65"
    assert (row_of("org/m-step-20", "l", "s", 0.6, None).family, row_of("m", "l", "s", 0.6, None).step) == (
        "m-step-20",
        0,
    )


def test_lighteval_results_stand_beside_artifacts(root):
    results = {
        "config_general": {"model_name": "org/other"},
        "results": {
            "lighteval|aime24|0": {"exact_match": 0.2, "exact_match_stderr": 0.01},
            "lighteval|math_500|0|0": {"pass@k:k=1": 0.1, "acc": 0.5},
            "extended|lcb|0": {"something": 1},
            "all": {"acc": 0.3},
        },
    }
    path = root / "results_2026.json"
    path.write_text(json.dumps(results))
    found = read_lighteval(path)
    assert (found.model, found.accuracies) == ("org/other", (("aime24", 0.2), ("math_500", 0.5)))
    assert ["other", "-", "lighteval", "-"] in [
        line.split()[:4] for line in tables_text(read_scores(root), 1, 1).splitlines()
    ]
    path.write_text("[]")
    with pytest.raises(UsageError, match="not a result file of LightEval"):
        read_scores(root)


def test_files_that_lighteval_wrote_are_read():
    scores = read_scores(Path(__file__).parent / "lighteval_results")
    assert table_cells(scores, "Pass@1", precision=1, min_datasets=1) == (
        ["family", "ckpt", "style", "temp", "aime24", "toy", "avg"],
        [["tiny", "checkpoint-120", "lighteval", "-", "0.0", "62.5", "31.2"]],
    )


@pytest.mark.parametrize(
    ("figures", "accuracy"),
    [
        ({"pass@k:k=1&n=1": 0.25, "pass@k:k=1&n=1_stderr": 0.1}, 0.25),
        ({"avg@n:n=64": 0.5, "pass@k:k=1": 0.25}, 0.25),
        ({"gpqa_pass@k:k=1": 0.25}, 0.25),
        ({"codegen_pass@1:16": 0.25}, 0.25),
        ({"pass@k:k=8&n=16": 0.75, "pass@k:k=16": 0.8, "avg@n:n=16": 0.25}, 0.25),
        ({"em_stderr": 0.1, "em": 0.25}, 0.25),
    ],
)
def test_lightevals_names_of_an_accuracy(tmp_path, figures, accuracy):
    path = tmp_path / "results_1.json"
    path.write_text(json.dumps({"config_general": {"model_name": "m"}, "results": {"t|0": figures}}))
    assert read_lighteval(path).accuracies == (("t", accuracy),)
    assert read_lighteval(path).unknown == ()


def test_a_figure_of_an_unknown_name_is_said_to_be_left_out(root, capsys):
    figures = {"acc": 0.5, "acc_norm": 0.75, "acc_norm_stderr": 0.1, "pass@k:k=8": 0.9}
    results = {"x|math_500|0": figures, "x|lcb|0": {"bleu": 1.0}, "all": {"bleu": 1.0}}
    path = root / "results_1.json"
    path.write_text(json.dumps({"config_general": {"model_name": "m"}, "results": results}))
    assert math_eval_table.main(["--artifact-root", str(root)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"left out  {path}: not known as an accuracy: x|math_500|0: acc_norm, x|lcb|0: bleu"


def test_a_result_file_without_an_accuracy_is_named(tmp_path):
    path = tmp_path / "results_1.json"
    path.write_text(json.dumps({"results": {"t|0": {"bleu": 1.0, "bleu_stderr": 0.1, "pass@k:k=8": 0.5}}}))
    with pytest.raises(
        UsageError, match=r"results_1.json: no accuracy among its figures \(bleu, pass@k:k=8\)"
    ):
        read_scores(tmp_path)


@pytest.mark.parametrize(
    ("task", "dataset"),
    [("lighteval|aime24|0|0", "aime24"), ("gpqa:diamond|0", "gpqa:diamond"), ("x|y|0", "y")],
)
def test_lighteval_task_names(task, dataset):
    assert dataset_of(task) == dataset


def test_delta_of_two_real_models(tmp_path, capsys):
    data = tmp_path / "toy.jsonl"
    data.write_text('{"problem": "1+1", "answer": "2"}\n')
    arguments = [
        "--baseline",
        "bundled:tiny-policy",
        "--candidate",
        "bundled:tiny-policy",
        "--dataset",
        str(data),
    ]
    assert eval_math_delta.main([*arguments, "--runner", "transformers", "--max-new-tokens", "4"]) == 0
    assert "delta=+0.0000" in capsys.readouterr().out
    assert eval_math_delta.main([]) == 0
    assert "baseline_acc=1.0000" in capsys.readouterr().out


def test_a_loss_beyond_the_tolerance_is_one():
    assert eval_math_delta.Delta(0.5, 0.48).is_loss
    assert not eval_math_delta.Delta(0.5, 0.49).is_loss
    assert not eval_math_delta.Delta(0.5, 0.6).is_loss
