"""The policy as the learner calls it: a batch in, log-probs of its completion tokens out, in one forward of one module.

`PolicyForward` is the module that DistributedDataParallel, FSDP2 or DeepSpeed wrap: per micro-batch it runs every
layer exactly once, so that each wrapper sees one forward per backward. Two shortcuts make it fast, both exact:

- ``packed``: every prompt once and every completion once, without padding, as one row of tokens (`models.packing`,
  `models.prefix_attention`). Activation checkpointing works with it, as there is no cache. Otherwise each row runs by
  itself, prompt and completion, padded.
- ``head``: log-probs from the last hidden states in chunks (`models.lm_head`). Otherwise the model makes its logits.

A shortcut serves if nothing in the configuration rules it out, and if on a small probe it gives the log-probs of the
model's own forward; both are decided once, and `PolicyForward.obstacles` keeps the reasons against.
"""

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from maxent_grpo.errors import UsageError, first_line
from maxent_grpo.models.lm_head import EntropyMode, LogitScale, logps_of_logits, token_logps
from maxent_grpo.models.packing import Packing, left_padded, pack
from maxent_grpo.models.prefix_attention import IMPLEMENTATION
from maxent_grpo.types import Batch

Pool = Literal["none", "mean", "last"]
Shortcut = Literal["packed", "head"]
COSTS: dict[Shortcut, str] = {
    "packed": "each prompt runs once per completion, with padding",
    "head": "its logits are held in memory as a whole",
}
"""The price of a shortcut that does not serve."""


