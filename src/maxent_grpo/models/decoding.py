"""Decoding a group token by token: each prompt is read once, and its keys and values exist once, not G times.

`SharedPromptDecoding` keeps the prompts' keys and values as the prefill left them, and per row only what it adds, in
memory allocated once. Attention over a prompt is one matrix product for all its completions (Juravsky et
al. 2024, "Hydragen", arXiv:2402.05099), which reads 1/G of the memory. The result is that of ordinary attention up to
rounding. Models whose attention is not plain softmax(q·k) over the whole context decode with `RepeatedDecoding`, those
whose cache cannot be repeated (convolutions, recurrent states) with `ExpandedDecoding`.

No way is taken on trust: `find_way` compares each, on a few tokens, with the model's own forward without a cache.
"""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from maxent_grpo.errors import UsageError, first_line
from maxent_grpo.models.packing import left_padded

ATTENTION = "maxent_grpo_shared_prompt"
Way = Literal["shared", "repeated", "expanded"]
WAYS: dict[Way, str] = {
    "shared": "each prompt is read and kept once for its group",
    "repeated": "each prompt is read once, and its cache copied for every completion",
    "expanded": "each prompt is read once per completion, into Transformers' own cache",
}
"""Ways to decode, the cheapest first, and what each means."""


class Decoding(Protocol):
    """The state of ``R`` rows that are being written; at first R = P·G, row p·G + g continues prompt p."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to every row: ``tokens`` [R] → logits of the next one [R, V]."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with ``rows`` only ([R'] int64, ascending): finished rows cost nothing any more."""
        ...


@dataclass(frozen=True)
class FoundWay:
    """The cheapest way of a model's decoding that gives its own log-probs, and the reasons against cheaper ones."""

    way: Way
    obstacles: dict[Way, str]

    def __str__(self) -> str:
        reasons = "; ".join(f"not {way}: {reason}" for way, reason in self.obstacles.items())
        return f"{self.way} ({WAYS[self.way]})" + (f"; {reasons}" if reasons else "")


@torch.no_grad()
def find_way(model: PreTrainedModel) -> FoundWay:
    """Try the ways on a few tokens: the first whose log-probs equal those of a forward per row without a cache.

    They may differ by a thousandth of the spread (standard deviation over the vocabulary) of the log-probs, and by 1e-5
    in any case; in half precision by a tenth, which still tells a wrong formula from rounding.

    Raises:
        UsageError: none does.
    """
    was_training = model.training
    model.eval()
    probe = _Probe.of(model)
    obstacles: dict[Way, str] = {}
    try:
        expected = probe.expected(model)
        sound = bool(expected.isfinite().all())  # damaged weights prove nothing; the sampler reports them
        half = torch.finfo(model.dtype).bits < 32
        tolerance = (
            max(0.1, 0.1 * float(expected.std()))
            if half
            else max(1e-5, 1e-3 * float(expected.std(-1).mean()))
        )
        for way in WAYS:
            try:
                error = probe.error(model, way, expected)
            except Exception as problem:  # noqa: BLE001  # whatever a shortcut meets is a reason not to take it
                obstacles[way] = first_line(problem)
                continue
            if error <= tolerance or not sound:
                return FoundWay(way, obstacles)
            obstacles[way] = f"its log-probs differ by {error:.2g} from the model's own forward"
    except Exception as problem:
        raise UsageError(
            f"model_name_or_path: the forward of {type(model).__name__} fails on two short prompts: "
            f"{first_line(problem)}"
        ) from problem
    finally:
        model.train(was_training)
    reasons = "; ".join(f"{way}: {reason}" for way, reason in obstacles.items())
    raise UsageError(
        f"model_name_or_path: {type(model).__name__} cannot be sampled in this process ({reasons}); "
        "sample with use_vllm"
    )


