"""Credit for which right answer it is: rewards and advantages by the answers of a group's right completions.

`GAPO` and `PolyEPO` say what a completion's answer is worth before the group is centred; `UCPO`, `SemanticMaxEnt`,
`PCMD` and `SetPO` change the advantages afterwards. All are without gradient, the same for all tokens of a completion,
made of one group, and exactly 0 where there is nothing to tell apart. Answers are `Batch.modes`: numbers within a
prompt, −1 for a completion that is not right or has no key.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from maxent_grpo.errors import RunError
from maxent_grpo.named import find_named
from maxent_grpo.objectives.advantages import RIGHT
from maxent_grpo.objectives.parts import Credit, Shaping
from maxent_grpo.objectives.reduce import sequence_scores, within_scored
from maxent_grpo.types import Batch, Group, Knobs

Kernel = Callable[[Batch], Tensor]
"""A batch → similarities [P, G, G] of the completions of a group, in [0, 1], symmetric, 1 on the diagonal."""

LEAST_SHARE = 1e-6
"""Floor of the shares that UCPO divides by, as in the authors' code."""


def same_answers(modes: Tensor) -> Tensor:
    """Whether completions i and j of a group gave one right answer: [P, G] → [P, G, G] bool."""
    return (modes.unsqueeze(2) == modes.unsqueeze(1)) & (modes >= 0).unsqueeze(1)


def gapo(modes: Tensor, known: Tensor, *, unit: bool) -> Tensor:
    """``1 − (f − 1/L)`` for a right completion, −1 for a wrong one (GAPO, 2025, arXiv 2511.12596): [P, G].

    f is the share of its answer among the group's right ones and L how many answers are right, so that even shares earn
    1 each. ``unit`` maps this to [0, 1] and more, ``(R + 1) / 2``, as ModeBench has it for Dr. GRPO: wrong ones earn 0.

    Args:
        modes: [P, G] int64, −1 for the wrong ones alone.
        known: [P] L, at least 1.
    """
    right = modes >= 0
    share = same_answers(modes).sum(dim=2).double() / right.sum(dim=1, keepdim=True).clamp(min=1)
    reward = torch.where(right, 1.0 - (share - 1.0 / known.double().unsqueeze(1)), -1.0)
    return (reward + 1.0) / 2.0 if unit else reward


def poly_epo(utilities: Tensor, modes: Tensor, size: int) -> Tensor:
    """The mean of ``f(S) = mean utility of S × (different right answers in S) / n`` over the sets S of n with i.

    Poly-EPO (2026, arXiv 2604.17654) over verified answers: its advantage, this less the mean of f over all sets, is
    what centring makes of it, as the mean of these values over a group is that mean. Closed form: two completions are
    in S with known chances, and so is a third that gives an answer. Completions without an answer are in sets and
    count for none; n = 1 gives a right completion its utility.

    Args:
        utilities: [P, G].
        modes: [P, G] int64.
        size: n, at least 1.

    Raises:
        RunError: n above the group size.
    """
    group = utilities.shape[1]
    if size > group:
        raise RunError(f"poly_epo_size={size} is above the {group} completions of a group; lower it")
    same = same_answers(modes)
    first = same.to(torch.int8).argmax(
        dim=2
    )  # an answer goes by the number of the first completion that gave it
    gave = functional.one_hot(first, group).bool() & (modes >= 0).unsqueeze(2)  # [P, i, c]
    counts = gave.sum(dim=1)  # [P, c]
    either = gave.unsqueeze(2) | gave.unsqueeze(1)  # [P, i, j, c]
    alone = torch.eye(group, dtype=torch.bool, device=modes.device)
    by_one, by_two = (_found(group, size, given).to(modes.device)[counts] for given in (1, 2))
    by_others = torch.where(alone.unsqueeze(2), by_one[:, None, None], by_two[:, None, None])
    found = torch.where(either, 1.0, by_others)
    different = found.sort(dim=3).values.sum(dim=3)  # sorted: the same summands have the same sum, to the bit
    together = alone.double().masked_fill(~alone, (size - 1) / max(1, group - 1))
    shares = together * utilities.double().unsqueeze(1) * different / size**2
    return shares.sort(dim=2).values.sum(dim=2).to(utilities)


