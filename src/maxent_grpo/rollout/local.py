"""Sampling in this process: one prefill per group, finished rows dropped, log-probs kept.

Each row owns a stream of uniform draws, one per token, made from the row's key; a token is the point where the
cumulative distribution passes its draw. Left out: beam search, penalties, guided decoding (a vLLM sampler's business).
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.models.decoding import FoundWay, decoding_bytes, find_way, free_bytes, start_decoding
from maxent_grpo.models.loading import padding_id, stop_token_ids
from maxent_grpo.models.packing import left_padded
from maxent_grpo.randomness import KeyPart, uniforms
from maxent_grpo.rollout.sampler import Finished, Sampler, SamplingSettings
from maxent_grpo.rollout.texts import completion_texts
from maxent_grpo.rollout.token_sampling import draw_tokens
from maxent_grpo.types import Prompt, Rollout

logger = logging.getLogger(__name__)

FINISHED_SHARE = 1 / 8
"""Rows are dropped from the cache when this share of them has finished: dropping copies what the others wrote."""


def refuse_too_large(need: int, free: int | None, length: int) -> None:
    """Raise `UsageError` where completions of the longest length would take more memory than there is."""
    if free is not None and need > free:
        raise UsageError(
            f"max_completion_length: {length} tokens take {need / 2**30:.1f} GiB at once, and {free / 2**30:.1f} GiB "
            "are free; lower it, or sampling_batch_size"
        )


@dataclass
class LocalSampler(Sampler):
    """Samples with the model object that it is given: after an optimiser step it samples from the new weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    """The learner's precision, so that both compute alike."""

    @cached_property
    def way(self) -> FoundWay:
        """The proved way of decoding; said once, where it is not the cheapest as a warning.

        Found at the first use: whoever makes a sampler of a model with weights asks for it then, so that a model that
        cannot be sampled is refused at start. Raises `UsageError` there.
        """
        found = find_way(self.model)
        said = f"{type(self.model).__name__}: sampling is {found}"
        if found.obstacles:
            warnings.warn(said, stacklevel=2)
        else:
            logger.info(said)
        return found

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        key: tuple[KeyPart, ...],
        policy_version: int,
        finished: Finished | None = None,
    ) -> list[Rollout]:
        """See `Sampler.sample`. Raises `RunError` where the policy gives non-finite probabilities."""
        completions_asked = len(prompts) * settings.num_generations
        length = settings.max_completion_length
        need = decoding_bytes(self.model, completions_asked, length, self.way.way)
        refuse_too_large(need, free_bytes(self.model.device), length)
        was_training = self.model.training
        self.model.eval()
        rows = [(*key, *p.key, g) for p in prompts for g in range(settings.num_generations)]
        draws = torch.from_numpy(uniforms(rows, settings.max_completion_length)).to(self.model.device)
        one_each = replace(settings, num_generations=1)

        def hand_over(rows: Tensor, *completions: Tensor) -> None:
            if finished is not None:
                own = [prompts[row // settings.num_generations] for row in rows.tolist()]
                chosen = (tensor[rows] for tensor in completions)
                for rollout in self._rollouts(own, one_each, policy_version, *chosen):
                    finished(rollout)

        with self.autocast():
            completions = self._decode(prompts, settings, draws, hand_over)
        self.model.train(was_training)
        return self._rollouts(prompts, settings, policy_version, *completions)

    def _decode(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        draws: Tensor,
        hand_over: Callable[..., None],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens [B, T], their log-probs [B, T], lengths [B], and whether each row ended by itself [B].

        ``hand_over`` gets the rows that are dropped on the way, and these four as they then are.
        """
        device, group = self.model.device, settings.num_generations
        pad_id = padding_id(self.model, self.tokenizer)
        ids, mask = left_padded([p.token_ids for p in prompts], pad_id)
        ids, mask = ids.to(device), mask.to(device)
        rows, width = draws.shape[0], settings.max_completion_length
        stop_ids = torch.tensor(stop_token_ids(self.model, self.tokenizer), device=device)

        tokens = torch.full((rows, width), pad_id, device=device)
        logps = torch.zeros(rows, width, device=device)
        lengths = torch.full((rows,), width, device=device)
        stopped = torch.zeros(rows, dtype=torch.bool, device=device)

        logits, decoding = start_decoding(self.model, ids, mask, group, width - 1, self.way.way)
        # The rows that `decoding` holds: unfinished, or finished of late.
        live = torch.arange(rows, device=device)
        # Looking at which rows are finished waits for the device: for each token where that is free, seldom elsewhere.
        look_every = 1 if device.type == "cpu" else 8

        for t in range(width):
            writing = ~stopped[live]
            chosen, chosen_logps = draw_tokens(logits.float(), draws[live, t], settings)
            tokens[live, t] = torch.where(writing, chosen, tokens[live, t])
            logps[live, t] = torch.where(writing, chosen_logps, logps[live, t])
            done = torch.isin(chosen, stop_ids)
            if settings.stop:
                done |= self._ends_with_stop(tokens[live, : t + 1], settings.stop)
            lengths[live] = torch.where(writing & done, t + 1, lengths[live])
            stopped[live] |= done
            if t + 1 == width:
                break
            if (t + 1) % look_every == 0:
                going = (~stopped[live]).nonzero().squeeze(1)
                if going.numel() == 0:
                    break
                if going.numel() <= (1 - FINISHED_SHARE) * live.numel():
                    hand_over(live[stopped[live]], tokens, logps, lengths, stopped)
                    live, chosen = live[going], chosen[going]
                    decoding.keep(going)
            logits = decoding.step(chosen)
        return tokens, logps, lengths, stopped

    def _ends_with_stop(self, tokens: Tensor, stop: tuple[str, ...]) -> Tensor:
        """True for rows whose text now contains a stop string. Only a tail as long as the longest string is decoded."""
        window = max(len(s.encode()) for s in stop) + 1
        texts = self.tokenizer.batch_decode(tokens[:, -window:], skip_special_tokens=False)
        return torch.tensor([any(s in text for s in stop) for text in texts], device=tokens.device)

    def _rollouts(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        policy_version: int,
        tokens: Tensor,
        logps: Tensor,
        lengths: Tensor,
        stopped: Tensor,
    ) -> list[Rollout]:
        group = settings.num_generations
        finite = torch.isfinite(logps).all(dim=1).tolist()
        if not all(finite):
            prompt = prompts[finite.index(False) // group]
            raise RunError(
                f"the policy (version {policy_version}) gives non-finite probabilities on prompt {prompt.index}: "
                "its weights are damaged; resume from an earlier checkpoint with a lower learning_rate"
            )
        ids: list[list[int]] = [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        row_logps = [tuple(row[:n]) for row, n in zip(logps.tolist(), lengths.tolist(), strict=True)]
        texts = completion_texts(self.tokenizer, ids)
        reasons: list[Literal["stop", "length"]] = ["stop" if s else "length" for s in stopped.tolist()]
        return [
            Rollout(
                prompt=prompt,
                token_ids=tuple(map(tuple, ids[p * group : (p + 1) * group])),
                logps=tuple(row_logps[p * group : (p + 1) * group]),
                texts=tuple(texts[p * group : (p + 1) * group]),
                finish_reasons=tuple(reasons[p * group : (p + 1) * group]),
                policy_version=policy_version,
            )
            for p, prompt in enumerate(prompts)
        ]
