"""How a policy starts on a task: mean@k, pass@k and coverage@k of sampled completions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.randomness import integer_seed
from maxent_grpo.tasks.registry import grade_response

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
