"""What an objective reports: the definition of every metric, and the statistics that it computes."""

import math

import torch
from torch import Tensor

from maxent_grpo.objectives.advantages import group_std, has_spread
from maxent_grpo.objectives.surrogates import ClipEvents
from maxent_grpo.objectives.weights import weight_entropy
from maxent_grpo.types import Metrics, Stat, extreme_stat, mean_stat

METRIC_DEFINITIONS: dict[str, str] = {
    "reward": "mean utility (weighted sum of rewards) of the completions",
    "reward_std": "mean over groups of the sample standard deviation of utilities within the group",
    "frac_reward_zero_std": "fraction of groups whose utilities are all equal: they carry no policy signal",
    "reward_shaped": "mean utility after shaping (overlong, unlikeliness, entropy bonus, KL), where there is any",
    "seed_grpo/semantic_entropy_mean": "mean over groups of the entropy over distinct answers, in nats",
    "seed_grpo/semantic_entropy_min": "smallest semantic entropy of a group, in nats",
    "seed_grpo/semantic_entropy_max": "largest semantic entropy of a group, in nats",
    "seed_grpo/advantage_scale_mean": "mean over groups of 1 / (1 + alpha_effective × semantic entropy)",
    "seed_grpo/advantage_scale_min": "smallest factor that SEED-GRPO gave a group's advantages",
    "seed_grpo/advantage_scale_max": "largest factor that SEED-GRPO gave a group's advantages",
    "seed_grpo/alpha_effective": "α, divided by ln G where it is normalised",
    "seed_grpo/max_possible_entropy": "ln G: the semantic entropy of G different answers of equal probability",
    "weight_entropy": "mean over groups of H(w), the entropy of the candidate weights, in nats",
    "weight_entropy_norm": "mean over groups of H(w) / ln G: 1 is uniform, 0 is a single candidate",
    "weight_entropy_min": "smallest H(w) of a group, in nats",
    "weight_entropy_max": "largest H(w) of a group, in nats",
    "weight_norm_denom": "what the log-weights are divided by: τ+β, or τ where that form is chosen",
    "effective_rollouts": "mean over groups of exp H(w): how many candidates the weights effectively use",
    "q_entropy_mean": "mean over groups of H(q), the entropy of the target distribution, in nats",
    "q_entropy_min": "smallest H(q) of a group, in nats",
    "q_entropy_max": "largest H(q) of a group, in nats",
    "loss": "the optimised loss: loss/policy + loss/weighted_kl + loss/behaviour_kl + loss/entropy + loss/kl_cov "
    "+ loss/seed + info_seed/entropy, as far as there are these terms",
    "loss/policy": "the policy term of the loss",
    "loss/kl": "KL estimate to the reference policy under the loss's reduction, without its coefficient",
    "loss/weighted_kl": "what the KL to the reference adds to the loss: β × loss/kl, 0 where only measured",
    "loss/behaviour_kl": "what the KL to the behaviour policy adds to the loss, coefficient included",
    "loss/entropy": "what the entropy bonus adds to the loss: −coefficient × entropy",
    "loss/kl_cov": "what KL-Cov adds to the loss, coefficient included",
    "kl_cov/held": "fraction of tokens that KL-Cov holds",
    "clip_cov/dropped": "fraction of tokens that Clip-Cov leaves without policy gradient",
    "top_entropy/kept": "fraction of tokens that keep their policy gradient for their high entropy",
    "off_policy_mask/kept": "fraction of completions that the off-policy mask keeps",
    "kl": "KL estimate of the policy from the reference policy, mean over tokens, in nats",
    "behaviour_kl": "KL estimate of the policy from the policy that sampled, mean over tokens, in nats",
    "entropy": "exact entropy of the policy's next-token distribution, mean over tokens, in nats",
    "clip_ratio": "fraction of ratios (per token or completion) whose gradient the clip switched off (cispo: capped)",
    "clip_ratio/low_mean": "fraction clipped from below: ratio < 1 − epsilon with a negative advantage",
    "clip_ratio/high_mean": "fraction clipped from above: ratio > 1 + epsilon_high with a positive advantage",
    "ratio/mean": "mean importance ratio of the policy to the policy at the start of the updates",
    "ratio/max": "largest importance ratio",
    "ratio/square_mean": "mean squared importance ratio; ratio/mean² over it is the effective sample size as a share",
    "tis/mean": "mean truncated importance weight between the learner's and the sampler's log-probs",
    "tis/capped": "fraction of tokens whose importance weight reached the cap",
    "tis/raw_mean": "mean of that weight before it is truncated, over all tokens that were sampled",
    "tis/raw_max": "the largest of them",
    "tis/raw_square_mean": "their mean square; tis/raw_mean² over it is the effective sample size as a share",
    "loss/seed": "what the InfoSeed loss adds to the loss: λ × InfoNCE or cross-entropy",
    "info_seed/entropy": "what the entropy gap adds to the loss: α × (seed/entropy/orig − seed/entropy/seed_aug)",
    "seed/entropy/orig": "entropy of the policy's softmax over a group's original completions (log-probs per token), "
    "mean over groups, in nats",
    "seed/entropy/seed_aug": "the same over the group's seeded completions",
    "seed/seed_aug_frac": "fraction of the completions trained on that were sampled with a seed",
    "seed/seed_pred_acc": "fraction of seeded completions whose pooled state is nearest (cosine) to the centroid of "
    "its own seed's completions of the step's other prompts; chance is 1/S",
    "seed/seed_pred_acc_aug": "fraction of seeded completions that the loss's own classifier gives the right seed: "
    "the seed head (ce), or the nearest completion of another prompt (infonce)",
    "seed/seed_diversity_l2": "L2 distance between the normalised pooled states of one prompt's seeded completions, "
    "mean over pairs and prompts; 0 to 2",
}
"""Metric name without its ``train/`` prefix → definition. Means are over the whole optimiser batch, the groups that
teach nothing included: those run without a backward pass, and are measured all the same."""


