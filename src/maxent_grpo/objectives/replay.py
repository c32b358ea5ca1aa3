"""Verified replay: the likelihood of right answers that earlier steps found, one exemplar for each answer mode.

A *bank* holds the exemplars of one prompt. What is learned from is their log-probs per token,
``ℓ_c = |e_c|⁻¹ Σ_t log π(e_{c,t} | prompt, e_{c,<t})``. They never enter a group, its baseline or its counts.
Source of method and formulas: github.com/liv-daliberti/remax, docs/method.md (Re:Dr and Re:Max, 2026).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def mass_loss(scores: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """``−Σ_c w_c·ℓ_c / Σ_c w_c`` of each bank, averaged over banks: the loss ``L_replay`` of verified replay.

    Args:
        scores: ℓ of each bank's k exemplars, [k]; at least one bank.
        weights: w > 0 of the same exemplars: 1 for all, or how often fresh completions gave each mode.

    Returns:
        Scalar in nats per token. Its gradient in ℓ_c is ``−w_c / (banks·Σ w)``, whatever the scores are.
    """
    banks = [(w * own).sum() / w.sum() for own, w in zip(scores, weights, strict=True)]
    return -torch.stack(banks).mean()


def balance_loss(scores: Sequence[Tensor]) -> Tensor:
    """``KL(U_k ‖ softmax(ℓ)) = −(1/k)·Σ_c log softmax(ℓ)_c − log k``, averaged over banks of k ≥ 2 exemplars.

    Its gradient in ℓ, ``softmax(ℓ) − 1/k``, sums to 0: it evens a bank out and cannot raise its mass. Scalar in nats,
    0 where no bank has two.
    """
    several = [own for own in scores if len(own) > 1]
    if not several:
        return scores[0].sum() * 0.0
    divergences = [-torch.log_softmax(own, dim=0).mean() - math.log(len(own)) for own in several]
    return torch.stack(divergences).mean()


def bank_entropies(log_masses: Sequence[Tensor]) -> Tensor:
    """Entropy of the policy's choice among the exemplars of each bank that has k ≥ 2, in nats: [those banks].

    ``H = −Σ_c p_c·log p_c`` with ``p = softmax`` of the exemplars' whole log-probs [k]; between 0 and log k.
    """
    logs = [torch.log_softmax(own, dim=0) for own in log_masses if len(own) > 1]
    return torch.stack([-(own.exp() * own).sum() for own in logs]) if logs else torch.empty(0)


@dataclass(frozen=True)
class Replay:
    """The term ``s·(λ·mass_loss + λ_b·balance_loss)`` beside the loss of any objective.

    The scale ``s`` is ``(G−1)/G²``, the weight of a lone success in a centred Dr. GRPO group of G, which is the
    published one, or 1. The sum is not divided by the step's prompts.
    """

    coefficient: float
    """λ"""
    balance: float = 0.0
    """λ_b"""
    by_frequency: bool = False
    """Weigh an exemplar by the fresh right completions that gave its mode so far; else all alike."""
    capacity: int = 16
    """Exemplars of a prompt; 1: whatever was found first."""
    max_prompts: int | None = None
    """Prompts that have a bank."""
    own_prompts: bool = False
    """Replay the banks of the step's own prompts; else the next ones of all, in turn."""
    banks_per_step: int = 1
    """In turn: so many."""
    as_lone_success: bool = True
    """The scale: see above."""
    is_control: bool = False
    """All passes are made, and the gradient in the scores is replaced by 0."""

    def scale(self, group_size: int) -> float:
        """``s`` for groups of ``group_size``."""
        return (group_size - 1) / group_size**2 if self.as_lone_success else 1.0

    @property
    def needs_scores(self) -> bool:
        """Whether the gradient in the scores depends on the scores."""
        return self.balance > 0

    def weights(self, counts: Sequence[Tensor]) -> list[Tensor]:
        """The weights of exemplars whose modes fresh right completions gave ``counts`` times: [k] each."""
        return [own if self.by_frequency else torch.ones_like(own) for own in counts]

    def __call__(self, scores: Sequence[Tensor], counts: Sequence[Tensor]) -> Tensor:
        """``λ·mass_loss + λ_b·balance_loss``, without the scale. Scalar."""
        loss = self.coefficient * mass_loss(scores, self.weights(counts))
        return loss + self.balance * balance_loss(scores) if self.needs_scores else loss

    def gradient(self, scores: Sequence[Tensor], counts: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of that in the scores, or zeros for the control: [k] each."""
        if self.is_control:
            return [torch.zeros_like(own) for own in scores]
        with torch.enable_grad():
            leaves = [own.detach().requires_grad_() for own in scores]
            return list(torch.autograd.grad(self(leaves, counts), leaves))
