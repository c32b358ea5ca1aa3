"""Which of TRL's and Transformers' settings the native loop reads, and why it refuses the others.

A setting that would be ignored is refused where it differs from its default. A test keeps the lists complete:
every field of TRL's `GRPOConfig` is in exactly one of `HONOURED`, `INERT` and `REFUSED`.
"""

from enum import Enum
from typing import Any

from maxent_grpo.config.schema import GRPOConfig
from maxent_grpo.errors import UsageError


def _by_name(reasons: dict[str, str]) -> dict[str, str]:
    """Reason → names, turned round."""
    return {name: reason for reason, names in reasons.items() for name in names.split()}


HONOURED = _by_name(
    {
        "the native loop reads it": """
            output_dir seed learning_rate optim optim_args adam_beta1 adam_beta2 adam_epsilon
            weight_decay lr_scheduler_type lr_scheduler_kwargs warmup_steps max_grad_norm max_steps
            num_train_epochs per_device_train_batch_size per_device_eval_batch_size
            gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs
            activation_checkpointing activation_checkpointing_kwargs bf16 eval_strategy eval_steps
            eval_on_start do_eval logging_steps save_strategy save_steps save_total_limit report_to
            run_name project
            resume_from_checkpoint log_level disable_tqdm log_completions num_completions_to_print
            shuffle_dataset disable_dropout steps_per_generation generation_batch_size
            num_iterations num_generations num_generations_eval max_completion_length temperature
            top_p top_k min_p reward_weights beta epsilon epsilon_high delta
            importance_sampling_level loss_type scale_rewards entropy_coef use_cpu trust_remote_code
            sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg
            vespo_lambda_neg top_entropy_quantile off_policy_mask_threshold
            use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target
            use_vllm
        """
    }
).keys()
"""Read by the native loop."""

INERT = _by_name(
    {
        "names a repository that is used only with push_to_hub": "hub_model_id",
        "a training command trains": "do_train",
        "is set by the launcher": "local_rank",
        "is used only with use_vllm": """
            vllm_mode vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout
            vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length
            vllm_tensor_parallel_size vllm_model_impl vllm_enable_sleep_mode
        """,
    }
)
"""Accepted without effect on the native loop, and why that is no surprise."""

REFUSED = _by_name(
    {
        "the native loop keys its prompt order by (seed, epoch) and has no DataLoader": """
            dataloader_drop_last dataloader_num_workers dataloader_pin_memory
            dataloader_persistent_workers dataloader_prefetch_factor
            dataloader_multiprocessing_context dataloader_in_order label_names remove_unused_columns
            train_sampling_strategy length_column_name ignore_data_skip data_seed accelerator_config
        """,
        "the native loop sums gradients over processes itself": """
            ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
            ddp_backend ddp_timeout average_tokens_across_devices
        """,
        "the native loop takes distributed=ddp, fsdp2, zero2 or zero3": """
            fsdp fsdp_config deepspeed parallelism_config ds3_gather_for_generation
        """,
        "this loss belongs to TRL's trainer": """
            use_bias_correction_kl mask_truncated_completions multi_objective_aggregation router_aux_loss_coef
            label_smoothing_factor
        """,
        "the reference policy is frozen": "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
        "the native sampler takes temperature, top_p, top_k and min_p": """
            generation_kwargs repetition_penalty cache_implementation use_transformers_paged
            use_transformers_continuous_batching transformers_continuous_batching_config
            max_tool_calling_iterations pad_to_multiple_of chat_template_kwargs
            vllm_structured_outputs_regex
        """,
        "the native loop corrects for the sampler with tis_cap": """
            vllm_importance_sampling_correction vllm_importance_sampling_mode
            vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
            vllm_importance_sampling_cap
        """,
        "the native loop uploads nothing; upload a checkpoint with `hf upload`": """
            push_to_hub hub_token hub_private_repo hub_strategy hub_always_push hub_revision
            log_completions_hub_repo
        """,
        "the native loop writes every logged step to metrics.jsonl and to the trackers alike": """
            logging_strategy logging_first_step log_on_each_node logging_nan_inf_filter
            log_level_replica include_num_input_tokens_seen log_multimodal log_unique_prompts
            skip_memory_metrics debug
        """,
        "the native evaluation samples completions and scores them, and nothing more": """
            do_predict eval_delay prediction_loss_only eval_do_concat_batches eval_use_gather_object
            eval_accumulation_steps include_for_metrics batch_eval_metrics load_best_model_at_end
            metric_for_best_model greater_is_better
        """,
        "the native loop knows bf16, and dtype for the weights": """
            fp16 bf16_full_eval fp16_full_eval tf32 cast_lm_head_to_fp32
        """,
        "the native loop keeps Trackio local": """
            trackio_space_id trackio_bucket_id trackio_static_space_id
        """,
        "the native loop runs eagerly": """
            torch_compile torch_compile_backend torch_compile_mode use_liger_kernel
            liger_kernel_config
        """,
        "the native loop does not implement it": """
            optim_target_modules neftune_noise_alpha auto_find_batch_size torch_empty_cache_steps
            full_determinism
        """,
        "a native checkpoint holds all that an exact resume needs, once": """
            save_only_model save_on_each_node enable_jit_checkpoint
            restore_callback_states_from_checkpoint
        """,
        "the native loop loads the model by the model section alone": "model_init_kwargs use_cache",
    }
)
"""Field → why the native loop cannot honour it."""

