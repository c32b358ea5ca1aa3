"""The chunked head equals logits → log-softmax, in value and gradient, whatever the chunks, and never holds [M, V]."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maxent_grpo.models import lm_head
from maxent_grpo.models.lm_head import LogitScale, logps_of_logits, token_logps

M, D, V = 7, 5, 11


def make_head(bias: bool, vocabulary: int = V, width: int = D) -> torch.nn.Linear:
    head = torch.nn.Linear(width, vocabulary, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        head.weight.mul_(5)
    return head


def naive(hidden, head, ids, temperature, scale, entropy):
    logits = scale.factor * head(hidden)
    if scale.cap is not None:
        logits = scale.cap * torch.tanh(logits / scale.cap)
    return logps_of_logits(logits, ids, temperature, entropy)


@pytest.fixture(params=["kept", "made again"])
def memory(request, monkeypatch):
    """Two tokens a chunk, with and without keeping the probabilities."""
    monkeypatch.setattr(lm_head, "LEAST_CHUNK", 2)
    monkeypatch.setattr(lm_head, "CHUNK_BYTES", {"cpu": 1})
    if request.param == "made again":
        monkeypatch.setattr(lm_head, "KEEP_BYTES", 0)


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("entropy", ["none", "measure", "differentiate"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [LogitScale(), LogitScale(0.3), LogitScale(2.0, 1.5)], ids=str)
def test_values_and_gradients_equal_the_definition(entropy, bias, scale):
    torch.manual_seed(0)
    head, ids = make_head(bias), torch.randint(V, (M,))
    hidden = torch.randn(M, D, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, M, dtype=torch.float64)
    results = []
    for compute in (
        lambda: token_logps(hidden, head, ids, temperature=0.7, scale=scale, entropy=entropy),
        lambda: naive(hidden, head, ids, 0.7, scale, entropy),
    ):
        logps, entropies = compute()
        loss = (logps * upstream[0]).sum()
        if entropy == "differentiate":
            loss = loss + (entropies * upstream[1]).sum()
        leaves = [hidden, *head.parameters()]
        results.append((logps, entropies, torch.autograd.grad(loss, leaves)))
    (logps, entropies, gradients), (wanted, wanted_entropies, wanted_gradients) = results
    torch.testing.assert_close(logps, wanted, atol=1e-12, rtol=0)
    if entropy == "none":
        assert entropies is None
    else:
        assert entropies.requires_grad == (entropy == "differentiate")
        torch.testing.assert_close(entropies, wanted_entropies.detach(), atol=1e-12, rtol=0)
    for gradient, wanted in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-11, rtol=0)


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("scale", [LogitScale(), LogitScale(2.0, 1.5)], ids=str)
def test_gradcheck(scale):
    torch.manual_seed(1)
    head, ids = make_head(True), torch.randint(V, (M,))
    hidden = torch.randn(M, D, dtype=torch.float64, requires_grad=True)

    def both(hidden, weight, bias):
        return lm_head._TokenLogps.apply(
            hidden, weight, bias, ids, 0.7, scale, "differentiate", torch.float64, True
        )

    assert torch.autograd.gradcheck(both, (hidden, head.weight, head.bias))


def test_a_graph_that_is_kept_can_be_gone_through_twice():
    torch.manual_seed(2)
    head, ids = make_head(False), torch.randint(V, (M,))
    hidden = torch.randn(M, D, dtype=torch.float64, requires_grad=True)
    logps, _ = token_logps(hidden, head, ids)
    first = torch.autograd.grad(logps.sum(), hidden, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(logps.sum(), hidden)[0], first)


def test_a_frozen_head_gets_no_gradient_and_no_grad_keeps_nothing():
    torch.manual_seed(3)
    head, ids = make_head(True).requires_grad_(False), torch.randint(V, (M,))
    hidden = torch.randn(M, D, dtype=torch.float64, requires_grad=True)
    token_logps(hidden, head, ids)[0].sum().backward()
    assert hidden.grad.abs().sum() > 0
    assert head.weight.grad is None


def test_nothing_is_kept_where_nothing_is_learnt(monkeypatch):
    monkeypatch.setattr(lm_head, "LEAST_CHUNK", 2)
    monkeypatch.setattr(lm_head, "CHUNK_BYTES", {"cpu": 1})
    head, hidden = make_head(False, vocabulary=1000), torch.randn(M, D, dtype=torch.float64)
    with torch.no_grad(), LargestTensor() as seen:
        token_logps(hidden, head, torch.zeros(M, dtype=torch.long))
    assert seen.bytes < M * 1000 * 8  # the weight is larger than a chunk here


def test_extreme_logits_stay_finite():
    head = torch.nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1e4], [0.0], [-1e4]]))
    hidden = torch.ones(3, 1, requires_grad=True)
    logps, entropy = token_logps(hidden, head, torch.tensor([0, 1, 2]), entropy="differentiate")
    assert logps.tolist() == [0.0, -1e4, -2e4]
    assert entropy.tolist() == [0.0, 0.0, 0.0]
    (logps.sum() + entropy.sum()).backward()
    assert torch.isfinite(hidden.grad).all()


class LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest tensor that any operation gives."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("entropy", ["measure", "differentiate"])
def test_a_vocabulary_of_151936_needs_no_more_memory_for_longer_completions(entropy, monkeypatch):
    head, largest = torch.nn.Linear(4, 151_936, bias=False), []
    monkeypatch.setattr(lm_head, "KEEP_BYTES", 2**26)
    for tokens in (128, 256):
        hidden, ids = torch.randn(tokens, 4, requires_grad=True), torch.randint(151_936, (tokens,))
        with LargestTensor() as seen:
            logps, entropies = token_logps(hidden, head, ids, entropy=entropy)
            (logps.sum() + (entropies.sum() if entropy == "differentiate" else 0.0)).backward()
        largest.append(seen.bytes)
    assert largest[0] == largest[1] == lm_head.LEAST_CHUNK * 151_936 * 4
