"""What flows through a step: prompt → rollout → group → batch → signal and forward.

Shape legend, used in every signature and docstring: ``P`` prompts, ``G`` completions per prompt (the group size;
where InfoSeed adds S seeded completions to a group, they are its last S rows and G counts them),
``B = P·G`` rows (row ``p·G + g`` is completion ``g`` of prompt ``p``), ``L`` prompt tokens, ``T`` completion tokens,
``V`` vocabulary, ``D`` hidden size. Log-probs are natural logarithms and entropies are in nats.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

Reads = Literal["utilities", "correctness", "right"]
"""What advantages are computed from: fields of `Group` and `Batch`."""


@dataclass(frozen=True)
class Prompt:
    """One prompt as drawn from the stream."""

    index: int
    """Row in its dataset: the prompt's identity in keys, checkpoints and tables."""
    text: str
    """What the model reads: chat template applied."""
    token_ids: tuple[int, ...]
    columns: Mapping[str, Any]
    """The dataset row, handed to reward functions by column name."""
    epoch: int = 0
    """How often the stream had run through the dataset before this draw; with difficulty pools, the prompt's own
    earlier draws."""
    seed_id: int = -1
    """InfoSeed: the seed of this variant of the dataset's prompt; −1: it is the prompt itself."""
    messages: Sequence[Mapping[str, Any]] | None = None
    """The chat, where the dataset gave one instead of a text."""
    branch: tuple[int, ...] = ()
    """Which turn of which completion continues it; empty: it is the prompt itself."""

    @property
    def key(self) -> tuple[int, ...]:
        """What tells its draws from those of every other prompt."""
        own = (self.epoch, self.index) if self.seed_id < 0 else (self.epoch, self.index, self.seed_id)
        return own + self.branch


@dataclass(frozen=True)
class Rollout:
    """The G sampled completions of one prompt. Token ids are what was sampled: never decoded and re-encoded."""

    prompt: Prompt
    token_ids: tuple[tuple[int, ...], ...]
    """G × T_i, the end-of-sequence token included where it was sampled."""
    logps: tuple[tuple[float, ...], ...]
    """G × T_i, behaviour log-prob of each sampled token."""
    texts: tuple[str, ...]
    """What is rewarded: the completion, of several turns the policy's last."""
    finish_reasons: tuple[Literal["stop", "length"], ...]
    policy_version: int
    """Optimiser steps behind the weights that sampled."""
    seed_prompts: tuple[Prompt, ...] = ()
    """InfoSeed: the variants that the last S completions continue, one each."""
    policy_masks: tuple[tuple[bool, ...], ...] = ()
    """G × T_i, true where the policy wrote, false at an environment's tokens; empty: it wrote everything."""
    transcripts: tuple[str, ...] = ()
    """Of several turns, all of them with their markers; empty: `texts` say it."""
    turns: tuple[tuple[str, ...], ...] = ()
    """G × turns, what the policy wrote in each, where an environment answers it; empty: `texts` say it."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens that the policy wrote, of each completion."""
        if not self.policy_masks:
            return tuple(map(len, self.token_ids))
        return tuple(map(sum, self.policy_masks))

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """What each completion continues: ``prompt``, or a seeded variant of it."""
        return (self.prompt,) * (len(self.texts) - len(self.seed_prompts)) + self.seed_prompts


@dataclass(frozen=True)
class Group:
    """A scored rollout."""

    rollout: Rollout
    rewards: Mapping[str, tuple[float, ...]]
    """Reward function → G scores; NaN where it gave none."""
    utilities: tuple[float, ...]
    """G weighted sums of the rewards; NaN where a completion has none: its group is learned from without it."""
    right: tuple[bool, ...] | None = None
    """G verdicts of the correctness reward: a score of at least 1; None: no reward tells what is right."""
    correctness: tuple[float, ...] | None = None
    """G shares of the correctness reward in the utilities, 0 where it gave no score; None as for `right`."""
    modes: tuple[str | None, ...] | None = None
    """G keys of the right answers that were given, equal where the answers are (`rewards.modes`); None for a completion
    that is not right or whose answer has no key, and for the whole group as for `right`."""

    def has_signal(self, reads: Reads = "utilities") -> bool:
        """Whether what an advantage ``reads`` differs among the completions that have a utility."""
        values: Sequence[float] | None = getattr(self, reads)
        pairs = zip(self.utilities if values is None else values, self.utilities, strict=True)
        return len({value for value, utility in pairs if not math.isnan(utility)}) > 1

    def originals(self) -> "Group":
        """The group without its seeded completions."""
        rollout, kept = self.rollout, len(self.utilities) - len(self.rollout.seed_prompts)
        return Group(
            rollout=replace(
                rollout,
                token_ids=rollout.token_ids[:kept],
                logps=rollout.logps[:kept],
                texts=rollout.texts[:kept],
                finish_reasons=rollout.finish_reasons[:kept],
                seed_prompts=(),
                policy_masks=rollout.policy_masks[:kept],
                transcripts=rollout.transcripts[:kept],
                turns=rollout.turns[:kept],
            ),
            rewards={name: scores[:kept] for name, scores in self.rewards.items()},
            utilities=self.utilities[:kept],
            right=None if self.right is None else self.right[:kept],
            correctness=None if self.correctness is None else self.correctness[:kept],
            modes=None if self.modes is None else self.modes[:kept],
        )


