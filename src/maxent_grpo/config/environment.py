"""What the environment says: launchers, clusters and machines speak by variables.

Each variable belongs to a record: of `MachineSettings`, which no recipe has, or of a setting to which it gives a value
where nothing else does.
"""

import importlib.util
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from maxent_grpo.config.records import RECORDS, parse, without_null
from maxent_grpo.config.settings import MachineSettings
from maxent_grpo.errors import UsageError
from maxent_grpo.settings import Setting, settings_of

ALLOW, SKIP, PREFER, MODE, SOURCE = VARIABLES = tuple(
    record.env[0] for record in settings_of(MachineSettings) if record.feeds.startswith("checkpoints")
)

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


_BOOLS = {"1": "true", "yes": "true", "0": "false", "no": "false"}


@dataclass(frozen=True)
class CheckpointSettings:
    """How checkpoints are written. The first two concern DeepSpeed's ZeRO alone."""

    deepspeed_state: Literal["native", "accelerate", "skip"] = "native"
    """Who writes the training state."""
    accelerate_fallback: bool = False
    metadata: Literal["full", "shallow"] = "full"
    metadata_source: Path | None = None


def of_environment(record: Setting, environ: Mapping[str, str]) -> Any:
    """The value of the first of the record's variables that is set, else its default.

    Raises `UsageError`, the variable in front, for a value that the setting cannot have.
    """
    for variable in record.env:
        text = environ.get(variable, "").strip()
        if text:
            record = without_null(record)
            word = text.lower() if record.options or record.type is bool else text
            if record.type is bool:
                word = _BOOLS.get(word, word)
            try:
                return parse(record, word)
            except ValueError as error:
                message = str(error).removeprefix(record.name).replace(repr(word), repr(text), 1)
                raise UsageError(f"{variable}{message}") from None
    return record.default


def machine_settings(environ: Mapping[str, str]) -> MachineSettings:
    """`MachineSettings` as ``environ`` has them. Raises `UsageError` for a value that is none."""
    records = settings_of(MachineSettings)
    return MachineSettings(**{record.name: of_environment(record, environ) for record in records})


def log_level(environ: Mapping[str, str]) -> str | None:
    """The level that the environment asks for; it wins over every setting."""
    record = RECORDS["training"]["log_level"]
    return of_environment(record, environ) if any(map(environ.get, record.env)) else None


def checkpoint_settings(machine: MachineSettings) -> CheckpointSettings:
    """How checkpoints are written. Raises `UsageError` for two variables that contradict each other."""
    if machine.skip_deepspeed_state:
        for name, given in (
            (ALLOW, machine.allow_accelerate_state),
            (PREFER, machine.prefer_accelerate_state),
        ):
            if given:
                raise UsageError(f"{SKIP} and {name} are both true: keep one")
        if machine.checkpoint_metadata == "shallow":
            raise UsageError(
                f"{SKIP} with {MODE}=shallow would leave checkpoints without weights: set {MODE}=full"
            )
    source = machine.checkpoint_metadata_source
    if source and not (Path(source).expanduser() / "config.json").is_file():
        raise UsageError(f"{SOURCE}: {source} holds no config.json; give the folder of a saved model")
    prefer = "accelerate" if machine.prefer_accelerate_state else "native"
    return CheckpointSettings(
        deepspeed_state="skip" if machine.skip_deepspeed_state else prefer,  # type: ignore[arg-type]
        accelerate_fallback=machine.allow_accelerate_state,
        metadata=machine.checkpoint_metadata,
        metadata_source=Path(source).expanduser() if source else None,
    )


def read_checkpoint_settings(environ: Mapping[str, str]) -> CheckpointSettings:
    """`checkpoint_settings` of ``environ``."""
    return checkpoint_settings(machine_settings(environ))


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