@dataclass(frozen=True)
class _Probe:
    """Two prompts of unequal length, written on by two rows each; a row is dropped on the way."""

    prompts: list[tuple[int, ...]]
    written: Tensor
    """[4, T]"""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "_Probe":
        config = model.config.get_text_config()
        window = getattr(config, "sliding_window", None) or 0
        length = max(7, window + 2 if window <= LONGEST_PROBED_WINDOW else 0)
        draw = torch.Generator().manual_seed(0)
        least = min(3, config.vocab_size - 1)  # the first ids are often padding
        ids = torch.randint(
            least, config.vocab_size, (length + 3 + 4 * PROBED_STEPS,), generator=draw
        ).tolist()
        written = torch.tensor(ids[-4 * PROBED_STEPS :]).view(4, PROBED_STEPS).to(model.device)
        return cls([tuple(ids[:length]), tuple(ids[length : length + 3])], written)

    def expected(self, model: PreTrainedModel) -> Tensor:
        """[4, T + 1, V] log-probs by an unpadded forward per prompt, without a cache."""
        rows = []
        for place, prompt in enumerate(self.prompts):
            written = self.written[2 * place : 2 * place + 2]
            ids = torch.cat([torch.tensor([prompt, prompt], device=written.device), written], dim=1)
            rows.append(
                model(input_ids=ids, use_cache=False).logits[:, len(prompt) - 1 :].float().log_softmax(-1)
            )
        return torch.cat(rows)

    def error(self, model: PreTrainedModel, way: Way, expected: Tensor) -> float:
        """The largest difference of a log-prob; NaN where one is NaN."""
        ids, mask = (tensor.to(model.device) for tensor in left_padded(self.prompts, pad_id=0))
        logits, decoding = start_decoding(model, ids, mask, 2, PROBED_STEPS, way)
        live = torch.arange(4, device=model.device)
        errors = [(logits.float().log_softmax(-1) - expected[:, 0]).abs().max()]
        for step in range(PROBED_STEPS):
            if step == 1:
                live = live[[0, 2, 3]]
                decoding.keep(live)
            logits = decoding.step(self.written[live, step])
            errors.append((logits.float().log_softmax(-1) - expected[live, step + 1]).abs().max())
        return float(torch.stack(errors).max())


PROBED_STEPS = 4
LONGEST_PROBED_WINDOW = 256
"""A sliding window up to here is filled by the probe."""


def start_decoding(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, group: int, room: int, way: Way
) -> tuple[Tensor, Decoding]:
    """Read left-padded prompts ``ids`` [P, L]: the logits of the first token of each row [P·G, V], and the state.

    ``room`` is the largest number of tokens that a row will be given.

    Raises:
        NotImplementedError: the model's attention or cache does not allow ``way``.
    """
    if way == "expanded":
        expanded = ExpandedDecoding(model, mask.repeat_interleave(group, dim=0))
        return expanded.read(ids.repeat_interleave(group, dim=0)), expanded
    logits, prompts = read_prompts(model, ids, mask)
    logits = logits.repeat_interleave(group, dim=0)
    if way == "shared":
        refuse_other_attention(model, prompts)
        return logits, SharedPromptDecoding(model, prompts, mask, group, room)
    return logits, RepeatedDecoding(model, prompts, mask, group, room)


def read_prompts(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, DynamicCache]:
    """Run left-padded prompts ``ids`` [P, L]: the logits after each prompt [P, V], and the cache."""
    with attention_over_padding(model):
        out = model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(dim=1) - 1).clamp(
                min=0
            ),  # of real tokens: left padding changes nothing
            past_key_values=DynamicCache(config=model.config),
            use_cache=True,
            logits_to_keep=1,
        )
    return out.logits[:, -1], out.past_key_values


def refuse_other_attention(model: PreTrainedModel, prompts: DynamicCache) -> None:
    """Raise `NotImplementedError` unless each layer's is softmax(scale·q·k) over all tokens, and can be replaced."""
    if not model._supports_attention_backend:
        raise NotImplementedError("its architecture takes no attention function from outside")
    if any(type(layer) is not DynamicLayer for layer in prompts.layers):
        raise NotImplementedError("some of its layers do not keep keys and values of all tokens")
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        raise NotImplementedError("its attention scores are soft-capped")


