"""From a configuration to all parts of a run, made once, here.

The command line, `GRPOTrainer`, Ray workers and studies share this one way from a configuration to a run. Nothing below
`config` sees a setting's name, an environment variable, or the configuration itself.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import Trainer

from maxent_grpo.config.environment import CheckpointSettings, launched_processes
from maxent_grpo.config.loading import RunConfig, resolved_text
from maxent_grpo.config.parts import (
    CadenceSettings,
    DataSettings,
    DataSource,
    DeviceSettings,
    DialogueSettings,
    EvaluationSettings,
    ModelSettings,
    NativeSettings,
    OptimizerSettings,
    OutputSettings,
    RecordSettings,
    RewardSettings,
    SeedSettings,
    TRLSettings,
    WorkerSettings,
)
from maxent_grpo.config.plan import batch_plan, controller_settings, objective_spec
from maxent_grpo.config.records import fed
from maxent_grpo.config.rules import groups_per_rollout, steps_per_rollout
from maxent_grpo.config.vllm import server_settings
from maxent_grpo.data.prompts import PromptSettings
from maxent_grpo.data.stream import DifficultyPools
from maxent_grpo.errors import UsageError
from maxent_grpo.models.loading import ModelSource
from maxent_grpo.objectives.catalog import build_objective
from maxent_grpo.rewards.isolation import IsolationSettings
from maxent_grpo.rewards.registry import TRAINING_OPTIONS, RewardOptions, reads_golds
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.rollout.settings import EngineSettings, SamplerSettings, SyncSettings

Part = TypeVar("Part")


def alike(part: type[Part], settings: Any, /, **derived: Any) -> Part:
    """The part whose fields are the ``settings`` of the same name; others are ``derived`` or keep their defaults."""
    names = [f.name for f in fields(part) if f.name not in derived and hasattr(settings, f.name)]  # type: ignore[arg-type]
    return part(**{name: getattr(settings, name) for name in names}, **derived)


def run_settings(config: RunConfig, environ: Mapping[str, str] = os.environ) -> NativeSettings | TRLSettings:
    """The parts of the run that ``config`` describes.

    Raises:
        UsageError: settings that contradict each other or this process's ranks.
    """
    is_inline = config.route == "trl" or config.training.driver == "inline"
    workers = None if is_inline else worker_settings(config.training, environ)
    config = config.built()
    training: Any = config.training
    if config.model.load_in_8bit or config.model.load_in_4bit:
        raise UsageError(
            "load_in_8bit, load_in_4bit: this version trains on weights in full precision; remove them"
        )
    shared: dict[str, Any] = {
        "command": config.command,
        "process_index": training.process_index,  # asking starts the process group
        "output": OutputSettings(
            Path(str(training.output_dir)), training.resume_from_checkpoint, training.overwrite_output_dir
        ),
        "records": record_settings(config),
        "model": model_settings(config),
        "data": data_settings(config),
        "rewards": reward_settings(config),
    }
    if config.route == "trl":
        changed = config.checkpoints != CheckpointSettings()
        return TRLSettings(**shared, args=training, changed_checkpoints=changed)
    objective = objective_spec(training)
    if workers is None and launched_processes(environ) != training.world_size:
        raise UsageError(
            f"{launched_processes(environ)} processes were launched, and {training.world_size} would train here: each "
            "would train a run of its own into one directory; set use_cpu=true where there is no GPU, or start one"
        )
    controllers = controller_settings(training, max(1, training.max_steps))
    needs_reference = (
        build_objective(objective).needs_reference(controllers.beta) or controllers.kl_target > 0
    )
    if workers is not None and workers.reference and not needs_reference:
        raise UsageError(
            f"reference_workers: {workers.reference}, and nothing reads the reference policy (beta is 0); set "
            "it to 0, or beta > 0"
        )
    resumed = None if training.controller_overwrite_from_config else training.controller_resume_from
    return NativeSettings(
        **shared,
        seed=training.seed,
        shuffle=training.shuffle_dataset is not False,
        pools=pool_settings(training),
        device=DeviceSettings(training.use_cpu, training.bf16),
        plan=batch_plan(training, training.world_size if workers is None else workers.learner),
        cadence=cadence_settings(training),
        objective=objective,
        controllers=controllers,
        needs_reference=needs_reference,
        controller_state=Path(resumed) if resumed else None,
        optimizer=optimizer_settings(training),
        seeds=seed_settings(training),
        sampling=sampling_settings(training),
        sampler=sampler_settings(config, environ),
        sampling_batch_size=training.sampling_batch_size,
        dialogue=None
        if training.environment is None
        else DialogueSettings(
            training.environment,
            training.max_turns,
            PromptSettings(system_prompt=training.system_prompt, chat_template=training.chat_template),
        ),
        evaluation=evaluation_settings(training),
        checkpoints=config.checkpoints,
        workers=workers,
    )


def pool_settings(training: Any) -> DifficultyPools | None:
    """None: prompts are drawn epoch by epoch."""
    if not training.difficulty_pools:
        return None
    return DifficultyPools(**{field: getattr(training, key) for field, key in fed("difficulty").items()})


def record_settings(config: RunConfig) -> RecordSettings:
    training = config.training
    named_project = training.project if training.project != "huggingface" else None  # Transformers' default
    return RecordSettings(
        title=training.objective,
        header={
            "run/recipe_path": None if config.recipe_path is None else str(config.recipe_path),
            "run/command": config.command,
            "run/objective": training.objective,
            "run/model": config.model.model_name_or_path,
            "run/seed": training.seed,
        },
        resolved=resolved_text(config),
        tracked=training.to_sanitized_dict(),
        trackers=list(training.report_to or ()),
        run_name=training.run_name,
        project=training.wandb_project or named_project,
        wandb_entity=training.wandb_entity,
        wandb_group=training.wandb_run_group,
        progress=not training.disable_tqdm,
        printed=(training.num_completions_to_print or 4) if training.log_completions else 0,
    )


def model_source(config: RunConfig) -> ModelSource:
    """The policy's model."""
    model = config.model
    assert model.model_name_or_path is not None, "config.loading refuses this"
    return ModelSource(
        model.model_name_or_path,
        model.model_revision,
        torch.float32 if model.dtype in (None, "auto") else getattr(torch, model.dtype),
        model.attn_implementation,
        config.training.trust_remote_code,
    )


