"""Who sends the requests: an interface, the built-in client behind it, and the choice between that and distilabel."""

import importlib.util
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from maxent_grpo.errors import UsageError
from maxent_grpo.generate.client import FIRST_PAUSE, Client, Endpoint, Reply, RequestFailed
from maxent_grpo.generate.settings import GenerateSettings
from maxent_grpo.randomness import integer_seed


@dataclass(frozen=True)
class Prompted:
    """A row that is to be completed."""

    index: int
    prompt: str


@dataclass(frozen=True)
class Completed:
    """A row's completions, all of them, or why it has none."""

    index: int
    prompt: str
    replies: tuple[Reply, ...]
    error: str | None = None
    passing: bool = False  # the row may be answered later


class Engine(Protocol):
    """Completes rows in any order; every row that goes in comes out once."""

    def complete(self, rows: Iterator[Prompted]) -> Iterator[Completed]:
        """Raises `RunError` where no row can be completed."""


def engine_of(settings: GenerateSettings) -> Engine:
    """The engine that ``settings`` name. Raises `UsageError` where it is not installed or cannot do what they ask."""
    if settings.engine == "builtin":
        return BuiltinEngine(settings)
    if importlib.util.find_spec("distilabel") is None:
        raise UsageError(
            "engine=distilabel: not installed; pip install 'maxent-grpo[distilabel]', or leave engine out"
        )
    with warnings.catch_warnings():  # pydantic's, about how distilabel declares its fields
        warnings.filterwarnings("ignore", message="The 'default' attribute")
        from maxent_grpo.generate.distilabel_engine import DistilabelEngine

    return DistilabelEngine(settings)


def endpoint_of(settings: GenerateSettings, first_pause: float = FIRST_PAUSE) -> Endpoint:
    """Where the requests of ``settings`` go."""
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

    def complete(self, rows: Iterator[Prompted]) -> Iterator[Completed]:
        count = self._settings.num_generations
        jobs = (((row, g), self._body(row, g)) for row in rows for g in range(count))
        outcomes: dict[int, dict[int, Reply | RequestFailed]] = defaultdict(dict)
        for (row, g), outcome in self._client.outcomes(jobs):
            outcomes[row.index][g] = outcome
            if len(outcomes[row.index]) == count:
                yield completed(row, outcomes.pop(row.index))

    def _body(self, row: Prompted, g: int) -> dict[str, Any]:
        settings = self._settings
        system = [{"role": "system", "content": settings.system_prompt}] if settings.system_prompt else []
        optional = {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": None if settings.seed is None else integer_seed(settings.seed, "generate", row.index, g),
        }
        return {
            "model": settings.model,
            "messages": [*system, {"role": "user", "content": row.prompt}],
            "max_tokens": settings.max_new_tokens,
            "n": 1,
            "stream": False,
            **{name: value for name, value in optional.items() if value is not None},
        }


def completed(row: Prompted, outcomes: Mapping[int, Reply | RequestFailed]) -> Completed:
    """A row from the outcomes of its requests, by number."""
    ordered = [outcomes[g] for g in sorted(outcomes)]
    failures = [outcome for outcome in ordered if isinstance(outcome, RequestFailed)]
    if failures:
        passing = all(failure.passing for failure in failures)
        return Completed(row.index, row.prompt, (), str(failures[0]), passing)
    return Completed(row.index, row.prompt, tuple(o for o in ordered if isinstance(o, Reply)))
