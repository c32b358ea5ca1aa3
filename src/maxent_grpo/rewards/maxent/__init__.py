"""The documented weighting API: rewards, weights over a group and their controllers, on plain lists.

For scripts that were written against it. It computes nothing of its own: weights are
`maxent_grpo.objectives.weights`, advantages `maxent_grpo.objectives.advantages`, controllers `maxent_grpo.controllers`;
the training loop uses those directly. The names, arguments and meanings are those of the published reference of
maxent-grpo; where it is silent or contradicts itself, the docstring here says what was chosen.
"""

from maxent_grpo.rewards.maxent.batches import (
    AdvantageStats,
    GenerationBatch,
    GenerationFn,
    PromptCompletionBatch,
    QDistribution,
    RewardComputation,
    RewardMoments,
    RewardSpec,
    compute_reward_statistics,
    compute_reward_totals,
    group_advantages,
    prepare_generation_batch,
    reward_moments,
)
from maxent_grpo.rewards.maxent.control import (
    apply_meta_controller_update,
    broadcast_controller_state,
    controller_state_dict,
    load_controller_state,
    maybe_update_beta,
    maybe_update_tau,
    save_controller_state,
)
from maxent_grpo.rewards.maxent.settings import (
    ControllerMetaSettings,
    KlControllerSettings,
    QDistributionSettings,
    TauSchedule,
    TorchControllerState,
    WeightingConfigLike,
    WeightingSettings,
    WeightNormalizationSettings,
)
from maxent_grpo.rewards.maxent.weights import (
    ReferenceLogprobs,
    WeightLoggingView,
    WeightStats,
    build_uniform_weight_stats,
    collect_weight_entropy,
    compute_weight_stats,
    split_reference_logprobs,
    split_reference_token_counts,
    weight_matrix_from_q,
    weight_vector_from_q,
)

__all__ = [
    "AdvantageStats",
    "ControllerMetaSettings",
    "GenerationBatch",
    "GenerationFn",
    "KlControllerSettings",
    "PromptCompletionBatch",
    "QDistribution",
    "QDistributionSettings",
    "ReferenceLogprobs",
    "RewardComputation",
    "RewardMoments",
    "RewardSpec",
    "TauSchedule",
    "TorchControllerState",
    "WeightLoggingView",
    "WeightNormalizationSettings",
    "WeightStats",
    "WeightingConfigLike",
    "WeightingSettings",
    "apply_meta_controller_update",
    "broadcast_controller_state",
    "build_uniform_weight_stats",
    "collect_weight_entropy",
    "compute_reward_statistics",
    "compute_reward_totals",
    "compute_weight_stats",
    "controller_state_dict",
    "group_advantages",
    "load_controller_state",
    "maybe_update_beta",
    "maybe_update_tau",
    "prepare_generation_batch",
    "reward_moments",
    "save_controller_state",
    "split_reference_logprobs",
    "split_reference_token_counts",
    "weight_matrix_from_q",
    "weight_vector_from_q",
]
