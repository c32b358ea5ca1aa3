"""What torchrun and accelerate launch tell the processes that they start, by their environment.

Read once, when the configuration is built. A part of Accelerate's configuration that this package would ignore is
refused by name.
"""

import importlib.util
from collections.abc import Mapping, MutableMapping

from maxent_grpo.errors import UsageError

SHARDED = ("fsdp2", "zero2", "zero3")

IGNORED = {
    "FSDP_OFFLOAD_PARAMS": ("fsdp_offload_params", ("false",)),
    "FSDP_RESHARD_AFTER_FORWARD": ("fsdp_reshard_after_forward", ("true", "full_shard")),
    "FSDP_AUTO_WRAP_POLICY": ("fsdp_auto_wrap_policy", ("TRANSFORMER_BASED_WRAP",)),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("offload_optimizer_device", ("none",)),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("offload_param_device", ("none",)),
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": ("deepspeed_config_file", ("none",)),
}
"""Variable → the key of Accelerate's configuration that sets it, and the values that ask for what is done anyway."""


def launched_processes(environ: Mapping[str, str]) -> int:
    """Processes that torchrun or Accelerate launched, this one included."""
    return int(environ.get("WORLD_SIZE", "1"))


def launched_strategy(environ: Mapping[str, str]) -> str | None:
    """The strategy that accelerate launch's configuration file asks for; None: it, or torchrun, asks for none.

    Raises `UsageError` for one that this package does not have, or a detail of it that would be ignored.
    """
    sharded = None
    if environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        if environ.get("FSDP_VERSION", "1") != "2":
            raise UsageError(
                "accelerate configuration: fsdp_version: only 2 is supported; set fsdp_version: 2"
            )
        if environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
            raise UsageError(
                "accelerate configuration: fsdp_activation_checkpointing: set gradient_checkpointing=true in the "
                "recipe instead"
            )
        sharded = "fsdp2"
    elif environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        stage = environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        if stage not in ("2", "3"):
            raise UsageError(f"accelerate configuration: zero_stage: {stage} is not supported; use 2 or 3")
        sharded = f"zero{stage}"
    for variable, (key, accepted) in IGNORED.items() if sharded else ():
        value = environ.get(variable)
        if value is not None and value.lower() not in map(str.lower, accepted):
            raise UsageError(
                f"accelerate configuration: {key}: {value} is not supported with distributed={sharded}; "
                f"use {accepted[0]}, or leave it out"
            )
    return sharded


def launch_problems(distributed: str | None, environ: Mapping[str, str]) -> list[str]:
    """What keeps the strategy from working as this process was started, one line each."""
    problems = []
    if distributed in SHARDED and "WORLD_SIZE" not in environ:
        problems.append(
            f"distributed: {distributed} needs a process group: start with torchrun --nproc-per-node N, "
            "or with accelerate launch"
        )
    if distributed in ("zero2", "zero3") and importlib.util.find_spec("deepspeed") is None:
        problems.append(
            f"distributed: {distributed} needs the package deepspeed: pip install 'maxent-grpo[deepspeed]'"
        )
    return problems


def forget_launched_plugins(environ: MutableMapping[str, str]) -> None:
    """Keep Accelerate from setting up FSDP or DeepSpeed a second time: `launched_strategy` has read what was asked."""
    for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        environ.pop(variable, None)
