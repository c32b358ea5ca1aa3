"""Attention over a packed batch: each completion attends to its prompt, which is there once, and to itself.

For a completion's token the keys fall into two blocks, the prompt's and the completion's own. Softmax over both is
the two partial results weighted by their normalisers, and the gradient of a block needs the *joint* normaliser and
output only: flash attention's identity (Dao et al., 2022), used here across calls instead of across tiles. So the
prompt's keys are neither copied to the G completions nor masked, and no score matrix is kept.

The kernel is PyTorch's own on the CPU. Elsewhere (`expanded_attention`) keys are gathered per row and the joint
softmax is one `scaled_dot_product_attention`: the same numbers, with copies. What was left out: attention dropout,
sliding windows, soft-capped scores, sinks; `models.policy` sends models that have one of them another way.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from maxent_grpo.models.packing import Bucket, Packing

IMPLEMENTATION = "shared_prefix"
"""Name in Transformers' attention registry: ``sdpa``, save in a forward that brings a ``packing``."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention signature: query [1, H, N, d], key and value [1, H_kv, N, d] → [1, N, H, d]."""
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(f"attention over a packed batch has no {name}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # [N, heads, d]
    kind = q.device.type
    if torch.is_autocast_enabled(kind):  # as `scaled_dot_product_attention` does
        q, k, v = (states.to(torch.get_autocast_dtype(kind)) for states in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if kind == "cpu":
        out = _PrefixAttention.apply(q, k, v, packing, scale)
    else:
        out = expanded_attention(q, k, v, packing, scale)
    return out.unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


class _PrefixAttention(torch.autograd.Function):
    """[N, H, d] queries, keys and values → [N, H, d]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
        for bucket in (*packing.prompts, *packing.completions):
            states = (_heads_first(_take(x, bucket)) for x in (q, k, v))
            part, part_lse = _flash(*states, 0.0, True, scale=scale)
            _put(out, part.transpose(1, 2), bucket)
            _put(lse, part_lse.transpose(1, 2), bucket)
        for prefix in packing.prefixes:
            rows, prompt = prefix.rows, prefix.prompt
            part, part_lse = _flash(*_block(q[rows], k[prompt], v[prompt]), 0.0, False, scale=scale)
            part, part_lse = part[0].transpose(0, 1), part_lse[0].transpose(0, 1)  # [n, H, d], [n, H]
            joint = torch.logaddexp(lse[rows], part_lse)
            to_prompt = (part_lse - joint).exp_().unsqueeze(-1).to(out.dtype)
            out[rows] = torch.lerp(out[rows], part, to_prompt.expand_as(part))
            lse[rows] = joint
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.packing, ctx.scale = packing, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        q, k, v, out, lse = ctx.saved_tensors
        packing: Packing = ctx.packing
        dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        for bucket in (*packing.prompts, *packing.completions):
            states = [_heads_first(_take(x, bucket)) for x in (grad, q, k, v, out)]
            bucket_lse = _take(lse, bucket)
            if bucket.padding is not None:
                # An infinite normaliser makes its attention, and so its gradient, 0.
                bucket_lse = bucket_lse.masked_fill(bucket.padding.unsqueeze(-1), torch.inf)
            parts = _flash_backward(*states, bucket_lse.transpose(1, 2), 0.0, True, scale=ctx.scale)
            for total, part in zip((dq, dk, dv), parts, strict=True):
                _put(total, part.transpose(1, 2), bucket)
        for prefix in packing.prefixes:
            rows, prompt = prefix.rows, prefix.prompt
            grad_rows, q_rows, out_rows = _block(grad[rows], q[rows], out[rows])
            k_prompt, v_prompt = _block(k[prompt], v[prompt])
            joint = lse[rows].transpose(0, 1).unsqueeze(0)
            parts = _flash_backward(
                grad_rows, q_rows, k_prompt, v_prompt, out_rows, joint, 0.0, False, scale=ctx.scale
            )
            for total, span, part in zip((dq, dk, dv), (rows, prompt, prompt), parts, strict=True):
                total[span] += part[0].transpose(0, 1)
        return dq, dk, dv, None, None


def expanded_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float) -> Tensor:
    """The same by plain PyTorch, prompt keys copied to every completion: [N, H, d] → [N, H, d], differentiable."""
    out = torch.zeros_like(q)
    for bucket in packing.prompts:
        own_q, own_k, own_v = (_heads_first(_take(x, bucket)) for x in (q, k, v))
        part = scaled_dot_product_attention(own_q, own_k, own_v, is_causal=True, scale=scale).transpose(1, 2)
        out = _with(out, part, bucket)
    # First token and length of its prompt.
    prompt_of = torch.zeros(q.shape[0], 2, dtype=torch.long, device=q.device)
    for prefix in packing.prefixes:
        prompt_of[prefix.rows, 0] = prefix.prompt.start
        prompt_of[prefix.rows, 1] = prefix.prompt.stop - prefix.prompt.start
    longest = max((p.prompt.stop - p.prompt.start for p in packing.prefixes), default=0)
    for bucket in packing.completions:
        start, length = _take(prompt_of, bucket)[:, 0].unbind(dim=-1)
        steps = torch.arange(longest, device=q.device)
        index = start[:, None] + torch.minimum(steps, length[:, None] - 1)  # [n, longest]
        keys, values = (torch.cat([x[index], _take(x, bucket)], dim=1) for x in (k, v))
        causal = torch.ones(bucket.width, bucket.width, dtype=torch.bool, device=q.device).tril()
        seen = torch.cat([
            (steps < length[:, None])[:, None].expand(-1, bucket.width, -1),
            causal.expand(bucket.count, -1, -1),
        ], dim=2)  # fmt: skip
        own_q, own_k, own_v = (_heads_first(x) for x in (_take(q, bucket), keys, values))
        part = scaled_dot_product_attention(own_q, own_k, own_v, attn_mask=seen.unsqueeze(1), scale=scale)
        out = _with(out, part.transpose(1, 2), bucket)
    return out


def _take(packed: Tensor, bucket: Bucket) -> Tensor:
    """The bucket's tokens: [N, …] → [count, width, …]; a view where they lie side by side."""
    if bucket.index is not None:
        return packed.index_select(0, bucket.index.flatten()).unflatten(0, bucket.index.shape)
    assert bucket.start is not None
    rows = packed[bucket.start : bucket.start + bucket.count * bucket.width]
    return rows.unflatten(0, (bucket.count, bucket.width))


def _put(packed: Tensor, values: Tensor, bucket: Bucket) -> None:
    """Write a bucket's values [count, width, …] back to their places in ``packed`` [N, …]."""
    if bucket.inside is None or bucket.outside is None:
        _take(packed, bucket).copy_(values)
    else:
        packed.index_copy_(0, bucket.outside, values.flatten(0, 1).index_select(0, bucket.inside))


def _with(packed: Tensor, values: Tensor, bucket: Bucket) -> Tensor:
    """`_put` for autograd: a new tensor."""
    if bucket.inside is None or bucket.outside is None:
        assert bucket.start is not None
        places = torch.arange(bucket.start, bucket.start + bucket.count * bucket.width, device=packed.device)
        return packed.index_copy(0, places, values.flatten(0, 1))
    return packed.index_copy(0, bucket.outside, values.flatten(0, 1).index_select(0, bucket.inside))


def _heads_first(states: Tensor) -> Tensor:
    """[n, T, H, d] → [n, H, T, d]."""
    return states.transpose(1, 2)


def _block(*states: Tensor) -> tuple[Tensor, ...]:
    """[n, H, d] each → [1, H, n, d]."""
    return tuple(x.transpose(0, 1).unsqueeze(0) for x in states)
