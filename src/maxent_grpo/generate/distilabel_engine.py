"""The optional engine: distilabel's task `TextGeneration` and its OpenAI client, run without a pipeline.

A task of distilabel works on its own: ``task.load()``, then ``next(task.process(rows))``, as its documentation shows.
Its `Pipeline` would start processes that a killed parent leaves behind, and would drop a batch of rows for one that
failed (decision 57). Rows go out in batches; a batch is written when its last request has its answer.
"""

import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import openai
from distilabel.models.llms import OpenAILLM
from distilabel.steps.tasks import TextGeneration

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.generate.client import UNUSABLE, Reply, RequestFailed
from maxent_grpo.generate.engine import Job, endpoint_of
from maxent_grpo.generate.settings import GenerateSettings
from maxent_grpo.http import excerpt

NO_KEY = "EMPTY"
"""Sent where the endpoint needs no key: distilabel has to have one."""

UNKNOWN_REASON = "unknown"
"""The finish reason of every completion: distilabel does not hand it on."""

PASSING = (408, 409, 429)
"""Statuses that its client tries again, beside 5xx."""

_TASK, _INSTRUCTION, _FAILURE = "generate", "instruction", "failure"


class RowwiseLLM(OpenAILLM):
    """distilabel's client of OpenAI's protocol; a request that fails is an empty generation with its reason.

    An exception would end the whole batch. What a model returns beside generations and statistics, distilabel puts
    into a column of the row.
    """

    async def agenerate(self, input: Any, num_generations: int = 1, **options: Any) -> Any:
        try:
            output = await super().agenerate(input=input, num_generations=num_generations, **options)
        except openai.APIStatusError as error:
            passing = error.status_code in PASSING or error.status_code >= 500
            return _failed(error.response.content, error.status_code, passing=passing)
        except openai.APIConnectionError as error:  # a timeout is one
            return _failed(f"{type(error).__name__}: {error}".encode(), None, passing=True)
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # of reading a reply that is none
            return _failed(f"the reply is no completion ({error})".encode(), None, passing=True)
        if len(output["generations"]) != 1 or output["generations"][0] is None:
            return _failed(b"the reply holds no text", None, passing=True)
        return {**output, _FAILURE: [None]}


def _failed(reason: bytes, status: int | None, *, passing: bool) -> dict[str, Any]:
    failure = {"reason": reason, "status": status, "passing": passing}
    return {"generations": [None], "statistics": {}, _FAILURE: [failure]}


class DistilabelEngine:
    """As many requests at once as the settings allow, each for one completion, in batches.

    Raises:
        UsageError: a setting that distilabel has no way to carry out.
    """

    def __init__(self, settings: GenerateSettings) -> None:
        problems = [
            (
                settings.seed is not None,
                f"seed={settings.seed}: it sends no seed per completion; set seed=null",
            ),
            (settings.temperature is None, "temperature: it always sends one; set it"),
            (settings.top_p is None, "top_p: it always sends one; set it"),
            (
                not float(settings.timeout).is_integer(),
                f"timeout={settings.timeout:g}: it takes whole seconds",
            ),
        ]
        for wrong, message in problems:
            if wrong:
                raise UsageError(f"engine=distilabel cannot carry out {message}, or leave engine out")
        self._settings = settings
        endpoint = endpoint_of(settings)
        self._place, self._key = endpoint.place, endpoint.key
        # It warns of a task outside a pipeline, and of empty answers, which are failures of ours.
        logging.getLogger("distilabel").setLevel(logging.ERROR)
        self._task = TextGeneration(
            name=_TASK,
            llm=RowwiseLLM(
                model=settings.model,
                base_url=settings.vllm_server_url,
                api_key=self._key or NO_KEY,
                max_retries=settings.retries,
                timeout=int(settings.timeout),
                generation_kwargs={
                    "temperature": settings.temperature,
                    "top_p": settings.top_p,
                    "max_new_tokens": settings.max_new_tokens,
                },
            ),
            system_prompt=settings.system_prompt,
            add_raw_output=False,
            add_raw_input=False,
        )

    def outcomes(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Reply | RequestFailed]]:
        self._task.load()
        try:
            while batch := list(islice(jobs, self._settings.concurrency)):
                rows = next(self._task.process([{_INSTRUCTION: job.prompt} for job in batch]))
                for job, row in zip(batch, rows, strict=True):
                    yield job, self._outcome(row)
        finally:
            self._task.unload()

    def _outcome(self, row: Mapping[str, Any]) -> Reply | RequestFailed:
        """Raises `RunError` for a status that every other request would get as well."""
        failure = row[f"llm_{_TASK}_{_FAILURE}"]
        if failure is None:
            statistics = row["distilabel_metadata"][f"statistics_{_TASK}"]
            return Reply(row["generation"], UNKNOWN_REASON, statistics.get("output_tokens") or 0)
        status, reason = failure["status"], excerpt(failure["reason"], [self._key])
        if status is None:
            return RequestFailed(f"{self._place}: {reason}", passing=True)
        advice = f" (the key is read from {self._settings.api_key_env})" if status in (401, 403) else ""
        message = f"{self._place}: HTTP {status}{advice}: {reason}"
        if status in UNUSABLE:
            raise RunError(message)
        return RequestFailed(message, passing=failure["passing"])
