"""Whatever way a batch takes through the model, log-probs, entropies, pooled states and gradients are the same."""

from dataclasses import replace

import pytest
import torch
import transformers

from maxent_grpo.models import prefix_attention
from maxent_grpo.models.packing import cheapest_cuts, left_padded, pack
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.types import Batch

PROMPTS = [(5, 6, 7, 8, 9, 10, 11), (12, 13), (20, 21, 22, 23)]
COMPLETIONS = [(30, 31, 32), (33,), (34, 35, 36, 37, 38), (39, 40), (41, 42, 43), (44, 45)]


@pytest.fixture
def policy(policy):
    """In float64 throughout: Transformers' own norm computes in float32 whatever it is given."""
    for module in list(policy.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "Qwen2RMSNorm":
                setattr(module, name, torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon))
    return policy


def make_batch(extra_left: int = 0, extra_right: int = 0) -> Batch:
    prompt_ids, prompt_mask = left_padded(
        [*PROMPTS, (0,) * (7 + extra_left)] if extra_left else PROMPTS, pad_id=0
    )
    width = max(map(len, COMPLETIONS)) + extra_right
    ids = torch.tensor([list(c) + [0] * (width - len(c)) for c in COMPLETIONS])
    mask = torch.tensor([[True] * len(c) + [False] * (width - len(c)) for c in COMPLETIONS])
    return Batch(prompt_ids[:3], prompt_mask[:3], ids, mask, torch.zeros(ids.shape), torch.zeros(3, 2))


def one_by_one(model, temperature: float, batch: Batch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Log-probs and last hidden states of each row's completion, from one unpadded forward per row: the oracle."""
    logps, states = [], []
    for i, prompt_row in enumerate(batch.prompt_rows.tolist()):
        prompt = batch.prompt_ids[prompt_row][batch.prompt_mask[prompt_row]]
        completion = batch.completion_ids[i][batch.completion_mask[i]]
        out = model(torch.cat([prompt, completion])[None], output_hidden_states=True)
        logits = out.logits[0, len(prompt) - 1 : -1] / temperature
        logps.append(logits.log_softmax(-1).gather(1, completion.unsqueeze(1)).squeeze(1))
        states.append(out.hidden_states[-1][0, len(prompt) - 1 : -1])
    return logps, states


def with_variants(batch: Batch) -> Batch:
    """One group of six over three variants of its prompt, its rows in a mixed order."""
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    return replace(
        batch,
        completion_ids=batch.completion_ids[order],
        completion_mask=batch.completion_mask[order],
        utilities=torch.zeros(1, 6),
        prompt_of=order // 2,
    )


def gradient(model) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return found


WAYS = [frozenset(), frozenset({"packed"}), frozenset({"head"}), frozenset({"packed", "head"})]
BATCHES = {
    "ragged": make_batch(),
    "more padding": make_batch(extra_left=4, extra_right=4),
    "prompt variants": with_variants(make_batch()),
    "one completion token each": make_batch().select([0]),
}
BATCHES["one completion token each"] = replace(
    BATCHES["one completion token each"],
    completion_ids=BATCHES["one completion token each"].completion_ids[:, :1],
    completion_mask=BATCHES["one completion token each"].completion_mask[:, :1],
    behaviour_logps=torch.zeros(2, 1),
)


@pytest.mark.parametrize("ways", WAYS, ids=lambda ways: "+".join(sorted(ways)) or "plain")
@pytest.mark.parametrize("name", BATCHES)
def test_logps_and_gradient_equal_one_unpadded_forward_per_row(policy, ways, name):
    batch, forward = BATCHES[name], PolicyForward(policy.double(), temperature=0.7)
    assert forward.shortcuts == {"packed", "head"}
    assert not forward.obstacles
    forward.shortcuts = ways
    draw = torch.Generator().manual_seed(1)
    upstream = torch.randn(batch.completion_mask.shape, generator=draw, dtype=torch.float64)
    expected, _ = one_by_one(policy, 0.7, batch)
    sum((logps * upstream[i, : len(logps)]).sum() for i, logps in enumerate(expected)).backward()
    expected_gradient = gradient(policy)
    got = forward(batch)[0]
    (got * upstream).sum().backward()
    for row, values in zip(got, expected, strict=True):
        torch.testing.assert_close(row[: len(values)], values, atol=1e-10, rtol=0)
        assert (row[len(values) :] == 0).all()
    assert (gradient(policy) - expected_gradient).norm() <= 1e-10 * expected_gradient.norm()


@pytest.mark.parametrize("ways", WAYS[1:], ids=lambda ways: "+".join(sorted(ways)))
def test_entropy_and_its_gradient_are_those_of_the_plain_forward(policy, ways):
    forward, batch = PolicyForward(policy.double(), temperature=0.7), make_batch()
    found = []
    for chosen in (frozenset(), ways):
        forward.shortcuts = chosen
        logps, entropy, _, _ = forward(batch, "differentiate")
        (logps.sum() + 0.3 * entropy.square().sum()).backward()
        found.append((entropy.detach(), gradient(policy)))
        assert not forward(batch, "measure")[1].requires_grad
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-10, rtol=0)
    assert (found[1][1] - found[0][1]).norm() <= 1e-10 * found[0][1].norm()
    assert forward(batch)[1] is None