@dataclass(frozen=True)
class Batch:
    """Whole groups as tensors. Prompts are left-padded, completions right-padded."""

    prompt_ids: Tensor
    """[Q, L] int64; Q = P, or a multiple of it where completions continue variants of their prompt"""
    prompt_mask: Tensor
    """[Q, L] bool"""
    completion_ids: Tensor
    """[B, T] int64"""
    completion_mask: Tensor
    """[B, T] bool, the tokens that the policy wrote: what is learned from"""
    behaviour_logps: Tensor
    """[B, T] of the policy that sampled; 0 at padding"""
    utilities: Tensor
    """[P, G]; NaN where a completion has none (see `scored`)"""
    reference_logps: Tensor | None = None
    """[B, T] of the frozen reference; None where nothing needs it"""
    old_logps: Tensor | None = None
    """[B, T] at the start of the rollout's updates; None: on-policy, use the forward's own"""
    prompt_of: Tensor | None = None
    """[B] int64, the prompt row that each row continues; None: row b continues b // G"""
    seed_ids: Tensor | None = None
    """[B] int64, the seed that each row's prompt carries, −1 for none; None: no seeds"""
    answer_clusters: Tensor | None = None
    """[P, G] int64, equal within a group where the answers are"""
    mode_counts: Tensor | None = None
    """[P] int64, distinct right answers of each prompt, at least 1"""
    sequence_mask: Tensor | None = None
    """[B, T] bool, all that is not padding, an environment's tokens too; None: completion_mask"""
    right: Tensor | None = None
    """[P, G] bool, verdicts of the correctness reward; None: the utilities are its scores (right from 1 on)"""
    correctness: Tensor | None = None
    """[P, G], its share in the utilities; None: all of them"""
    modes: Tensor | None = None
    """[P, G] int64, the answer mode of each right completion (`rewards.modes`), −1 for none: numbers within its prompt,
    first those of the prompt's history, sorted by key, then the new ones, sorted by key; None: nothing tells right"""
    mode_history: Tensor | None = None
    """[P, K] int64, right completions of earlier steps for each of these numbers, 0 for a new one and beyond a prompt's
    last; None: no history is kept"""

    @property
    def group_size(self) -> int:
        return self.utilities.shape[1]

    @property
    def scored(self) -> Tensor:
        """Which completions have a utility: [P, G] bool. The others are no part of their group, and nothing is
        learned from them but what does not depend on rewards (a KL or entropy term)."""
        return ~self.utilities.isnan()

    @property
    def prompt_rows(self) -> Tensor:
        """The row of ``prompt_ids`` that each completion continues, [B] int64."""
        if self.prompt_of is not None:
            return self.prompt_of
        return torch.arange(self.prompt_ids.shape[0], device=self.prompt_ids.device).repeat_interleave(
            self.group_size
        )

    @property
    def read_mask(self) -> Tensor:
        """The completion tokens that the model reads, [B, T] bool."""
        return self.completion_mask if self.sequence_mask is None else self.sequence_mask

    @property
    def lengths(self) -> Tensor:
        """Completion lengths in tokens of the policy, [B] int64."""
        return self.completion_mask.sum(dim=1)

    @property
    def variants(self) -> int:
        """Prompt rows per group."""
        return self.prompt_ids.shape[0] // self.utilities.shape[0]

    @property
    def group_tokens(self) -> Tensor:
        """Real tokens of each group, its prompts counted once and its completions whole: [P] int64."""
        prompts = self.prompt_mask.sum(dim=1).view(-1, self.variants).sum(dim=1)
        return prompts + self.read_mask.sum(dim=1).view(-1, self.group_size).sum(dim=1)

    def select(self, groups: Sequence[int]) -> "Batch":
        """These groups, in this order, with padding no longer than they need."""
        picked_groups = torch.tensor(groups, device=self.utilities.device)
        rows = _members(picked_groups, self.group_size)
        prompts = _members(picked_groups, self.variants)
        prompt_from = self.prompt_mask.shape[1] - int(self.prompt_mask[prompts].sum(dim=1).max())
        width = int(self.read_mask[rows].sum(dim=1).max())
        picked: dict[str, Any] = {
            "prompt_ids": self.prompt_ids[prompts, prompt_from:],
            "prompt_mask": self.prompt_mask[prompts, prompt_from:],
            "utilities": self.utilities[picked_groups],
        }
        if self.prompt_of is not None:  # a group's prompt rows keep their order within the group
            moved = torch.arange(len(groups), device=rows.device) - picked_groups
            picked["prompt_of"] = self.prompt_of[rows] + self.variants * moved.repeat_interleave(
                self.group_size
            )
        tokenwise = ("completion_ids", "completion_mask", "sequence_mask")
        for name in (*tokenwise, "behaviour_logps", "reference_logps", "old_logps"):
            value = getattr(self, name)
            picked[name] = None if value is None else value[rows, :width]
        picked["seed_ids"] = None if self.seed_ids is None else self.seed_ids[rows]
        groupwise = ("right", "correctness", "answer_clusters", "mode_counts", "modes", "mode_history")
        for name in groupwise:
            value = getattr(self, name)
            picked[name] = None if value is None else value[picked_groups]
        return replace(self, **picked)

    def to(self, device: torch.device) -> "Batch":
        moved = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{name: value.to(device) for name, value in moved.items()})


