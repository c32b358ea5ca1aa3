"""What flows through a step: prompt → rollout → group → batch → forward, and the statistics that it leaves.

Shape legend, used in every signature and docstring: ``P`` prompts, ``G`` completions per prompt (the group size),
``B = P·G`` rows (row ``p·G + g`` is completion ``g`` of prompt ``p``), ``L`` prompt tokens, ``T`` completion tokens,
``V`` vocabulary. Log-probs are natural logarithms and entropies are in nats.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One prompt as drawn from the stream."""

    index: int  # row in its dataset: the prompt's identity in keys, checkpoints and tables
    text: str  # what the model reads: chat template applied
    token_ids: tuple[int, ...]
    columns: Mapping[str, Any]  # the dataset row, handed to reward functions by column name
    epoch: int = 0  # how often the stream had run through the dataset before this draw


@dataclass(frozen=True)
class Rollout:
    """The G sampled completions of one prompt. Token ids are what was sampled: never decoded and re-encoded."""

    prompt: Prompt
    token_ids: tuple[tuple[int, ...], ...]  # G × T_i, the end-of-sequence token included where it was sampled
    logps: tuple[tuple[float, ...], ...]  # G × T_i, behaviour log-prob of each sampled token
    texts: tuple[str, ...]
    finish_reasons: tuple[Literal["stop", "length"], ...]
    policy_version: int  # optimiser steps behind the weights that sampled


@dataclass(frozen=True)
class Group:
    """A scored rollout."""

    rollout: Rollout
    rewards: Mapping[str, tuple[float, ...]]  # reward function → G scores; NaN where it gave none
    utilities: tuple[float, ...]  # G weighted sums of the rewards: always finite


@dataclass(frozen=True)
class Batch:
    """Whole groups as tensors. Prompts are left-padded, completions right-padded."""

    prompt_ids: (
        Tensor  # [Q, L] int64; Q = P, or a multiple of it where completions continue variants of their prompt
    )
    prompt_mask: Tensor  # [Q, L] bool
    completion_ids: Tensor  # [B, T] int64
    completion_mask: Tensor  # [B, T] bool
    behaviour_logps: Tensor  # [B, T] of the policy that sampled; 0 at padding
    utilities: Tensor  # [P, G]
    reference_logps: Tensor | None = None  # [B, T] of the frozen reference; None where nothing needs it
    old_logps: Tensor | None = (
        None  # [B, T] at the start of the rollout's updates; None: on-policy, use the forward's own
    )
    prompt_of: Tensor | None = (
        None  # [B] int64, the prompt row that each row continues; None: row b continues b // G
    )
    answer_clusters: Tensor | None = None  # [P, G] int64, equal within a group where the answers are
    mode_counts: Tensor | None = None  # [P] int64, distinct right answers of each prompt, at least 1

    @property
    def group_size(self) -> int:
        return self.utilities.shape[1]

    @property
    def prompt_rows(self) -> Tensor:
        """The row of ``prompt_ids`` that each completion continues, [B] int64."""
        if self.prompt_of is not None:
            return self.prompt_of
        return torch.arange(self.prompt_ids.shape[0], device=self.prompt_ids.device).repeat_interleave(
            self.group_size
        )

    @property
    def lengths(self) -> Tensor:
        """Completion lengths in tokens, [B] int64."""
        return self.completion_mask.sum(dim=1)

    def groups(self, start: int, stop: int) -> "Batch":
        """Groups ``start`` to ``stop`` with padding no longer than they need."""
        rows = slice(start * self.group_size, stop * self.group_size)
        variants = self.prompt_ids.shape[0] // self.utilities.shape[0]
        prompts = slice(start * variants, stop * variants)
        prompt_from = self.prompt_mask.shape[1] - int(self.prompt_mask[prompts].sum(dim=1).max())
        width = int(self.completion_mask[rows].sum(dim=1).max())
        picked: dict[str, Any] = {
            "prompt_ids": self.prompt_ids[prompts, prompt_from:],
            "prompt_mask": self.prompt_mask[prompts, prompt_from:],
            "utilities": self.utilities[start:stop],
            "prompt_of": None if self.prompt_of is None else self.prompt_of[rows] - prompts.start,
        }
        for name in ("completion_ids", "completion_mask", "behaviour_logps", "reference_logps", "old_logps"):
            value = getattr(self, name)
            picked[name] = None if value is None else value[rows, :width]
        for name in ("answer_clusters", "mode_counts"):
            value = getattr(self, name)
            picked[name] = None if value is None else value[start:stop]
        return replace(self, **picked)

    def split(self, groups: int) -> Iterator["Batch"]:
        """Consecutive parts of at most ``groups`` whole groups."""
        for start in range(0, self.utilities.shape[0], groups):
            yield self.groups(start, start + groups)

    def to(self, device: torch.device) -> "Batch":
        moved = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{name: value.to(device) for name, value in moved.items()})


