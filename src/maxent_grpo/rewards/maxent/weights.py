"""Weights over the group from q and reference log-probs, and what they say about themselves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maxent_grpo.objectives.weights import closed_form_weights, weight_entropy
from maxent_grpo.rewards.maxent.batches import RewardComputation
from maxent_grpo.rewards.maxent.settings import WeightingSettings

SMALLEST_DENOMINATOR = 1e-8
SMALLEST_Q = 1e-12


@dataclass
class ReferenceLogprobs:
    """Reference log-probs of N completions, groups one after the other."""

    ref_logp_sum: Tensor  # [N], per token where the settings say so, else per completion
    ref_tok_counts: Tensor  # [N]
    ref_logp_sum_raw: Tensor  # [N], per completion
    ref_logp_mean: float
    avg_completion_tokens: float


@dataclass
class WeightStats:
    """Weights of each completion, and their entropies in nats."""

    weights_grouped: list[list[float]]
    flat_weights: list[float]
    weight_entropy: float
    weight_entropy_min: float
    weight_entropy_max: float
    advantage_entropy: list[float]  # w − 1/K of every completion


@dataclass
class WeightLoggingView:
    """The entropies of weights, averaged for a log."""

    entropy: float = 0.0
    entropy_norm: float = 0.0  # mean of H / ln K
    entropy_min: float = 0.0
    entropy_max: float = 0.0
    advantage_entropy_mean: float = 0.0
    advantage_entropy_std: float = 0.0


def split_reference_logprobs(
    grouped_completions: Sequence[Sequence[str]], ref_stats: ReferenceLogprobs, len_norm_ref: bool
) -> list[list[float]]:
    """Reference log-probs of each group: ``ref_logp_sum`` where it is length-normalised, else ``ref_logp_sum_raw``.

    Raises:
        ValueError: there are not as many as completions.
    """
    values = ref_stats.ref_logp_sum if len_norm_ref else ref_stats.ref_logp_sum_raw
    return _split(grouped_completions, values, "reference log-probs")


def split_reference_token_counts(
    grouped_completions: Sequence[Sequence[str]], ref_stats: ReferenceLogprobs
) -> list[list[float]]:
    """Token counts of each group. Raises ValueError where there are not as many as completions."""
    return _split(grouped_completions, ref_stats.ref_tok_counts, "token counts")


def weight_vector_from_q(
    q_values: Sequence[float],
    logp_values: Sequence[float],
    token_counts: Sequence[float] | None,
    weighting_cfg: WeightingSettings,
    *,
    include_reference_term: bool = True,
    normalize_by_tokens: bool = True,
) -> list[float]:
    """Weights of one group: w ∝ exp[(log q + β·ℓ) / denom], times max(T, 1) where they are weighted by tokens.

    ``q_values`` are probabilities that already carry their temperature; β ≤ 0 leaves the reference out, and a
    denominator ≤ 0 is τ.

    Raises:
        ValueError: the inputs differ in length.
    """
    if not q_values:
        return []
    counts = None if token_counts is None else torch.tensor([list(token_counts)], dtype=torch.float64)
    weights = weight_matrix_from_q(
        torch.tensor([list(q_values)], dtype=torch.float64),
        torch.tensor([list(logp_values)], dtype=torch.float64),
        counts,
        weighting_cfg,
        include_reference_term=include_reference_term,
        normalize_by_tokens=normalize_by_tokens,
    )
    return [float(weight) for weight in weights[0]]


def weight_matrix_from_q(
    q_values: Tensor,
    logp_values: Tensor,
    token_counts: Tensor | None,
    weighting_cfg: WeightingSettings,
    *,
    include_reference_term: bool = True,
    normalize_by_tokens: bool = True,
) -> Tensor:
    """`weight_vector_from_q` of every row: [P, G] each → [P, G].

    Raises:
        ValueError: an input is no matrix, or they differ in shape.
    """
    for name, values in {
        "q_values": q_values,
        "logp_values": logp_values,
        "token_counts": token_counts,
    }.items():
        if values is None:
            continue
        if values.ndim != 2:
            raise ValueError(f"{name} has {values.ndim} dimensions: give a [prompts, generations] matrix")
        if values.shape != q_values.shape:
            raise ValueError(
                f"{name} is {tuple(values.shape)}, q_values {tuple(q_values.shape)}: they must agree"
            )
    beta = float(weighting_cfg.beta) if include_reference_term else 0.0
    weights = closed_form_weights(
        q_values.clamp(min=SMALLEST_Q).log(),
        logp_values if beta > 0 else None,
        max(
            float(weighting_cfg.denom if weighting_cfg.denom > 0 else weighting_cfg.tau), SMALLEST_DENOMINATOR
        ),
        max(beta, 0.0),
        "tau",  # the denominator is given whole
    )
    if normalize_by_tokens and token_counts is not None:
        weights = weights * token_counts.clamp(min=1)
        weights = weights / weights.sum(dim=1, keepdim=True)
    return weights


def collect_weight_entropy(
    weights_grouped: Sequence[Sequence[float]],
) -> tuple[float, float, float, list[float]]:
    """Mean, least and largest entropy of the groups (nats), and w − 1/K of every completion."""
    entropies = [float(weight_entropy(_row(group))) for group in weights_grouped if group]
    centred = [weight - 1 / len(group) for group in weights_grouped for weight in group]
    if not entropies:
        return 0.0, 0.0, 0.0, centred
    return sum(entropies) / len(entropies), min(entropies), max(entropies), centred


def build_uniform_weight_stats(grouped_completions: Sequence[Sequence[str]]) -> WeightStats | None:
    """1/K for each of a group's K completions; None where there is no completion."""
    grouped = [[1 / len(group) for _ in group] for group in grouped_completions]
    return _stats(grouped) if any(grouped) else None


