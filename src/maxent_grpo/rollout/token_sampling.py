"""From logits to tokens: temperature, truncation, and the point where the cumulative distribution passes a draw."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from maxent_grpo.rollout.sampler import SamplingSettings

BLOCK = 512
"""Tokens that one cumulative sum runs over. A vocabulary of 151,936 would otherwise need one in float64 per row, which
took about 14 times as long as its softmax (benchmarks/RESULTS.md)."""


def draw_tokens(logits: Tensor, draws: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """One token per row of ``logits`` [N, V] from the uniforms ``draws`` [N] in [0, 1), and its log-prob.

    Sampling follows the truncated distribution; the log-prob is that of the whole one at the sampling temperature,
    which is what the learner computes and importance ratios compare. At temperature 0 it is that at temperature 1.
    Non-finite logits give a token within the vocabulary and a NaN.
    """
    if settings.temperature == 0:  # greedy: the draws and the truncation have no say
        probabilities = logits.softmax(dim=-1)
        chosen = logits.argmax(dim=-1)
    else:
        probabilities = (logits if settings.temperature == 1 else logits / settings.temperature).softmax(
            dim=-1
        )
        chosen, _ = inverse_cdf(truncated(probabilities, settings), draws)
    return chosen, probabilities.gather(1, chosen.unsqueeze(1)).squeeze(1).log()


def inverse_cdf(mass: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """The indices [N] where the cumulative share of ``mass`` [N, V] passes ``draws`` [N]; never one without mass.

    Also how far into its own mass each draw lies, in [0, 1]: a uniform again, with which a block's draw goes on inside
    it. The masses need not add up to 1.
    """
    width = mass.shape[1]
    if width > BLOCK:
        blocks = pad(mass, (0, -width % BLOCK)).unflatten(1, (-1, BLOCK))
        block, inside = inverse_cdf(blocks.sum(dim=-1), draws)
        index, inside = inverse_cdf(blocks[torch.arange(len(block), device=mass.device), block], inside)
        return (block * BLOCK + index).clamp(max=width - 1), inside
    cumulative = mass.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1]
    target = torch.minimum(draws * total, torch.nextafter(total, torch.zeros_like(total))).unsqueeze(1)
    # Past the end only where masses are not finite: the caller sees it by the log-prob.
    index = torch.searchsorted(cumulative, target, right=True).clamp(max=width - 1)
    beyond = (cumulative.gather(1, index) - target) / mass.gather(1, index)
    return index.squeeze(1), (1 - beyond).clamp(0, 1).squeeze(1)


def truncated(probabilities: Tensor, settings: SamplingSettings) -> Tensor:
    """Probabilities [N, V] with 0 at the tokens that top-k, top-p and min-p exclude (not renormalised)."""
    if settings.top_k > 0:
        floor = probabilities.topk(min(settings.top_k, probabilities.shape[-1]), dim=-1).values[:, -1:]
        probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
    if settings.top_p < 1.0:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        ordered = ordered / ordered.sum(dim=-1, keepdim=True)
        # A token stays while the mass before it is short of top_p: the likeliest one always does.
        excluded = ordered.cumsum(dim=-1) - ordered >= settings.top_p
        probabilities = probabilities.masked_fill(torch.zeros_like(excluded).scatter(1, order, excluded), 0.0)
    if settings.min_p:
        floor = settings.min_p * probabilities.max(dim=-1, keepdim=True).values
        probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
    return probabilities