@dataclass(frozen=True)
class Knobs:
    """What the controllers set for one step."""

    tau: float  # weight of the candidate entropy, ≥ 0
    beta: float  # weight of the reference policy, ≥ 0
    entropy_coef: float | None = (
        None  # weight of the token entropy where it adapts; None: the objective's own
    )


@dataclass(frozen=True)
class Signal:
    """What a step learns from, computed once over whole groups and without gradient."""

    advantages: Tensor  # [P, G]
    weights: Tensor | None = None  # [P, G], each group sums to 1; None where the objective has none
    log_q: Tensor | None = None  # [P, G], log target distribution
    reference_scores: Tensor | None = (
        None  # [P, G], reference log-prob of each completion as the weights read it
    )
    tau_factor: Tensor | None = None  # [P, 1], what τ is multiplied by for each group; None: by 1

    def split(self, groups: int) -> Iterator["Signal"]:
        """The parts that belong to ``Batch.split(groups)``."""

        def part(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[start : start + groups]

        for start in range(0, self.advantages.shape[0], groups):
            yield Signal(
                advantages=self.advantages[start : start + groups],
                weights=part(self.weights),
                log_q=part(self.log_q),
                reference_scores=part(self.reference_scores),
                tau_factor=part(self.tau_factor),
            )


@dataclass(frozen=True)
class Forward:
    """The policy's view of a batch, with gradient."""

    logps: Tensor  # [B, T] log-prob of each completion token at the sampling temperature
    entropy: Tensor | None = None  # [B, T] exact entropy of each next-token distribution
    pooled: Tensor | None = None  # [B, D] last hidden states of the completion tokens, pooled per completion


@dataclass(frozen=True)
class Denominators:
    """What a loss is divided by: counts over the whole optimiser batch, all micro-batches and all ranks."""

    groups: float
    sequences: float
    tokens: float
    max_length: int  # max_completion_length, in tokens


@dataclass(frozen=True)
class Stat:
    """A statistic that adds up over micro-batches and ranks: means carry their weight, so that the whole is exact."""

    value: Tensor  # scalar: a weighted sum for "mean", the value itself for the rest
    weight: Tensor  # scalar: the sum of weights for "mean"; unused for the rest
    kind: Literal["mean", "sum", "min", "max"] = "mean"


Metrics = dict[str, Stat]
"""Metric name without its ``train/`` prefix → statistic."""


def mean_stat(values: Tensor, mask: Tensor | None = None) -> Stat:
    """The mean of ``values`` where ``mask`` is true (everywhere if None), as a `Stat`."""
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    kept = torch.where(mask, values.detach(), torch.zeros_like(values))
    return Stat(kept.double().sum(), mask.double().sum())


def extreme_stat(values: Tensor, kind: Literal["min", "max"]) -> Stat:
    """The smallest or largest of ``values``, as a `Stat`."""
    value = values.detach().min() if kind == "min" else values.detach().max()
    return Stat(value.double(), torch.ones((), dtype=torch.float64, device=values.device), kind)