def compute_weight_stats(
    grouped_completions: Sequence[Sequence[str]],
    reward_comp: RewardComputation,
    ref_stats: ReferenceLogprobs,
    weighting_cfg: WeightingSettings,
) -> WeightStats | None:
    """Weights of all groups from their q and the reference; None where there is no completion.

    In GRPO mode the reference is left out, and the entropies are reported as 0, as there is nothing that they
    control. Weights do not count tokens, whether reference log-probs are per token or per completion.
    """
    if not any(grouped_completions):
        return None
    logps = split_reference_logprobs(grouped_completions, ref_stats, weighting_cfg.len_norm_ref)
    grpo = weighting_cfg.train_grpo_objective
    grouped = [
        weight_vector_from_q(
            q, logp, None, weighting_cfg, include_reference_term=not grpo, normalize_by_tokens=False
        )
        for q, logp in zip(reward_comp.q_grouped, logps, strict=True)
    ]
    stats = _stats(grouped)
    if grpo:
        stats.weight_entropy = stats.weight_entropy_min = stats.weight_entropy_max = 0.0
    return stats


def _stats(grouped: list[list[float]]) -> WeightStats:
    mean, least, largest, centred = collect_weight_entropy(grouped)
    return WeightStats(grouped, [w for group in grouped for w in group], mean, least, largest, centred)


def _row(weights: Sequence[float]) -> Tensor:
    return torch.tensor(list(weights), dtype=torch.float64)


def _split(groups: Sequence[Sequence[str]], values: Any, what: str) -> list[list[float]]:
    flat = [float(value) for value in values]
    if len(flat) != sum(map(len, groups)):
        raise ValueError(f"{len(flat)} {what} for {sum(map(len, groups))} completions: give one for each")
    if not all(map(math.isfinite, flat)):
        raise ValueError(f"{what} must be finite numbers")
    taken = iter(flat)
    return [[next(taken) for _ in group] for group in groups]
