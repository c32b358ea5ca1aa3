"""TRL's and Transformers' own settings: which of them the native loop reads, their ranges, and why others are refused.

`trl_fields.json` lists them (tools/trl_fields.py writes it from the installed TRL), so that reading a recipe does not
wait for torch. A setting that would be ignored is refused where it differs from its default.
"""

import json
from pathlib import Path
from typing import Any, Literal

from maxent_grpo.settings import Setting, group_of

ROWS: dict[str, list[tuple[str, str, Any, str]]] = json.loads(
    Path(__file__).with_name("trl_fields.json").read_text(encoding="utf-8")
)
"""Section → name, type, default and help of each field."""

TRL_DEFAULTS = {name: default for rows in ROWS.values() for name, _, default, _ in rows}

READ = """
    output_dir seed learning_rate optim optim_args adam_beta1 adam_beta2 adam_epsilon weight_decay
    lr_scheduler_type lr_scheduler_kwargs warmup_steps max_grad_norm max_steps num_train_epochs
    per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps gradient_checkpointing
    gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs bf16 eval_strategy
    eval_steps eval_on_start do_eval logging_steps save_strategy save_steps save_total_limit report_to run_name
    project resume_from_checkpoint log_level disable_tqdm log_completions num_completions_to_print
    shuffle_dataset disable_dropout steps_per_generation generation_batch_size num_iterations num_generations
    num_generations_eval max_completion_length temperature top_p top_k min_p reward_weights beta epsilon
    epsilon_high delta importance_sampling_level loss_type scale_rewards entropy_coef use_cpu trust_remote_code
    sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg
    top_entropy_quantile off_policy_mask_threshold use_adaptive_entropy entropy_coef_min entropy_coef_max
    entropy_coef_delta entropy_target use_vllm
"""
"""Settings of the training section that the native loop reads."""

INERT = {
    "names a repository that is used only with push_to_hub": "hub_model_id",
    "a training command trains": "do_train",
    "is set by the launcher": "local_rank",
    "is used only with use_vllm": """
        vllm_mode vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port
        vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size vllm_model_impl
        vllm_enable_sleep_mode
    """,
}
"""Why it is no surprise that it has no effect on the native loop → settings."""

REFUSED = {
    "the native loop keys its prompt order by (seed, epoch) and has no DataLoader": """
        dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
        dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order label_names
        remove_unused_columns train_sampling_strategy length_column_name ignore_data_skip data_seed accelerator_config
    """,
    "the native loop sums gradients over processes itself": """
        ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
        average_tokens_across_devices
    """,
    "the native loop takes distributed=ddp, fsdp2, zero2 or zero3": """
        fsdp fsdp_config deepspeed parallelism_config ds3_gather_for_generation
    """,
    "this loss belongs to TRL's trainer": """
        mask_truncated_completions multi_objective_aggregation router_aux_loss_coef
        label_smoothing_factor
    """,
    "the reference policy is frozen": "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
    "the native sampler takes temperature, top_p, top_k and min_p": """
        generation_kwargs repetition_penalty cache_implementation use_transformers_paged
        use_transformers_continuous_batching transformers_continuous_batching_config max_tool_calling_iterations
        pad_to_multiple_of chat_template_kwargs vllm_structured_outputs_regex
    """,
    "the native loop corrects for the sampler with tis_cap": """
        vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max
        vllm_importance_sampling_clip_min vllm_importance_sampling_cap
    """,
    "the native loop uploads nothing; upload a checkpoint with `hf upload`": """
        push_to_hub hub_token hub_private_repo hub_strategy hub_always_push hub_revision log_completions_hub_repo
    """,
    "the native loop writes every logged step to metrics.jsonl and to the trackers alike": """
        logging_strategy logging_first_step log_on_each_node logging_nan_inf_filter log_level_replica
        include_num_input_tokens_seen log_multimodal log_unique_prompts skip_memory_metrics debug
    """,
    "the native evaluation samples completions and scores them, and nothing more": """
        do_predict eval_delay prediction_loss_only eval_do_concat_batches eval_use_gather_object
        eval_accumulation_steps include_for_metrics batch_eval_metrics load_best_model_at_end metric_for_best_model
        greater_is_better
    """,
    "the native loop knows bf16, and dtype for the weights": """
        fp16 bf16_full_eval fp16_full_eval tf32 cast_lm_head_to_fp32
    """,
    "the native loop keeps Trackio local": "trackio_space_id trackio_bucket_id trackio_static_space_id",
    "the native loop runs eagerly": """
        torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config
    """,
    "a native checkpoint holds all that an exact resume needs, once": """
        save_only_model save_on_each_node enable_jit_checkpoint restore_callback_states_from_checkpoint
    """,
    "the native loop loads the model by the model section alone": "model_init_kwargs use_cache",
}
"""Why the native loop cannot honour it → settings."""

