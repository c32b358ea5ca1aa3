"""The settings that choose and compose an objective."""

from dataclasses import dataclass

from maxent_grpo.config.fields import setting


@dataclass
class ObjectiveFields:
    """What is trained."""

    objective: str | None = setting(
        None,
        "Name in the objective catalog (grpo, dr_grpo, maxent, tilted …), or module:NAME of your own; unset: "
        "grpo, or maxent where train_grpo_objective is false.",
    )
    train_grpo_objective: bool | None = setting(
        None,
        "True: a GRPO-family loss; false: a maximum-entropy loss over the group; unset: as the objective "
        "and the command imply.",
    )
    force_custom_loop: bool = setting(
        False,
        "Train a GRPO objective with this package's loop instead of TRL's trainer, so that paired runs "
        "share it.",
    )
    loss_type: str | None = setting(
        None,
        "Denominator of the token losses: grpo, bnpo, dapo, dr_grpo, luspo, or cispo, sapo, vespo, which name a "
        "surrogate too; unset: the objective's own (TRL's dapo where none is named).",
    )
    scale_rewards: str | bool | None = setting(
        None,
        "Divide advantages by the standard deviation of the group (group, true), of the batch (batch), or "
        "not at all (none, false); unset: the objective's own.",
    )
    epsilon: float | None = setting(
        None, "Lower clip range of the probability ratio; unset: the objective's own (TRL's 0.2)."
    )
    epsilon_high: float | None = setting(
        None, "Upper clip range of the probability ratio; unset: the objective's own, else equal to epsilon."
    )
    delta: float | None = setting(
        None,
        "Cap on the probability ratio for negative advantages (dual clip), above 1 + epsilon; unset: none.",
    )
    importance_sampling_level: str | None = setting(
        None,
        "Ratio per token, per sequence (GSPO), or sequence_token (GSPO-token); unset: the objective's own (TRL's "
        "token).",
    )
    beta: float | None = setting(
        None,
        "Weight of the frozen reference policy: the KL coefficient of a GRPO loss, the reference's share in"
        " MaxEnt weights; unset: 0, TRL's default.",
    )


@dataclass
class IngredientFields:
    """Advantages, surrogates, regularisers: docs/paper_index.md says which paper is which."""

    advantage: str | None = setting(
        None,
        "Advantage of a completion in its group: centered, rloo, maxrl, pass_at_k or risk_sensitive; unset: the "
        "objective's own.",
    )
    pass_k: int | None = setting(
        None, "k of the pass_at_k advantage, at most num_generations; unset: the objective's own, 4."
    )
    risk_sensitivity: float | None = setting(
        None, "β of the risk_sensitive advantage: > 0 seeks risk; unset: the objective's own, 2."
    )
    positive_only: bool | None = setting(
        None, "Drop negative advantages (a control); unset: the objective's own, false."
    )
    unlikeliness_coef: float | None = setting(
        None, "β_rank of the unlikeliness reward, 0 to 1; 0: off; unset: the objective's own."
    )
    entropy_bonus_coef: float | None = setting(
        None,
        "Utility bonus for completions of high token entropy within their group, in batch standard deviations; "
        "unset: the objective's own.",
    )
    overlong_buffer: int | None = setting(
        None,
        "Soft overlong punishment (DAPO): tokens before max_completion_length over which it grows; 0: off.",
    )
    overlong_penalty: float | None = setting(
        None,
        "Utility that a completion at max_completion_length loses to the soft overlong punishment; unset: 1.",
    )
    dynamic_sampling: bool = setting(
        False,
        "Replace groups whose utilities are all equal by groups of further prompts before a step (DAPO).",
    )
    dynamic_sampling_max_rounds: int = setting(
        4, "Sampling rounds after which a rollout is completed with groups of equal utilities; ≥ 1."
    )
    seed_grpo_enabled: bool | None = setting(
        None, "Scale advantages by 1 / (1 + α·semantic entropy of the answers); unset: the objective's own."
    )
    seed_grpo_alpha: float | None = setting(None, "α of SEED-GRPO, ≥ 0; unset: 0.0417.")
    seed_grpo_alpha_normalize_by_max_entropy: bool | None = setting(
        None, "Divide α by ln num_generations, the largest semantic entropy; unset: true."
    )
    seed_grpo_length_normalize_logprobs: bool | None = setting(
        None, "Weigh completions in the semantic entropy by their log-prob per token; unset: true."
    )
    surrogate: str | None = setting(
        None,
        "Loss of the probability ratio: clip, unclipped, cispo, sapo or vespo; unset: what loss_type or the "
        "objective says.",
    )
    top_entropy_quantile: float | None = setting(
        None,
        "Share of a group's tokens, those of highest entropy, that keep their policy gradient; unset: the "
        "objective's own, 1.",
    )
    clip_cov_fraction: float | None = setting(
        None, "Clip-Cov: share of tokens that lose their gradient for a high covariance; 0: off."
    )
    clip_cov_low: float | None = setting(None, "Least covariance that Clip-Cov drops; unset: 1.")
    clip_cov_high: float | None = setting(None, "Largest covariance that Clip-Cov drops; unset: 5.")
    kl_cov_fraction: float | None = setting(
        None, "KL-Cov: share of tokens, of highest covariance, that a KL holds; 0: off."
    )
    kl_cov_coef: float | None = setting(None, "Coefficient of KL-Cov's penalty, ≥ 0; unset: 1.")
    flow_reward_scale: float | None = setting(
        None, "FlowRL's β: nats per token that one unit of advantage is worth; unset: 15."
    )
