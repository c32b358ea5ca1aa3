"""Rules between settings: what cannot work together, one line a problem, ``key: what is wrong and what to do``.

Ranges and choices of single settings stand in their records. ``t`` are the training settings, filled in.
"""

import importlib.util
import math
from collections.abc import Iterator
from enum import Enum
from typing import Any

from maxent_grpo.config.records import RECORDS
from maxent_grpo.objectives.catalog import find_objective

ENTROPY_TARGETS = tuple(f"maxent_target_weight_entropy{suffix}" for suffix in ("", "_start", "_final"))

IGNORED_BY_ENGINES = {
    "vllm_sync_weights": "rollout workers always get the learner's weights; leave it out",
    "vllm_sync_interval_steps": "set weight_update_frequency",
    "vllm_sync_backend": "weights go through Ray's object store; leave it out",
    "vllm_sync_urls": "no server gets weights; leave it out",
    "vllm_sync_dir": "weights go through Ray's object store; leave it out",
}
"""Settings of other ways to vLLM that engines in rollout workers would ignore → what to do instead."""


def script_problems(s: Any) -> Iterator[str]:
    """What is wrong with data and rewards, one line each."""
    if s.dataset_name is None and s.dataset_mixture is None:
        yield ("dataset_name: Either `dataset_name` or `dataset_mixture` must be provided")
    if s.dataset_name is not None and s.dataset_mixture is not None:
        yield ("dataset_mixture: dataset_name is set too; keep one of the two")
    if s.dataset_mixture is not None and not s.dataset_mixture.get("datasets"):
        yield ("dataset_mixture: names no datasets; add `datasets: [{id: …}]`")
    if not s.reward_funcs:
        yield ("reward_funcs: is empty; name at least one reward function")
    weights, functions = s.eval_reward_weights, s.eval_reward_funcs or s.reward_funcs
    if weights and len(weights) != len(functions):
        yield (
            f"eval_reward_weights: {len(weights)} weights for {len(functions)} reward functions; give one each"
        )


def reward_weight_problems(weights: Any, functions: Any) -> Iterator[str]:
    """What is wrong with the weights of the training rewards, one line each."""
    if weights is None:
        return
    if len(weights) != len(functions):
        yield f"reward_weights: {len(weights)} weights for {len(functions)} reward functions; give one each"
    elif not any(weights):
        yield "reward_weights: all are 0, so that nothing is rewarded; give one of them another value"


def training_problems(t: Any, processes: int) -> Iterator[str]:
    """What is wrong with the training settings, one line each; empty where nothing is."""
    if 0 < t.maxent_tau_max < t.maxent_tau_min:
        yield (
            f"maxent_tau_max: {t.maxent_tau_max} is below maxent_tau_min={t.maxent_tau_min}; "
            "raise it, or use 0 for no bound"
        )
    if t.max_completion_length is None:
        yield ("max_completion_length: is unset; give the longest completion in tokens")
    if t.max_steps == 0 or t.max_steps < -1:
        yield (f"max_steps: {t.max_steps} must be at least 1, or -1 to go by num_train_epochs")
    if t.fp16:
        yield ("fp16: is not supported, as float16 loses small probability ratios; use bf16 or float32")
    if t.benchmarks:
        yield ("benchmarks: training runs no benchmarks; leave it empty and run math-eval on a checkpoint")
    if t.delta is not None and t.delta <= 1 + t.epsilon:
        yield (f"delta: {t.delta} must be above 1 + epsilon = {1 + t.epsilon:g}, or be unset")
    if t.epsilon_high is not None and t.epsilon_high < t.epsilon:
        yield f"epsilon_high: {t.epsilon_high} is below epsilon={t.epsilon}; raise it, or leave it out"
    if t.reference_model_revision is not None and t.reference_model_name_or_path is None:
        yield ("reference_model_revision: names no model; set reference_model_name_or_path, or remove it")
    if t.dynamic_sampling and processes > 1:
        yield (f"dynamic_sampling: works in one process, and {processes} were launched; turn it off")
    if t.difficulty_pools:
        yield from _pool_problems(t)
    if t.advantage == "pass_at_k" and t.pass_k > t.num_generations:
        yield (f"pass_k: {t.pass_k} is above num_generations={t.num_generations}; lower it")
    if t.advantage == "max_at_k":
        most = t.num_generations - (t.max_k_baseline != "within")
        if t.max_k > most:
            yield f"max_k: {t.max_k} is above {most}, what num_generations={t.num_generations} allows; lower it"
    if (t.poly_epo_size or 0) > t.num_generations:
        yield f"poly_epo_size: {t.poly_epo_size} is above num_generations={t.num_generations}; lower it"
    if (t.pcmd_coef or 0) > 0 and t.num_generations < 3:
        yield f"pcmd_coef: compares three right completions or more, and num_generations={t.num_generations}; raise it"
    if find_objective(t.objective).has("reference") and t.beta > 0:
        yield (
            "beta: FlowRL has the reference in its target and no KL to weigh; set it to 0, or flow_reward_scale"
        )
    if t.environment is not None and t.info_seed_enabled:
        yield ("environment: InfoSeed's seeded prompts have one turn; turn one of the two off")
    most = math.log(t.num_generations) if t.num_generations else math.inf
    for name in ENTROPY_TARGETS:
        if (getattr(t, name) or 0) > most:
            yield (
                f"{name}: {getattr(t, name)} nats is above ln num_generations = {most:.3f}, the entropy of equal "
                "weights; lower it"
            )
    if not t.train_grpo_objective:
        yield from _maxent_problems(t)
    if t.info_seed_enabled:
        yield from _info_seed_problems(t)