def decoding_bytes(model: PreTrainedModel, rows: int, length: int, way: Way) -> int:
    """Memory that ``rows`` completions of ``length`` tokens take before the first is written: draws, tokens, log-probs,
    and the shared way's `GroupLayer`. What other ways keep grows with what is written."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    width = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // heads
    kept = getattr(config, "num_hidden_layers", 0) * (getattr(config, "num_key_value_heads", None) or heads)
    return rows * length * (20 + (8 * kept * width if way == "shared" else 0))


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be taken on ``device``; None where that is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    kib = {line.split(":")[0]: int(line.split()[1]) for line in meminfo.read_text().splitlines()}
    return 1024 * (kib.get("MemAvailable", kib["MemTotal"]) + kib.get("SwapFree", 0))


class RepeatedDecoding:
    """A cache entry per row, prompt included, copied after each prompt has been read once."""

    def __init__(
        self, model: PreTrainedModel, prompts: DynamicCache, mask: Tensor, group: int, room: int
    ) -> None:
        self.model, self.cache, self.written = model, prompts, 0
        prompts.batch_repeat_interleave(group)
        new = torch.ones(mask.shape[0] * group, room, dtype=torch.bool, device=mask.device)
        self.seen = torch.cat([mask.repeat_interleave(group, dim=0), new], dim=1)
        self.prompt_width = mask.shape[1]

    def step(self, tokens: Tensor) -> Tensor:
        self.written += 1
        seen = self.seen[:, : self.prompt_width + self.written]
        with attention_over_padding(self.model):
            return self.model(
                input_ids=tokens.unsqueeze(1),
                attention_mask=seen.long(),
                position_ids=seen.sum(dim=1, keepdim=True) - 1,
                past_key_values=self.cache,
                use_cache=True,
            ).logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.seen = self.seen[rows]


class ExpandedDecoding:
    """Each row reads its prompt itself, into whatever cache the model makes: what Transformers does.

    Nothing is asked of that cache, so that no row is ever dropped from it: finished ones go on with padding.
    """

    def __init__(self, model: PreTrainedModel, mask: Tensor) -> None:
        self.model, self.seen = model, mask
        self.live = torch.arange(mask.shape[0], device=mask.device)
        plain: Any = model
        if hasattr(plain, "get_base_model"):  # PEFT's wrapper hides the signature
            plain = plain.get_base_model()
        taken = inspect.signature(plain.forward).parameters
        self.takes_positions = "position_ids" in taken
        self.takes_few_logits = "logits_to_keep" in taken
        self.state = "past_key_values" if "past_key_values" in taken else "cache_params"
        self.cache: Any = None

    def read(self, ids: Tensor) -> Tensor:
        positions = (self.seen.long().cumsum(dim=1) - 1).clamp(min=0)
        return self._run(ids, positions, {"logits_to_keep": 1} if self.takes_few_logits else {})

    def step(self, tokens: Tensor) -> Tensor:
        every = torch.zeros(self.seen.shape[0], dtype=tokens.dtype, device=tokens.device)
        every[self.live] = tokens
        self.seen = torch.cat([self.seen, torch.ones_like(self.seen[:, :1])], dim=1)
        positions = self.seen.sum(dim=1, keepdim=True) - 1
        return self._run(every.unsqueeze(1), positions, {self.state: self.cache})[self.live]

    def keep(self, rows: Tensor) -> None:
        self.live = self.live[rows]

    def _run(self, ids: Tensor, positions: Tensor, others: dict[str, Any]) -> Tensor:
        if self.takes_positions:
            others["position_ids"] = positions
        if (
            self.cache is None or self.state == "past_key_values"
        ):  # a recurrent state has left the padding behind
            others["attention_mask"] = self.seen.long()
        with attention_over_padding(self.model):
            out = self.model(input_ids=ids, use_cache=True, **others)
        self.cache = getattr(out, self.state)
        logits: Tensor = out.logits[:, -1]
        return logits


class SharedPromptDecoding:
    """A cache entry per prompt, and one per row for what the row adds."""

    def __init__(
        self, model: PreTrainedModel, prompts: DynamicCache, mask: Tensor, group: int, room: int
    ) -> None:
        self.model, self.written = model, 0
        self.rows = RowsOfPrompts(mask.shape[0], group, mask)
        layers = [layer for layer in prompts.layers if isinstance(layer, DynamicLayer)]
        self.layers = [GroupLayer(layer, group, room) for layer in layers]
        self.cache = Cache(layers=[*self.layers])
        self.prompt_lengths = mask.sum(dim=1).repeat_interleave(group)

    def step(self, tokens: Tensor) -> Tensor:
        positions = (self.prompt_lengths + self.written).unsqueeze(1)
        self.written += 1
        with attention_implementation(self.model, ATTENTION):
            return self.model(
                input_ids=tokens.unsqueeze(1),
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
                group_layers=self.layers,
                rows_of_prompts=self.rows,
            ).logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        prompts = self.rows.keep(rows)
        self.prompt_lengths = self.prompt_lengths[rows]
        for layer in self.layers:
            layer.keep(rows, prompts)


class RowsOfPrompts:
    """The prompt that each row continues. Rows are sorted by prompt; the grid [P, width] has a slot for each."""

    def __init__(self, prompts: int, group: int, mask: Tensor) -> None:
        self.prompt_of = torch.arange(prompts, device=mask.device).repeat_interleave(group)
        self.padding = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)  # [P, L]
        self._lay_out(prompts)

    def keep(self, rows: Tensor) -> Tensor:
        """Drop all other rows, and the prompts left without one. Returns the prompts kept, [P'] int64."""
        prompts, self.prompt_of = self.prompt_of[rows].unique_consecutive(return_inverse=True)
        self.padding = self.padding[prompts]
        self._lay_out(prompts.shape[0])
        return prompts

    def _lay_out(self, prompts: int) -> None:
        counts = self.prompt_of.bincount(minlength=prompts)
        self.prompts, self.width = prompts, int(counts.max())
        first = counts.cumsum(0) - counts
        place = torch.arange(self.prompt_of.shape[0], device=counts.device) - first[self.prompt_of]
        self.slots = self.prompt_of * self.width + place
        self.full = self.prompt_of.shape[0] == prompts * self.width

    def to_grid(self, rows: Tensor) -> Tensor:
        """[R, …] → [P, width, …]; empty slots hold 0."""
        if not self.full:
            empty = rows.new_zeros(self.prompts * self.width, *rows.shape[1:])
            rows = empty.index_copy_(0, self.slots, rows)
        return rows.unflatten(0, (self.prompts, self.width))

    def to_rows(self, grid: Tensor) -> Tensor:
        """[P, width, …] → [R, …]."""
        rows = grid.flatten(0, 1)
        return rows if self.full else rows[self.slots]


class GroupLayer(DynamicLayer):
    """One layer's keys and values: those of the prompts [P, H, L, D], and of what each row added [R, H, room, D].

    They are kept, and attention over them is computed, in float32 at least, whatever the model's precision: there is no
    fused kernel here that would accumulate in it, and log-probs must be those that the learner computes.
    """

    def __init__(self, prompt: DynamicLayer, group: int, room: int) -> None:
        super().__init__()
        assert prompt.keys is not None, "the prompts have been read"
        assert prompt.values is not None, "the prompts have been read"
        prompts, heads, self.prompt_width, width = prompt.keys.shape
        precision = torch.promote_types(prompt.keys.dtype, torch.float32)
        self.prompt_keys, self.prompt_values = prompt.keys.to(precision), prompt.values.to(precision)
        self.row_keys = self.prompt_keys.new_empty(prompts * group, heads, room, width)
        self.row_values = torch.empty_like(self.row_keys)
        self.count, self.written = prompts * group, 0
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return self.prompt_width + self.written

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take one token's keys and values [R, H, 1, D]; returns those of all that the rows added."""
        self.row_keys[: self.count, :, self.written] = key_states[:, :, 0]
        self.row_values[: self.count, :, self.written] = value_states[:, :, 0]
        self.written += 1
        own = (slice(self.count), slice(None), slice(self.written))
        return self.row_keys[own], self.row_values[own]

    def keep(self, rows: Tensor, prompts: Tensor) -> None:
        self.count = rows.shape[0]
        for memory in (self.row_keys, self.row_values):
            memory[: self.count, :, : self.written] = memory[rows, :, : self.written]
        if prompts.shape[0] < self.prompt_keys.shape[0]:
            self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    group_layers: list[GroupLayer],
    rows_of_prompts: RowsOfPrompts,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token per row over its prompt and over what the row added.

    Args:
        query: [R, A, 1, D], A attention heads.
        key, value: [R, H, t, D] of the rows' own tokens, H heads (A is a multiple).
        scaling: factor of the scores.

    Returns:
        [R, 1, A, D], and None in place of the weights.

    Raises:
        NotImplementedError: the layer asks for something else than plain attention.
    """
    refused = ("sliding_window", "softcap", "s_aux", "position_bias")
    asked = [name for name in refused if others.get(name) is not None]
    if asked or dropout:
        raise NotImplementedError(f"shared-prompt decoding has no {', '.join(asked) or 'dropout'}")
    prompt, rows = group_layers[module.layer_idx], rows_of_prompts  # type: ignore[index]
    heads, width = key.shape[1], query.shape[-1]
    dtype = query.dtype
    query = query.view(query.shape[0], heads, -1, width).to(key.dtype) * scaling  # [R, H, A/H, D]
    shared = query.shape[2]

    with torch.autocast(query.device.type, enabled=False):
        grid = rows.to_grid(query).transpose(1, 2).flatten(2, 3)  # [P, H, G·A/H, D]
        scores = torch.matmul(grid, prompt.prompt_keys.transpose(-1, -2))
        scores = scores + rows.padding[:, None, None, :]
        scores = rows.to_rows(scores.unflatten(2, (-1, shared)).transpose(1, 2))  # [R, H, A/H, L]
        own = torch.matmul(query, key.transpose(-1, -2))  # [R, H, A/H, t]
        weights = torch.cat([scores, own], dim=-1).softmax(dim=-1)

        over_prompt, over_own = weights.split([prompt.prompt_width, own.shape[-1]], dim=-1)
        grid = rows.to_grid(over_prompt).transpose(1, 2).flatten(2, 3)  # [P, H, G·A/H, L]
        mixed = torch.matmul(grid, prompt.prompt_values).unflatten(2, (-1, shared)).transpose(1, 2)
        output = rows.to_rows(mixed) + torch.matmul(over_own, value)  # [R, H, A/H, D]
    return output.to(dtype).flatten(1, 2).unsqueeze(1), None


def no_mask(*args: Any, **kwargs: Any) -> None:
    """Rows have no padding of their own, and `RowsOfPrompts` knows that of the prompts."""
    return


AttentionInterface.register(ATTENTION, shared_prompt_attention)
AttentionMaskInterface.register(ATTENTION, no_mask)


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """``model`` with another attention function."""
    config = model.config.get_text_config()
    usual = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = usual


def attention_over_padding(model: PreTrainedModel) -> AbstractContextManager[None]:
    """``model`` as it can read left-padded rows.

    Transformers' eager attention takes the softmax in float32, where the mask of a float64 model, the least number of
    float64, is −∞: a padded position sees nothing and becomes NaN, and with it every row's values. SDPA's is float64.
    """
    config = model.config.get_text_config()
    affected = model.dtype == torch.float64 and config._attn_implementation == "eager"
    return attention_implementation(model, "sdpa") if affected and model._supports_sdpa else nullcontext()
