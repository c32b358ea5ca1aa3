"""From logits to tokens."""

import numpy as np
import pytest
import torch

from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.rollout.token_sampling import BLOCK, draw_tokens, inverse_cdf, truncated


def test_draws_follow_the_policys_distribution():
    torch.manual_seed(0)
    logits = torch.randn(1, 6)
    draws = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000  # a perfect uniform grid
    tokens, logps = draw_tokens(logits.expand(20_000, 6), draws, SamplingSettings(4, 8, temperature=0.8))
    frequency = torch.bincount(tokens, minlength=6) / 20_000
    expected = (logits[0] / 0.8).softmax(-1)
    torch.testing.assert_close(frequency, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logps, expected.log()[tokens])


@pytest.mark.parametrize("width", [BLOCK, BLOCK + 1, 7 * BLOCK, BLOCK**2 + 3])
def test_a_large_vocabulary_is_drawn_from_as_by_one_cumulative_sum(width):
    generator = torch.Generator().manual_seed(width)
    mass = torch.rand(9, width, generator=generator) ** 8
    mass[torch.rand(9, width, generator=generator) < 0.7] = 0.0
    draws = torch.rand(9, generator=generator, dtype=torch.float64)
    draws[:2] = torch.tensor([0.0, 1.0 - 2**-53])
    chosen, inside = inverse_cdf(mass, draws)
    for row, (index, draw) in enumerate(zip(chosen.tolist(), draws.tolist(), strict=True)):
        share = np.cumsum(mass[row].double().numpy())
        share /= share[-1]
        assert mass[row, index] > 0
        # Blocks are summed in float32: a draw that close to a border may fall on its other side.
        assert (share[index - 1] if index else 0.0) - 1e-6 <= draw <= share[index] + 1e-6
    assert bool(((inside >= 0) & (inside <= 1)).all())


def test_draws_over_blocks_follow_the_distribution():
    probabilities = torch.randn(1, 3 * BLOCK, generator=torch.Generator().manual_seed(0)).softmax(-1)
    draws = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    chosen = torch.cat([inverse_cdf(probabilities.expand(len(d), -1), d)[0] for d in draws.split(5_000)])
    frequency = torch.bincount(chosen, minlength=3 * BLOCK) / 200_000
    torch.testing.assert_close(frequency, probabilities[0], atol=6e-6, rtol=0)


def test_truncation_keeps_the_tokens_that_it_names():
    probabilities = torch.tensor([[0.5, 0.25, 0.15, 0.1]])
    kept = lambda **options: (truncated(probabilities, SamplingSettings(4, 8, **options)) > 0)[0].tolist()  # noqa: E731
    assert kept() == [True] * 4
    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_p=0.5) == [True, False, False, False]
    assert kept(top_p=0.51) == [True, True, False, False]
    assert kept(top_p=0.01) == [True, False, False, False]
    assert kept(min_p=0.3) == [True, True, True, False]


def test_temperature_zero_takes_the_likeliest_token_whatever_the_draw_and_the_truncation():
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    settings = SamplingSettings(4, 8, temperature=0.0, top_p=0.1, top_k=3)
    for draw in (0.0, 0.5, 1.0):
        chosen, logps = draw_tokens(logits, torch.full((50,), draw, dtype=torch.float64), settings)
        assert chosen.equal(logits.argmax(dim=-1))
        torch.testing.assert_close(logps, logits.log_softmax(dim=-1).max(dim=-1).values)


@pytest.mark.parametrize("width", [6, 3 * BLOCK])
def test_logits_that_are_not_finite_give_a_token_and_no_log_prob(width):
    logits = torch.zeros(2, width)
    logits[0, 3] = torch.nan
    tokens, logps = draw_tokens(logits, torch.tensor([0.9, 0.9], dtype=torch.float64), SamplingSettings(4, 8))
    assert 0 <= int(tokens[0]) < width
    assert torch.isnan(logps).tolist() == [True, False]
