"""Advantages [P, G]: how much better a completion did than its group."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maxent_grpo.errors import RunError
from maxent_grpo.objectives.reduce import within_scored
from maxent_grpo.stats import Metrics, mean_stat
from maxent_grpo.types import Reads

Advantage = Callable[[Tensor], Tensor]
"""Utilities [P, G] → advantages [P, G]. Groups without spread are set to 0 afterwards."""
UtilityStd = Callable[[], Tensor]
"""The sample standard deviation of the utilities of the optimiser batch, over all ranks: a scalar."""
Scale = Callable[[Tensor, Tensor, UtilityStd | None], Tensor]
"""Advantages [P, G], utilities [P, G], and their deviation over the batch → scaled advantages [P, G]."""

RIGHT = 1.0
"""A completion counts as right from this score of the correctness reward on."""

STD_FLOOR = 1e-4
"""Added to a standard deviation before dividing by it, as in TRL."""


def has_spread(utilities: Tensor, scored: Tensor | None = None) -> Tensor:
    """Whether the utilities of a group differ at all, among those ``scored``: [P, G], [P, G] bool → [P] bool."""
    if scored is None:
        return utilities.amax(dim=1) > utilities.amin(dim=1)
    missing = ~scored
    highest = utilities.masked_fill(missing, -math.inf).amax(dim=1)
    return highest > utilities.masked_fill(missing, math.inf).amin(dim=1)


def group_std(utilities: Tensor) -> Tensor:
    """Sample (G − 1) standard deviation of each group: [P, G] → [P]; exactly 0 for a group without spread."""
    std = utilities.std(dim=1, correction=min(1, utilities.shape[1] - 1))
    return torch.where(has_spread(utilities), std, 0.0)


def utility_metrics(utilities: Tensor, scored: Tensor | None = None) -> Metrics:
    """Statistics of the utilities [P, G] of the ``scored`` completions; None: of all."""
    stds = within_scored(group_std, scored, utilities, per_group=True)
    return {
        "reward": mean_stat(utilities, scored),
        "reward_std": mean_stat(stds),
        "frac_reward_zero_std": mean_stat((~has_spread(utilities, scored)).float()),
    }


def std_over_batch(utilities: Tensor) -> Tensor:
    """The sample deviation of the utilities of an optimiser batch, those that there are: [P, G] → scalar."""
    missing = utilities.isnan()
    if bool(missing.any()):
        utilities = utilities[~missing]
        if not utilities.numel():
            return utilities.new_zeros(())
    return utilities.std(correction=min(1, utilities.numel() - 1))


def dr_grpo(utilities: Tensor) -> Tensor:
    """``U − mean(U)`` (Dr. GRPO, Liu et al. 2025).

    Exactly 0 for a group without spread, where rounding would leave the mean of equal numbers a little off.
    """
    centred = utilities - utilities.mean(dim=1, keepdim=True)
    return torch.where(has_spread(utilities).unsqueeze(1), centred, 0.0)


def over_group_std(advantages: Tensor, utilities: Tensor, utility_std: UtilityStd | None = None) -> Tensor:
    """Advantages over the sample deviation of their group's utilities, + 1e-4."""
    return advantages / (group_std(utilities).unsqueeze(1) + STD_FLOOR)


def over_batch_std(advantages: Tensor, utilities: Tensor, utility_std: UtilityStd | None = None) -> Tensor:
    """Advantages over the sample deviation of all utilities of the optimiser batch, + 1e-4.

    TRL's ``scale_rewards="batch"`` (Lite PPO, Liu et al. 2025, arXiv 2508.08221). ``utility_std`` None: ``utilities``
    are those of the whole batch.
    """
    if utility_std is not None:
        return advantages / (utility_std() + STD_FLOOR)
    return advantages / (std_over_batch(utilities) + STD_FLOOR)


def unscaled(advantages: Tensor, utilities: Tensor, utility_std: UtilityStd | None = None) -> Tensor:
    """The advantages as they are."""
    return advantages


def grpo(utilities: Tensor) -> Tensor:
    """``(U − mean(U)) / (std(U) + 1e-4)``, the sample deviation of the group (GRPO, Shao et al. 2024)."""
    return over_group_std(dr_grpo(utilities), utilities)


def rloo(utilities: Tensor) -> Tensor:
    """``U_i − mean of the other utilities`` (RLOO, Ahmadian et al. 2024, arXiv 2402.14740).

    Leaving a completion out of its own baseline makes the policy gradient unbiased. It is Dr. GRPO's advantage times
    G / (G − 1).
    """
    size = utilities.shape[1]
    return dr_grpo(utilities) * (size / max(1, size - 1))


