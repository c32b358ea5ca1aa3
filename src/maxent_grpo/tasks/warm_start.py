"""Supervised warm start of the tiny policy towards the uniform distribution over right answers.

All right answers being known, the target of every answer token is known exactly: among the right answers that begin
like the drawn one, the share that goes on with each token. Training on it has the gradient of training on uniformly
drawn answers, in expectation, and far less noise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from maxent_grpo.randomness import generator, integer_seed
from maxent_grpo.tasks.registry import TASKS, grade_response
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
    Share("graph_coloring", 0.24, rows=8, problems=6_000),
    Share("countdown", 0.27, rows=24, problems=1_000, options=(("numbers", 3),)),
    Share("countdown", 0.05, rows=4, problems=5_000, options=(("numbers", 4),)),
    Share("arithmetic", 0.20, rows=40, problems=2_000, options=(("operations", "+"),)),
    Share("arithmetic", 0.03, rows=8, problems=2_000, options=(("operations", "+-*"),)),
    Share("divisors", 0.07, rows=8, problems=5_000),
    Share("equations", 0.08, rows=8, problems=5_000),
    Share("lattice_paths", 0.06, rows=6, problems=5_000),
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


PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

MAX_POSITIONS = 512
INITIALIZER_RANGE = (
    0.08  # about 1/√hidden: from the usual 0.02, graph colouring stays at chance for 900 steps and more
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'][0] }}\n{{ message['content'] }}<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a\n{% endif %}"
)
"""ChatML with one-letter roles (s, u, a) and nothing between turns: seven tokens around a question, not nineteen."""


def build_tokenizer() -> Qwen2Tokenizer:
    """One token per byte, so one per character of ASCII, and three special tokens: 259 in all.

    A Qwen2 tokenizer without merges, which is what `AutoTokenizer` makes of any tokenizer beside a Qwen2 model.
    Characters beyond ASCII become the two to four tokens of their UTF-8 bytes: every text has an encoding that decodes
    back to it (in Unicode's normal form C), and the unknown token that the class insists on is never used.
    """
    symbols = [PAD, TURN_START, TURN_END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return Qwen2Tokenizer(
        vocab={symbol: index for index, symbol in enumerate(symbols)},
        merges=[],
        unk_token=PAD,
        eos_token=TURN_END,
        pad_token=PAD,
        additional_special_tokens=[TURN_START],
        model_max_length=MAX_POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """An untrained Qwen2 of a million parameters, from torch's global generator. Head size 32 is vLLM's smallest."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


PROMPTS_AT_ONCE = 32


@dataclass(frozen=True)
class Quality:
    """Means over prompts, each in [0, 1], of k sampled completions."""

    mean: float  # share of right completions
    passed: float  # 1 where any is right
    coverage: float  # distinct right answers found ÷ right answers that exist


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    samples: int = 8,
    seed: int = 0,
    max_new_tokens: int = 24,
) -> Quality:
    """The quality of ``samples`` completions per row of `registry.load_rows`, at temperature 1."""
    means, passes, coverages = 0.0, 0, 0.0
    for start in range(0, len(rows), PROMPTS_AT_ONCE):
        part = rows[start : start + PROMPTS_AT_ONCE]
        with torch.random.fork_rng():
            torch.manual_seed(integer_seed(seed, "quality", start))
            sampled = _sample(model, tokenizer, part, samples, max_new_tokens)
        for row, texts in zip(part, sampled, strict=True):
            verdicts = [grade_response(row["task"], text, row["facts"]) for text in texts]
            found = {verdict.mode for verdict in verdicts if verdict.correct}
            means += sum(verdict.correct for verdict in verdicts) / samples
            passes += bool(found)
            coverages += min(1.0, len(found) / len(row["modes"]))
    return Quality(means / len(rows), passes / len(rows), coverages / len(rows))


@torch.inference_mode()
def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    samples: int,
    max_new_tokens: int,
) -> list[list[str]]:
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["problem"]}], tokenize=False, add_generation_prompt=True
        )
        for row in rows
    ]
    prompts = tokenizer(
        texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    )
    output = model.generate(  # type: ignore[operator]  # nn.Module declares its attributes as Tensor | Module
        **prompts, do_sample=True, top_k=0, num_return_sequences=samples, max_new_tokens=max_new_tokens
    )
    answers = tokenizer.batch_decode(output[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answers[index : index + samples] for index in range(0, len(answers), samples)]