@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize("ways", WAYS, ids=lambda ways: "+".join(sorted(ways)) or "plain")
def test_pooled_states_are_those_that_predict_the_completion(policy, ways, pool):
    forward, batch = PolicyForward(policy.double(), pool=pool), with_variants(make_batch(extra_right=2))
    forward.shortcuts = ways
    _, states = one_by_one(policy, 1.0, batch)
    expected = torch.stack([s.mean(dim=0) if pool == "mean" else s[-1] for s in states])
    expected.square().sum().backward()
    expected_gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
    policy.zero_grad()
    got = forward(batch)[2]
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)
    got.square().sum().backward()
    found = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
    assert (found - expected_gradient).norm() <= 1e-10 * expected_gradient.norm()


def test_the_attention_for_other_devices_is_the_same_function(policy, monkeypatch):
    forward, batch = PolicyForward(policy.double()), make_batch()
    found = []
    for function in (prefix_attention._PrefixAttention.apply, prefix_attention.expanded_attention):
        monkeypatch.setattr(prefix_attention._PrefixAttention, "apply", function)
        logps = forward(batch)[0]
        logps.square().sum().backward()
        found.append((logps.detach(), gradient(policy)))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-12, rtol=0)
    assert (found[1][1] - found[0][1]).norm() <= 1e-12 * found[0][1].norm()


def test_a_packed_batch_holds_every_prompt_once_and_nothing_that_predicts_nothing():
    packing = pack(make_batch(extra_left=3, extra_right=5))
    assert packing.ids.numel() == sum(map(len, PROMPTS)) + sum(len(c) - 1 for c in COMPLETIONS)
    assert packing.predicting.numel() == sum(map(len, COMPLETIONS))


def test_sequences_are_padded_only_where_a_call_costs_more():
    assert cheapest_cuts((3, 3, 3, 4)) == (4,)
    assert cheapest_cuts((10,) * 6 + (1000,) * 2) == (6, 2)
    assert cheapest_cuts(()) == ()
    lengths = tuple(range(1, 400))
    assert sum(cheapest_cuts(lengths)) == 399

    def cost(sizes: tuple[int, ...]) -> int:
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        widths = [lengths[end - 1] for end in ends]
        return sum(n * w * (w + 40) + 5000 for n, w in zip(sizes, widths, strict=True))

    assert cost(cheapest_cuts(lengths)) < min(cost((399,)), cost((1,) * 399), cost((200, 199)))

    def cost(sizes: tuple[int, ...]) -> int:
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return sum(
            size * lengths[end - 1] * (lengths[end - 1] + 40) + 5000
            for size, end in zip(sizes, ends, strict=True)
        )

    assert cost(cheapest_cuts(lengths)) < min(cost((399,)), cost((1,) * 399), cost((200, 199)))


def test_activation_checkpointing_keeps_the_shortcuts_and_the_gradient(policy):
    forward, batch = PolicyForward(policy.double()), make_batch()
    found = []
    for _ in range(2):
        forward(batch)[0].square().sum().backward()
        found.append(gradient(policy))
        policy.train().gradient_checkpointing_enable({"use_reentrant": False})
    assert (found[1] - found[0]).norm() <= 1e-12 * found[0].norm()


def test_bfloat16_autocast_stays_near_float32_and_sums_in_float32(policy):
    forward, batch = PolicyForward(policy), make_batch()
    exact, exact_entropy, _, _ = forward(batch, "differentiate")
    with torch.autocast("cpu", torch.bfloat16):
        logps, entropy, _, _ = forward(batch, "differentiate")
        forward.shortcuts = frozenset()
        plain = forward(batch)[0]
    assert logps.dtype == entropy.dtype == torch.float32
    error = (logps - exact).abs().max()
    assert 0 < error <= 2 * max((plain - exact).abs().max(), torch.tensor(0.05))
    (logps.sum() + entropy.sum()).backward()
    (rounded, rounded_head) = (gradient_of(policy.model), policy.lm_head.weight.grad.clone())
    policy.zero_grad()
    (exact.sum() + exact_entropy.sum()).backward()
    assert rounded_head.dtype == torch.float32
    assert (rounded_head - policy.lm_head.weight.grad).norm() <= 0.1 * rounded_head.norm()
    assert (rounded - gradient_of(policy.model)).norm() <= 0.2 * rounded.norm()