def batch_problems(t: Any, processes: int) -> Iterator[str]:
    """What keeps a batch from holding whole groups, with the nearest size that works. TRL's rules."""
    group: int | None = t.num_generations
    rows = t.per_device_train_batch_size
    if group is None or group < 2:
        yield f"num_generations: {group} completions are no group; use at least 2"
        return
    if t.generation_batch_size is not None and t.steps_per_generation is not None:
        yield "generation_batch_size: steps_per_generation is set too; keep one of the two"
        return
    step_rows = rows * processes
    sampled = t.generation_batch_size
    if sampled is None:
        sampled = step_rows * (t.steps_per_generation or t.gradient_accumulation_steps)
    elif sampled % step_rows:
        nearest = math.ceil(sampled / step_rows) * step_rows
        unit = f"per_device_train_batch_size={rows} × {processes} process(es)"
        yield f"generation_batch_size: {sampled} is not a multiple of {unit}; use {nearest}"
        return
    if sampled % group:
        nearest = math.ceil(rows / group) * group
        yield (
            f"per_device_train_batch_size: the {sampled} completions of a rollout are not whole groups of "
            f"num_generations={group}; use per_device_train_batch_size={nearest}"
        )
    evaluated, rows = t.num_generations_eval or group, t.per_device_eval_batch_size
    if plain(t.eval_strategy) != "no" and rows * processes % evaluated:
        nearest = math.ceil(rows / evaluated) * evaluated
        yield (
            f"per_device_eval_batch_size: {rows * processes} completions are not whole groups of num_generations_eval="
            f"{evaluated}; use per_device_eval_batch_size={nearest} or another num_generations_eval"
        )


def _maxent_problems(t: Any) -> Iterator[str]:
    tau, beta = t.maxent_tau, t.beta
    if t.maxent_q_epsilon * t.num_generations >= 1:
        yield (
            f"maxent_q_epsilon: {t.maxent_q_epsilon} must be below 1 / num_generations "
            f"= {1 / t.num_generations:g}"
        )
    if t.maxent_mode_entropy not in (None, "none"):
        if tau == 0:
            yield "maxent_tau: is the weight of mode entropy, and 0; set it above 0 (0.25 to 1), or use dr_grpo"
        if t.controller_meta_enabled:
            yield (
                "controller_meta_enabled: differentiates candidate weights, and mode entropy has none; set "
                "maxent_target_weight_entropy and maxent_tau_lr instead"
            )
        return
    if t.maxent_loss == "tilted":
        return  # τ = 0 is the argmax set, and no reference is needed
    if tau + beta == 0:
        yield (
            "maxent_tau: the weights divide by maxent_tau + beta, and both are 0; set beta > 0, with a small maxent_tau"
        )
    elif t.maxent_loss == "listwise" and beta == 0 and not t.maxent_allow_no_reference:
        yield (
            "beta: the listwise loss without a reference drives the policy towards uniform noise; "
            "set beta > 0, or maxent_allow_no_reference=true to do it on purpose"
        )
    elif t.maxent_weight_denominator == "tau" and tau == 0:
        yield ("maxent_tau: weights divided by tau need maxent_tau > 0 (or maxent_weight_denominator)")


def _info_seed_problems(t: Any) -> Iterator[str]:
    if t.info_seed_num_seeds < 2:
        yield (f"info_seed_num_seeds: {t.info_seed_num_seeds} seeds tell nothing apart; use at least 2")
    template = t.info_seed_prompt_template
    if "{seed}" not in template:
        yield (f"info_seed_prompt_template: {template!r} does not contain {{seed}}")
    try:
        template.format(seed=0, prompt="")
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        yield (
            f"info_seed_prompt_template: {template!r} cannot be filled in ({error!r}); it may hold {{seed}} and "
            "{prompt}, and other braces doubled"
        )
    if not t.train_grpo_objective:
        yield (
            "info_seed_enabled: InfoSeed adds to a GRPO objective, whose advantages take the seeded completions as "
            "they come; set train_grpo_objective to true, or info_seed_enabled to false"
        )


def worker_problems(t: Any) -> Iterator[str]:
    """What keeps the settings of the drivers from working together, one line each."""
    if t.driver == "inline":
        yield from _inline_problems(t)
        return
    problems = [*_driver_problems(t)]
    yield from problems or _staleness_problems(t)


