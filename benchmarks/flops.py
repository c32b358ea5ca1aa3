"""How many floating-point operations a step needs, and how fast this machine multiplies matrices.

A multiply-add counts 2. Counted: matrix products of the linear layers and the LM head, and those of attention. Left
out: norms, rotations, softmax, sampling, optimiser. "Needed" means: each prompt is read once per group, each completion
token is computed once, the LM head is applied where a next token is sampled or scored, and nothing is recomputed.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.models import Size


def linear_flops_per_token(size: Size) -> int:
    """Of one forward through all layers, without embedding, LM head and attention products."""
    head = size.hidden // size.heads
    query_and_output = 2 * size.hidden * size.hidden
    key_and_value = 2 * size.hidden * head * size.kv_heads
    mlp = 3 * size.hidden * size.intermediate
    return 2 * size.layers * (query_and_output + key_and_value + mlp)


def head_flops_per_token(size: Size) -> int:
    return 2 * size.hidden * size.vocabulary


def attention_flops(size: Size, queries: int, before: int) -> int:
    """Scores and weighted values of ``queries`` consecutive tokens that follow ``before`` others, causal."""
    pairs = queries * before + queries * (queries + 1) // 2
    return 4 * size.layers * size.hidden * pairs


def forward_flops(size: Size, prompt: int, groups: Sequence[Sequence[int]]) -> int:
    """One forward over completions of the given lengths, grouped by prompt; each prompt of ``prompt`` tokens once.

    The last token of a completion predicts nothing that is needed, so it is not run; the prompt's last one is scored.
    """
    total = 0
    for lengths in groups:
        total += prompt * linear_flops_per_token(size) + attention_flops(size, prompt, 0)
        total += head_flops_per_token(size)  # after the prompt: one distribution for the whole group
        for length in lengths:
            total += (length - 1) * (linear_flops_per_token(size) + head_flops_per_token(size))
            total += attention_flops(size, length - 1, prompt)
    return total


def update_flops(size: Size, prompt: int, groups: Sequence[Sequence[int]]) -> int:
    """Forward and backward: the backward pass costs two forwards (gradients of inputs and of weights)."""
    return 3 * forward_flops(size, prompt, groups)


def shapes(size: Size) -> list[tuple[int, int, int]]:
    """The weight matrices as (inputs, outputs, how many)."""
    kv = size.hidden // size.heads * size.kv_heads
    return [
        (size.hidden, size.hidden, 2 * size.layers),
        (size.hidden, kv, 2 * size.layers),
        (size.hidden, size.intermediate, 2 * size.layers),
        (size.intermediate, size.hidden, size.layers),
        (size.hidden, size.vocabulary, 1),
    ]


@torch.no_grad()
def matmul_rate(size: Size, rows: int, dtype: torch.dtype, device: str, seconds: float = 0.5) -> float:
    """FLOP per second of CPU time (of wall time on a GPU) of the model's own matrix products on ``rows`` rows.

    The whole set of a forward pass, in turn, so that weights come from where they come from in the model.
    """
    place: dict[str, Any] = {"dtype": dtype, "device": device}
    pairs = [
        (torch.randn(rows, inputs, **place), torch.randn(outputs, inputs, **place))
        for inputs, outputs, count in shapes(size)
        for _ in range(count)
    ]
    flops = sum(2 * rows * weight.numel() for _, weight in pairs)
    now = time.perf_counter if device == "cuda" else time.process_time
    done, spent = 0, 0.0
    for turn in range(1_000_000):
        begin = now()
        for inputs, weight in pairs:
            torch.nn.functional.linear(inputs, weight)
        if device == "cuda":
            torch.cuda.synchronize()
        if turn:  # the first turn warms up
            done, spent = done + flops, spent + now() - begin
            if spent > seconds:
                break
    return done / spent


PEAK_TFLOPS = {
    "H100": 989.0,
    "H200": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "4090": 165.0,
    "V100": 125.0,
}
"""Dense half-precision tensor-core peaks by (a part of) the device's name, from the vendor's data sheets (SXM)."""


def device_peak(override: float | None) -> float:
    """FLOP per second at most of the GPU, for model FLOPs utilisation. Exits where its name is not known."""
    if override is not None:
        return override * 1e12
    name = torch.cuda.get_device_name()
    for part, tflops in PEAK_TFLOPS.items():
        if part in name:
            return tflops * 1e12
    raise SystemExit(f"no peak is known of {name!r}: give --peak-tflops")
