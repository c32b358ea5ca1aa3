"""Engines send the requests of a generation: their interface, and the built-in one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from maxent_grpo.generate.client import FIRST_PAUSE, Client, Endpoint, Reply, RequestFailed
from maxent_grpo.generate.settings import GenerateSettings
from maxent_grpo.randomness import integer_seed


@dataclass(frozen=True)
class Job:
    """One completion to ask for."""

    row: int
    number: int
    """Of the row's completions."""
    prompt: str


class Engine(Protocol):
    """Completes jobs in any order; every job that goes in comes out once."""

    def outcomes(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Reply | RequestFailed]]:
        """Raises `RunError` where nothing can be completed."""
        ...


def endpoint_of(settings: GenerateSettings, first_pause: float = FIRST_PAUSE) -> Endpoint:
    """The endpoint that ``settings`` name."""
    return Endpoint(
        settings.vllm_server_url,
        settings.model,
        settings.api_key_env,
        settings.concurrency,
        settings.timeout,
        settings.retries,
        first_pause,
    )


class BuiltinEngine:
    """One request per completion, each with a seed of its own: a completion can be tried again alone."""

    def __init__(self, settings: GenerateSettings, first_pause: float = FIRST_PAUSE) -> None:
        self._settings = settings
        self._client = Client(endpoint_of(settings, first_pause))

    def outcomes(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Reply | RequestFailed]]:
        return self._client.outcomes((job, self._body(job)) for job in jobs)

    def _body(self, job: Job) -> dict[str, Any]:
        settings = self._settings
        system = [{"role": "system", "content": settings.system_prompt}] if settings.system_prompt else []
        seed = settings.seed
        optional = {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": None if seed is None else integer_seed(seed, "generate", job.row, job.number),
        }
        return {
            "model": settings.model,
            "messages": [*system, {"role": "user", "content": job.prompt}],
            "max_tokens": settings.max_new_tokens,
            "n": 1,
            "stream": False,
            **{name: value for name, value in optional.items() if value is not None},
        }