def _found(group: int, size: int, given: int) -> Tensor:
    """The chance that a set of ``size`` holds one of c completions, none of them ``given`` in it: [G + 1], by c."""
    others, places = group - given, size - given
    if places < 0:
        return torch.zeros(group + 1, dtype=torch.float64)
    chances = [
        1.0 - math.comb(max(0, others - c), places) / math.comb(others, places) for c in range(group + 1)
    ]
    return torch.tensor(chances, dtype=torch.float64)


def ucpo(advantages: Tensor, scores: Tensor, right: Tensor, tau: float, *, floor: float = 0.0) -> Tensor:
    """``A·((1 − τ) + τ·n₊·v)`` for the right completions (UCPO, 2026, arXiv 2605.00365): [P, G].

    ``v ∝ 1/q̂`` with q̂ the softmax of the right ones' scores: of equal advantages the less likely ones get more, and
    their sum stays. Wrong completions, and a right one by itself, keep theirs.

    Args:
        advantages: [P, G].
        scores: [P, G] log-probs of the completions under the policy that sampled them, whole or per token.
        right: [P, G] bool.
        tau: in [0, 1]; 0 changes nothing.
        floor: least q̂ that is divided by.
    """
    number = right.sum(dim=1, keepdim=True)
    log_share = torch.log_softmax(scores.double().masked_fill(~right, -math.inf), dim=1)
    if floor > 0:
        log_share = log_share.clamp(min=math.log(floor))
    share = torch.softmax((-log_share).masked_fill(~right, -math.inf), dim=1)
    changed = advantages * ((1.0 - tau) + tau * number.double() * share).to(advantages)
    return torch.where(right & (number > 1), changed, advantages)


def semantic_maxent(modes: Tensor, history: Tensor, cap: float, *, is_open: bool) -> Tensor:
    """The surprisal of a right completion's answer over what it is in the mean, by all that was found: [P, G].

    ``min(−log p̂(m), κ) − Σ p̂·min(−log p̂, κ)``, and 0 for the others. p̂ counts earlier steps and the group's other
    right completions, each answer once more (Laplace). There are two estimators in the authors' code: ``is_open`` has
    one place for all that was never found and divides by κ (`semantic_shannon`); else the answers are those of the
    history and of the whole group (`online_canonical_bank`). Not centred, and no unbiased gradient of an entropy: a
    prompt's only answer so far is pushed down a little if open, and left alone if not.

    Args:
        modes: [P, G] int64.
        history: [P, K] int64, how often earlier steps found each answer.
        cap: κ in nats, > 0.
    """
    right = modes >= 0
    given = functional.one_hot(modes.clamp(min=0), history.shape[1]) * right.unsqueeze(2)  # [P, G, K]
    known = history + given.sum(dim=1)
    times = known.unsqueeze(1) - given  # of all but i
    support = times > 0 if is_open else (known > 0).unsqueeze(1).expand_as(times)
    places = times.sum(dim=2) + support.sum(dim=2) + is_open  # [P, G]
    share = (times + 1.0).double() / places.clamp(min=1).unsqueeze(2)
    surprise = -share.log().clamp(max=0.0, min=-cap)
    expected = torch.where(support, share * surprise, 0.0).sum(dim=2)
    if is_open:
        unseen = 1.0 / places.double()
        expected = expected - unseen * unseen.log().clamp(min=-cap)
    bonus = (surprise * given).sum(dim=2) - expected
    return torch.where(right, bonus / cap if is_open else bonus, 0.0)


