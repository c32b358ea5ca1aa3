"""The whole evaluation with the bundled policy: what is drawn, what is kept, what is asked again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.evaluate import local_backend
from maxent_grpo.evaluate.passk import exploration_scores, with_standard_errors
from maxent_grpo.evaluate.records import Answers, read_records
from maxent_grpo.evaluate.result_files import headline_metrics, results_table, write_results
from maxent_grpo.files import fingerprint_path, strict_json
from maxent_grpo.inference import ArtifactSettings, InferenceModelSpec, run_math_eval_inference
from maxent_grpo.tasks.registry import load_rows
from maxent_grpo.tasks.tiny_policy import bundled_policy_path
from maxent_grpo.types import Group, Prompt, Rollout

TINY = InferenceModelSpec("bundled:tiny-policy", batch_size=4)


def run(root: Path, spec: InferenceModelSpec = TINY, resume: bool = True, **changes):
    settings = {
        "dataset": "graph_coloring",
        "seeds": [0, 1],
        "num_generations": 4,
        "temperature": 1.0,
        "limit": 6,
    }
    return run_math_eval_inference(
        [spec],
        **(settings | changes),
        artifacts=ArtifactSettings(root_dir=str(root), resume=resume),
        progress=False,
    )


def artifact(root: Path, seed: int = 0, temp: str = "temp_1p00") -> Path:
    return root / "bundled-tiny-policy--grpo" / "graph_coloring" / temp / f"seed_{seed}.jsonl"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("whole")
    return root, run(root)[0]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch):
    """Loading a model fails the test."""

    def refuse(source):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(local_backend, "load_policy", refuse)


def test_figures_are_those_of_the_artifacts(whole):
    root, result = whole
    lines = [record for seed in (0, 1) for record in read_records(artifact(root, seed)).values()]
    assert (result.total, len(lines)) == (12, 12)
    assert result.correct == sum(line["scores"][0] >= 1 for line in lines)
    assert result.accuracy == result.pass_at_1 == result.correct / 12
    assert result.pass_at_k == pytest.approx(sum(max(line["scores"]) for line in lines) / 12)
    assert (
        result.avg_at_k
        == result.avg_pass_at_1
        == pytest.approx(sum(sum(line["scores"]) for line in lines) / 48)
    )
    assert 0 < result.avg_at_k < 1
    assert result.metrics["pass_at_4"].mean == pytest.approx(result.pass_at_k)


def test_figures_equal_those_of_evaluation_during_training(whole):
    root, result = whole
    rows = load_rows("graph_coloring", "eval")
    for seed in (0, 1):
        groups = []
        for index, line in sorted(read_records(artifact(root, seed)).items()):
            prompt = Prompt(index, "", (), rows[index])
            rollout = Rollout(prompt, (), (), tuple(line["generations"]), (), 0)
            right = tuple(score == 1 for score in line["scores"])
            modes = tuple(line["answer_modes"])
            groups.append(Group(rollout, {}, tuple(line["scores"]), right, modes=modes))
        means = with_standard_errors(exploration_scores(groups))
        for name in (name for name in means if not name.endswith(("_se", "_support"))):
            ours = result.per_seed[seed][name.replace("mean", "avg")]
            assert ours == pytest.approx(means[name])


def test_a_line_says_everything(whole):
    root, _ = whole
    line = json.loads(artifact(root).read_text().splitlines()[0])
    keys = """
        dataset_id dataset_name dataset_config split model_id model_label style seed temperature num_generations
        prompt_index prompt answer system_prompt generations think_generations answer_generations answer_extracted
        scores pass_at_1_ok pass_at_k_ok correct correct_k completed_at
    """
    assert set(keys.split()) <= line.keys()
    assert (line["seed"], line["temperature"], line["num_generations"], line["dataset_id"]) == (
        0,
        1.0,
        4,
        "graph_coloring",
    )
    assert len(line["generations"]) == len(line["scores"]) == len(line["answer_extracted"]) == 4
    assert line["correct_k"] == sum(score >= 1 for score in line["scores"])


def test_samples_and_seeds_are_independent_draws(whole):
    root, _ = whole
    first, second = (read_records(artifact(root, seed)) for seed in (0, 1))
    assert any(len(set(line["generations"])) > 1 for line in first.values())
    assert [first[i]["generations"] for i in range(6)] != [second[i]["generations"] for i in range(6)]


def test_a_completion_depends_neither_on_the_batch_nor_on_the_limit_nor_on_the_other_seed(whole, tmp_path):
    root, _ = whole
    run(tmp_path, replace(TINY, batch_size=1), seeds=[1], limit=3)
    expected, found = read_records(artifact(root, 1)), read_records(artifact(tmp_path, 1))
    assert len(found) == 3
    for index, line in found.items():
        assert line["generations"] == expected[index]["generations"]


def test_a_stopped_evaluation_goes_on_and_ends_with_the_same_figures(whole, tmp_path):
    _, result = whole
    run(tmp_path, limit=2, seeds=[0])
    path = artifact(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])  # died while it wrote the second line
    resumed = run(tmp_path)[0]
    assert resumed.metrics == result.metrics
    assert sorted(read_records(path)) == list(range(6))


def test_nothing_pending_loads_no_model(whole, no_model):
    root, result = whole
    again = run(root)[0]
    assert again == replace(result, artifacts=again.artifacts)


def test_fewer_prompts_than_there_are_answers_count_only_those(whole, no_model):
    root, _ = whole
    assert run(root, limit=2)[0].total == 4


@pytest.mark.parametrize(
    ("spec", "changes", "field"),
    [
        (TINY, {"num_generations": 8}, "sampling.num_generations: 4 in the file, 8 here"),
        (replace(TINY, top_p=1.0), {}, "sampling.top_p: 0.9 in the file, 1.0 here"),
        (replace(TINY, system_prompt="be brief"), {}, "prompt.system_prompt: None in the file, sha256"),
        (replace(TINY, prompt_template="{question} ="), {}, "prompt.prompt_template"),
        (replace(TINY, stop_sequences=("\n",)), {}, "sampling.stop_sequences"),
        (TINY, {"eval_overrides": {"dataset_config": "seed=1"}}, "dataset.content"),
    ],
)
def test_answers_made_otherwise_are_refused(whole, no_model, spec, changes, field):
    root, _ = whole
    before = artifact(root).read_bytes()
    with pytest.raises(UsageError) as error:
        run(root, spec, **changes)
    assert field in str(error.value)
    assert artifact(root).read_bytes() == before


def test_other_weights_are_refused(whole, tmp_path):
    root, _ = whole
    saved = json.loads(fingerprint_path(artifact(root)).read_text())
    copy = tmp_path / "bundled-tiny-policy"  # another place, the same weights
    copy.mkdir()
    for file in bundled_policy_path().iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    run(tmp_path / "a", InferenceModelSpec(str(copy), label="x"), limit=1, seeds=[0])
    (path,) = (tmp_path / "a").rglob("seed_0.fingerprint.json")
    assert json.loads(path.read_text()) == saved
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(UsageError, match=r"model\.weights: sha256:"):
        run(tmp_path / "a", InferenceModelSpec(str(copy), label="x"), limit=1, seeds=[0])


def test_starting_over_asks_again(tmp_path):
    run(tmp_path, limit=1, seeds=[0])
    run(tmp_path, replace(TINY, top_p=1.0), resume=False, limit=2, seeds=[0])
    assert sorted(read_records(artifact(tmp_path))) == [0, 1]


def test_files_in_use_are_refused_before_anything_is_touched(whole, no_model):
    root, _ = whole
    first = artifact(root, 0).read_bytes()
    with Answers(artifact(root, 1)), pytest.raises(RunError, match="another process"):
        run(root, resume=False)
    assert artifact(root, 0).read_bytes() == first


def test_greedy_is_the_likeliest_answer_whatever_the_seed(tmp_path):
    results = [
        run(tmp_path, num_generations=1, temperature=0.0, seeds=[seed], limit=3, collect_generations=True)[0]
        for seed in (0, 1)
    ]
    assert results[0].generations[0] == results[1].generations[1]
    assert [len(samples) for samples in results[0].generations[0]] == [1, 1, 1]


def test_several_models_and_temperatures_give_a_result_each(tmp_path):
    results = run_math_eval_inference(
        [replace(TINY, label="a"), replace(TINY, label="b", temperature=0.5, num_generations=2)],
        dataset="graph_coloring",
        seeds=[0],
        num_generations=3,
        temperature=[0.7, 1.0],
        limit=1,
        artifacts=ArtifactSettings(enabled=False),
        progress=False,
    )
    assert [(r.label, r.temperature, r.num_generations) for r in results] == [
        ("a", 0.7, 3),
        ("a", 1.0, 3),
        ("b", 0.5, 2),
    ]
    assert "pass_at_3" in results_table(results)


def test_the_table_shows_every_k_that_was_asked_for(tmp_path):
    (result,) = run(tmp_path, ks=[2, 3])
    assert headline_metrics(result) == [
        "pass_at_1",
        "pass_at_1_unbiased",
        "pass_at_2_unbiased",
        "pass_at_3_unbiased",
        "avg_at_3",
        "maj_at_3",
        *(f"cover_{t}_at_4" for t in (20, 50, 80)),
        *(f"{kind}_at_{k}" for kind in ("distinct", "coverage", "breadth") for k in (1, 2, 3)),
        "pcmd_at_4",
        "n_eff_at_4",
    ]
    assert all(name in results_table([result]) for name in headline_metrics(result))
    (whole,) = run(tmp_path)
    assert "pass_at_4" in headline_metrics(whole)
    assert "pass_at_4_unbiased" not in headline_metrics(whole)
    settings = {"dataset": "graph_coloring", "seeds": [0], "num_generations": 1, "progress": False}
    with pytest.raises(UsageError, match="grader_policy: graph_coloring is judged by its task's verifier"):
        run_math_eval_inference([replace(TINY, grader_policy={"units": "ignored"})], **settings)


def test_prompts_can_be_left_out_of_the_artifacts(tmp_path):
    run_math_eval_inference(
        [TINY],
        dataset="graph_coloring",
        seeds=[0],
        num_generations=1,
        limit=1,
        artifacts=ArtifactSettings(root_dir=str(tmp_path), write_prompts=False),
        progress=False,
    )
    (path,) = tmp_path.rglob("seed_0.jsonl")
    assert read_records(path)[0]["prompt"] is None


def test_summary_files_say_what_the_result_says(whole):
    _, result = whole
    paths = {path.name: path for path in write_results(result)}
    summary = json.loads(paths["summary.json"].read_text())
    assert summary["metrics"]["pass_at_1"]["mean"] == result.pass_at_1
    assert summary["per_seed"]["1"] == strict_json(result.per_seed[1])
    heading, first, *_ = paths["summary.csv"].read_text().splitlines()
    assert heading == "metric,mean,low,high,seed_min,seed_max,seed_sd,support,seed_0,seed_1"
    assert first.startswith(f"pass_at_1,{result.pass_at_1}")
    before = {name: path.read_bytes() for name, path in paths.items()}
    write_results(result)
    assert before == {name: path.read_bytes() for name, path in paths.items()}


OWN_BACKEND = """
from contextlib import AbstractContextManager