def maxrl(utilities: Tensor) -> Tensor:
    """``(U − mean(U)) / mean(U)`` (MaxRL, Tajwar et al. 2026, arXiv 2602.02710).

    For utilities 0 and 1 its expectation is the gradient of the log-likelihood of a right answer, truncated at order
    G: rare successes count in proportion to 1 / (success rate). A group of zeros has no signal. An objective hands it
    the correctness reward's share of the utilities, whose scale it cancels, and none of the other rewards.

    Raises:
        RunError: a negative utility, for which the mean is no success rate.
    """
    if bool((utilities < 0).any()):
        raise RunError(
            f"advantage=maxrl divides by the mean utility of a group, and a utility is {float(utilities.min()):g}; "
            "use rewards that are never negative, or another advantage"
        )
    mean = utilities.mean(dim=1, keepdim=True)
    return torch.where(has_spread(utilities).unsqueeze(1), dr_grpo(utilities) / mean, 0.0)


def pass_at_k(utilities: Tensor, k: int) -> Tensor:
    """The advantage of pass@k as a reward, in closed form (Chen et al. 2025, arXiv 2508.10751, eq. 14–15).

    Of all subsets of k completions, a share ``μ = 1 − C(N⁻, k) / C(G, k)`` contains a right one; σ = √(μ(1−μ)). A right
    completion is worth ``(1 − μ) / σ``; a wrong one, whose k − 1 companions fail with probability
    ``C(N⁻ − 1, k − 1) / C(G − 1, k − 1)``, that much less than 1 − μ, over σ. Where every subset succeeds (fewer
    than k wrong ones), or none, all advantages are 0. k = 1 gives (U − mean) / population deviation.

    Args:
        utilities: [P, G] scores of the correctness reward, or its verdicts; right from `RIGHT` on, else wrong.
        k: at least 1.

    Raises:
        RunError: k above the group size.
    """
    size = utilities.shape[1]
    if k > size:
        raise RunError(f"pass_k={k} is above the {size} completions of a group; lower it")
    right = utilities >= RIGHT
    wrong_counts = (~right).sum(dim=1).tolist()
    values = torch.zeros_like(utilities)
    for row, wrong in enumerate(wrong_counts):
        all_fail = math.comb(wrong, k) / math.comb(size, k)
        if wrong == size or all_fail == 0.0:
            continue
        sigma = math.sqrt(all_fail * (1.0 - all_fail))
        rest_fails = math.comb(wrong - 1, k - 1) / math.comb(size - 1, k - 1)
        values[row] = (all_fail - rest_fails) / sigma
        values[row, right[row]] = all_fail / sigma
    return values


def max_at_k(utilities: Tensor, k: int, *, within: bool = False) -> Tensor:
    """The best of k as a reward, for any utilities: over the sets of k completions that hold i, the mean of
    ``max(S) − baseline``.

    The baseline is the mean of max over the sets of k *without* i, which does not depend on i, so that k times the
    policy gradient is that of E max@k without bias; the advantages sum to 0 and equal ``G/(G − k)·(q_i − U)``, q_i the
    mean of max over the sets with i, U over all (OrderGrad, github.com/paavo5/ordergrad; MaxPO, arXiv 2606.06080, names
    these properties). k = 1 is RLOO. For right and wrong it is `pass_at_k` × √(U(1 − U))·G/(G − k).

    ``within`` takes ``max(S ∖ {i})`` of each set itself: PKPO's ``loo−1`` (arXiv 2505.15201), whose s_i are k/G times
    these. Only what is best in some set earns anything, and nothing is centred; k = G is the best less the second best
    (arXiv 2503.19595).

    Args:
        utilities: [P, G].
        k: at least 1, and at least 2 ``within``; below G, or at most G ``within``.

    Raises:
        RunError: another k.
    """
    size = utilities.shape[1]
    least, most = (2, size) if within else (1, size - 1)
    if not least <= k <= most:
        raise RunError(f"max_k={k} must be {least} to {most} in a group of {size}; change it")
    ordered = utilities.double().sort(dim=1).values
    own = utilities.double().unsqueeze(2)
    if within:  # over the second best: C(s − 1, k − 2) sets have it at place s
        second = [math.comb(s, k - 2) / math.comb(size - 1, k - 1) for s in range(size)]
        gain = (own - ordered.unsqueeze(1)).clamp(min=0.0)
        return (gain * ordered.new_tensor(second)).sum(dim=2).to(utilities)
    below = (
        ordered - ordered[:, -1:]
    )  # what the best loses nothing against: exactly 0 where every set holds it
    places = ordered.new_tensor([math.comb(s, k - 1) / math.comb(size, k) for s in range(size)])
    rest = ordered.new_tensor([math.comb(max(0, s - 1), k - 2) if k > 1 and s else 0 for s in range(size)])
    rest = rest / math.comb(size - 1, k - 1)
    reached = ordered.unsqueeze(1) <= own  # [P, i, s]
    alone = ordered.new_tensor(
        [math.comb(max(0, s - 1), k - 1) / math.comb(size - 1, k - 1) for s in range(size + 1)]
    )
    mine = (utilities.double() - ordered[:, -1:]) * alone[reached.sum(dim=2)]
    with_i = mine + (below * rest).unsqueeze(1).masked_fill(reached, 0.0).sum(dim=2)
    overall = (below * places).sum(dim=1, keepdim=True)
    return ((with_i - overall) * (size / (size - k))).to(utilities)


