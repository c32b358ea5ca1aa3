"""The golds of public benchmarks accept themselves and reject answers that were made wrong."""

import json
from collections import Counter

import pytest
from benchmarks.grader import gold_faults, golds, main, read_rows, score
from benchmarks.perturbed_answers import perturbed

from math_answers import GraderPolicy

# GSM8K's golds are whole numbers: a tenth of them says what all would. The benchmark takes all.
STRIDE = {"gsm8k_test.jsonl": 10, "gsm8k_train.jsonl": 50}


@pytest.mark.slow
def test_every_gold_accepts_itself_and_rejects_five_perturbed_answers(shared_data):
    policy = GraderPolicy()
    seen: Counter[str] = Counter()
    faults = []
    for name, gold in golds(shared_data / "benchmarks"):
        seen[name] += 1
        if name.startswith("drgrpo_suite/math") or seen[name] % STRIDE.get(name, 1):
            continue  # the suite's copy of MATH-500 has the same golds
        faults += [f"{name}: {fault}" for fault in gold_faults(gold, policy)]
    assert faults == []
    assert {
        seen["math500.jsonl"],
        seen["olympiadbench_oe_to_maths_en.jsonl"],
        seen["minerva_math.jsonl"],
    } == {500, 675, 272}


@pytest.mark.parametrize(
    "answer", ["12", r"\frac{1}{2}", "4.5e33", r"\text{east}", r"(2,\infty)", "1,-2", "0", "x=5"]
)
def test_perturbed_answers_are_five_different_ones(answer):
    wrong = perturbed(answer)
    assert len(set(wrong)) == 5
    assert answer not in wrong
    assert wrong == perturbed(answer)


def test_the_grader_meets_its_aim_on_judged_pairs(shared_data, capsys):
    paths = sorted(map(str, (shared_data / "oracle_pairs").glob("*.jsonl")))
    assert main([*paths, "--require", "--show"]) == 0
    printed = capsys.readouterr().out
    assert "false accept" not in printed


def test_a_stricter_policy_agrees_less_with_those_who_forgive_units(shared_data):
    rows = read_rows(shared_data / "oracle_pairs" / "nemo_skills_tests.jsonl")
    strict = score(rows, GraderPolicy(percent="value", units="required"))
    assert strict.undisputed.right < score(rows, GraderPolicy()).undisputed.right == len(rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "the file is empty"), ("{", "no JSON"), ('{"gold": "1"}', "no column 'pred'")],
)
def test_bad_pairs_are_one_line_and_exit_2(tmp_path, capsys, content, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    assert main([str(path)]) == 2
    assert message in capsys.readouterr().err


def test_below_the_aim_the_exit_code_is_1(tmp_path):
    pair = {"gold": "1", "pred": "2", "verdict": True, "class": "undisputed", "adjudicated_equal": True}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(pair))
    assert main([str(path), "--require"]) == 1
    assert main([str(path)]) == 0
    assert main([str(path), "--policy", "percents=value"]) == 2
