"""Environments: they answer the policy between its turns. Imports no torch."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from maxent_grpo.errors import UsageError
from maxent_grpo.named import find_named, load_named, one_line

if TYPE_CHECKING:
    from maxent_grpo.types import Prompt

BUILTIN_ENVIRONMENTS = {"countdown_feedback": "maxent_grpo.tasks.countdown:CountdownFeedback"}
"""Short name → the class behind it."""

ADAPTERS = {
    "verifiers": "maxent_grpo.rollout.verifiers_environment:VerifiersEnvironment",
    "openenv": "maxent_grpo.rollout.openenv_environment:OpenEnvEnvironment",
}
"""Kind → the class behind ``KIND:PLACE``: environments of other packages."""


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


class ScoringEnvironment(Environment, Protocol):
    """One that scores episodes, too: what the reward ``environment`` asks."""

    def scores(self, columns: Sequence[Mapping[str, Any]], turns: Sequence[Sequence[str]]) -> list[Any]:
        """A number per episode, of its row and the policy's turns; an exception where there is none."""
        ...


def load_environment(name: str) -> Environment:
    """An environment by its name in `BUILTIN_ENVIRONMENTS`, by ``verifiers:TASKSET`` or ``openenv:URL``, or by
    ``module:NAME``: a class without arguments.

    Raises:
        UsageError: there is none, it cannot be imported, or it has no ``reply``.
    """
    kind, _, place = name.partition(":")
    if kind in ADAPTERS and place:
        return _adapted(kind, place)
    made = find_named("environment", name, BUILTIN_ENVIRONMENTS, "a class", callable)
    try:
        environment: Environment = made()
    except Exception as error:  # of somebody's code, which can raise anything: this cannot be used
        raise UsageError(f"environment: {name} cannot be made ({one_line(error)})") from error
    if not callable(getattr(environment, "reply", None)):
        raise UsageError(f"environment: {name} has no method reply(prompt, turns)")
    return environment


@cache
def _adapted(kind: str, place: str) -> Any:
    return load_named("environment", ADAPTERS[kind])(place)


def environment_rows(name: str, options: str) -> list[dict[str, Any]]:
    """The rows of ``verifiers:TASKSET`` or ``openenv:URL`` as a data set.

    Args:
        options: of OpenEnv, ``size=N`` episodes (64).

    Raises:
        UsageError: there is no such environment, or it has no such option.
    """
    kind, _, place = name.partition(":")
    environment = _adapted(kind, place)
    key, _, value = options.partition("=")
    if kind == "verifiers" and not options:
        rows = environment.rows()
    elif kind == "openenv" and (not options or (key == "size" and value.isdigit() and int(value) > 0)):
        rows = environment.rows(int(value or 64))
    else:
        known = "size=N" if kind == "openenv" else "none"
        raise UsageError(f"dataset_config: {options!r} is no option of {name}; known: {known}")
    found: list[dict[str, Any]] = rows
    return found


class EnvironmentReward:
    """A reward function (`rewards.registry.RewardFunction`): what the run's environment gives an episode."""

    def __init__(self, environment: ScoringEnvironment) -> None:
        self.__name__ = "environment"
        self._environment = environment

    def __call__(
        self, completions: Sequence[Any], turns: Sequence[Sequence[str]] | None = None, **columns: Any
    ) -> list[Any]:
        """A number per completion, or what raises in its place. Without ``turns`` a completion is the only one."""
        texts = [said if isinstance(said, str) else said[-1]["content"] for said in completions]
        names = [name for name, values in columns.items() if isinstance(values, list)]
        rows = [{name: columns[name][row] for name in names} for row in range(len(texts))]
        scores = self._environment.scores(rows, turns or [[text] for text in texts])
        return [_Failed(score) if isinstance(score, Exception) else score for score in scores]


class _Failed:
    """Stands where a score would, so that its completion alone has none."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __float__(self) -> float:
        raise ValueError(str(self._error)) from self._error


def environment_reward(environment: str | None = None) -> EnvironmentReward:
    """The reward ``environment`` of a run whose setting ``environment`` is this.

    Raises:
        UsageError: it has none, or one that does not score.
    """
    if not environment:
        raise UsageError(
            "reward_funcs: 'environment' rewards what an environment gives, and the run has none; set it"
        )
    found: Any = load_environment(environment)
    if not callable(getattr(found, "scores", None)):
        raise UsageError(
            f"reward_funcs: environment {environment} has no method scores(columns, turns); give it one, or name "
            "another reward"
        )
    return EnvironmentReward(found)
