"""Answers from a server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp, a hosted model.

One request per completion, so that each has a seed of its own, derived from (seed, question, sample), and can be
tried again alone. When one request has used up its attempts the evaluation stops, and what was answered until then is
kept; a request that the server refuses for what is in it, as a prompt that is too long, costs its prompt alone.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from maxent_grpo.errors import RunError
from maxent_grpo.evaluate.backends import FORMAT, messages_of, plain_prompt, plain_template, spells_bos
from maxent_grpo.evaluate.benchmarks import Question
from maxent_grpo.evaluate.records import Samples, Unanswered
from maxent_grpo.evaluate.settings import InferenceModelSpec
from maxent_grpo.generate.client import FIRST_PAUSE, Client, Endpoint, Reply, RequestFailed
from maxent_grpo.randomness import integer_seed

logger = logging.getLogger(__name__)


class EndpointBackend(AbstractContextManager["EndpointBackend"]):
    """A server with OpenAI's protocol. Its key is read from the variable ``api_key_env`` and shown nowhere."""

    def __init__(
        self, spec: InferenceModelSpec, system_prompt: str | None, first_pause: float = FIRST_PAUSE
    ) -> None:
        self._spec = spec
        self._system_prompt = system_prompt
        self._template = plain_template(spec)
        self._may_lack_stop = 0
        patience = (spec.concurrency, spec.request_timeout, spec.max_retries, first_pause)
        self._client = Client(
            Endpoint(str(spec.base_url), spec.model_name_or_path, spec.api_key_env, *patience)
        )

    def __exit__(self, *error: object) -> None:
        """Connections live as long as one call of `sample`; say what the server left unsaid."""
        if self._may_lack_stop:
            stops = " or ".join(map(repr, self._spec.stop_sequences))
            logger.warning(
                "%s: %d completions ended without the server saying whether it cut %s off (no stop_reason): they "
                "stand as they came, and score 0 if their answer needs it",
                self._client.place,
                self._may_lack_stop,
                stops,
            )
            self._may_lack_stop = 0

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """The name that is asked for, and ``revision`` as given: the weights behind an endpoint cannot be seen."""
        bos = {"bos": "the template's"} if spells_bos(self._template) else {}
        return {
            "model": {"served_name": self._spec.model_name_or_path, "revision": self._spec.revision},
            "backend": {"kind": self._spec.backend, "format": FORMAT} | bos,
        }

    def sample(
        self, questions: Sequence[Question], *, seed: int, temperature: float, num_generations: int
    ) -> Iterator[Samples | Unanswered]:
        def body(question: Question, g: int) -> dict[str, Any]:
            return self._body(question, temperature, integer_seed(seed, "endpoint", question.index, g))

        refused: set[int] = set()
        jobs = (
            ((question, g), body(question, g))
            for question in questions
            for g in range(num_generations)
            if question.index not in refused
        )
        replies: dict[int, dict[int, Reply]] = defaultdict(dict)
        for (question, g), outcome in self._client.outcomes(jobs):
            if question.index in refused:
                continue
            if isinstance(outcome, RequestFailed):
                if outcome.passing:
                    kept = "what was answered is kept: start the same command again once the server is well"
                    raise RunError(f"{outcome}; {kept}") from outcome
                refused.add(question.index)
                replies.pop(question.index, None)
                yield Unanswered(question.index, str(outcome))
                continue
            self._may_lack_stop += outcome.may_lack_stop
            replies[question.index][g] = outcome
            if len(replies[question.index]) == num_generations:
                ordered = [reply for _, reply in sorted(replies.pop(question.index).items())]
                texts, reasons = zip(*((reply.text, reply.finish_reason) for reply in ordered), strict=True)
                yield Samples(question.index, self._prompt_text(question), texts, reasons)

    def _prompt_text(self, question: Question) -> str:
        if self._template is not None:
            return plain_prompt(question, self._template)
        return "\n".join(
            f"{message['role'].upper()}: {message['content']}"
            for message in messages_of(question, self._system_prompt)
        )

    def _body(self, question: Question, temperature: float, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._spec.model_name_or_path,
            "temperature": temperature,
            "top_p": self._spec.top_p,
            "max_tokens": self._spec.max_new_tokens,
            "n": 1,
            "seed": seed,
            "stream": False,
            **self._spec.generation_kwargs,
        }
        if self._spec.stop_sequences:
            body["stop"] = list(self._spec.stop_sequences)
        if self._template is not None:
            # vLLM's and SGLang's field; without it the server's tokenizer adds a token that the template spells
            bos = {"add_special_tokens": False} if spells_bos(self._template) else {}
            return body | bos | {"prompt": self._prompt_text(question)}
        if self._spec.chat_template is not None:
            body["chat_template"] = self._spec.chat_template  # vLLM's; others refuse it, as they must
        return body | {"messages": messages_of(question, self._system_prompt)}
