"""Log-prob of the chosen token and entropy of the next-token distribution, without keeping the logits.

Logits [M, V] of a micro-batch are by far its largest tensor where V is 150,000. Here they exist a chunk of tokens at
a time, in forward and backward, and the gradient is written out by hand. Where all probabilities together fit
`KEEP_BYTES` (small vocabularies), they are kept for the backward; where not, the backward makes each chunk's logits
again, as Liger's fused losses and Apple's cut cross-entropy do. Nothing is approximated.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

EntropyMode = Literal["none", "measure", "differentiate"]

CHUNK_BYTES = {"cpu": 8 * 2**20}
GPU_CHUNK_BYTES = 256 * 2**20
"""Logits that exist at once: about a core's share of cache, or enough to fill a GPU."""
LEAST_CHUNK = 64
"""Tokens that a chunk holds at least: with fewer, reading the head's weight would cost more than multiplying by it."""
KEEP_BYTES = 256 * 2**20
"""Probabilities that are kept for the backward rather than made again."""


@dataclass(frozen=True)
class LogitScale:
    """From the head's product to logits: ``cap·tanh(factor·x / cap)``, or ``factor·x`` without a cap."""

    factor: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> "LogitScale":
        """The scale that an architecture's configuration asks for (Cohere, Granite, Gemma)."""
        settings = config.get_text_config().to_dict()
        factor = settings.get("logit_scale") or 1.0 / (settings.get("logits_scaling") or 1.0)
        return cls(factor, settings.get("final_logit_softcapping"))

    def apply_(self, logits: Tensor, temperature: float) -> Tensor:
        """In place: the head's product → logits divided by the sampling temperature."""
        if self.cap is None:
            return logits.mul_(self.factor / temperature)
        return logits.mul_(self.factor / self.cap).tanh_().mul_(self.cap / temperature)

    def backward_(self, grad: Tensor, logits: Tensor | None, temperature: float) -> Tensor:
        """In place: the gradient in what `apply_` returned, ``logits``, → that in what it was given."""
        if self.cap is None:
            return grad.mul_(self.factor / temperature)
        assert logits is not None
        slope = 1 - (logits * (temperature / self.cap)).square_()
        return grad.mul_(slope).mul_(self.factor / temperature)


def token_logps(
    hidden: Tensor,
    head: nn.Linear,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    scale: LogitScale | None = None,
    entropy: EntropyMode = "none",
) -> tuple[Tensor, Tensor | None]:
    """Log-prob of ``ids`` [M] after each of the last hidden states [M, D], and the entropies: [M] each.

    Products are taken in autocast's precision where it is on, else in the weight's; softmax, sums and gradients
    over the vocabulary in float32 at least (float64 stays float64). ``entropy`` "measure" computes it without gradient.
    """
    device = hidden.device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    leaves = (hidden, head.weight, head.bias)
    training = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in leaves)
    logps, entropies = _TokenLogps.apply(
        *leaves, ids, temperature, scale or LogitScale(), entropy, precision, training
    )
    return logps, None if entropy == "none" else entropies