NOT_IMPLEMENTED = "the native loop does not implement it"
"""The reason for whatever is in none of these tables."""

_POSITIVE = """
    max_completion_length per_device_train_batch_size per_device_eval_batch_size
    gradient_accumulation_steps steps_per_generation num_iterations num_generations_eval eval_steps
    sapo_temperature_pos sapo_temperature_neg off_policy_mask_threshold vllm_max_model_length
    vllm_tensor_parallel_size generation_batch_size
"""

_NO_RESULT = "output_dir run_name project disable_tqdm report_to save_total_limit"

FACTS: dict[str, dict[str, Any]] = {
    **{name: {"gt": 0} for name in _POSITIVE.split()},
    "learning_rate": {"ge": 0, "le": 1e3},
    "max_grad_norm": {"ge": 0},
    "temperature": {"gt": 0, "le": 100, "aliases": ("gen_temperature",)},
    "seed": {"ge": 0, "lt": 2**32},
    "weight_decay": {"ge": 0, "le": 1e3},
    "adam_beta1": {"ge": 0, "lt": 1},
    "adam_beta2": {"ge": 0, "lt": 1},
    "adam_epsilon": {"ge": 0, "le": 1},
    "num_train_epochs": {"gt": 0},
    "num_completions_to_print": {"ge": 0},
    "vllm_mode": {"choices": ("server", "colocate")},
    "vllm_server_port": {"ge": 1, "le": 65535},
    "vllm_group_port": {"ge": 0, "le": 65535},
    "vllm_gpu_memory_utilization": {"gt": 0, "le": 1},
    "lora_r": {"gt": 0},
    "lora_alpha": {"gt": 0},
    "lora_dropout": {"ge": 0, "lt": 1},
    "top_p": {"gt": 0, "le": 1, "aliases": ("gen_top_p",)},
    "min_p": {"ge": 0, "le": 1},
    "top_k": {"ge": -1, "aliases": ("gen_top_k", "vllm_top_k")},
    "vllm_server_timeout": {"ge": 0, "feeds": "server.startup_timeout"},
    "warmup_steps": {"ge": 0, "aliases": ("warmup_ratio",)},
    "eval_strategy": {"aliases": ("evaluation_strategy",)},
    "eval_on_start": {"aliases": ("eval_before_train",)},
    "dtype": {"aliases": ("torch_dtype",)},
    "entropy_coef": {"ge": 0, "feeds": "entropy.coef", "aliases": ("maxent_alpha",)},
    "use_adaptive_entropy": {"feeds": "entropy.adaptive"},
    "entropy_coef_min": {"feeds": "entropy.coef_min"},
    "entropy_coef_max": {"feeds": "entropy.coef_max"},
    "entropy_coef_delta": {"feeds": "entropy.coef_delta"},
    "entropy_target": {"feeds": "entropy.target"},
    "save_steps": {"gt": 0, "changes_results": False},
    "log_level": {"env": ("MAXENT_LOG_LEVEL", "MAXENT_GRPO_LOGLEVEL"), "changes_results": False},
    **{name: {"changes_results": False} for name in _NO_RESULT.split()},
}
"""Setting → what its record holds besides what TRL says."""


def by_name(reasons: dict[str, str]) -> dict[str, str]:
    """Reason → settings, turned round."""
    return {name: reason for reason, names in reasons.items() for name in names.split()}


def _facts(section: str, name: str) -> dict[str, Any]:
    facts = FACTS.get(name, {})
    if section != "training" or name in READ.split() or name in by_name(INERT):
        return facts
    return {**facts, "route": "trl", "instead": by_name(REFUSED).get(name, NOT_IMPLEMENTED)}


def trl_fields(section: str) -> Any:
    """A dataclass with TRL's fields of a section, which are all `Setting` records."""
    return group_of(
        f"TRL{section.capitalize()}",
        (
            # The types are expressions of a file of this package.
            Setting(
                name,
                eval(kind, {"Any": Any, "Literal": Literal}),
                default,
                help_text,
                **_facts(section, name),
            )
            for name, kind, default, help_text in ROWS[section]
        ),
    )
