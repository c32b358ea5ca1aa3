"""The policy loss of single tokens: ratio, surrogate, selection, correction, reduction."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from maxent_grpo.objectives.parts import LossInputs, PolicyLoss
from maxent_grpo.objectives.selection import Selection
from maxent_grpo.objectives.semantic import SeedGRPO
from maxent_grpo.objectives.surrogates import (
    Clip,
    ClipEvents,
    Ratio,
    Surrogate,
    TruncatedImportance,
    token_ratio,
)
from maxent_grpo.objectives.weights import Tilt
from maxent_grpo.stats import Metrics, extreme_stat, mean_stat
from maxent_grpo.types import Batch, Knobs, Signal


@dataclass(frozen=True)
class TokenLoss(PolicyLoss):
    """A surrogate of the importance ratio and the advantages, token by token: GRPO and its family."""

    surrogate: Surrogate = field(default_factory=Clip)
    ratio: Ratio = token_ratio
    reweighting: SeedGRPO | Tilt | None = None
    selection: tuple[Selection, ...] = ()
    """Which tokens carry the gradient: those that all of these keep."""
    correction: TruncatedImportance | None = None

    @property
    def has_weights(self) -> bool:
        return isinstance(self.reweighting, Tilt)

    @property
    def needs_answers(self) -> bool:
        return self.reweighting is not None and self.reweighting.needs_answers

    @property
    def reads_logps(self) -> bool:
        return isinstance(self.reweighting, SeedGRPO)

    def signal(
        self, utilities: Tensor, advantages: Tensor, batch: Batch, knobs: Knobs
    ) -> tuple[Signal, Metrics]:
        """The advantages themselves, reweighted where that is asked for."""
        if self.reweighting is None:
            return Signal(advantages), {}
        return self.reweighting.signal(advantages, batch, knobs)

    def weights(self, signal: Signal, tau: Tensor, beta: Tensor) -> Tensor:
        if not isinstance(self.reweighting, Tilt):
            raise ValueError("policy_loss=clip has no candidate weights")
        return self.reweighting.weights(signal, tau, beta)

    def has_gradient(self, signal: Signal) -> Tensor:
        """The groups with a gradient: [P] bool."""
        moved = signal.advantages != 0
        return moved.any(dim=1) if self.surrogate.silent_at_zero else torch.ones_like(moved[:, 0])

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        """A micro-batch's share, a scalar, and its metrics."""
        old, behaviour, mask = inputs.old_logps, inputs.batch.behaviour_logps, inputs.mask
        ratio = self.ratio(inputs.forward.logps, old, mask)
        events = self.surrogate.clip_events(ratio, inputs.advantages)
        metrics = ratio_metrics(ratio, events, mask)
        per_token = self.surrogate(inputs, ratio, self.correction)
        kept: list[Tensor] = []
        for select in self.selection:
            mine, more = select(inputs, events)
            kept.append(mine)
            metrics |= more
        if kept:
            per_token = torch.where(torch.stack(kept).all(dim=0), per_token, 0.0)
        if self.correction is not None:
            ratios = self.correction.ratios(old, behaviour, mask)
            metrics |= correction_metrics(ratios, self.correction, mask)
            if not self.surrogate.corrects_itself:
                per_token = per_token * self.correction.bounded(ratios)
        if not self.surrogate.silent_at_zero:
            per_token = torch.where(inputs.batch.scored.view(-1, 1), per_token, 0.0)
        return inputs.reduced(per_token), metrics


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


def correction_metrics(ratios: Tensor, correction: TruncatedImportance, mask: Tensor) -> Metrics:
    """Statistics of importance weights [B, T], raw and within the bounds of ``correction``."""
    outside = ratios >= correction.cap
    if correction.low is not None:
        outside = (ratios < correction.low) | (ratios > correction.cap)
    return {
        "tis/mean": mean_stat(correction.bounded(ratios), mask),
        "tis/capped": mean_stat(outside.float(), mask),
        "tis/raw_mean": mean_stat(ratios, mask),
        "tis/raw_max": extreme_stat(torch.where(mask, ratios, -math.inf), "max"),
        "tis/raw_square_mean": mean_stat(ratios.square(), mask),
    }