def logps_of_logits(
    logits: Tensor, ids: Tensor, temperature: float, entropy: EntropyMode
) -> tuple[Tensor, Tensor | None]:
    """The same from logits [M, V] that the model made itself: the definition, and the way for unknown heads."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    normaliser = logits.logsumexp(dim=-1)
    logps = logits.gather(1, ids.unsqueeze(1)).squeeze(1) - normaliser
    if entropy == "none":
        return logps, None
    with torch.set_grad_enabled(entropy == "differentiate" and torch.is_grad_enabled()):
        probabilities = (logits - normaliser.unsqueeze(1)).exp()
        return logps, normaliser - (probabilities * logits).sum(dim=1)


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        temperature: float,
        scale: LogitScale,
        entropy: EntropyMode,
        precision: torch.dtype,
        training: bool,
    ) -> tuple[Tensor, Tensor]:
        work = torch.promote_types(precision, torch.float32)
        tokens, vocabulary = ids.shape[0], weight.shape[0]
        logps = torch.empty(tokens, dtype=work, device=hidden.device)
        lse, entropies = torch.empty_like(logps), torch.zeros_like(logps)
        # With a cap or an entropy gradient the backward needs logits beside probabilities: it makes both again.
        keep = (
            training
            and tokens * vocabulary * work.itemsize <= KEEP_BYTES
            and scale.cap is None
            and entropy != "differentiate"
        )
        kept = torch.empty(tokens, vocabulary, dtype=work, device=hidden.device) if keep else None
        with torch.autocast(hidden.device.type, enabled=False):
            states, matrix = hidden.to(precision), weight.to(precision)
            for rows, (first, second) in _chunks(hidden, tokens, vocabulary, work, 2):
                logits = _logits(states[rows], matrix, bias, first if kept is None else kept[rows])
                scale.apply_(logits, temperature)
                chosen = logits.gather(1, ids[rows, None]).squeeze(1)
                top = logits.amax(dim=1)
                powers = torch.exp(logits.sub_(top[:, None]), out=logits if entropy == "none" else second)
                total = powers.sum(dim=1)
                log_total = total.log()
                lse[rows] = log_total + top
                logps[rows] = chosen - top - log_total
                if entropy != "none":
                    entropies[rows] = log_total - torch.linalg.vecdot(powers, logits) / total
                if kept is not None:
                    torch.div(powers, total[:, None], out=kept[rows])
        if training:
            ctx.save_for_backward(hidden, weight, bias, ids, lse, entropies, kept)
            ctx.settings = (temperature, scale, entropy, precision, work)
        if entropy != "differentiate":
            ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_logps, grad_entropies = gradients
        hidden, weight, bias, ids, lse, entropies, kept = ctx.saved_tensors
        temperature, scale, entropy, precision, work = ctx.settings
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device) if for_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=work, device=weight.device) if for_weight else None
        d_bias = torch.zeros(bias.shape, dtype=work, device=weight.device) if for_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            states, matrix = hidden.to(precision), weight.to(precision)
            for rows, (first, second, third) in _chunks(hidden, ids.shape[0], weight.shape[0], work, 3):
                up = grad_logps[rows, None]
                logits = None
                if kept is not None:
                    grad = torch.mul(kept[rows], -up, out=first)
                else:
                    logits = scale.apply_(_logits(states[rows], matrix, bias, first), temperature)
                    log_p = torch.sub(logits, lse[rows, None], out=second)
                    if entropy == "differentiate":  # dH/dz = −p·(log p + H)
                        probabilities = torch.exp(log_p, out=third)
                        log_p.add_(entropies[rows, None]).mul_(grad_entropies[rows, None]).add_(up)
                        grad = log_p.mul_(probabilities).neg_()
                    else:
                        grad = log_p.exp_().mul_(-up)
                grad.scatter_add_(1, ids[rows, None], up)
                scale.backward_(grad, logits, temperature)
                if d_bias is not None:
                    d_bias += grad.sum(dim=0)
                grad = grad.to(precision)
                if d_hidden is not None:
                    d_hidden[rows] = grad @ matrix
                if d_weight is not None and precision == work:
                    d_weight.addmm_(grad.t(), states[rows])
                elif d_weight is not None:
                    d_weight += grad.t() @ states[rows]
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            *(None,) * 6,
        )


def _chunks(
    like: Tensor, tokens: int, vocabulary: int, work: torch.dtype, buffers: int
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Slices of the tokens, each with ``buffers`` tensors [m, V] to write on, allocated once: fresh memory is slow."""
    budget = CHUNK_BYTES.get(like.device.type, GPU_CHUNK_BYTES)
    size = min(tokens, max(LEAST_CHUNK, budget // (vocabulary * work.itemsize)))
    space = [torch.empty(size, vocabulary, dtype=work, device=like.device) for _ in range(buffers)]
    for start in range(0, tokens, max(1, size)):
        rows = slice(start, min(start + size, tokens))
        yield rows, [buffer[: rows.stop - rows.start] for buffer in space]


def _logits(states: Tensor, matrix: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """The head's product [m, V] in ``out``, accumulated in its precision where the device can."""
    if states.dtype == out.dtype:
        torch.mm(states, matrix.t(), out=out)
    elif states.device.type == "cuda":
        torch.mm(states, matrix.t(), out_dtype=out.dtype, out=out)
    else:
        out.copy_(states @ matrix.t())
    return out if bias is None else out.add_(bias)