def gradient_of(module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def test_a_model_that_scales_its_logits_in_a_way_we_do_not_know_makes_them_itself(policy):
    policy.lm_head.register_forward_hook(lambda module, inputs, logits: 3 * logits)
    forward = PolicyForward(policy.double())
    assert forward.shortcuts == {"packed"}
    assert "differ" in forward.obstacles["head"]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Gemma2", {"final_logit_softcapping": 3.0, "sliding_window": 64}),
        ("Cohere", {"logit_scale": 0.3}),
        ("Granite", {"logits_scaling": 5.0}),
        ("Llama", {"attention_bias": True}),
        ("GPT2", {}),
    ],
)
def test_architectures_that_scale_logits_or_limit_attention_give_their_own_log_probs(family, settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
    if family != "GPT2":
        sizes |= {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
    config = getattr(transformers, f"{family}Config")(**sizes, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    model = model.double().eval()
    forward, batch = PolicyForward(model, temperature=0.7), make_batch()
    assert "head" in forward.shortcuts
    assert ("packed" in forward.shortcuts) == (family != "Gemma2"), forward.obstacles
    expected, _ = one_by_one(model, 0.7, batch)
    got = forward(batch)[0]
    for row, values in zip(got, expected, strict=True):
        torch.testing.assert_close(row[: len(values)], values, atol=1e-6, rtol=0)
    got.sum().backward()
    found = gradient(model)
    sum(v.sum() for v in expected).backward()
    assert (gradient(model) - found).norm() <= 1e-6 * found.norm()  # Transformers' norms compute in float32


def test_an_attention_that_is_not_sdpa_is_left_as_it_is(policy):
    policy.set_attn_implementation("eager")
    forward = PolicyForward(policy.double())
    assert forward.shortcuts == {"head"}
    assert "eager" in forward.obstacles["packed"]
    assert policy.config._attn_implementation == "eager"


def test_lora_adapters_take_part(policy):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        policy.double(), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    forward, batch = PolicyForward(adapted), make_batch()
    assert forward.shortcuts == {"packed", "head"}
    expected, _ = one_by_one(adapted, 1.0, batch)
    got = forward(batch)[0]
    torch.testing.assert_close(got[batch.completion_mask], torch.cat(expected), atol=1e-10, rtol=0)
    with adapted.disable_adapter():
        assert (forward(batch)[0] - got).abs().max() > 1e-3
    got.sum().backward()
    assert all((p.grad is not None and p.grad.any()) == p.requires_grad for p in adapted.parameters())


def test_batch_parts_are_trimmed_and_add_up_to_the_whole(policy):
    batch, forward = make_batch(extra_left=3, extra_right=5), PolicyForward(policy)
    whole = forward(batch)[0].sum()
    parts = [batch.select([group]) for group in range(3)]
    assert [p.prompt_ids.shape[1] for p in parts] == [7, 2, 4]
    assert [p.completion_ids.shape[1] for p in parts] == [3, 5, 3]
    sums = torch.stack([forward(part)[0].sum() for part in parts])
    torch.testing.assert_close(sums.sum(), whole, rtol=1e-5, atol=1e-5)
    assert batch.group_tokens.tolist() == [7 + 4, 2 + 7, 4 + 5]


def test_selected_groups_bring_their_prompt_variants_along():
    mixed = with_variants(make_batch())
    order = mixed.prompt_of
    names = (
        "prompt_ids",
        "prompt_mask",
        "completion_ids",
        "completion_mask",
        "behaviour_logps",
        "utilities",
    )
    twice = Batch(
        *(torch.cat([getattr(mixed, n), getattr(mixed, n)]) for n in names),
        prompt_of=torch.cat([order, order + 3]),
    )
    twice = replace(twice, prompt_ids=twice.prompt_ids + 10 * (torch.arange(6) >= 3).long()[:, None])
    for part in (twice.select([0]), twice.select([1])):
        torch.testing.assert_close(part.prompt_rows, order)
    swapped = twice.select([1, 0])
    torch.testing.assert_close(swapped.prompt_rows, torch.cat([order, order + 3]))
    torch.testing.assert_close(swapped.prompt_ids[:3], mixed.prompt_ids + 10)