class PolicyForward(nn.Module):
    """``policy(batch, entropy)`` → log-probs [B, T], entropies [B, T], pooled states [B, D], seed logits [B, S].

    They are the fields of `types.Forward`, each None where nothing asks for it, as a plain tuple, in which wrappers
    find the tensors that they hook.

    Args:
        model: a causal language model, or PEFT's wrapper of one whose adapters sit in its layers (LoRA).
        temperature: divides the logits, as in sampling, so that a policy's log-probs are those it samples from.
        pool: how the last hidden states that predict a completion's tokens become one vector.
        seed_head: InfoSeed's classifier of those vectors: trained with the policy, and no part of it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float = 1.0,
        pool: Pool = "none",
        seed_head: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.pool = pool
        self.seed_head = seed_head
        self.scale = LogitScale.of(self.language_model.config)
        self.shortcuts: frozenset[Shortcut] = frozenset()
        self.obstacles = _obstacles(self.language_model)
        self._probe()

    @property
    def language_model(self) -> Any:
        """The Transformers model itself."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def forward(
        self, batch: Batch, entropy: EntropyMode = "none"
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """See the class. ``entropy`` "measure" computes it without gradient. Padding positions hold 0."""
        mask = batch.completion_mask
        ids = batch.completion_ids[mask]
        predicting, inputs = self._packed(batch) if "packed" in self.shortcuts else self._padded(batch)
        if "head" in self.shortcuts:
            states = self.language_model.get_decoder()(**inputs).last_hidden_state.flatten(0, 1)
            states = states.index_select(0, predicting)
            logps, entropies = token_logps(
                states,
                self.language_model.get_output_embeddings(),
                ids,
                temperature=self.temperature,
                scale=self.scale,
                entropy=entropy,
            )
        else:
            out = self.language_model(**inputs, output_hidden_states=self.pool != "none")
            if self.pool != "none":
                states = out.hidden_states[-1].flatten(0, 1).index_select(0, predicting)
            logits = out.logits.flatten(0, 1).index_select(0, predicting)
            logps, entropies = logps_of_logits(logits, ids, self.temperature, entropy)
        vectors = None if self.pool == "none" else pooled(states, mask, self.pool)
        seeds = None
        if self.seed_head is not None and vectors is not None:
            seeds = self.seed_head(vectors.to(self.seed_head.weight.dtype))
        entropy_rows = None if entropies is None else _padded_again(entropies, mask)
        return _padded_again(logps, mask), entropy_rows, vectors, seeds

    def _packed(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The place in the model's output that predicts each token that the policy wrote; and the model's input."""
        packing = pack(batch)
        # Four dimensions tell Transformers to build no mask: the packing says what attends to what.
        no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packing.ids.device)
        return packing.predicting, _inputs(
            packing.ids[None], packing.positions[None], no_mask, packing=packing
        )

    def _padded(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The same, every row by itself: prompt, completion, and padding on the right."""
        prompt_mask = batch.prompt_mask[batch.prompt_rows]
        ids = torch.cat([batch.prompt_ids[batch.prompt_rows], batch.completion_ids], dim=1)
        real = torch.cat([prompt_mask, batch.read_mask], dim=1)
        steps = torch.arange(int(real.sum(dim=1).max()), device=ids.device)
        ids = ids.gather(1, (~real).long().argsort(dim=1, stable=True)[:, : len(steps)])
        mask = steps < real.sum(dim=1, keepdim=True)
        completions = mask & (steps >= prompt_mask.sum(dim=1, keepdim=True))
        own = completions.flatten().nonzero().squeeze(1)[batch.completion_mask[batch.read_mask]]
        return own - 1, _inputs(ids, steps.expand_as(ids), mask.long())

    @torch.no_grad()
    def _probe(self) -> None:
        """Take the shortcuts that nothing rules out and that give the model's own log-probs."""
        model = self.language_model
        was_training = model.training
        model.eval()
        batch = probe_batch(model)
        try:
            expected = self(batch)[0]
        except Exception as problem:
            raise UsageError(
                f"model_name_or_path: the forward of {type(model).__name__} fails on two short prompts: "
                f"{first_line(problem)}"
            ) from problem
        # Of rounding; a wrong formula is far off.
        tolerance = 1e-3 if torch.finfo(model.dtype).bits >= 32 else 0.1
        serving: set[Shortcut] = set()
        shortcuts: tuple[Shortcut, ...] = ("packed", "head")
        usual = model.config.get_text_config()._attn_implementation
        for shortcut in shortcuts:
            if shortcut in self.obstacles:
                continue
            self.shortcuts = frozenset({shortcut})
            try:
                if shortcut == "packed":
                    model.set_attn_implementation(IMPLEMENTATION)
                error = float((self(batch)[0] - expected).abs().max())
            except Exception as problem:  # noqa: BLE001  # whatever a shortcut meets is a reason not to take it
                self.obstacles[shortcut] = first_line(problem)
            else:
                if error <= tolerance * max(1.0, float(expected.abs().max())):
                    serving.add(shortcut)
                else:
                    self.obstacles[shortcut] = (
                        f"its log-probs differ by {error:.2g} from the model's own forward"
                    )
        if "packed" not in serving and usual != IMPLEMENTATION:
            model.set_attn_implementation(usual)
        self.shortcuts = frozenset(serving)
        for shortcut, reason in self.obstacles.items():
            warnings.warn(f"{type(model).__name__}: {COSTS[shortcut]}, as {reason}", stacklevel=3)
        model.train(was_training)


class AdapterOff(nn.Module):
    """The reference policy of a LoRA run: the policy's own forward, its adapter switched off. No second model.

    Args:
        module: `PolicyForward`, or what parallel training wrapped around it.
        model: the PEFT model inside.
    """

    def __init__(self, module: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, ...]:
        """See `PolicyForward`; to be called without gradient. Dropout and checkpointing are off, too."""
        was_training = self.model.training
        self.model.eval()
        with self.model.disable_adapter():  # type: ignore[operator]  # a method of PEFT's models
            found: tuple[Tensor, ...] = self.module(batch)
        self.model.train(was_training)
        return found


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's repeated blocks, by the class names that the architecture says must not be split.

    Raises:
        UsageError: it names none; sharding would gather the whole model at once.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise UsageError(
            f"distributed: {type(model).__name__} names no blocks to shard (_no_split_modules); use ddp or zero3"
        )
    return layers


def pooled(states: Tensor, mask: Tensor, pool: Pool) -> Tensor:
    """States that predict the real completion tokens [M, D], row by row → [B, D], in float32 at least.

    An empty row has 0.
    """
    lengths = mask.sum(dim=1)
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    empty = states.new_zeros(mask.shape[0], states.shape[1])
    if pool == "last":
        filled = (lengths > 0).nonzero().squeeze(1)
        return empty.index_copy(0, filled, states.index_select(0, lengths.cumsum(0)[filled] - 1))
    rows = torch.arange(mask.shape[0], device=mask.device).repeat_interleave(lengths)
    return empty.index_add(0, rows, states) / lengths.clamp(min=1).unsqueeze(1)


def probe_batch(model: Any) -> Batch:
    """Two prompts, of one and three tokens, with completions of one to three: what shortcuts are checked on."""
    vocabulary = model.config.get_text_config().vocab_size
    prompt_ids, prompt_mask = left_padded([(1,), (2, 3, 4)], pad_id=0)
    mask = torch.tensor([[True, False, False], [True] * 3, [True, True, False], [True] * 3])
    ids = torch.arange(5, 17).view(4, 3) * mask
    return Batch(
        prompt_ids % vocabulary, prompt_mask, ids % vocabulary, mask, torch.zeros(4, 3), torch.zeros(2, 2)
    ).to(model.device)


def _obstacles(model: Any) -> dict[Shortcut, str]:
    """Reasons that rule a shortcut out beforehand."""
    config = model.config.get_text_config()
    obstacles: dict[Shortcut, str] = {}
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "sliding_window", None) is not None and not hasattr(config, "layer_types")
    if config._attn_implementation not in ("sdpa", IMPLEMENTATION):
        obstacles["packed"] = f"attn_implementation={config._attn_implementation}, and it extends sdpa"
    elif not model._supports_attention_backend:
        obstacles["packed"] = "its architecture takes no attention function from outside"
    elif sliding or layer_types != {"full_attention"}:
        obstacles["packed"] = "some of its layers do not attend to all tokens"
    elif getattr(config, "attn_logit_softcapping", None):
        obstacles["packed"] = "its attention scores are soft-capped"
    elif getattr(config, "attention_dropout", 0.0):
        obstacles["packed"] = "it has attention dropout"
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        obstacles["head"] = f"its head is a {type(head).__name__}, not a plain linear layer"
    return obstacles


def _inputs(ids: Tensor, position_ids: Tensor, mask: Tensor, **packing: Packing) -> dict[str, Any]:
    given = {"input_ids": ids, "position_ids": position_ids, "attention_mask": mask, "use_cache": False}
    return given | packing


def _padded_again(values: Tensor, mask: Tensor) -> Tensor:
    """[M] values of the real tokens → [B, T], 0 at padding."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)