def consecutive(count: int, size: int) -> list[list[int]]:
    """0 … count − 1 in parts of at most ``size``."""
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def _members(groups: Tensor, size: int) -> Tensor:
    """The rows of the groups, ``size`` in each: [N] → [N·size]."""
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()


@dataclass(frozen=True)
class Knobs:
    """What the controllers set for one step."""

    tau: float
    """Weight of the candidate entropy, ≥ 0."""
    beta: float
    """Weight of the reference policy, ≥ 0."""
    entropy_coef: float | None = None
    """Weight of the token entropy where it adapts; None: the objective's own."""


@dataclass(frozen=True)
class Signal:
    """What a step learns from, computed once over whole groups and without gradient."""

    advantages: Tensor
    """[P, G]"""
    weights: Tensor | None = None
    """[P, G], each group sums to 1 (to 0 where no completion has a utility); None where the objective has none"""
    log_q: Tensor | None = None
    """[P, G], log target distribution"""
    reference_scores: Tensor | None = None
    """[P, G], reference log-prob of each completion as the weights read it"""
    tau_factor: Tensor | None = None
    """[P, 1], what τ is multiplied by for each group; None: by 1"""
    scored: Tensor | None = None
    """[P, G] bool, see `Batch.scored`; advantages and weights are 0 elsewhere, and log_q is −∞. None: everywhere"""
    contrast_losses: Tensor | None = None
    """[P, G] shares of a contrastive loss over the whole optimiser batch"""
    contrast_gradient: Tensor | None = None
    """[P, G, D] its gradient in the completions' pooled states"""

    def select(self, groups: Sequence[int]) -> "Signal":
        """The part that belongs to ``Batch.select(groups)``."""
        index = torch.tensor(groups, device=self.advantages.device)
        present = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{name: value[index] for name, value in present.items()})


@dataclass(frozen=True)
class Forward:
    """The policy's view of a batch, with gradient."""

    logps: Tensor
    """[B, T] log-prob of each completion token at the sampling temperature"""
    entropy: Tensor | None = None
    """[B, T] exact entropy of each next-token distribution"""
    pooled: Tensor | None = None
    """[B, D] last hidden states of the completion tokens, pooled per completion"""
    seed_logits: Tensor | None = None
    """[B, S] of the seed head, where there is one"""


@dataclass(frozen=True)
class Denominators:
    """What a loss is divided by: counts over the whole optimiser batch, all micro-batches and all ranks."""

    groups: float
    sequences: float
    tokens: float
    max_length: int
    """``max_completion_length``, in tokens."""
