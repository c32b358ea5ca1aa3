from dataclasses import replace

import pytest
import torch

from maxent_grpo.models.logps import completion_logps, from_logits, left_padded
from maxent_grpo.types import Batch

PROMPTS = [(5, 6, 7, 8, 9, 10, 11), (12, 13), (20, 21, 22, 23)]
COMPLETIONS = [(30, 31, 32), (33,), (34, 35, 36, 37, 38), (39, 40), (41, 42, 43), (44, 45)]


def make_batch(extra_left: int = 0, extra_right: int = 0) -> Batch:
    prompt_ids, prompt_mask = left_padded(
        [*PROMPTS, (0,) * (7 + extra_left)] if extra_left else PROMPTS, pad_id=0
    )
    width = max(map(len, COMPLETIONS)) + extra_right
    ids = torch.tensor([list(c) + [0] * (width - len(c)) for c in COMPLETIONS])
    mask = torch.tensor([[True] * len(c) + [False] * (width - len(c)) for c in COMPLETIONS])
    return Batch(prompt_ids[:3], prompt_mask[:3], ids, mask, torch.zeros(ids.shape), torch.zeros(3, 2))


def one_by_one(model, temperature: float) -> list[torch.Tensor]:
    """Log-probs from one unpadded forward per row: the oracle."""
    rows = []
    for i, completion in enumerate(COMPLETIONS):
        prompt = PROMPTS[i // 2]
        logits = (
            model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double() / temperature
        )
        rows.append(logits.log_softmax(-1).gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1))
    return rows


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("extra", [0, 4])
def test_batched_logps_equal_one_unpadded_forward_per_row(policy, shared_prefix, extra):
    policy.double()
    batch = make_batch(extra_left=extra, extra_right=extra)
    got = completion_logps(policy, batch, temperature=0.7, shared_prefix=shared_prefix).logps
    for row, (values, expected) in enumerate(zip(got, one_by_one(policy, 0.7), strict=True)):
        torch.testing.assert_close(values[: len(expected)].double(), expected, atol=2e-6, rtol=0)
        assert (values[len(COMPLETIONS[row]) :] == 0).all()


def test_shared_prefix_gradient_equals_the_plain_forward_gradient(policy):
    policy.double()
    batch = make_batch()
    gradients = []
    for shared in (True, False):
        policy.zero_grad()
        completion_logps(policy, batch, temperature=1.0, shared_prefix=shared).logps.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-6 * gradients[1].norm()


def test_entropy_is_that_of_the_distribution_and_measuring_it_costs_no_gradient():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    ids, mask = torch.randint(5, (2, 3)), torch.tensor([[True] * 3, [True, False, False]])
    measured = from_logits(logits, ids, mask, "measure").entropy
    expected = torch.distributions.Categorical(logits=logits.detach()).entropy() * mask
    torch.testing.assert_close(measured, expected)
    assert not measured.requires_grad
    assert from_logits(logits, ids, mask, "differentiate").entropy.requires_grad


def test_batch_parts_are_trimmed_and_add_up_to_the_whole(policy):
    batch = make_batch(extra_left=3, extra_right=5)
    whole = completion_logps(policy, batch, temperature=1.0).logps.sum()
    parts = [completion_logps(policy, part, temperature=1.0).logps.sum() for part in batch.split(1)]
    assert [p.prompt_ids.shape[1] for p in batch.split(1)] == [7, 2, 4]
    assert [p.completion_ids.shape[1] for p in batch.split(1)] == [3, 5, 3]
    torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-5, atol=1e-5)


def test_completions_of_one_group_may_continue_variants_of_its_prompt(policy):
    batch = make_batch()
    expected = completion_logps(policy, batch, temperature=1.0).logps
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    mixed = replace(
        batch,
        completion_ids=batch.completion_ids[order],
        completion_mask=batch.completion_mask[order],
        utilities=torch.zeros(1, 6),
        prompt_of=order // 2,
    )
    for shared in (True, False):
        got = completion_logps(policy, mixed, temperature=1.0, shared_prefix=shared).logps
        torch.testing.assert_close(got, expected[order], rtol=0, atol=2e-6)
    twice = Batch(*(torch.cat([v, v]) for v in (
        mixed.prompt_ids, mixed.prompt_mask, mixed.completion_ids, mixed.completion_mask,
        mixed.behaviour_logps, mixed.utilities)), prompt_of=torch.cat([order // 2, order // 2 + 3]))  # fmt: skip
    for part in twice.split(1):
        torch.testing.assert_close(part.prompt_rows, order // 2)
        torch.testing.assert_close(part.prompt_ids, mixed.prompt_ids)
