"""What the environment may say about checkpoints, and that it is read once."""

from pathlib import Path

import pytest

from maxent_grpo.config.environment import (
    ALLOW,
    MODE,
    PREFER,
    SKIP,
    SOURCE,
    CheckpointSettings,
    read_checkpoint_settings,
)
from maxent_grpo.errors import UsageError


@pytest.mark.parametrize(
    ("environ", "settings"),
    [
        ({}, CheckpointSettings()),
        ({SKIP: "true"}, CheckpointSettings(deepspeed_state="skip")),
        ({PREFER: "1"}, CheckpointSettings(deepspeed_state="accelerate")),
        ({ALLOW: "True", SKIP: "false"}, CheckpointSettings(accelerate_fallback=True)),
        ({MODE: "shallow"}, CheckpointSettings(metadata="shallow")),
        ({MODE: " FULL ", SKIP: ""}, CheckpointSettings()),
    ],
)
def test_each_variable_has_its_setting(environ, settings):
    assert read_checkpoint_settings(environ) == settings


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({SKIP: "perhaps"}, f"{SKIP}: 'perhaps' is not true or false"),
        ({SKIP: "1", ALLOW: "1"}, f"{SKIP} and {ALLOW} are both true"),
        ({SKIP: "1", PREFER: "1"}, f"{SKIP} and {PREFER} are both true"),
        ({SKIP: "1", MODE: "shallow"}, "would leave checkpoints without weights"),
        ({MODE: "deep"}, f"{MODE}: 'deep' is not one of shallow, full"),
        ({SOURCE: "/nowhere"}, f"{SOURCE}: /nowhere holds no config.json"),
    ],
)
def test_what_cannot_be_meant_is_refused(environ, message):
    with pytest.raises(UsageError, match=message):
        read_checkpoint_settings(environ)


def test_a_run_keeps_what_it_was_started_with(tmp_path, policy_dir: Path):
    from maxent_grpo.config.loading import resolve

    environ = {MODE: "shallow", SOURCE: str(policy_dir)}
    settings = {"model_name_or_path": str(policy_dir), "dataset_name": "task:arithmetic", "use_cpu": True}
    flat = settings | {"output_dir": str(tmp_path), "num_generations": 4, "per_device_train_batch_size": 8}
    config = resolve("train-baseline", None, {"flat": flat}, environ)
    environ.clear()
    assert config.checkpoints == CheckpointSettings(metadata="shallow", metadata_source=policy_dir)
