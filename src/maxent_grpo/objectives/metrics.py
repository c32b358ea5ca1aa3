"""The statistics that an objective reports; ``observe/metrics.yaml`` says what each metric means."""

import math

import torch
from torch import Tensor

from maxent_grpo.objectives.advantages import group_std, has_spread
from maxent_grpo.objectives.surrogates import ClipEvents
from maxent_grpo.objectives.weights import weight_entropy
from maxent_grpo.types import Metrics, Stat, extreme_stat, mean_stat


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
