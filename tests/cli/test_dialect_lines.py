"""The command lines of TorchRL's GRPO scripts, letter by letter, under this package's script names."""

import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from composed import jobs_of
from maxent_grpo.cli.compose import SHIPPED_PRESETS, training_arguments
from maxent_grpo.cli.request import read_request, resolve_job
from maxent_grpo.config.loading import RunConfig
from maxent_grpo.config.plan import batch_plan
from maxent_grpo.errors import UsageError

LINES: list[tuple[str, dict[str, Any]]] = [
    (
        "VLLM_USE_V1=0 python sota-implementations/grpo/grpo-sync.py mode=sync train_model.num_devices=2 "
        "ref_model.num_devices=2 inference_model.num_devices=2",
        {"driver": "sync", "learner_workers": 2, "reference_workers": 2, "rollout_workers": 2},
    ),
    (
        "VLLM_USE_V1=0 python sota-implementations/grpo/grpo-async.py mode=async train_model.num_devices=2 "
        "ref_model.num_devices=2 inference_model.num_devices=2",
        {"driver": "async", "per_device_train_batch_size": 8, "max_steps": 3125},
    ),
    ("python grpo-sync.py mode=sync --config-name grpo_ifeval", {"dataset_name": "google/IFEval"}),
    ("python grpo-sync.py mode=sync env.dataset=ifeval", {"reward_funcs": ["ifeval"]}),
    (
        "python grpo-sync.py mode=sync optimizer.lr=2e-5 optimizer.weight_decay=0.01",
        {"learning_rate": 2e-5, "weight_decay": 0.01, "dataset_name": "openai/gsm8k"},
    ),
    (
        "python grpo-sync.py mode=sync model.name=meta-llama/Llama-2-7b-hf",
        {"model_name_or_path": "meta-llama/Llama-2-7b-hf"},
    ),
    ("python grpo-sync.py train.sync_iter=False", {"overlap_sampling": True, "driver": "sync"}),
    (
        "python grpo-sync.py train.kl_to_ref_coeff=0.1 train.kl_to_inference_coeff=0.2 train.kl_coef_in_loss=True",
        {"beta": 0.1, "behaviour_kl_coef": 0.2, "kl_in_reward": False},
    ),
    (
        "python grpo-async.py train.total_dialog_turns=640 train.checkpoint_frequency=5 env.num_envs=16",
        {"max_steps": 20, "save_steps": 5, "sampling_batch_size": 16},
    ),
    (
        "python grpo-sync.py inference_model.gpu_memory_utilization=0.4 train.optim_batch_size=16 "
        "train.gradient_accumulation_steps=1",
        {"vllm_gpu_memory_utilization": 0.4, "per_device_train_batch_size": 16, "steps_per_generation": 2},
    ),
    (
        "python grpo-async.py mode=async use_vllm=true inference_model.num_devices=2 "
        "inference_model.gpu_memory_utilization=0.8",
        {
            "driver": "async",
            "use_vllm": True,
            "vllm_mode": "colocate",
            "rollout_workers": 2,
            "vllm_gpu_memory_utilization": 0.8,
        },
    ),
]
SWEEPS: list[tuple[str, list[tuple[float, float]]]] = [
    (
        "python grpo-sync.py mode=sync --multirun optimizer.lr=1e-4,1e-5,1e-6",
        [(1e-4, 0.0), (1e-5, 0.0), (1e-6, 0.0)],
    ),
    (
        "python grpo-sync.py mode=sync --multirun \\\n  optimizer.lr=1e-4,1e-5 \\\n  policy.kl_coef=0.01,0.1",
        [(1e-4, 0.01), (1e-4, 0.1), (1e-5, 0.01), (1e-5, 0.1)],
    ),
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from the checkout: the presets are the package's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRPO_RECIPE", raising=False)


def _configs(line: str) -> list[RunConfig]:
    words = [
        word for word in shlex.split(line.replace("\\\n", "")) if word not in ("VLLM_USE_V1=0", "python")
    ]
    mode = "async" if "async" in words[0] else "sync"
    assert words[0].endswith(f"grpo-{mode}.py")
    return _resolved(training_arguments(words[1:], "train", mode, {}))


def _resolved(arguments: list[str]) -> list[RunConfig]:
    return [resolve_job(read_request(job, "train"), job, {}) for job in jobs_of(arguments)]


@pytest.mark.parametrize(("line", "expected"), LINES, ids=[line for line, _ in LINES])
def test_a_line_reaches_the_typed_configuration(line: str, expected: dict[str, Any]) -> None:
    (config,) = _configs(line)
    found = {
        name: getattr(
            next(part for part in (config.training, config.script, config.model) if hasattr(part, name)), name
        )
        for name in expected
    }
    assert found == expected
    assert config.route == "native"
    assert batch_plan(config.training, config.training.learner_workers).prompts_per_rollout >= 1


@pytest.mark.parametrize(("line", "expected"), SWEEPS, ids=["one parameter", "two parameters"])
def test_a_sweep_has_a_directory_for_each_job(line: str, expected: list[tuple[float, float]]) -> None:
    configs = _configs(line)
    assert [(c.training.learning_rate, c.training.beta) for c in configs] == expected
    directories = [Path(str(c.training.output_dir)) for c in configs]
    assert len(set(directories)) == len(configs)
    assert {directory.parts[0] for directory in directories} == {"multirun"}
    assert directories[-1].name in ("lr=1e-06", "lr=1e-05,kl_coef=0.1")
    assert len({directory.parent for directory in directories}) == 1


def test_both_languages_reach_one_configuration() -> None:
    theirs = _configs(
        "python grpo-sync.py --config-name grpo_tiny optimizer.lr=3e-4 train.optim_batch_size=64 "
        "train.dialog_turns_per_batch=128 train.total_dialog_turns=1280 env.repeats=8 policy.kl_coef=0.1 output_dir=x"
    )
    ours = _configs(
        "python grpo-sync.py --config-name grpo_tiny learning_rate=3e-4 training.per_device_train_batch_size=64 "
        "steps_per_generation=2 max_steps=20 num_generations=8 beta=0.1 output_dir=x"
    )
    assert theirs == ours


def test_a_run_without_a_directory_gets_one_by_date_and_time() -> None:
    (config,) = _configs("python grpo-sync.py --config-name grpo_tiny")
    parts = Path(str(config.training.output_dir)).parts
    assert parts[0] == "outputs"
    assert [len(piece) for piece in parts[1].split("-")] == [4, 2, 2]
    assert [len(piece) for piece in parts[2].split("-")] == [2, 2, 2]
    (named,) = _configs("python grpo-sync.py --config-name grpo_tiny training.output_dir=mine")
    assert named.training.output_dir == "mine"


def test_several_processes_must_name_their_directory() -> None:
    jobs = jobs_of(["--config-name", "grpo_tiny"])
    with pytest.raises(UsageError, match=r"^output_dir: each process would name one after its own clock"):
        resolve_job(read_request(jobs[0], "train"), jobs[0], {"WORLD_SIZE": "2"})


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED_PRESETS[0].glob("grpo_*.yaml")))
def test_every_preset_resolves(name: str) -> None:
    if name in ("grpo_base", "grpo_custom_math"):
        return  # what the others share, and a preset of another command
    (config,) = _configs(f"python grpo-sync.py --config-name {name}")
    assert config.training.save_strategy in ("no", "steps")
    assert config.training.max_steps >= 100


