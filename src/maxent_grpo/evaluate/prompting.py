"""From a question to what a model reads: a chat with its system prompt, or a plain template."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.questions import Question
from maxent_grpo.evaluate.settings import InferenceModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from maxent_grpo.types import Prompt

PROMPT_TEMPLATES = {
    "qwen_math": (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    ),
    "no": "{question}",
    "r1": (
        "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The "
        "Assistant first thinks about the reasoning process in the mind and then provides the User with the answer. "
        "The reasoning process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> "
        "tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>.\n"
        "User: {question}\nAssistant: <think>"
    ),
}
"""Templates of Dr. GRPO's evaluation by name (Liu et al. 2025, arXiv:2503.20783, appendix)."""

UNCLIPPED = 2**31
QUESTION = "{question}"


def system_prompt_of(spec: InferenceModelSpec, default: str | None) -> str | None:
    """What the model is told first: the spec's own, else the benchmark's; None where a plain template rules."""
    if spec.prompt_template is not None:
        return None
    own = spec.resolved_system_prompt
    return default if own is None else own or None


def plain_template(spec: InferenceModelSpec) -> str | None:
    """The text of the spec's plain template; None where the model is asked in a chat.

    Raises `UsageError` for a text without ``{question}`` that is no template's name either.
    """
    if spec.prompt_template is None:
        return None
    template = PROMPT_TEMPLATES.get(spec.prompt_template, spec.prompt_template)
    if QUESTION not in template:
        raise UsageError(
            f"prompt_template={spec.prompt_template!r}: one of {', '.join(PROMPT_TEMPLATES)}, or a text that holds "
            f"{QUESTION}"
        )
    return template


def messages_of(question: Question, system_prompt: str | None) -> list[dict[str, str]]:
    """The chat that asks ``question``."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": question.text}]


def prompts_of(
    questions: Sequence[Question],
    spec: InferenceModelSpec,
    system_prompt: str | None,
    tokenizer: "PreTrainedTokenizerBase",
) -> "list[Prompt]":
    """One prompt per question, in order; ``Prompt.index`` is the question's. Nothing is clipped or left out."""
    from maxent_grpo.data.prompts import PromptSettings, build_prompts
    from maxent_grpo.types import Prompt

    template = plain_template(spec)
    if template is not None:
        texts = [template.replace(QUESTION, question.text) for question in questions]
        return [
            Prompt(question.index, text, tuple(tokenizer(text)["input_ids"]), {})
            for question, text in zip(questions, texts, strict=True)
        ]
    settings = PromptSettings(
        system_prompt=system_prompt, chat_template=spec.chat_template, max_prompt_chars=UNCLIPPED
    )
    # build_prompts leaves out rows without a gold, which is the grader's business here.
    rows = [{"problem": question.text, "answer": "graded elsewhere"} for question in questions]
    prompts = build_prompts(rows, tokenizer, settings)
    return [replace(prompt, index=q.index) for prompt, q in zip(prompts, questions, strict=True)]


def prompt_fingerprint(spec: InferenceModelSpec, system_prompt: str | None) -> dict[str, str | None]:
    """What of a prompt does not come from the data set or the model's own files, long texts as digests."""
    return {
        "system_prompt": _digest(system_prompt),
        "chat_template": _digest(spec.chat_template),
        "prompt_template": _digest(plain_template(spec)),
    }


def _digest(text: str | None) -> str | None:
    return None if text is None else "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]