NATIVE_CHOICES = {"eval_strategy": ("no", "steps"), "save_strategy": ("no", "steps")}
"""Honoured settings of which the native loop knows these values only."""

NATIVE_REASON = "TRL's trainer does not read it; set force_custom_loop=true"
NATIVE_ONLY = _by_name(
    {
        NATIVE_REASON: """
            kl_estimator kl_horizon kl_ctl_step_size behaviour_kl_coef tis_cap tis_level log_reference_kl
            vllm_sync_weights vllm_sync_interval_steps vllm_sync_backend vllm_sync_urls vllm_sync_dir
            controller_resume_from controller_overwrite_from_config reference_model_name_or_path
            stop_sequences zero_truncated_completion_rewards max_nonfinite_steps
            micro_batch_tokens
            reward_timeout reward_memory_mb reward_workers reward_isolation
            eval_temperature eval_top_p eval_top_k eval_min_p greedy_eval_enabled
            advantage pass_k risk_sensitivity positive_only unlikeliness_coef entropy_bonus_coef
            overlong_buffer overlong_penalty dynamic_sampling dynamic_sampling_max_rounds
            surrogate clip_cov_fraction clip_cov_low clip_cov_high
            kl_cov_fraction kl_cov_coef flow_reward_scale
            entropy_kl_threshold entropy_kl_gain entropy_kl_trust_zone
            kl_in_reward sampling_batch_size environment max_turns
            vllm_api vllm_model vllm_request_timeout vllm_max_retries vllm_backoff
            vllm_backoff_multiplier vllm_max_completion_rounds vllm_retry_sleep vllm_concurrency
            vllm_prompts_per_request vllm_backfill_with_model vllm_client_tag vllm_client_tag_policy
            vllm_client_tag_fail_fast vllm_logprob_fail_after
        """,
        "TRL's trainer takes it from accelerate launch; set force_custom_loop=true": """
            distributed
        """,
        "TRL's trainer does not read it; export WANDB_PROJECT": "wandb_project",
        "TRL's trainer does not read it; export WANDB_ENTITY": "wandb_entity",
        "TRL's trainer does not read it; export WANDB_RUN_GROUP": "wandb_run_group",
    }
)
"""This package's settings that TRL's trainer would ignore, and what to do instead."""


def refuse_unsupported(training: GRPOConfig, route: str) -> None:
    """Raise `UsageError` where a setting differs from its default and the trainer of ``route`` ignores it."""
    pristine = GRPOConfig(output_dir=training.output_dir, use_cpu=training.use_cpu)
    refused = {name: f"{reason}; remove it" for name, reason in REFUSED.items()}
    problems = [
        f"{name}: {why}"
        for name, why in (refused if route == "native" else NATIVE_ONLY).items()
        if _plain(getattr(training, name)) != _plain(getattr(pristine, name))
    ]
    if route == "trl" and training.importance_sampling_level == "sequence_token":
        problems.append(f"importance_sampling_level: {NATIVE_REASON}")
    if route == "trl" and (":" in training.objective or training.objective == "flowrl"):
        problems.append(f"objective: TRL's trainer has no {training.objective}; set force_custom_loop=true")
    for name, choices in NATIVE_CHOICES.items() if route == "native" else ():
        value = _plain(getattr(training, name))
        if value not in choices:
            problems.append(
                f"{name}: the native loop counts steps; {value!r} is not one of {', '.join(choices)}"
            )
    if problems:
        raise UsageError("; ".join(problems))


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
