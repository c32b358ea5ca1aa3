"""Changes of the utilities [P, G] before they become advantages or targets."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maxent_grpo.objectives.advantages import has_spread
from maxent_grpo.objectives.parts import Shaping
from maxent_grpo.objectives.reduce import row_sums, sequence_scores, within_scored
from maxent_grpo.types import Batch, Knobs

SPREAD_FLOOR = 1e-6
"""Floor of the standard deviation that a z-score divides by."""


def soft_overlong(lengths: Tensor, max_length: int, buffer: int, penalty: float = 1.0) -> Tensor:
    """Soft overlong punishment (DAPO, Yu et al. 2025, arXiv 2503.14476, eq. 13): what to add to the utilities.

    0 up to ``max_length − buffer`` tokens, then linearly down to ``−penalty`` at ``max_length``, and no further.

    Args:
        lengths: completion lengths in tokens, floating point, any shape.
        max_length: longest allowed completion.
        buffer: tokens over which the punishment grows, > 0.
        penalty: its largest size.
    """
    over = (lengths - (max_length - buffer)) / buffer
    return -penalty * over.clamp(min=0.0, max=1.0)


def kl_penalised(
    utilities: Tensor, behaviour_logps: Tensor, reference_logps: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """``U_i − β·Σ_t log(μ/π_ref)``: the KL to the reference as part of the reward (Ziegler et al. 2019, RLHF).

    The sum over a completion's tokens is an unbiased estimate of KL(μ ‖ π_ref) over whole completions, and a policy
    gradient that has it in its reward follows the exact gradient of that KL; the other estimators do not, as
    their bias or their correction becomes part of what is rewarded. A term of the loss is averaged over tokens
    instead, so that equal β are not equal strengths.

    Args:
        utilities: [P, G].
        behaviour_logps, reference_logps, mask: [B, T], B = P·G; padding may hold anything.
        beta: β ≥ 0; 0 changes nothing.
    """
    log_ratios = row_sums(behaviour_logps - reference_logps, mask)
    return utilities - beta * log_ratios.view_as(utilities)


def unlikeliness(
    utilities: Tensor, scores: Tensor, coefficient: float, correctness: Tensor | None = None
) -> Tensor:
    """Unlikeliness reward ``r_i·(1 − β_rank·(G − rank_i)/G)`` (He et al. 2025, arXiv 2506.02355).

    rank 0 is the completion of highest probability: of two right answers the rarer earns more, while a wrong one,
    whose r is 0, keeps its utility. Equal scores share the mean of their ranks. A group with equal utilities is left
    alone, so that it stays without signal.

    Args:
        utilities: [P, G].
        correctness: [P, G] r, the correctness reward's share of the utilities; None: all of them.
        scores: [P, G] log-probs of the completions under the policy that sampled them.
        coefficient: β_rank in [0, 1]; 0 changes nothing.
    """
    size = utilities.shape[1]
    likelier = (scores.unsqueeze(1) > scores.unsqueeze(2)).sum(dim=2)
    equal = (scores.unsqueeze(1) == scores.unsqueeze(2)).sum(dim=2) - 1
    rank = likelier + 0.5 * equal.to(utilities.dtype)
    factor = 1.0 - coefficient * (size - rank) / size
    part = utilities if correctness is None else correctness
    shaped = (utilities - part) + part * factor
    return torch.where(has_spread(utilities).unsqueeze(1), shaped, utilities)


def entropy_bonus(
    utilities: Tensor, logps: Tensor, mask: Tensor, coefficient: float, scored: Tensor | None = None
) -> Tensor:
    """Utilities with a bonus for completions sampled where the policy was less certain than in the rest of the group.

    ``U_i + c·σ_U·z_i``: σ_U is the standard deviation of all utilities given (1 where they do not differ), z_i
    the completion's mean token entropy as a z-score within its group (population deviation, at least
    `SPREAD_FLOOR`). The entropy is estimated from the sample: a token's −log μ is unbiased for the entropy of the
    distribution that it came from, and needs no further forward.

    Args:
        utilities: [P, G].
        logps, mask: [B, T] behaviour log-probs; padding may hold anything.
        coefficient: c; 0 changes nothing.
        scored: [P, G] bool, the completions that have a utility; None: all.
    """
    surprisal = -sequence_scores(logps, mask, utilities.shape[1], length_normalize=True)
    z = within_scored(_z_scores, scored, surprisal)
    known = utilities if scored is None or bool(scored.all()) else utilities[scored]
    deviation = known.std(correction=0)
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return utilities + coefficient * deviation * z


def _z_scores(values: Tensor) -> Tensor:
    spread = values.std(dim=1, correction=0, keepdim=True).clamp(min=SPREAD_FLOOR)
    return (values - values.mean(dim=1, keepdim=True)) / spread


@dataclass(frozen=True)
class Unlikeliness(Shaping):
    """`unlikeliness` of the completions under the policy that sampled them."""

    coefficient: float

    def __call__(self, utilities: Tensor, batch: Batch, knobs: Knobs) -> Tensor:
        scores = sequence_scores(
            batch.behaviour_logps, batch.completion_mask, batch.group_size, length_normalize=False
        )
        return within_scored(
            lambda given, likely, part: unlikeliness(given, likely, self.coefficient, part),
            batch.scored,
            utilities,
            scores,
            batch.correctness,
        )


@dataclass(frozen=True)
class SoftOverlong(Shaping):
    """`soft_overlong` on top of the utilities."""

    buffer: int
    penalty: float
    max_length: int

    reads_logps: ClassVar[bool] = False

    def __call__(self, utilities: Tensor, batch: Batch, knobs: Knobs) -> Tensor:
        lengths = batch.lengths.view_as(utilities).to(utilities.dtype)
        return utilities + soft_overlong(lengths, self.max_length, self.buffer, self.penalty)


@dataclass(frozen=True)
class EntropyBonus(Shaping):
    """`entropy_bonus` by the policy that sampled."""

    coefficient: float

    def __call__(self, utilities: Tensor, batch: Batch, knobs: Knobs) -> Tensor:
        logps, mask = batch.behaviour_logps, batch.completion_mask
        return entropy_bonus(utilities, logps, mask, self.coefficient, batch.scored)


@dataclass(frozen=True)
class KLInReward(Shaping):
    """`kl_penalised` at the step's β."""

    def needs_reference(self, beta: float) -> bool:
        return beta > 0

    def __call__(self, utilities: Tensor, batch: Batch, knobs: Knobs) -> Tensor:
        beta = knobs.beta
        if beta == 0:
            return utilities
        if batch.reference_logps is None:
            raise ValueError(f"beta={beta} takes a KL from the rewards, and the batch has no reference_logps")
        mask = batch.completion_mask
        return kl_penalised(utilities, batch.behaviour_logps, batch.reference_logps, mask, beta)