from maxent_grpo.evaluate.records import Samples


class Echo(AbstractContextManager):
    def __init__(self, spec, system_prompt):
        self.says = spec.model_name_or_path

    def __exit__(self, *error):
        return None

    def fingerprint(self):
        return {"model": {"says": self.says}, "backend": {"kind": "echo"}}

    def sample(self, questions, *, seed, temperature, num_generations):
        for question in questions:
            texts = (f"\\\\boxed{{{self.says}}}",) * num_generations
            yield Samples(question.index, question.text, texts, ("stop",) * num_generations)
"""


def test_a_backend_of_ones_own_is_named_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "own_backend.py").write_text(OWN_BACKEND)
    (tmp_path / "sums.jsonl").write_text(
        '{"problem": "1+1", "answer": "2"}\n{"problem": "1+2", "answer": "3"}\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    changes = {
        "dataset": "sums",
        "eval_overrides": {"dataset_name": str(tmp_path / "sums.jsonl")},
        "limit": None,
    }
    result = run(tmp_path, InferenceModelSpec("2", backend="own_backend:Echo"), **changes)[0]
    assert (result.total, result.correct) == (4, 2)
    with pytest.raises(UsageError, match="backend: module 'own_backend' has no 'Eco'"):
        run(tmp_path, InferenceModelSpec("2", backend="own_backend:Eco"), **changes)


def test_rows_that_list_different_right_answers_are_covered(tmp_path, monkeypatch):
    (tmp_path / "listing_backend.py").write_text(
        OWN_BACKEND.replace('(f"\\\\boxed{{{self.says}}}",) * num_generations', "self.says.split('|')")
    )
    rows = [
        {"problem": "a colour", "answer": ["red", "blue", "green"], "modes": ["red", "blue", "green"]},
        {"problem": "a half", "answer": ["1/2", "0.25"], "modes": ["1/2", "0.25"]},
    ]
    (tmp_path / "names.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.syspath_prepend(tmp_path)
    changes = {
        "dataset": "names",
        "eval_overrides": {"dataset_name": str(tmp_path / "names.jsonl")},
        "limit": None,
        "seeds": [0],
        "num_generations": 4,
    }
    policy = {"extraction": ["last_line"]}
    spec = InferenceModelSpec("Red|0.5|blue|red, blue", backend="listing_backend:Echo", grader_policy=policy)
    result = run(tmp_path, spec, **changes)[0]
    records = read_records(result.artifacts[0])
    assert records[0]["answer_modes"] == ["red", None, "blue", None]
    assert records[1]["answer_modes"] == [None, "1/2", None, None]
    assert result.metrics["distinct_at_4"].mean == (2 + 1) / 2
    assert result.metrics["coverage_at_4"].mean == pytest.approx((2 / 3 + 1 / 2) / 2)
