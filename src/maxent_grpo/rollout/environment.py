"""Environments: who answers the policy between its turns."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from maxent_grpo.errors import UsageError, did_you_mean
from maxent_grpo.types import Prompt

BUILTIN_ENVIRONMENTS = {"countdown_feedback": "maxent_grpo.tasks.countdown:CountdownFeedback"}
"""Short name → the class behind it."""


class Environment(Protocol):
    """Answers a turn of the policy, or ends the episode.

    It keeps no state: what it says is a function of its arguments, so that an episode depends neither on who shares
    its batch nor on where a run was resumed.
    """

    def reply(self, prompt: Prompt, turns: Sequence[str]) -> Mapping[str, Any] | None:
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
    path = BUILTIN_ENVIRONMENTS.get(name, name)
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute):
        hint = did_you_mean(name, BUILTIN_ENVIRONMENTS)
        raise UsageError(
            f"environment: {name!r} is unknown{hint}: known are {', '.join(BUILTIN_ENVIRONMENTS)}; your own is "
            "module:NAME"
        )
    try:
        made = getattr(importlib.import_module(module), attribute)()
    # Importing and making it runs somebody's code, which can raise anything: whatever it is, this cannot be used.
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"environment: {name} cannot be made ({text}); is its directory on PYTHONPATH?"
        ) from error
    if not callable(getattr(made, "reply", None)):
        raise UsageError(f"environment: {name} has no method reply(prompt, turns)")
    environment: Environment = made
    return environment
