"""What the launchers say by the environment, and what is made of it."""

import pytest

from maxent_grpo.config.environment import forget_launched_plugins, launch_problems, launched_strategy
from maxent_grpo.errors import UsageError

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none"}


@pytest.mark.parametrize(
    ("environ", "strategy"),
    [
        ({}, None),
        ({"WORLD_SIZE": "2", "RANK": "0"}, None),
        (FSDP, "fsdp2"),
        (ZERO, "zero2"),
        (ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero3"),
        (FSDP | {"ACCELERATE_USE_FSDP": "false"}, None),
    ],
)
def test_the_strategy_is_that_of_accelerates_configuration(environ, strategy):
    assert launched_strategy(environ) == strategy


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (FSDP | {"FSDP_VERSION": "1"}, "fsdp_version: only 2"),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params: true is not supported"),
        (FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "set gradient_checkpointing=true"),
        (ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "zero_stage: 1 is not supported; use 2 or 3"),
        (ZERO | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "x.json"}, "deepspeed_config_file: x.json"),
    ],
)
def test_a_detail_that_would_be_ignored_is_refused(environ, message):
    with pytest.raises(UsageError, match=message):
        launched_strategy(environ)


def test_sharding_needs_a_launcher():
    assert launch_problems("ddp", {}) == launch_problems(None, {}) == []
    assert "start with torchrun" in launch_problems("fsdp2", {})[0]
    assert launch_problems("fsdp2", {"WORLD_SIZE": "1"}) == []


def test_accelerate_is_not_asked_to_wrap_a_second_time():
    environ = dict(FSDP)
    forget_launched_plugins(environ)
    assert "ACCELERATE_USE_FSDP" not in environ
