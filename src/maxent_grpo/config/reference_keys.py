"""Keys of liv-daliberti/maxent-grpo's recipes that no setting here takes (commits 2ead5c4 to 4f57dd4).

A key with a counterpart is an alias of that setting's record. Of the others, most change nothing here, whatever they
say; some do where they ask for what this package does not do, and are refused there.
"""

from typing import Any

from maxent_grpo.config.trl_settings import by_name

ALWAYS = "it is always done here"
NEVER_READ = "the reference implementation did not read it either"

WITHOUT_EFFECT = by_name(
    {
        ALWAYS: """
            vllm_return_logprobs vllm_request_logprobs vllm_force_logprobs maxent_trl_reference_scoring
            maxent_policy_entropy log_kl_per_token log_grad_norm_after_clip wandb_log_unique_prompts
            final_model_save_enabled
        """,
        "each completion is scored whole, at once and exactly": """
            maxent_logprob_chunk_size maxent_score_tail_tokens maxent_score_slice_prefetch maxent_prompt_cache_size
            maxent_policy_entropy_mode
        """,
        "log-probs are the sampler's, and the reference model's": """
            behavior_logprobs_source maxent_share_reference_model maxent_allow_stale_reference_logprobs
            vllm_logprob_fallback
        """,
        "ranks share their prompts by key, and log the same numbers": "disable_distributed_sampler log_like_grpo",
        "a group without weights is refused": "maxent_allow_empty_weight_fallback",
        "a MaxEnt loss is one term, and which it is the objective says": """
            maxent_use_clip_objective maxent_clip_objective_coef maxent_clip_adv_baseline
        """,
        NEVER_READ: """
            ppo_clip_range vf_coef clip_range_vf horizon gamma gae_lambda reward_clip advantage_clip
            reward_normalization advantage_normalization max_completion_len soft_punish_cache span_kl_target
            span_kl_beta0 span_kl_horizon
        """,
        "it belongs to a switch that is off": """
            maxent_alpha_kl_threshold maxent_alpha_kl_gain maxent_alpha_kl_min_multiplier
            maxent_alpha_kl_max_multiplier maxent_reference_ema_beta maxent_reference_ema_warmup_steps
            maxent_reference_ema_update_interval maxent_reward_signal_min_max maxent_reward_signal_std_threshold
            maxent_bonus_min_reward maxent_cusp_reward_threshold
        """,
        "completions.jsonl holds them": """
            rich_log_completions rich_log_completions_key rich_log_completions_to_wandb
            rich_log_completions_synchronize_ranks
        """,
        "evaluate with maxent-grpo-math-eval": """
            seed_paper_eval_enabled seed_paper_eval_template seed_paper_eval_tasks seed_paper_eval_workspace_dir
            seed_paper_eval_results_dir seed_paper_eval_python seed_paper_eval_max_test
            seed_paper_eval_vllm_batch_size seed_paper_eval_timeout_s seed_paper_eval_pass_at_8_enabled
            seed_paper_eval_pass_at_8_samples seed_paper_eval_pass_at_8_temperature seed_paper_eval_pass_at_8_top_p
            seed_paper_eval_fail_on_error seed_paper_reward_fast
        """,
        "a checkpoint holds whole weights": "zero3_save_16bit_model",
    }
)
"""Key → why it changes nothing here."""

UNLESS: dict[str, tuple[tuple[Any, ...], str]] = {
    "gen_best_of": ((1,), "every completion is used; raise num_generations"),
    "vllm_best_of": ((1,), "every completion is used; raise num_generations"),
    "vllm_frequency_penalty": ((0,), "log-probs would no longer be the policy's"),
    "vllm_presence_penalty": ((0,), "log-probs would no longer be the policy's"),
    "vllm_include_stop_str_in_output": ((True,), "a stop text stays part of its completion"),
    "clip_delta": ((0,), "widen epsilon and epsilon_high by it"),
    "maxent_clip_range": ((), "set epsilon"),
    "prompt_template": (("no",), "put it into the prompts, or set chat_template or system_prompt"),
    "dr_grpo_denominator_mode": (("fixed_max",), "loss_type: dapo divides by the tokens that are there"),
    "grpo_beta_controller_enabled": ((False,), "kl_horizon and kl_ctl_step_size above 0 make β adaptive"),
    "maxent_beta_controller_enabled": ((False,), "kl_horizon and kl_ctl_step_size above 0 make β adaptive"),
    "eval_greedy_only_enabled": ((False,), "set eval_temperature: 0"),
    "truncate_completions_at_first_boxed_answer": ((False,), "nothing ends a completion but stop_sequences"),
    "maxent_alpha_raise_on_low_kl": ((False,), "set entropy_kl_threshold"),
    "maxent_alpha_lower_on_high_kl": ((False,), "set entropy_kl_threshold"),
    "maxent_alpha_disable_outside_trust_zone": ((False,), "set entropy_kl_trust_zone"),
    "maxent_listwise_skip_zero_variance_groups": (
        (False,),
        "groups without a signal have weights all the same",
    ),
    "maxent_reference_ema_enabled": ((False,), "the reference is frozen"),
    "maxent_reward_signal_gate": ((False,), "every group counts"),
    "maxent_bonus_positive_only": ((False,), "the bonus is for every completion"),
    "maxent_cusp_gate": ((False,), "every group counts"),
    "maxent_objective_variant": (("listwise",), "name the objective"),
    "init_from_checkpoint": ((), "give the checkpoint as model_name_or_path"),
    "callbacks": (([],), "MaxEntGRPOTrainer takes callbacks"),
    "hub_model_revision": (("main",), "upload a checkpoint with `hf upload`"),
    "overwrite_hub_revision": ((False,), "upload a checkpoint with `hf upload`"),
    "push_to_hub_revision": ((False,), "upload a checkpoint with `hf upload`"),
}
"""Key → values, besides null, at which it changes nothing, and what to do where it asks for something else."""


def without_effect(key: str, value: Any) -> str | None:
    """Why the reference implementation's ``key`` changes nothing here at this value; None where it does."""
    if key in UNLESS:
        values, _ = UNLESS[key]
        return "it says what is done here" if value is None or value in values else None
    return WITHOUT_EFFECT.get(key)


def instead(key: str) -> str | None:
    """What to do in place of a key of the reference implementation that asks for something else; None: unknown."""
    return UNLESS[key][1] if key in UNLESS else None