def pcmd_credit(modes: Tensor) -> Tensor:
    """``n₊/(n₊ − 2)·(Ĉ − f)`` for right completions with an answer, 0 for the others and where n₊ < 3: [P, G].

    f is the share of its answer among the *other* right ones and Ĉ the share of pairs of right ones that agree. It sums
    to 0, and its expected policy gradient, given n₊, is n₊/2 times the gradient of PCMD = 1 − Σ_c q_c², the chance that
    two right answers differ: diversity and nothing else.
    """
    right = modes >= 0
    number = right.sum(dim=1, keepdim=True).double()
    others = same_answers(modes).sum(dim=2).double() - 1.0
    agree = torch.where(right, others, 0.0).sum(dim=1, keepdim=True) / (number * (number - 1.0)).clamp(
        min=1.0
    )
    credit = number / (number - 2.0).clamp(min=1.0) * (agree - others / (number - 1.0).clamp(min=1.0))
    return torch.where(right & (number >= 3), credit, 0.0)


def set_marginals(kernel: Tensor, members: Tensor) -> Tensor:
    """What a set's diversity loses without one of its members (SetPO, 2026, arXiv 2602.01062): [P, G].

    ``s_i = D(Ω) − D(Ω∖{i})`` with ``D(Ω) = −mean_i log(1 + mean_j k(i, j))``, j = i among them. 0 for what is no
    member, and in a set of one or of members that are all alike. Not centred, as published.

    Args:
        kernel: [P, G, G] similarities in [0, 1].
        members: [P, G] bool, Ω.
    """
    pairs = members.unsqueeze(2) & members.unsqueeze(1)
    kernel = torch.where(pairs, kernel.double(), 0.0)
    number = members.sum(dim=1).double().view(-1, 1, 1)
    whole = torch.log1p(kernel.sum(dim=2) / number.squeeze(2).clamp(min=1.0))
    whole = -torch.where(members, whole, 0.0).sum(dim=1) / number.flatten().clamp(min=1.0)
    fewer = (number - 1.0).clamp(min=1.0)
    near = torch.log1p((kernel.sum(dim=2, keepdim=True) - kernel) / fewer)  # [P, j, i]: j's without i
    others = pairs & ~torch.eye(members.shape[1], dtype=torch.bool, device=members.device)
    without = -torch.where(others, near, 0.0).sum(dim=1) / fewer.squeeze(2)
    alike = torch.where(pairs, kernel == 1.0, True).all(dim=(1, 2)).unsqueeze(1)
    several = members.sum(dim=1, keepdim=True) > 1
    return torch.where(members & several & ~alike, whole.unsqueeze(1) - without, 0.0)


def _modes(batch: Batch, name: str) -> Tensor:
    """The answers of a batch, −1 where a completion has no utility. Raises `ValueError` where it has none."""
    if batch.modes is None:
        raise ValueError(f"{name} needs Batch.modes, and it is None")
    return batch.modes.where(batch.scored, -1)


def _right(batch: Batch) -> Tensor:
    """The right completions of a batch that have a utility: [P, G] bool."""
    return (batch.utilities >= RIGHT if batch.right is None else batch.right) & batch.scored


@dataclass(frozen=True)
class GAPO(Shaping):
    """`gapo` in place of the correctness reward's share of the utilities.

    Right completions without a key count as one more answer. L is `Batch.mode_counts`: of a prompt's ``modes`` column,
    else the different answers that its right completions gave.
    """

    unit: bool = True

    reads_logps: ClassVar[bool] = False
    reads_modes: ClassVar[bool] = True
    needs_answers: ClassVar[bool] = True

    def __call__(self, utilities: Tensor, batch: Batch, knobs: Knobs) -> Tensor:
        modes = _modes(batch, "gapo")
        if batch.mode_counts is None:
            raise ValueError("gapo needs Batch.mode_counts, and it is None")
        modes = torch.where(_right(batch) & (modes < 0), modes.amax() + 1, modes)
        rewards = gapo(modes, batch.mode_counts, unit=self.unit).to(utilities)
        rest = 0.0 if batch.correctness is None else utilities - batch.correctness
        return torch.where(batch.scored, rest + rewards, utilities)