def model_settings(config: RunConfig) -> ModelSettings:
    training, source = config.training, model_source(config)
    reference = None
    if training.reference_model_name_or_path is not None:
        reference = ModelSource(
            training.reference_model_name_or_path,
            training.reference_model_revision,
            source.dtype,
            source.attn_implementation,
            source.trust_remote_code,
        )
    return ModelSettings(
        source=source,
        reference=reference,
        adapter=config.model if config.model.use_peft else None,
        disable_dropout=training.disable_dropout,
        activation_checkpointing=bool(training.activation_checkpointing),
        checkpointing_options=training.activation_checkpointing_kwargs,
    )


def data_settings(config: RunConfig) -> DataSettings:
    """Data sets, and the columns and templates that make prompts of them."""
    script, training, retry = config.script, config.training, config.dataset_retry

    def prompts(prompt_column: str | None, solution_column: str, rewards: Sequence[str]) -> PromptSettings:
        return alike(
            PromptSettings,
            training,
            prompt_column=prompt_column,
            solution_column=solution_column,
            apply_chat_template=script.apply_chat_template,
            needs_gold=any(reads_golds(reward, solution_column) for reward in rewards),
            max_prompt_chars=config.max_prompt_chars,
        )

    mixture, name = script.dataset_mixture, script.dataset_name
    named = mixture is None and name is not None
    evaluation = None
    if script.eval_dataset_name is not None:
        evaluation = DataSource(
            script.eval_dataset_name, script.eval_dataset_config, script.eval_dataset_split, retry=retry
        )
    elif mixture is not None:
        evaluation = DataSource(mixture=mixture, split="test", retry=retry)
    return DataSettings(
        train=DataSource(name, script.dataset_config, script.dataset_train_split, retry=retry)
        if mixture is None
        else DataSource(mixture=mixture, retry=retry),
        evaluation=evaluation,
        test_split=DataSource(name, script.dataset_config, script.dataset_test_split, retry=retry)
        if named
        else None,
        prompts=prompts(script.dataset_prompt_column, script.dataset_solution_column, script.reward_funcs),
        evaluation_prompts=prompts(
            script.eval_dataset_prompt_column or script.dataset_prompt_column,
            script.eval_dataset_solution_column or script.dataset_solution_column,
            script.eval_reward_funcs or script.reward_funcs,
        ),
        evaluates=training.eval_strategy != "no" or training.eval_on_start,
    )


def reward_settings(config: RunConfig) -> RewardSettings:
    script, training = config.script, config.training
    return RewardSettings(
        functions=script.reward_funcs,
        weights=training.reward_weights,
        evaluation_functions=script.eval_reward_funcs or None,
        evaluation_weights=script.eval_reward_weights or None,
        options=RewardOptions(
            dict(vars(script)) | {name: getattr(training, name) for name in sorted(TRAINING_OPTIONS)},
            training.reward_isolation,
            training.correctness_reward or None,
        ),
        isolation=IsolationSettings(
            training.reward_timeout, training.reward_memory_mb, training.reward_workers
        ),
        zero_truncated=training.zero_truncated_completion_rewards,
        mode_key=training.mode_key or None,
    )


