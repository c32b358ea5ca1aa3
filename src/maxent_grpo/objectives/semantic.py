"""SEED-GRPO: how much the answers of a group disagree, and what that does to its advantages."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maxent_grpo.objectives.reduce import sequence_scores, within_scored
from maxent_grpo.stats import Metrics, extreme_stat, mean_stat
from maxent_grpo.types import Batch, Knobs, Signal


def semantic_entropy(clusters: Tensor, scores: Tensor) -> Tensor:
    """Entropy of the answers of each group, completions with the same answer counted as one.

    ``H = −Σ_c p_c·log p_c`` with ``p_c = Σ_{i∈c} e^{s_i} / Σ_i e^{s_i}`` (Kuhn et al. 2023, arXiv 2302.09664;
    Chen et al. 2025, arXiv 2505.12346, who average −log p_c over clusters instead of weighting it).
    As ``p_c`` is the mass of every member's cluster, the sum over clusters is ``−Σ_i p_i·log p_{c(i)}``.

    Args:
        clusters: [P, G] integers; equal within a group where the answers are.
        scores: [P, G] log-probs of the completions under the policy that sampled them, per token or in all.

    Returns:
        [P] nats, between 0 and the logarithm of the number of clusters.
    """
    p = torch.softmax(scores, dim=1)
    same = clusters.unsqueeze(2) == clusters.unsqueeze(1)  # [P, G, G]
    mass = (same.to(p.dtype) * p.unsqueeze(1)).sum(dim=2)
    information = -mass.clamp(
        min=torch.finfo(p.dtype).tiny, max=1.0
    ).log()  # rounding must not make it negative
    return (p * information).sum(dim=1)


def effective_alpha(alpha: float, group_size: int, normalize_by_max_entropy: bool) -> float:
    """α, or α / ln G: α in units of the largest entropy that a group of this size can have.

    Raises:
        ValueError: normalisation of a group of one, whose largest entropy is 0.
    """
    if not normalize_by_max_entropy:
        return alpha
    if group_size < 2:
        raise ValueError("seed_grpo_alpha_normalize_by_max_entropy needs at least 2 completions per prompt")
    return alpha / math.log(group_size)


def seed_scale(entropy: Tensor, alpha: float) -> Tensor:
    """``1 / (1 + α·H)``: the more a group's answers disagree, the smaller its update. [P] → [P].

    SEED-GRPO (Chen et al. 2025, arXiv 2505.12346) scales advantages by a decreasing function of the semantic
    entropy. α = 0 gives exactly 1.
    """
    return 1.0 / (1.0 + alpha * entropy)


@dataclass(frozen=True)
class SeedGRPO:
    """Advantages times `seed_scale` of their group's semantic entropy: a reweighting of token losses."""

    alpha: float = 0.0417
    normalize_by_max_entropy: bool = True
    length_normalize_logprobs: bool = True
    """Weigh completions by their log-prob per token."""

    needs_answers: ClassVar[bool] = True

    def signal(self, advantages: Tensor, batch: Batch, knobs: Knobs) -> tuple[Signal, Metrics]:
        """The scaled advantages [P, G]."""
        if batch.answer_clusters is None:
            raise ValueError("seed_grpo_enabled needs Batch.answer_clusters, and it is None")
        scores = sequence_scores(
            batch.behaviour_logps, batch.completion_mask, batch.group_size, self.length_normalize_logprobs
        )
        scored = batch.scored
        entropy = within_scored(
            lambda logps, clusters: semantic_entropy(clusters, logps),
            scored,
            scores,
            batch.answer_clusters,
            per_group=True,
        )
        alpha = effective_alpha(self.alpha, batch.group_size, self.normalize_by_max_entropy)
        scale = seed_scale(entropy, alpha)
        if self.normalize_by_max_entropy and not bool(scored.all()):  # the largest entropy of a smaller group
            sizes = scored.sum(dim=1).clamp(min=2).to(entropy.dtype)
            scale = 1.0 / (1.0 + self.alpha / sizes.log() * entropy)
        metrics = seed_metrics(entropy, scale, alpha, batch.group_size)
        return Signal(advantages * scale.unsqueeze(1)), metrics


def seed_metrics(entropy: Tensor, scale: Tensor, alpha: float, group_size: int) -> Metrics:
    """Statistics of SEED-GRPO: semantic entropy and scale [P], α_eff of a group that is whole."""
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
