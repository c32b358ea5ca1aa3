"""Environments: they answer the policy between its turns. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from maxent_grpo.errors import UsageError
from maxent_grpo.named import find_named, one_line

if TYPE_CHECKING:
    from maxent_grpo.types import Prompt

BUILTIN_ENVIRONMENTS = {"countdown_feedback": "maxent_grpo.tasks.countdown:CountdownFeedback"}
"""Short name → the class behind it."""


class Environment(Protocol):
    """Answers a turn of the policy, or ends the episode.

    It keeps no state: what it says is a function of its arguments, so that an episode depends neither on who shares
    its batch nor on where a run was resumed.
    """

    def reply(self, prompt: "Prompt", turns: Sequence[str]) -> Mapping[str, Any] | None:
        """The chat message that follows the policy's ``turns`` (texts, the first one first, at least one).

        Its role is one that the chat template knows: ``user`` for feedback or a further question, ``tool`` for a
        result. None ends the episode. ``prompt.columns`` is the dataset's row.
        """
        ...


def load_environment(name: str) -> Environment:
    """An environment by its name in `BUILTIN_ENVIRONMENTS`, or by ``module:NAME``: a class without arguments.

    Raises:
        UsageError: there is none, it cannot be imported, or it has no ``reply``.
    """
    made = find_named("environment", name, BUILTIN_ENVIRONMENTS, "a class", callable)
    try:
        environment: Environment = made()
    except Exception as error:  # of somebody's code, which can raise anything: this cannot be used
        raise UsageError(f"environment: {name} cannot be made ({one_line(error)})") from error
    if not callable(getattr(environment, "reply", None)):
        raise UsageError(f"environment: {name} has no method reply(prompt, turns)")
    return environment