def sum_stat(value: Tensor) -> Stat:
    """A scalar that is one micro-batch's share of a sum, such as a loss under global denominators."""
    return Stat(value.detach().double(), torch.ones((), dtype=torch.float64, device=value.device), "sum")


def utility_metrics(utilities: Tensor) -> Metrics:
    """Statistics of the utilities [P, G]."""
    return {
        "reward": mean_stat(utilities),
        "reward_std": mean_stat(group_std(utilities)),
        "frac_reward_zero_std": mean_stat((~has_spread(utilities)).float()),
    }


def seed_metrics(entropy: Tensor, scale: Tensor, alpha: float, group_size: int) -> Metrics:
    """Statistics of SEED-GRPO: semantic entropy and scale [P], α_eff."""
    return {
        "seed_grpo/semantic_entropy_mean": mean_stat(entropy),
        "seed_grpo/semantic_entropy_min": extreme_stat(entropy, "min"),
        "seed_grpo/semantic_entropy_max": extreme_stat(entropy, "max"),
        "seed_grpo/advantage_scale_mean": mean_stat(scale),
        "seed_grpo/advantage_scale_min": extreme_stat(scale, "min"),
        "seed_grpo/advantage_scale_max": extreme_stat(scale, "max"),
        "seed_grpo/alpha_effective": mean_stat(entropy.new_tensor(alpha)),
        "seed_grpo/max_possible_entropy": mean_stat(entropy.new_tensor(math.log(group_size))),
    }


def weight_metrics(weights: Tensor, log_q: Tensor, denominator: float | Tensor) -> Metrics:
    """Statistics of the candidate weights and of their target, both [P, G]; ``denominator`` is τ+β or τ."""
    entropy = weight_entropy(weights)
    q_entropy = weight_entropy(log_q.exp())
    group_size = weights.shape[1]
    return {
        "weight_entropy": mean_stat(entropy),
        "weight_entropy_norm": mean_stat(entropy / math.log(group_size) if group_size > 1 else entropy),
        "weight_entropy_min": extreme_stat(entropy, "min"),
        "weight_entropy_max": extreme_stat(entropy, "max"),
        "weight_norm_denom": mean_stat(
            torch.as_tensor(denominator, dtype=weights.dtype, device=weights.device)
        ),
        "effective_rollouts": mean_stat(entropy.exp()),
        "q_entropy_mean": mean_stat(q_entropy),
        "q_entropy_min": extreme_stat(q_entropy, "min"),
        "q_entropy_max": extreme_stat(q_entropy, "max"),
    }


def ratio_metrics(ratio: Tensor, events: ClipEvents, mask: Tensor) -> Metrics:
    """Statistics of importance ratios, [B, T] or [B, 1] (per completion), and their clipping; mask [B, T]."""
    if ratio.shape[1] == 1:
        mask = mask.any(dim=1, keepdim=True)
    return {
        "clip_ratio": mean_stat((events.low | events.high).float(), mask),
        "clip_ratio/low_mean": mean_stat(events.low.float(), mask),
        "clip_ratio/high_mean": mean_stat(events.high.float(), mask),
        "ratio/mean": mean_stat(ratio, mask),
        "ratio/square_mean": mean_stat(ratio.square(), mask),
        "ratio/max": extreme_stat(torch.where(mask, ratio, -math.inf), "max"),
    }


def correction_metrics(ratios: Tensor, cap: float, mask: Tensor) -> Metrics:
    """Statistics of importance weights [B, T], raw and truncated at ``cap``."""
    return {
        "tis/mean": mean_stat(ratios.clamp(max=cap), mask),
        "tis/capped": mean_stat((ratios >= cap).float(), mask),
        "tis/raw_mean": mean_stat(ratios, mask),
        "tis/raw_max": extreme_stat(torch.where(mask, ratios, -math.inf), "max"),
        "tis/raw_square_mean": mean_stat(ratios.square(), mask),
    }