def test_command_train_takes_any_objective() -> None:
    (maxent,) = _resolved(
        ["command=train", "--config-name", "grpo_tiny", "objective=maxent", "beta=0.1", "maxent_tau=0.05"]
    )
    assert (maxent.command, maxent.training.objective, maxent.training.driver) == (
        "train-maxent",
        "maxent",
        "inline",
    )
    (grpo,) = _resolved(["command=train", "--config-name", "grpo_tiny", "mode=async"])
    assert (grpo.command, grpo.training.driver) == ("train-baseline", "async")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("python grpo-sync.py mode=async", "^mode=async: this is maxent-grpo-sync; use maxent-grpo-async$"),
        ("python grpo-sync.py mode=sync driver=async", "^driver=async and mode=sync set the same thing"),
        (
            "python grpo-sync.py learning_rate=1e-5 optimizer.lr=1e-4",
            r"^learning_rate=1e-05 and optimizer.lr=0.0001 set",
        ),
        (
            "python grpo-sync.py init_kl_coeff=0.1 policy.kl_coef=0.2",
            "^init_kl_coeff=0.1 and policy.kl_coef=0.2 set",
        ),
        ("python grpo-sync.py --config-name grpo_gsm9k", r"not in .* \(did you mean grpo_gsm8k\?\)"),
        (
            "python grpo-sync.py baseline.training.seed=1",
            "^baseline.training.seed is not read by train; write training.seed$",
        ),
    ],
)
def test_what_contradicts_is_refused(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _configs(line)


def test_a_setting_by_its_name_alone_counts_before_its_section() -> None:
    """And a mapping typed as a whole does not make the preset's other names typed ones."""
    (config,) = _resolved(
        ["command=train", "--config-name", "grpo_tiny", "train={epochs: 2}", "training.temperature=0.7"]
    )
    assert (config.training.num_iterations, config.training.temperature) == (2, 0.7)
    (config,) = _resolved(
        ["command=train", "--config-name", "grpo_tiny", "train={epochs: 2}", "optimizer.lr=1e-5", "beta=0.2"]
    )
    assert (config.training.beta, config.training.learning_rate) == (0.2, 1e-5)


def test_their_names_serve_the_older_commands_too(tmp_path: Path) -> None:
    recipe = tmp_path / "maxent-grpo" / "config.yaml"
    recipe.parent.mkdir()
    recipe.write_text(
        "model_name_or_path: some/model\ndataset_name: some/data\noutput_dir: out\ntrain_grpo_objective: false\n"
        "maxent_tau: 0.2\nbeta: 0.1\nnum_generations: 4\nper_device_train_batch_size: 8\n"
    )
    jobs = jobs_of([f"maxent.recipe={recipe}", "policy.kl_coef=0.3", "model.name=other/model"])
    config = resolve_job(read_request(jobs[0], "train-maxent"), jobs[0], {})
    assert (config.training.beta, config.model.model_name_or_path) == (0.3, "other/model")


def test_the_scripts_are_part_of_the_package(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    assert project["project"]["scripts"]["maxent-grpo-sync"] == "maxent_grpo.cli.main:sync"
    assert project["project"]["scripts"]["maxent-grpo-async"] == "maxent_grpo.cli.main:asynchronous"
