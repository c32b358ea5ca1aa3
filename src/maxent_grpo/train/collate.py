"""Scored groups as tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from maxent_grpo.models.packing import left_padded
from maxent_grpo.tasks.registry import answer_clusters, mode_count
from maxent_grpo.types import Batch, Group, Prompt

Completed = tuple[Sequence[int], Sequence[int], Sequence[bool]]
"""See `collate_rows`."""
ModeCounts = Mapping[str, int]
"""Key of an answer mode → right completions that gave it."""


def collate(
    groups: Sequence[Group],
    *,
    pad_id: int,
    on_policy: bool,
    answers: bool = False,
    histories: Sequence[ModeCounts] | None = None,
) -> Batch:
    """The groups' sampled token ids as a `Batch` on the CPU: never decoded and tokenised again.

    Of completions in several turns the environment's tokens are read and not learned from (`Batch.sequence_mask`).

    ``on_policy`` says that the sampling weights are the learner's: the forward's own log-probs are then the old ones.
    Otherwise the behaviour log-probs are. All groups have the same size, and the same seeds if any. ``answers`` asks
    for the fields that are read from the texts: `Batch.answer_clusters` and `Batch.mode_counts`. ``histories`` are the
    modes that earlier steps saw of each group's prompt; None: nobody keeps them.
    """
    prompts, prompt_of = prompts_read(groups)
    prompt_ids, prompt_mask = left_padded([prompt.token_ids for prompt in prompts], pad_id)
    rows = [ids for g in groups for ids in g.rollout.token_ids]
    width = max(len(ids) for ids in rows)
    ids = torch.tensor([list(r) + [pad_id] * (width - len(r)) for r in rows], dtype=torch.long)
    read = torch.tensor([[True] * len(r) + [False] * (width - len(r)) for r in rows])
    written = read
    if groups[0].rollout.policy_masks:
        masks = [mask for g in groups for mask in g.rollout.policy_masks]
        written = torch.tensor([list(m) + [False] * (width - len(m)) for m in masks])
    row_logps = [logps for g in groups for logps in g.rollout.logps]
    behaviour = torch.tensor([list(r) + [0.0] * (width - len(r)) for r in row_logps], dtype=torch.float32)
    seeded = bool(groups[0].rollout.seed_prompts)
    batch = Batch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=ids,
        completion_mask=written,
        sequence_mask=None if written is read else read,
        behaviour_logps=behaviour,
        utilities=torch.tensor([g.utilities for g in groups], dtype=torch.float32),
        old_logps=None if on_policy else behaviour,
        prompt_of=torch.tensor(prompt_of) if seeded else None,
        seed_ids=torch.tensor([prompts[row].seed_id for row in prompt_of]) if seeded else None,
        right=_verdicts([g.right for g in groups], torch.bool),
        correctness=_verdicts([g.correctness for g in groups], torch.float32),
    )
    batch = with_modes(batch, groups, histories)
    return with_answers(batch, groups) if answers else batch


def with_modes(batch: Batch, groups: Sequence[Group], histories: Sequence[ModeCounts] | None) -> Batch:
    """The batch with `Batch.modes` and `Batch.mode_history`, where a reward tells what is right."""
    if any(group.modes is None for group in groups):
        return batch
    modes, counts = [], []
    for group, known in zip(groups, histories or ({},) * len(groups), strict=True):
        given = group.modes or ()
        keys = [*sorted(known), *sorted({key for key in given if key is not None} - known.keys())]
        number = {key: i for i, key in enumerate(keys)}
        modes.append([-1 if key is None else number[key] for key in given])
        counts.append(torch.tensor([known.get(key, 0) for key in keys], dtype=torch.long))
    history = None if histories is None else torch.nn.utils.rnn.pad_sequence(counts, batch_first=True)
    return replace(batch, modes=torch.tensor(modes), mode_history=history)


def with_answers(batch: Batch, groups: Sequence[Group]) -> Batch:
    """The batch with what the completions answer; right ones are counted where a reward tells them."""
    clusters = [answer_clusters(g.rollout.texts, g.rollout.prompt.columns) for g in groups]
    counts = [
        mode_count(ids, g.right or (False,) * len(ids), g.rollout.prompt.columns)
        for ids, g in zip(clusters, groups, strict=True)
    ]
    return replace(batch, answer_clusters=torch.tensor(clusters), mode_counts=torch.tensor(counts))


def collate_rows(rows: Sequence[Completed], *, pad_id: int) -> Batch:
    """Completions of any prompts as a `Batch` of one group, for a forward alone: it has no utilities and no log-probs.

    Each is a prompt's tokens, its completion's, and the mask of those that the policy wrote (empty: all of them).
    """
    prompts = list(dict.fromkeys(tuple(prompt) for prompt, _, _ in rows))
    prompt_ids, prompt_mask = left_padded(prompts, pad_id)
    ids, read = right_padded([tokens for _, tokens, _ in rows], pad_id)
    written, _ = right_padded([mask or (True,) * len(tokens) for _, tokens, mask in rows], False)
    place = {prompt: i for i, prompt in enumerate(prompts)}
    return Batch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=ids,
        completion_mask=written,
        sequence_mask=read,
        behaviour_logps=torch.zeros(ids.shape),
        utilities=torch.zeros(1, len(rows)),
        prompt_of=torch.tensor([place[tuple(prompt)] for prompt, _, _ in rows]),
    )


def right_padded(sequences: Sequence[Sequence[int | bool]], padding: int | bool) -> tuple[Tensor, Tensor]:
    """Values and mask [N, longest], padded on the right."""
    width = max(map(len, sequences))
    values = torch.tensor([[*s, *[padding] * (width - len(s))] for s in sequences])
    return values, torch.tensor([[True] * len(s) + [False] * (width - len(s)) for s in sequences])


def _verdicts(rows: Sequence[Sequence[float] | None], dtype: torch.dtype) -> Tensor | None:
    """[P, G]; None where a group has none."""
    known = [row for row in rows if row is not None]
    return torch.tensor(known, dtype=dtype) if len(known) == len(rows) else None


def prompts_read(groups: Sequence[Group]) -> tuple[list[Prompt], list[int]]:
    """The prompts that the groups' completions continue, each once, and which of them each completion continues."""
    prompts: list[Prompt] = []
    prompt_of: list[int] = []
    for group in groups:
        places: dict[int, int] = {}
        for prompt in group.rollout.prompts:
            if prompt.seed_id not in places:
                places[prompt.seed_id] = len(prompts)
                prompts.append(prompt)
            prompt_of.append(places[prompt.seed_id])
    return prompts, prompt_of