def cadence_settings(training: Any) -> CadenceSettings:
    return alike(
        CadenceSettings,
        training,
        save_steps=training.save_steps if training.save_strategy == "steps" else 0,
        eval_steps=(training.eval_steps or 0) if training.eval_strategy == "steps" else 0,
    )


def optimizer_settings(training: Any) -> OptimizerSettings:
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(training)
    except (ImportError, ValueError) as error:  # a package that is missing, or settings that contradict it
        raise UsageError(f"optim: {training.optim}: {' '.join(str(error).split())}") from error
    return alike(
        OptimizerSettings,
        training,
        kind=kind,
        options=options,
        schedule=str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type)),
        schedule_options=training.lr_scheduler_kwargs or {},
    )


def seed_settings(training: Any) -> SeedSettings | None:
    if not training.info_seed_enabled:
        return None
    return SeedSettings(
        template=training.info_seed_prompt_template,
        count=training.info_seed_num_seeds,
        pooling=training.info_seed_pooling,
        classifier=training.info_seed_loss_type == "ce",
    )


def sampling_settings(training: Any) -> SamplingSettings:
    """Sampling of training."""
    return alike(SamplingSettings, training, stop=tuple(training.stop_sequences or ()))


def evaluation_settings(training: Any) -> EvaluationSettings:
    """As in training, but with the evaluation's own temperature and truncation."""
    k = training.num_generations_eval or training.num_generations
    return EvaluationSettings(
        sampling=replace(
            sampling_settings(training),
            num_generations=k,
            temperature=training.eval_temperature,
            top_p=training.eval_top_p,
            top_k=training.eval_top_k,
            min_p=training.eval_min_p,
            for_learning=False,
        ),
        prompts_per_batch=max(1, training.per_device_eval_batch_size // k),
        greedy=training.greedy_eval_enabled,
    )


def sampler_settings(config: RunConfig, environ: Mapping[str, str]) -> SamplerSettings:
    """The sampler, in this process or in rollout workers.

    Raises:
        UsageError: an engine that would have to spread over ranks.
    """
    training = config.training
    sync = SyncSettings(
        backend=training.vllm_sync_backend,
        urls=training.vllm_sync_urls or (),
        directory=training.vllm_sync_dir or "",
        port=training.vllm_group_port,
        interval=training.vllm_sync_interval_steps if training.vllm_sync_weights else 0,
        timeout=training.vllm_sync_timeout,
    )
    if not training.use_vllm:
        return SamplerSettings(training.sampler or "local", sync=sync)
    if training.vllm_mode == "server":
        server = server_settings(training, training.world_size, training.process_index, environ)
        backfill = training.vllm_backfill_with_model
        return SamplerSettings("vllm_server", server, sync=sync, backfill=backfill)
    if training.driver == "inline" and training.world_size > 1:
        raise UsageError("vllm_mode: colocate works in one process; use vllm_mode=server for several ranks")
    if training.vllm_tensor_parallel_size != 1:
        raise UsageError(
            "vllm_tensor_parallel_size: a colocated engine belongs to one rank; use 1, or vllm_mode=server"
        )
    source = model_source(config)
    engine = EngineSettings(
        model=source.name_or_path,
        dtype="bfloat16" if training.bf16 else str(source.dtype).removeprefix("torch."),
        memory_fraction=training.vllm_gpu_memory_utilization,
        max_model_len=training.vllm_max_model_length,
        temperature=training.temperature,
        sleep=training.vllm_enable_sleep_mode,
        trust_remote_code=training.trust_remote_code,
    )
    return SamplerSettings("vllm_engine", engine=engine, sync=sync)


def worker_settings(training: Any, environ: Mapping[str, str]) -> WorkerSettings:
    """The Ray drivers' part; where ``buffer_groups`` is unset, ``max_staleness`` alone limits the buffer.

    Raises:
        UsageError: several processes were launched, where the driver starts its own.
    """
    if launched_processes(environ) > 1:
        raise UsageError(
            f"driver: {training.driver} starts its own ranks, and {launched_processes(environ)} processes were "
            "launched; start one, and set learner_workers"
        )
    groups, steps = groups_per_rollout(training), steps_per_rollout(training)
    return WorkerSettings(
        driver=training.driver,
        learner=training.learner_workers,
        rollout=training.rollout_workers,
        reference=training.reference_workers,
        timeout=training.worker_timeout,
        address=training.ray_address,
        update_frequency=training.weight_update_frequency,
        overlap=training.overlap_sampling,
        max_staleness=training.max_staleness,
        groups_per_rollout=groups,
        steps_per_rollout=steps,
        buffer_groups=training.buffer_groups or (training.max_staleness // steps + 1) * groups,
    )
