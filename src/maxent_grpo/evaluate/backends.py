"""What every source of completions promises, and the one that a model spec asks for."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from maxent_grpo.evaluate.questions import Question
from maxent_grpo.evaluate.records import Sampled
from maxent_grpo.evaluate.settings import InferenceModelSpec


class Backend(AbstractContextManager["Backend"], Protocol):
    """A model that answers questions. It loads or connects when it is first asked, and not before."""

    def sample(
        self, questions: Sequence[Question], *, seed: int, temperature: float, num_generations: int
    ) -> Iterator[Sampled]:
        """The samples of every question, as they become ready, in any order.

        Samples are whole completions drawn independently of each other. They depend on (``seed``, the question's
        index, the number of the sample) and the settings, not on the other questions: a resumed evaluation draws
        what an uninterrupted one would have drawn.

        Raises:
            UsageError: the model cannot be loaded, or the server does not know it.
            RunError: the server cannot be reached or does not answer.
        """
        ...


def open_backend(spec: InferenceModelSpec, system_prompt: str | None) -> Backend:
    """The backend of ``spec``, asking with ``system_prompt``."""
    if spec.backend == "openai":
        from maxent_grpo.evaluate.endpoint import EndpointBackend

        return EndpointBackend(spec, system_prompt)
    from maxent_grpo.evaluate.local_backend import LocalBackend

    return LocalBackend(spec, system_prompt)
