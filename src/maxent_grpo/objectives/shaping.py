"""Changes of the utilities [P, G] before they become advantages or targets."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

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


def mode_surprisal(modes: Tensor, history: Tensor | None = None, *, smoothed: bool = False) -> Tensor:
    """How rare a right completion's answer is among the right ones, less the mean of that over them: [P, G].

    ``s_i − mean of s over the right ones`` with ``s_i = −log p̂(m_i)``, and 0 for all others. The share ``p̂`` is the
    plug-in ``n_c / n₊``, the completion among them, or ``smoothed``: of the others and of earlier steps alone,
    ``p̂ = (v + 1) / (N + K + 1)``, with v the times that they gave this answer, N all their answers, K how many
    different ones, and one place for what nobody gave yet (Laplace).

    Its sum over the right ones is 0: it moves probability between right answers and adds none to them. With the plug-in
    the expected policy gradient, given n₊ = n, is ``Σ_c ∇q_c·[(n−1)·f(q_c) − q_c·f'(q_c)]`` with q the policy's
    distribution over right answers, ``f(q) = E log(n / (1 + Binomial(n−1, q)))``: for large n it is n times the
    gradient of the entropy of q; for n ≤ 2 it is 0.

    Args:
        modes: [P, G] int64, the answer of each right completion, −1 for the others; numbers within a prompt.
        history: [P, K] int64, times that earlier steps found each answer, which only a ``smoothed`` share counts.
    """
    right = modes >= 0
    same = (modes.unsqueeze(2) == modes.unsqueeze(1)) & right.unsqueeze(1)  # [P, G, G]: j gave i's answer
    counts = same.sum(dim=2).double()
    if smoothed:
        width = int(modes.max()) + 1 if history is None else history.shape[1]
        seen = functional.one_hot(modes.clamp(min=0), max(1, width)) * right.unsqueeze(2)  # [P, G, K]
        known = seen.sum(dim=1) if history is None else seen.sum(dim=1) + history
        others = known.unsqueeze(1) - seen  # [P, G, K]: what all but i gave
        own = (others * seen).sum(dim=2).double()
        share = (own + 1.0) / (others.sum(dim=2) + (others > 0).sum(dim=2) + 1.0)
    else:
        share = counts / right.sum(dim=1, keepdim=True).clamp(min=1)
    surprisal = torch.where(right, -share.clamp(min=torch.finfo(torch.float64).tiny).log(), 0.0)
    number = right.sum(dim=1, keepdim=True).clamp(min=1)
    centred = torch.where(right, surprisal - surprisal.sum(dim=1, keepdim=True) / number, 0.0)
    alike = torch.where(right, counts == right.sum(dim=1, keepdim=True), True).all(dim=1, keepdim=True)
    return torch.where(alike, 0.0, centred)  # exactly 0 where there is one answer


def mode_entropies(modes: Tensor) -> Tensor:
    """Entropy in nats of the answers of each group's right completions: [P]; NaN for a group with fewer than two."""
    right = modes >= 0
    same = (modes.unsqueeze(2) == modes.unsqueeze(1)) & right.unsqueeze(1)
    number = right.sum(dim=1)
    share = torch.where(right, same.sum(dim=2), 1) / number.clamp(min=1).unsqueeze(1)
    surprisal = torch.where(right, -share.log(), 0.0)
    return torch.where(number > 1, surprisal.sum(dim=1) / number.clamp(min=1), torch.nan)


@dataclass(frozen=True)
class ModeEntropy(Shaping):
    """Maximum entropy over the verified answers of a group: ``U_i + τ·mode_surprisal_i``."""

    estimator: Literal["group", "leave_one_out", "history"] = "group"
    """Of an answer's share: see `mode_surprisal`."""

    reads_logps: ClassVar[bool] = False
    reads_modes: ClassVar[bool] = True

    @property
    def needs_mode_history(self) -> bool:  # type: ignore[override]
        """Whether it reads `Batch.mode_history`."""
        return self.estimator == "history"

    def __call__(self, utilities: Tensor, batch: Batch, knobs: Knobs) -> Tensor:
        if batch.modes is None or (self.needs_mode_history and batch.mode_history is None):
            raise ValueError(
                "mode entropy needs Batch.modes (and, from history, Batch.mode_history): it is None"
            )
        history = batch.mode_history if self.needs_mode_history else None
        modes = batch.modes.where(batch.scored, -1)
        bonus = mode_surprisal(modes, history, smoothed=self.estimator != "group")
        return utilities + knobs.tau * bonus.to(utilities)


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
