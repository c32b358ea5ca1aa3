"""The settings of the run itself: memory, processes, checkpoints, records."""

from dataclasses import dataclass
from typing import Literal

from maxent_grpo.config.fields import setting


@dataclass
class RunFields:
    """The run."""

    micro_batch_tokens: int | None = setting(
        None,
        "Most real tokens in one forward and backward pass, each prompt counted once and padding not at all; "
        "a larger group is a pass by itself; unset: per_device_train_batch_size completions.",
    )
    distributed: Literal["ddp", "fsdp2", "zero2", "zero3"] | None = setting(
        None,
        "How several processes hold the policy: whole (ddp), sharded (fsdp2), or by DeepSpeed (zero2, zero3); unset: "
        "as accelerate launch's configuration says, else ddp.",
    )
    max_nonfinite_steps: int = setting(
        3,
        "Consecutive steps with a non-finite loss or gradient, none of them applied, after which the run "
        "ends.",
    )
    overwrite_output_dir: bool = setting(
        False, "Start afresh in an output_dir that holds a run, removing its state."
    )
    resume_from_checkpoint: str | bool | None = setting(
        None, "Checkpoint directory to go on from; true: the newest in output_dir."
    )
    logging_steps: float = setting(
        1,
        "Optimiser steps between two log records; 1 (TRL: 10), since every step is worth a line in "
        "metrics.jsonl.",
    )
    gradient_checkpointing: bool | None = setting(
        None,
        "Recompute activations in the backward pass; unset: false (TRL: true), since it adds a forward pass "
        "that only a model near the memory limit needs.",
    )
    bf16: bool | None = setting(
        None,
        "bfloat16 mixed precision; unset: true on a GPU that has it and false elsewhere (TRL: always true).",
    )


@dataclass
class TrackerFields:
    """Where Weights & Biases keeps it."""

    wandb_project: str | None = setting(None, "Weights & Biases project; unset: WANDB_PROJECT.")
    wandb_entity: str | None = setting(None, "Weights & Biases entity; unset: WANDB_ENTITY.")
    wandb_run_group: str | None = setting(None, "Weights & Biases run group; unset: WANDB_RUN_GROUP.")