def risk_sensitive(utilities: Tensor, sensitivity: float) -> Tensor:
    """``(e^{βU} / mean(e^{βU}) − 1) / β`` (RS-GRPO, Jiang et al. 2025, arXiv 2509.24261).

    The policy gradient of ``log E[e^{βU}] / β``, which lies between the mean (β → 0) and the best utility (β → ∞).
    """
    share = torch.softmax(sensitivity * utilities, dim=1) * utilities.shape[1]
    return torch.where(has_spread(utilities).unsqueeze(1), (share - 1.0) / sensitivity, 0.0)


@dataclass(frozen=True)
class PassAtK:
    """`pass_at_k` with its k."""

    k: int = 4

    @property
    def least_size(self) -> int:
        """A group with fewer scored completions has no subset of k, and no signal."""
        return self.k

    def __call__(self, utilities: Tensor) -> Tensor:
        return pass_at_k(utilities, self.k)


@dataclass(frozen=True)
class MaxAtK:
    """`max_at_k` with its k."""

    k: int = 4
    within: bool = False

    @property
    def least_size(self) -> int:
        """A group with fewer scored completions has no sets to compare, and no signal."""
        return self.k if self.within else self.k + 1

    def __call__(self, utilities: Tensor) -> Tensor:
        return max_at_k(utilities, self.k, within=self.within)


@dataclass(frozen=True)
class RiskSensitive:
    """`risk_sensitive` with its β."""

    sensitivity: float = 2.0
    """Positive seeks, negative avoids risk; 0 is the limit of plain advantages."""

    def __call__(self, utilities: Tensor) -> Tensor:
        return risk_sensitive(utilities, self.sensitivity)


@dataclass(frozen=True)
class GroupAdvantages:
    """The advantages of an objective: of which kind, over what, and of which sign."""

    kind: Advantage = dr_grpo
    scale: Scale = over_group_std
    positive_only: bool = False
    """Drop negative advantages: a control that only imitates what went well."""

    @property
    def reads(self) -> Reads:
        """What of a batch they are computed from."""
        if isinstance(self.kind, PassAtK):
            return "right"
        return "correctness" if self.kind is maxrl else "utilities"

    def __call__(
        self, utilities: Tensor, utility_std: UtilityStd | None = None, scored: Tensor | None = None
    ) -> Tensor:
        """Utilities [P, G] → advantages [P, G], exactly 0 in groups without spread and where not ``scored``."""
        if (
            scored is not None and utility_std is None
        ):  # of the batch, where `kind` and `scale` see a part of it
            known = utilities.masked_fill(~scored, math.nan)

            def utility_std() -> Tensor:
                return std_over_batch(known)

        whole = utilities.shape[1]
        return within_scored(lambda given: self._within(given, utility_std, whole), scored, utilities)

    def _within(self, utilities: Tensor, utility_std: UtilityStd | None, whole: int) -> Tensor:
        """Groups of one size, up to that of ``whole`` ones."""
        if utilities.shape[1] < min(whole, getattr(self.kind, "least_size", 1)):
            return torch.zeros_like(utilities)
        values = torch.where(has_spread(utilities).unsqueeze(1), self.kind(utilities), 0.0)
        values = self.scale(values, utilities, utility_std)
        return values.clamp(min=0.0) if self.positive_only else values
