"""Supervised warm start of the tiny policy towards the uniform distribution over right answers.

All right answers being known, the target of every answer token is known exactly: among the right answers that begin
like the drawn one, the share that goes on with each token. Training on it has the gradient of training on uniformly
drawn answers, in expectation, and far less noise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

from maxent_grpo.randomness import generator
from maxent_grpo.tasks.registry import TASKS
from maxent_grpo.tasks.task import WARM_START, Problem

PEAK_LEARNING_RATE = 2e-3
WARMUP_STEPS = 40
DECAY_FRACTION = 0.3  # of the steps, at the end, over which the learning rate falls linearly to 0
MAX_GRAD_NORM = 1.0
SUFFIX_RATE = 0.125  # of the questions carry an InfoSeed suffix, so that the policy can be asked with one
SUFFIX_SEEDS = 16


@dataclass(frozen=True)
class Share:
    """One task's part of every training batch."""

    task: str
    weight: float  # of its loss
    rows: int  # per step
    problems: int  # drawn for the whole training; fewer where the task has fewer
    options: tuple[tuple[str, object], ...] = ()


SHARES = (
    Share("graph_coloring", 0.25, rows=8, problems=6_000),
    Share("countdown", 0.30, rows=24, problems=1_000, options=(("numbers", 3),)),
    Share("countdown", 0.05, rows=4, problems=5_000, options=(("numbers", 4),)),
    Share("arithmetic", 0.35, rows=48, problems=2_000, options=(("operations", "+"),)),
    Share("arithmetic", 0.05, rows=8, problems=2_000, options=(("operations", "+-*"),)),
)


def train(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    steps: int,
    seed: int,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train in place for ``steps`` steps on warm-start problems; the same for equal arguments and thread counts.

    The loss is the mean cross-entropy of answer tokens, weighted over tasks by `SHARES`.
    ``on_step(step, loss)`` is called after every step.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    pools = [TASKS[s.task].problems(WARM_START, s.problems, seed, **dict(s.options)) for s in SHARES]
    model.train()
    for step in range(steps):
        total = 0.0
        for index, (share, pool) in enumerate(zip(SHARES, pools, strict=True)):
            rng = generator(seed, "warm start", step, index)
            loss = share.weight * answer_loss(model, _batch(tokenizer, share, pool, rng))
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        on_step(step, total)
    model.eval()


@dataclass(frozen=True)
class AnswerBatch:
    ids: Tensor  # [B, T] prompt and answer, right-padded: causal attention needs no mask
    mask: Tensor  # [B, T] bool, true at the N answer tokens
    targets: Tensor  # [N, V] distribution of each answer token given what stands before it


def answer_loss(model: Qwen2ForCausalLM, batch: AnswerBatch) -> Tensor:
    """Mean cross-entropy of the answer tokens against their target distributions, in nats."""
    hidden = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
    return functional.cross_entropy(model.lm_head(hidden[batch.mask[:, 1:]]), batch.targets)


def _rate(step: int, steps: int) -> float:
    rise = (step + 1) / WARMUP_STEPS
    fall = (steps - step) / (DECAY_FRACTION * steps)
    return min(1.0, rise, fall)


def _batch(
    tokenizer: Qwen2Tokenizer, share: Share, pool: list[Problem], rng: np.random.Generator
) -> AnswerBatch:
    """``share.rows`` random problems of ``pool``, each with a uniformly drawn right answer."""
    prompts, answers, targets = [], [], []
    for index in rng.integers(len(pool), size=share.rows):
        problem = pool[index]
        suffix = f"\n[seed={rng.integers(SUFFIX_SEEDS)}]" if rng.random() < SUFFIX_RATE else ""
        right = _right_answers(tokenizer, share.task, problem)
        prompts.append(_prompt(tokenizer, problem.question + suffix))
        answers.append(right[int(rng.integers(len(right)))])
        targets.append(next_token_targets(right, answers[-1], len(tokenizer)))
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.full((share.rows, width), int(tokenizer.pad_token_id))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        mask[row, len(prompt) : end] = True
    return AnswerBatch(ids, mask, torch.cat(targets))


def _prompt(tokenizer: Qwen2Tokenizer, question: str) -> list[int]:
    chat = [{"role": "user", "content": question}]
    return tokenizer.encode(
        str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    )


def _right_answers(tokenizer: Qwen2Tokenizer, task: str, problem: Problem) -> list[list[int]]:
    """The token ids of every right answer, each with the end-of-turn token."""
    spelled = [TASKS[task].spell(mode, problem.facts) for mode in problem.modes]
    return [[*tokenizer.encode(answer), int(tokenizer.eos_token_id)] for answer in spelled]


def next_token_targets(answers: list[list[int]], chosen: list[int], vocabulary: int) -> Tensor:
    """For each position of ``chosen``, how those of ``answers`` with the same beginning go on: ``[len(chosen), V]``."""
    targets = torch.zeros(len(chosen), vocabulary)
    for position in range(len(chosen)):
        alike = [answer for answer in answers if answer[:position] == chosen[:position]]
        for answer in alike:
            targets[position, answer[position]] += 1 / len(alike)
    return targets