@dataclass(frozen=True)
class PolyEPO(Shaping):
    """`poly_epo` in place of the utilities; 0 in a group with fewer than ``size`` that have one."""

    size: int

    reads_logps: ClassVar[bool] = False
    reads_modes: ClassVar[bool] = True

    def __call__(self, utilities: Tensor, batch: Batch, knobs: Knobs) -> Tensor:
        whole = utilities.shape[1]

        def of_sets(given: Tensor, modes: Tensor) -> Tensor:
            if given.shape[1] < min(whole, self.size):
                return torch.zeros_like(given)
            return poly_epo(given, modes, self.size)

        return within_scored(of_sets, batch.scored, utilities, _modes(batch, "poly_epo_size"))


@dataclass(frozen=True)
class UCPO(Credit):
    """`ucpo` by the policy that sampled."""

    coefficient: float
    per_token: bool = False
    """The authors' code, with its floor of q̂; else whole completions, as ModeBench has it."""

    reads_logps: ClassVar[bool] = True
    needs_right: ClassVar[bool] = True

    def __call__(self, advantages: Tensor, batch: Batch) -> Tensor:
        scores = sequence_scores(
            batch.behaviour_logps, batch.completion_mask, batch.group_size, self.per_token
        )
        floor = LEAST_SHARE if self.per_token else 0.0
        return ucpo(advantages, scores, _right(batch), self.coefficient, floor=floor)


@dataclass(frozen=True)
class SemanticMaxEnt(Credit):
    """``A + η·semantic_maxent``."""

    coefficient: float
    cap: float = 5.0
    is_open: bool = True

    reads_modes: ClassVar[bool] = True
    needs_mode_history: ClassVar[bool] = True

    def __call__(self, advantages: Tensor, batch: Batch) -> Tensor:
        modes = _modes(batch, "semantic_maxent_coef")
        if batch.mode_history is None:
            raise ValueError("semantic_maxent_coef needs Batch.mode_history, and it is None")
        if not batch.mode_history.shape[1]:  # nothing right was ever found
            return advantages
        bonus = semantic_maxent(modes, batch.mode_history, self.cap, is_open=self.is_open)
        return advantages + self.coefficient * bonus.to(advantages)


@dataclass(frozen=True)
class PCMD(Credit):
    """``A + λ·pcmd_credit``."""

    coefficient: float

    reads_modes: ClassVar[bool] = True

    def __call__(self, advantages: Tensor, batch: Batch) -> Tensor:
        return advantages + self.coefficient * pcmd_credit(_modes(batch, "pcmd_coef")).to(advantages)


@dataclass(frozen=True)
class SetPO(Credit):
    """``A + λ·set_marginals``: of the right answers, or of all completions by somebody's kernel.

    Raises:
        UsageError: the kernel cannot be imported.
    """

    coefficient: float
    kernel: str = "answer"
    """``answer``: 1 where the right answers are the same, over right completions with a key; else ``module:NAME``, a
    `Kernel`, over all completions."""

    def __post_init__(self) -> None:
        if self.kernel != "answer":
            self._kernel()

    @property
    def reads_modes(self) -> bool:  # type: ignore[override]
        """Whether it reads `Batch.modes`."""
        return self.kernel == "answer"

    def has_signal(self, group: Group) -> bool:
        """Whether it can tell the completions of a group apart."""
        return not self.reads_modes or super().has_signal(group)

    def _kernel(self) -> Kernel:
        found: Kernel = find_named("setpo_kernel", self.kernel, {}, "a function of a Batch", callable)
        return found

    def __call__(self, advantages: Tensor, batch: Batch) -> Tensor:
        if self.reads_modes:
            modes = _modes(batch, "setpo_kernel=answer")
            kernel, members = same_answers(modes), modes >= 0
        else:
            kernel, members = self._kernel()(batch).detach(), batch.scored
            size = (*batch.utilities.shape, batch.group_size)
            if kernel.shape != size:
                raise RunError(f"setpo_kernel: returned {[*kernel.shape]}, expected [P, G, G] = {[*size]}")
            between = kernel[members.unsqueeze(2) & members.unsqueeze(1)]
            if not bool(((between >= 0) & (between <= 1)).all()):
                raise RunError("setpo_kernel: returned similarities outside [0, 1]; clamp them")
        return advantages + self.coefficient * set_marginals(kernel, members).to(advantages)