def _inline_problems(t: Any) -> Iterator[str]:
    for name in ("vllm_sync_backend", "vllm_sync_urls", "vllm_sync_dir"):
        if t.use_vllm and t.vllm_mode == "colocate" and _differs(t, name):
            yield (
                f"{name}: vllm_mode=colocate hands its engine the weights in memory; leave it out, or use "
                "vllm_mode=server"
            )
    for record in RECORDS["training"].values():
        unset = record.name == "driver" or not getattr(t, record.name) or not _differs(t, record.name)
        if record.topic == "Training on Ray" and not unset:
            yield f"{record.name}: belongs to the Ray drivers; set driver=sync or driver=async, or leave it out"


def _pool_problems(t: Any) -> Iterator[str]:
    if t.difficulty_hard_threshold >= t.difficulty_easy_threshold:
        yield (
            f"difficulty_hard_threshold: {t.difficulty_hard_threshold} is not below difficulty_easy_threshold="
            f"{t.difficulty_easy_threshold}; lower it, or raise the other"
        )
    if not (t.difficulty_hard_weight or t.difficulty_normal_weight or t.difficulty_easy_weight):
        yield (
            "difficulty_normal_weight: 0 like those of hard and easy prompts, so that no prompt would be drawn twice; "
            "give one of the three another value"
        )
    if t.shuffle_dataset is False:
        yield (
            "difficulty_pools: draws prompts at random, and shuffle_dataset=false asks for their order; leave one out"
        )


def _driver_problems(t: Any) -> Iterator[str]:
    if importlib.util.find_spec("ray") is None:
        yield f"driver: {t.driver} needs the package ray: pip install 'maxent-grpo[ray]', or use inline"
    if t.use_vllm and t.vllm_mode == "server":
        yield (
            "vllm_mode: server holds one version of the weights, and each rollout worker samples with a version of its "
            "own; use vllm_mode=colocate, which gives each rollout worker an engine, or driver=inline"
        )
    elif t.use_vllm:
        if t.vllm_tensor_parallel_size != 1:
            yield (
                f"vllm_tensor_parallel_size: {t.vllm_tensor_parallel_size}: a rollout worker's engine has one device; "
                "use 1, and more rollout_workers"
            )
        for name, instead in IGNORED_BY_ENGINES.items():
            if _differs(t, name):
                yield f"{name}: driver={t.driver} does not read it; {instead}"
    if t.dynamic_sampling:
        yield f"dynamic_sampling: driver={t.driver} trains on every group; use driver=inline"
    if t.difficulty_pools:
        yield (
            f"difficulty_pools: driver={t.driver} draws prompts before the groups of earlier ones are scored; use "
            "driver=inline"
        )
    if t.distributed in ("zero2", "zero3"):
        yield f"distributed: {t.distributed} is not supported with driver={t.driver}; use fsdp2 or ddp"


def _staleness_problems(t: Any) -> Iterator[str]:
    steps, rollout, lag = steps_per_rollout(t), groups_per_rollout(t), publishing_lag(t)
    if t.driver == "sync" and t.max_staleness != steps * t.overlap_sampling:
        yield (
            f"max_staleness: {t.max_staleness}: driver=sync samples with weights of "
            f"{'the rollout before' if t.overlap_sampling else 'the learner'}, which is "
            f"{steps * t.overlap_sampling}; use driver=async, or leave it out"
        )
    if t.driver == "async" and t.overlap_sampling:
        yield ("overlap_sampling: driver=async always does; remove it, or use driver=sync")
    if lag > t.max_staleness:
        yield (
            f"weight_update_frequency: {t.weight_update_frequency} leaves the rollout workers up to {lag} steps "
            f"behind, and max_staleness={t.max_staleness}; lower it, or raise max_staleness to {lag}"
        )
    if t.buffer_groups is not None and t.buffer_groups < rollout:
        yield (
            f"buffer_groups: {t.buffer_groups} cannot hold the {rollout} groups of a rollout; use {rollout}"
        )


def steps_per_rollout(training: Any) -> int:
    """Optimiser steps that the learner makes of one rollout."""
    updates = training.steps_per_generation // training.gradient_accumulation_steps
    return max(1, updates) * training.num_iterations  # the batch plan refuses 0 updates


def groups_per_rollout(training: Any) -> int:
    """Groups that the learner takes at once, over all its ranks."""
    rows = training.per_device_train_batch_size * training.steps_per_generation
    return rows * training.learner_workers // training.num_generations


def publishing_lag(training: Any) -> int:
    """Most optimiser steps between the learner and the published weights when the learner begins a rollout."""
    steps = steps_per_rollout(training)
    return (math.ceil(training.weight_update_frequency / steps) - 1) * steps


def _differs(t: Any, name: str) -> bool:
    return bool(getattr(t, name) != RECORDS["training"][name].default)


def plain(value: Any) -> Any:
    """An enum of Transformers as the text that users write."""
    return value.value if isinstance(value, Enum) else value
