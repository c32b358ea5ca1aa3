"""What the environment says about checkpoints. Read once, when the configuration is built.

The variables come from the launchers, which set them for a cluster and not for a recipe; unset ones change nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from maxent_grpo.errors import UsageError

ALLOW = "MAXENT_ALLOW_DEEPSPEED_STATE_SAVE"
SKIP = "MAXENT_SKIP_DEEPSPEED_STATE_SAVE"
PREFER = "MAXENT_PREFER_ACCELERATE_STATE_SAVE"
MODE = "MAXENT_CHECKPOINT_METADATA_MODE"
SOURCE = "MAXENT_CHECKPOINT_METADATA_SOURCE"
VARIABLES = (ALLOW, SKIP, PREFER, MODE, SOURCE)


@dataclass(frozen=True)
class CheckpointSettings:
    """How checkpoints are written. The first two concern DeepSpeed's ZeRO alone."""

    deepspeed_state: Literal["native", "accelerate", "skip"] = "native"  # who writes the training state
    accelerate_fallback: bool = False  # Accelerate writes it where DeepSpeed fails
    metadata: Literal["full", "shallow"] = (
        "full"  # shallow: weights only in the sharded state, until the last step
    )
    metadata_source: Path | None = (
        None  # folder that shallow checkpoints copy configuration and tokenizer from
    )


def read_checkpoint_settings(environ: Mapping[str, str]) -> CheckpointSettings:
    """The settings in ``environ``. Raises `UsageError` for a value that is none, or two that contradict."""
    allow, skip, prefer = (_switch(environ, name) for name in (ALLOW, SKIP, PREFER))
    if skip:
        for name, given in ((ALLOW, allow), (PREFER, prefer)):
            if given:
                raise UsageError(f"{SKIP} and {name} are both true: keep one")
    mode = (environ.get(MODE) or "full").strip().lower()
    if mode not in ("full", "shallow"):
        raise UsageError(f"{MODE}: {environ[MODE]!r} is not one of shallow, full")
    if skip and mode == "shallow":
        raise UsageError(
            f"{SKIP} with {MODE}=shallow would leave checkpoints without weights: set {MODE}=full"
        )
    source = environ.get(SOURCE)
    if source and not (Path(source).expanduser() / "config.json").is_file():
        raise UsageError(f"{SOURCE}: {source} holds no config.json; give the folder of a saved model")
    return CheckpointSettings(
        deepspeed_state="skip" if skip else "accelerate" if prefer else "native",
        accelerate_fallback=allow,
        metadata="shallow" if mode == "shallow" else "full",
        metadata_source=Path(source).expanduser() if source else None,
    )


def _switch(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "").strip().lower()
    if value not in ("", "0", "1", "true", "false", "yes", "no"):
        raise UsageError(f"{name}: {environ[name]!r} is not true or false")
    return value in ("1", "true", "yes")
