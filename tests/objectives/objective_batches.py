"""Ragged batches in float64 whose padding is NaN everywhere: whatever reads it spoils the result."""

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from maxent_grpo.objectives.catalog import CATALOG, ObjectiveSpec
from maxent_grpo.stats import Metrics
from maxent_grpo.types import Batch, Denominators, Forward, Signal, consecutive

Part = TypeVar("Part", Batch, Signal)

MAX_LENGTH = 11
TESTED: dict[str, ObjectiveSpec] = CATALOG | {
    # Published settings that would be without effect in groups of 3 completions of at most 7 tokens.
    "pass_at_k": CATALOG["pass_at_k"].with_settings(pass_k=2),
    "max_at_k": CATALOG["max_at_k"].with_settings(max_k=2),
    "pkpo": CATALOG["pkpo"].with_settings(max_k=2),
    "poly_epo": CATALOG["poly_epo"].with_settings(poly_epo_size=2),
    "clip_cov": CATALOG["clip_cov"].with_settings(
        clip_cov_fraction=0.3, clip_cov_low=0.05, clip_cov_high=0.6
    ),
    "kl_cov": CATALOG["kl_cov"].with_settings(kl_cov_fraction=0.3),
    "cispo": CATALOG["cispo"].with_settings(epsilon_high=1.3),
    "seed_grpo": CATALOG["seed_grpo"].with_settings(seed_grpo_alpha=0.8),
    "flowrl": CATALOG["flowrl"].with_settings(flow_reward_scale=0.7),
}
"""The catalog, with numbers that matter on the batches made here."""
TELLS_ANSWERS = ("mode_entropy", "gapo", "poly_epo", "semantic_maxent", "setpo", "pcmd")
"""Objectives for which completions of equal rewards differ by their answers."""
SELECTS_TOKENS = ("clip_cov", "top_entropy")
"""Objectives that drop tokens, so that no advantage per completion gives their gradient."""
LENGTHS = [5, 1, 3, 7, 2, 2, 4, 6, 1, 7, 3, 5]


def make_batch(
    groups: int = 4,
    group_size: int = 3,
    utilities: Tensor | None = None,
    seed: int = 3,
    width: int = 7,
    dtype: torch.dtype = torch.float64,
) -> tuple[Batch, Forward]:
    """A batch with reference and old log-probs, and a forward whose ``logps`` and ``entropy`` are leaves."""
    draw = torch.Generator().manual_seed(seed)
    rows = groups * group_size
    lengths = torch.tensor((LENGTHS * 10)[:rows])
    mask = torch.arange(width) < lengths[:, None]

    def ragged(values: Tensor) -> Tensor:
        padded = torch.full((rows, width), torch.nan, dtype=torch.float64)
        padded[:, : values.shape[1]] = values
        return torch.where(mask, padded, torch.nan).to(dtype)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(rows, 7, generator=draw, dtype=torch.float64)

    base = -3.0 * torch.rand(rows, 7, generator=draw, dtype=torch.float64) - 0.2
    if utilities is None:
        utilities = torch.randint(0, 3, (groups, group_size), generator=draw).to(dtype) / 2
        utilities[0] = torch.arange(group_size)  # at least one group with spread
        utilities[-1] = 0.1  # and one without, whose mean rounds
    behaviour, reference = ragged(base + noise(0.1)), ragged(base + noise(0.5))
    logps = ragged(base + noise(0.5)).requires_grad_()
    entropy = ragged(noise(1.0).abs()).requires_grad_()
    batch = Batch(
        prompt_ids=torch.ones(groups, 2, dtype=torch.int64),
        prompt_mask=torch.ones(groups, 2, dtype=torch.bool),
        completion_ids=torch.zeros(rows, width, dtype=torch.int64),
        completion_mask=mask,
        behaviour_logps=behaviour,
        utilities=utilities,
        reference_logps=reference,
        old_logps=ragged(base),
        answer_clusters=torch.randint(0, 2, (groups, group_size), generator=draw),
        mode_counts=torch.arange(1, groups + 1),
        modes=torch.randint(0, 2, (groups, group_size), generator=draw).where(utilities > 0, -1),
        mode_history=torch.tensor([[3, 0], [0, 1], [0, 0], [2, 2]]).repeat(groups // 4 + 1, 1)[:groups],
    )
    return batch, Forward(logps, entropy)


def split(whole: Part, groups: int) -> Iterator[Part]:
    """Consecutive parts of at most ``groups`` whole groups of a batch or a signal."""
    count = (whole.utilities if isinstance(whole, Batch) else whole.advantages).shape[0]
    for part in consecutive(count, groups):
        yield whole.select(part)


def denominators(batch: Batch) -> Denominators:
    """The counts of a batch that is the whole optimiser batch."""
    groups, group_size = batch.utilities.shape
    return Denominators(groups, groups * group_size, float(batch.completion_mask.sum()), MAX_LENGTH)


def total(parts: list[Metrics]) -> dict[str, float]:
    """Metrics of the whole from those of its parts."""
    result = {}
    for name in {name for part in parts for name in part}:
        stats = [part[name] for part in parts if name in part]
        values = torch.stack([stat.value for stat in stats])
        match stats[0].kind:
            case "mean":
                result[name] = float(values.sum() / torch.stack([stat.weight for stat in stats]).sum())
            case "sum":
                result[name] = float(values.sum())
            case "min":
                result[name] = float(values.min())
            case "max":
                result[name] = float(values.max())
    return result


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    """d loss / d leaf; 0 where the loss does not depend on it."""
    (grad,) = torch.autograd.grad(loss, leaf, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if grad is None else grad
