"""Sources of completions: what every backend promises, the one that a model spec names, and the prompts they share."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.benchmarks import Question
from maxent_grpo.evaluate.records import Samples, Unanswered
from maxent_grpo.evaluate.settings import BACKENDS, InferenceModelSpec
from maxent_grpo.named import find_named

FORMAT = 1
"""Raise it when equal settings give other answers than before, as a new sampler would."""

QUESTION = "{question}"

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

BOS_TOKENS = (
    "<|begin_of_text|>",
    "<s>",
    "<bos>",
    "<|startoftext|>",
    "<｜begin▁of▁sentence｜>",
    "<BOS_TOKEN>",
    "[BOS]",
)
"""Beginning-of-sequence tokens as Llama, Mistral, Gemma, LFM, DeepSeek, Cohere and others spell them."""


class Backend(AbstractContextManager["Backend"], Protocol):
    """A model that answers questions, made from a spec and a system prompt.

    It loads or connects when it is first asked, and not before.
    """

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """The sections ``model`` and ``backend`` of an artifact's fingerprint, JSON values.

        Answers are reused only where all of it is the same.
        """
        ...

    def sample(
        self, questions: Sequence[Question], *, seed: int, temperature: float, num_generations: int
    ) -> "Iterator[Samples | Unanswered]":
        """The samples of every question, as they become ready, in any order.

        A question that the model cannot be asked, as one that is too long for it, may be `Unanswered`: it is counted,
        written down and asked again at the next start.

        Samples are whole completions drawn independently of each other. They depend on (``seed``, the question's
        index, the number of the sample) and the settings, not on the other questions: a resumed evaluation draws
        what an uninterrupted one would have drawn.

        Raises:
            UsageError: the model cannot be loaded, or the server does not know it.
            RunError: the server cannot be reached or does not answer.
        """
        ...


def open_backend(spec: InferenceModelSpec, system_prompt: str | None) -> Backend:
    """The backend of ``spec``, asking with ``system_prompt``. Raises `UsageError` where there is none."""
    backend: Backend = find_named("backend", spec.backend, BACKENDS)(spec, system_prompt)
    return backend


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


def spells_bos(text: str | None, tokens: tuple[str, ...] = BOS_TOKENS) -> bool:
    """Whether ``text`` begins with one of ``tokens``, so that the tokenizer must not add another."""
    return text is not None and text.lstrip().startswith(tokens)


def messages_of(question: Question, system_prompt: str | None) -> list[dict[str, str]]:
    """The chat that asks ``question``; a system message of its own stands before ``system_prompt``'s."""
    own = any(message["role"] == "system" for message in question.turns)
    system = [{"role": "system", "content": system_prompt}] if system_prompt and not own else []
    return [*system, *map(dict, question.turns), {"role": "user", "content": question.text}]


def plain_prompt(question: Question, template: str) -> str:
    """``template`` with the question. Raises `UsageError` for a chat, whose earlier turns would be lost."""
    if question.turns:
        raise UsageError(
            f"prompt_template: row {question.index} is a chat of {len(question.turns) + 1} messages; leave the "
            "template out, and the model's chat template writes them"
        )
    return template.replace(QUESTION, question.text)


def prompt_fingerprint(spec: InferenceModelSpec, system_prompt: str | None) -> dict[str, str | None]:
    """The part of a prompt that comes neither from the data set nor from the model's files, texts as digests."""
    return {
        "system_prompt": _digest(system_prompt),
        "chat_template": _digest(spec.chat_template),
        "prompt_template": _digest(plain_template(spec)),
    }


def _digest(text: str | None) -> str | None:
    return None if text is None else "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]
