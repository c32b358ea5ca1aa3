"""Batch plan, objective and controllers of a configuration: what is checked before anything heavy is imported."""

import math
import re
from dataclasses import dataclass
from typing import Any

from maxent_grpo.config.records import fed
from maxent_grpo.controllers.settings import ControllerSettings, EntropySettings, MetaSettings
from maxent_grpo.errors import UsageError
from maxent_grpo.objectives.catalog import ObjectiveSpec, find_objective
from maxent_grpo.objectives.components import MAXENT, NUMBERS

VLLM_TIS_CAP = 2.0
"""Yao et al. (2025), "Your efficient RL framework secretly brings you off-policy RL training"."""


@dataclass(frozen=True)
class BatchPlan:
    """The way from prompts to optimiser steps. A rollout is sampled at once and serves one or more steps.

    Batch sizes count the ``num_generations`` completions of each prompt; InfoSeed's seeded ones come on top.
    """

    prompts_per_step: int
    """Over all processes."""
    prompts_per_rollout: int
    """Over all processes."""
    micro_groups: int
    """Whole groups in one forward and backward pass of one process."""
    updates_per_rollout: int
    """Optimiser steps that one pass over a rollout takes."""
    num_iterations: int
    """Passes over each rollout."""
    micro_tokens: int | None = None
    """Real tokens in one forward and backward pass, instead of `micro_groups`."""
    dynamic_sampling: bool = False
    """Groups with equal utilities are replaced before a step."""
    sampling_rounds: int = 1
    """Times that prompts may be drawn for one rollout."""
    ranks: int = 1

    @property
    def prompts_per_rank(self) -> int:
        """One process's share of an optimiser step."""
        return self.prompts_per_step // self.ranks

    @property
    def on_policy(self) -> bool:
        """Every step learns from the policy that it updates."""
        return self.updates_per_rollout * self.num_iterations == 1


def batch_plan(training: Any, world_size: int) -> BatchPlan:
    """The plan of ``world_size`` processes.

    Raises:
        UsageError: a process's share of a step is not whole groups, or a rollout not whole steps.
    """
    group, accumulation = training.num_generations, training.gradient_accumulation_steps
    rows = training.per_device_train_batch_size * accumulation
    if rows % group:
        unit = group // math.gcd(group, accumulation)
        nearest = math.ceil(training.per_device_train_batch_size / unit) * unit
        raise UsageError(
            f"per_device_train_batch_size: {training.per_device_train_batch_size} × "
            f"gradient_accumulation_steps={accumulation} completions are not whole groups of "
            f"num_generations={group} in each process; "
            f"use per_device_train_batch_size={nearest}"
        )
    if training.steps_per_generation % accumulation:
        nearest = math.ceil(training.steps_per_generation / accumulation) * accumulation
        raise UsageError(
            f"steps_per_generation: {training.steps_per_generation} is not a multiple of "
            f"gradient_accumulation_steps={accumulation}; use {nearest}"
        )
    prompts_per_step = rows // group * world_size
    updates = training.steps_per_generation // accumulation
    if prompts_per_step == 1 and training.info_seed_enabled and contrasts(training):
        raise UsageError(
            "info_seed_loss_type: infonce contrasts completions of different prompts, and a step has one prompt; "
            f"use gradient_accumulation_steps={2 * accumulation}, or ce"
        )
    return BatchPlan(
        prompts_per_step=prompts_per_step,
        prompts_per_rollout=prompts_per_step * updates,
        micro_groups=max(1, training.per_device_train_batch_size // group),
        micro_tokens=training.micro_batch_tokens,
        updates_per_rollout=updates,
        num_iterations=training.num_iterations,
        dynamic_sampling=training.dynamic_sampling,
        sampling_rounds=training.dynamic_sampling_max_rounds if training.dynamic_sampling else 1,
        ranks=world_size,
    )


def objective_spec(training: Any) -> ObjectiveSpec:
    """The objective of the steps. Raises `UsageError` on settings that contradict each other."""
    entry = find_objective(training.objective)
    changes = {}
    for name, number in NUMBERS.items():
        if number.setting and number.setting.topic == MAXENT and not entry.is_maxent:
            continue
        value = getattr(training, number.setting.name if number.setting else name, None)
        if value is not None:
            changes[name] = value
    changes["tis_cap"] = tis_cap(training, entry)
    changes["log_reference_kl"] |= training.entropy_kl_threshold is not None
    if entry.has_weights:
        changes["kl_in_loss"] = training.maxent_kl_in_loss
    elif training.kl_in_reward:
        changes["kl_in_loss"] = False
    return entry.with_settings(**changes)


def tis_cap(training: Any, entry: ObjectiveSpec) -> float | None:
    """The cap of importance weights; unset, a sampler that is not the learner's own model is corrected for."""
    if training.tis_cap is not None:
        return training.tis_cap or None
    return VLLM_TIS_CAP if training.use_vllm and entry.takes_tokens(training.maxent_loss) else None


def contrasts(training: Any) -> bool:
    """InfoSeed's loss compares completions of different prompts."""
    return training.info_seed_loss_type == "infonce" and training.info_seed_lambda > 0


def controller_settings(training: Any, total_steps: int) -> ControllerSettings:
    """The start of τ and β, and what moves them. Raises `UsageError` on settings that could move nothing."""

    def numbers(part: str) -> dict[str, Any]:
        return {name: getattr(training, key) for name, key in fed(part).items()}

    warmup = warmup_steps(training.warmup_steps, total_steps)
    try:
        meta, entropy = MetaSettings(**numbers("meta")), EntropySettings(**numbers("entropy"))
        return ControllerSettings(
            **numbers("controllers"), lr_warmup_steps=warmup, meta=meta, entropy=entropy
        )
    except (
        ValueError
    ) as error:  # the controllers name their own fields; a user knows the settings behind them
        names = fed("controllers")
        for part in ("meta", "entropy"):
            names |= {f"{part}.{name}": key for name, key in fed(part).items()}
        pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        message = re.sub(rf"(?<![\w.])({pattern})(?![\w.])", lambda match: names[match.group()], str(error))
        raise UsageError(re.sub(r"^meta is", "controller_meta_enabled is true:", message)) from error


def warmup_steps(warmup: float, total_steps: int) -> int:
    """Optimiser steps of learning-rate warm-up; a ``warmup`` below 1 is a share of ``total_steps``."""
    return int(warmup) if warmup >= 1 else math.ceil(total_steps * warmup)
