"""The ``inference`` section: what may be in it, and what is refused in one line."""

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.math_eval import temperature_folder
from maxent_grpo.evaluate.settings import InferenceModelSpec, read_request

TINY = "bundled:tiny-policy"


def test_a_request_with_everything():
    request = read_request(
        {
            "models": [
                TINY,
                {"model_name_or_path": "org/model", "label": "m", "num_generations": 4, "temperature": 1},
            ],
            "dataset": "amc",
            "eval": {"split": "test"},
            "seeds": [0, 1],
            "num_generations": 8,
            "temperature": [0.6, "1.0"],
            "ks": 4,
            "limit": 10,
            "artifacts": {"root_dir": "x", "resume": "false"},
        }
    )
    first, second = request.models
    assert request.temperatures == (0.6, 1.0)
    assert (request.temperatures_of(first), request.temperatures_of(second)) == ((0.6, 1.0), (1.0,))
    assert (request.samples_of(first), request.samples_of(second)) == (8, 4)
    assert request.ks_of(first) == (1, 4)
    assert (request.artifacts.root_dir, request.artifacts.resume) == ("x", False)


def test_defaults_are_the_documented_ones():
    request = read_request({"models": TINY})
    spec = request.models[0]
    assert (request.dataset, request.seeds, request.num_generations) == ("math_500", (0, 1, 2, 3, 4), 8)
    assert (request.temperatures, request.artifacts.root_dir) == ((0.6,), "var/artifacts/inference")
    assert (spec.style, spec.max_new_tokens, spec.top_p, spec.batch_size) == ("grpo", 768, 0.9, 1)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "inference.models must contain at least one model spec"),
        ({"models": []}, "inference.models must contain at least one model spec"),
        ({"model": TINY}, r"inference.model: unknown .did you mean models"),
        ({"models": [{"label": "x"}]}, r"inference.models\[0\]: model_name_or_path is missing"),
        ({"models": [3]}, r"inference.models\[0\]=3: a model is its name"),
        (
            {"models": [{"model_name_or_path": "m", "max_new_token": 3}]},
            "max_new_token: unknown .did you mean max_new_tokens",
        ),
        (
            {"models": [{"model_name_or_path": "m", "system_prompt_answer": "x"}]},
            "system_prompt_answer is not read",
        ),
        (
            {"models": [{"model_name_or_path": "m", "backend": "vlm"}]},
            "backend: there is no 'vlm'; known: local, openai; your own: module:NAME",
        ),
        ({"models": [{"model_name_or_path": "m", "backend": "openai"}]}, "backend=openai needs base_url"),
        (
            {"models": [{"model_name_or_path": "m", "base_url": "http://x/v1"}]},
            "base_url is read by backend=openai only",
        ),
        (
            {"models": [{"model_name_or_path": "m", "generation_kwargs": {"beams": 2}}]},
            "generation_kwargs.beams: unknown",
        ),
        (
            {"models": [{"model_name_or_path": "m", "system_prompt_file": "/no/file"}]},
            "/no/file: there is no such file",
        ),
        ({"models": [{"model_name_or_path": "m", "top_p": 0}]}, "top_p=0.0: above 0"),
        ({"models": TINY, "seeds": []}, "inference.seeds is empty"),
        ({"models": TINY, "seeds": [1, 1]}, "one is there twice"),
        ({"models": TINY, "seeds": ["a"]}, r"inference.seeds=\['a'\]: expected a list of integers"),
        ({"models": TINY, "ks": [16]}, "k=16 needs 16 samples per prompt and num_generations is 8"),
        ({"models": TINY, "ks": [0]}, r"inference.ks=\[0\]: whole numbers of at least 1"),
        ({"models": TINY, "ks": []}, r"inference.ks=\[\]: whole numbers of at least 1"),
        ({"models": TINY, "num_generations": 0}, "num_generations=0: at least 1"),
        ({"models": TINY, "temperature": -1}, "temperature=-1.0"),
        ({"models": TINY, "temperature": 0}, "temperature=0 is greedy"),
        ({"models": TINY, "temperature": 1, "temperatures": [1]}, "both given"),
        ({"models": TINY, "limit": 0}, "inference.limit=0"),
        ({"models": [TINY, TINY]}, "would both write to"),
        (
            {"models": TINY, "artifacts": {"root": "x"}},
            "inference.artifacts.root: unknown .did you mean root_dir",
        ),
    ],
)
def test_refusals(section, message):
    with pytest.raises(UsageError, match=message) as error:
        read_request(section)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "folder", "name"),
    [
        (InferenceModelSpec("org/model"), "org-model--grpo", "model (grpo)"),
        (
            InferenceModelSpec("var/runs/mine/checkpoint-50", style="maxent"),
            "runs-mine--checkpoint-50--maxent",
            "mine/checkpoint-50 (maxent)",
        ),
        (InferenceModelSpec("org/m", revision="c929c65", label="a b/ü"), "org-m--rev-c929c65--a_b_", "a b/ü"),
        (InferenceModelSpec("../up/../m"), "up-m--grpo", "m (grpo)"),
        (InferenceModelSpec(TINY), "bundled-tiny-policy--grpo", "tiny-policy (grpo)"),
    ],
)
def test_names_and_folders(spec, folder, name):
    assert (spec.folder, spec.name) == (folder, name)
    assert len(InferenceModelSpec("x" * 500).folder) == 200


@pytest.mark.parametrize(
    ("t", "folder"), [(0.6, "temp_0p60"), (1.0, "temp_1p00"), (0.605, "temp_0p605"), (0, "temp_0p00")]
)
def test_temperature_folders_differ_where_temperatures_do(t, folder):
    assert temperature_folder(t) == folder


def test_a_model_that_a_run_trained_is_called_by_its_objective(tmp_path):
    run = tmp_path / "first"
    (run / "checkpoint-5").mkdir(parents=True)
    (run / "other").mkdir()
    (run / "resolved_config.yaml").write_text("training: {objective: tilted}")
    assert InferenceModelSpec(str(run)).name == "first (tilted)"
    assert InferenceModelSpec(str(run / "checkpoint-5")).name == "first/checkpoint-5 (tilted)"
    assert InferenceModelSpec(str(run / "other")).name == "other (grpo)"
    assert InferenceModelSpec(str(run), style="mine").name == "first (mine)"
    assert InferenceModelSpec(str(run)).folder.endswith("-first--grpo")  # where its artifacts are stays
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "resolved_config.yaml").write_text("training: [")
    assert InferenceModelSpec(str(broken)).name == "broken (grpo)"
