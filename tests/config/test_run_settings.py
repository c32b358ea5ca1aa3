"""One way from a configuration to a run's settings: whatever starts the run, and whichever process it runs in."""

import ast
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import maxent_grpo
from maxent_grpo import GRPOConfig, GRPOTrainer
from maxent_grpo.config.environment import CheckpointSettings
from maxent_grpo.config.loading import resolve
from maxent_grpo.config.parts import NativeSettings, TRLSettings
from maxent_grpo.config.run_settings import run_settings
from maxent_grpo.data.sources import RetryPolicy
from maxent_grpo.errors import UsageError

ENVIRONMENT = {
    "MAX_PROMPT_CHARS": "77",
    "MAXENT_HF_DATASET_RETRIES": "9",
    "MAXENT_HF_DATASET_RETRY_SLEEP": "0.5",
    "MAXENT_CHECKPOINT_METADATA_MODE": "shallow",
    "MAXENT_ALLOW_DEEPSPEED_STATE_SAVE": "1",
}
GIVEN: dict[str, Any] = {
    "model_name_or_path": "bundled:tiny-policy",
    "dataset_name": "task:arithmetic",
    "output_dir": "x",
    "use_cpu": True,
    "force_custom_loop": True,
    "num_generations": 4,
    "per_device_train_batch_size": 4,
}
SRC = Path(maxent_grpo.__file__).parent


def settings_of(environ: Mapping[str, str] = {}, **flat: Any) -> NativeSettings | TRLSettings:
    return run_settings(resolve("train-baseline", None, {"flat": GIVEN | flat}, dict(environ)), environ)


def assert_environment_is_read(settings: NativeSettings) -> None:
    retry = RetryPolicy(retries=9, sleep=0.5)
    assert settings.data.prompts.max_prompt_chars == 77
    assert settings.data.evaluation_prompts.max_prompt_chars == 77
    assert settings.data.train.retry == retry
    assert settings.checkpoints == CheckpointSettings(metadata="shallow", accelerate_fallback=True)


def test_a_command_reads_the_environment() -> None:
    settings = settings_of(ENVIRONMENT)
    assert isinstance(settings, NativeSettings)
    assert_environment_is_read(settings)


def test_training_from_python_reads_what_a_command_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    args = GRPOConfig(output_dir="x", use_cpu=True, num_generations=4, per_device_train_batch_size=4)
    trainer = GRPOTrainer("bundled:tiny-policy", "format", args, ["a"])
    assert_environment_is_read(trainer.settings)
    monkeypatch.setenv("MAX_PROMPT_CHARS", "many")
    with pytest.raises(UsageError, match=r"^MAX_PROMPT_CHARS: 'many' is not an integer$"):
        GRPOTrainer("bundled:tiny-policy", "format", args, ["a"])


@pytest.mark.parametrize("flat", [{}, {"driver": "sync"}, {"info_seed_enabled": False, "use_peft": True}])
def test_settings_travel_to_other_processes_whole(flat: dict[str, Any]) -> None:
    settings = settings_of(ENVIRONMENT, **flat)
    there = pickle.loads(pickle.dumps(settings))
    assert there == settings
    assert there.checkpoints.metadata == "shallow"


def test_what_only_shows_where_a_run_starts_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^reference_workers: 1, and nothing reads the reference policy"):
        settings_of(driver="sync", reference_workers=1)
    with pytest.raises(
        UsageError, match=r"^driver: async starts its own ranks, and 2 processes were launched"
    ):
        settings_of({"WORLD_SIZE": "2"}, driver="async")
    with pytest.raises(
        UsageError, match=r"^2 processes were launched, and 1 would train here: .*use_cpu=true"
    ):
        settings_of({"WORLD_SIZE": "2"})
    with pytest.raises(UsageError, match=r"^load_in_8bit, load_in_4bit: .* full precision; remove them$"):
        settings_of(load_in_8bit=True)


def test_nothing_below_the_configuration_receives_it_whole() -> None:
    readers = {"config", "cli", "study"}
    found = [
        f"{path.relative_to(SRC)}:{node.lineno}"
        for path in SRC.rglob("*.py")
        if path.relative_to(SRC).parts[0] not in readers
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.arg) and node.annotation and "RunConfig" in ast.unparse(node.annotation)
    ]
    assert found == []


def test_the_configuration_passes_through_few_hands() -> None:
    config = resolve("train-baseline", None, {"flat": GIVEN}, {})
    hands: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and any(value is config for value in frame.f_locals.values()):
            hands.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        run_settings(config, {})
    finally:
        sys.setprofile(None)
    assert len(hands) < 20, hands
