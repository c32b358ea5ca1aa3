"""The settings of the Ray drivers: what they are where unset, and which of them contradict each other."""

import importlib.util
import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from maxent_grpo.config.fields.training import TrainingFields
from maxent_grpo.objectives.catalog import find_objective

if TYPE_CHECKING:
    from maxent_grpo.config.schema import GRPOConfig

ONLY_WITH_WORKERS = (
    "rollout_workers",
    "learner_workers",
    "reference_workers",
    "max_staleness",
    "buffer_groups",
    "weight_update_frequency",
    "overlap_sampling",
    "worker_timeout",
    "ray_address",
)
"""Settings that driver=inline would ignore."""

IGNORED_BY_ENGINES: dict[str, tuple[Any, str]] = {
    "vllm_sync_weights": (True, "rollout workers always get the learner's weights; leave it out"),
    "vllm_sync_interval_steps": (1, "set weight_update_frequency"),
    "vllm_sync_backend": ("auto", "weights go through Ray's object store; leave it out"),
    "vllm_sync_urls": ([], "no server gets weights; leave it out"),
    "vllm_sync_dir": (None, "weights go through Ray's object store; leave it out"),
}
"""Settings of other ways to vLLM that engines in rollout workers would ignore: default, and what to do instead."""

AT_LEAST = {"rollout_workers": 1, "learner_workers": 1, "reference_workers": 0, "weight_update_frequency": 1}
STALE_TIS_CAP = 2.0
"""Cap of the importance weights where groups may be stale: the C of Yao et al. (2025)."""


def steps_per_rollout(training: "GRPOConfig") -> int:
    """Optimiser steps that the learner makes of one rollout."""
    updates = training.steps_per_generation // training.gradient_accumulation_steps
    return max(1, updates) * training.num_iterations  # `plan.batch_plan` refuses 0 updates


def groups_per_rollout(training: "GRPOConfig") -> int:
    """Groups that the learner takes at once, over all its ranks."""
    rows = training.per_device_train_batch_size * training.steps_per_generation
    return rows * training.learner_workers // training.num_generations


def publishing_lag(training: "GRPOConfig") -> int:
    """Most optimiser steps between the learner and the published weights when the learner begins a rollout."""
    steps = steps_per_rollout(training)
    return (math.ceil(training.weight_update_frequency / steps) - 1) * steps


def fill_staleness(training: "GRPOConfig") -> None:
    """Give ``max_staleness``, and the correction that stale groups need, their values where they are unset."""
    steps = steps_per_rollout(training)
    if training.max_staleness is None:
        ahead = {"inline": 0, "sync": steps * training.overlap_sampling, "async": steps}
        lag = publishing_lag(training) if training.driver == "async" else 0
        training.max_staleness = ahead[training.driver] + lag
    tokens = find_objective(training.objective).takes_tokens(training.maxent_loss)
    if training.max_staleness > 0 and training.tis_cap is None and tokens:
        training.tis_cap = STALE_TIS_CAP


def worker_problems(training: "GRPOConfig") -> list[str]:
    """What keeps the settings of the drivers from working together, one line each."""
    if training.driver == "inline":
        defaults = {f.name: f.default for f in fields(TrainingFields)}
        return _colocated_problems(training) + [
            f"{name}: belongs to the Ray drivers; set driver=sync or driver=async, or leave it out"
            for name in ONLY_WITH_WORKERS
            if getattr(training, name) != (0 if name == "max_staleness" else defaults[name])
        ]
    problems = [
        f"{name}: {getattr(training, name)} must be ≥ {least}"
        for name, least in AT_LEAST.items()
        if getattr(training, name) < least
    ]
    if training.max_staleness < 0:
        problems.append(f"max_staleness: {training.max_staleness} must be ≥ 0")
    if not 0 < training.worker_timeout < math.inf:
        problems.append(f"worker_timeout: {training.worker_timeout} must be > 0")
    if importlib.util.find_spec("ray") is None:
        problems.append(
            f"driver: {training.driver} needs the package ray: pip install 'maxent-grpo[ray]', or use inline"
        )
    if training.use_vllm:
        problems += _engine_problems(training)
    if training.dynamic_sampling:
        problems.append(
            f"dynamic_sampling: driver={training.driver} trains on every group; use driver=inline"
        )
    if training.distributed in ("zero2", "zero3"):
        problems.append(
            f"distributed: {training.distributed} is not supported with driver={training.driver}; use fsdp2 or ddp"
        )
    return problems or _staleness_problems(training)


def _colocated_problems(training: "GRPOConfig") -> list[str]:
    """Settings of servers that an engine in the training process would ignore."""
    if not (training.use_vllm and training.vllm_mode == "colocate"):
        return []
    return [
        f"{name}: vllm_mode=colocate hands its engine the weights in memory; leave it out, or use vllm_mode=server"
        for name in ("vllm_sync_backend", "vllm_sync_urls", "vllm_sync_dir")
        if getattr(training, name) != IGNORED_BY_ENGINES[name][0]
    ]


def _engine_problems(training: "GRPOConfig") -> list[str]:
    """What engines in the rollout workers cannot do, and settings that they would ignore."""
    if training.vllm_mode == "server":
        return [
            "vllm_mode: server holds one version of the weights, and each rollout worker samples with a version of its "
            "own; use vllm_mode=colocate, which gives each rollout worker an engine, or driver=inline"
        ]
    problems = []
    if training.vllm_tensor_parallel_size != 1:
        problems.append(
            f"vllm_tensor_parallel_size: {training.vllm_tensor_parallel_size}: a rollout worker's engine has one "
            "device; use 1, and more rollout_workers"
        )
    problems += [
        f"{name}: driver={training.driver} does not read it; {instead}"
        for name, (default, instead) in IGNORED_BY_ENGINES.items()
        if getattr(training, name) != default
    ]
    return problems


def _staleness_problems(training: "GRPOConfig") -> list[str]:
    problems = []
    steps, rollout, lag = steps_per_rollout(training), groups_per_rollout(training), publishing_lag(training)
    if training.driver == "sync" and training.max_staleness != steps * training.overlap_sampling:
        problems.append(
            f"max_staleness: {training.max_staleness}: driver=sync samples with weights of "
            f"{'the rollout before' if training.overlap_sampling else 'the learner'}, which is "
            f"{steps * training.overlap_sampling}; use driver=async, or leave it out"
        )
    if training.driver == "async" and training.overlap_sampling:
        problems.append("overlap_sampling: driver=async always does; remove it, or use driver=sync")
    if lag > training.max_staleness:
        problems.append(
            f"weight_update_frequency: {training.weight_update_frequency} leaves the rollout workers up to {lag} steps "
            f"behind, and max_staleness={training.max_staleness}; lower it, or raise max_staleness to {lag}"
        )
    if training.buffer_groups is not None and training.buffer_groups < rollout:
        problems.append(
            f"buffer_groups: {training.buffer_groups} cannot hold the {rollout} groups of a rollout; use {rollout}"
        )
    return problems
