"""Calling a reward function over many completions, so that a bug costs only those that trip it.

Worker processes import this module: it must not import torch.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

from maxent_grpo.errors import RunError
from maxent_grpo.rewards.registry import RewardFunction

Arguments = Mapping[str, list[Any]]
"""The keyword arguments of a call: lists of N aligned entries."""

# Utilities become single-precision tensors, where anything larger would be infinite.
_LARGEST = 3.4028234663852886e38


@dataclass(frozen=True)
class TrainerState:
    """What a reward function may ask about the run: the part of Transformers' `TrainerState` that a schedule needs."""

    global_step: int = 0  # optimiser steps done
    max_steps: int = 0  # optimiser steps of the whole run; 0: not known


@dataclass(frozen=True)
class CallContext:
    """What TRL passes beside the aligned lists."""

    trainer_state: TrainerState = field(default_factory=TrainerState)
    is_eval: bool = False  # passed on evaluation only: a training call has TRL's arguments and no others


@dataclass(frozen=True)
class Scores:
    """What one function said about N completions."""

    values: tuple[float, ...]  # finite, or NaN where it gave no score
    errors: Mapping[int, Exception]  # row → why its score is missing; a row that was not applicable has none
    logged: tuple[tuple[str, float], ...] = ()  # what the function reported through ``log_metric``


class MiscountedScoresError(ValueError):
    """A function returned something else than one score per completion."""

    def __init__(self, returned: int, expected: int) -> None:
        super().__init__(returned, expected)
        self.returned, self.expected = returned, expected

    def __str__(self) -> str:
        return f"returned {self.returned} scores for {self.expected} completions"


class Caller:
    """Calls reward functions. Async ones all run on one event loop, which lives until `close`.

    One loop for the whole run, because clients that a reward function keeps between calls stay bound to
    their first loop.
    """

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None

    def close(self) -> None:
        """Close the event loop, if any function needed one."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def scores(self, reward: RewardFunction, arguments: Arguments, context: CallContext) -> Scores:
        """Score all rows in one call; if that raises, row by row: only the offending ones lose theirs.

        A score that is NaN, infinite or no number counts as an error of its row; ``None`` says "not
        applicable".

        Raises:
            RunError: the function returned something else than one score per completion.
        """
        size = len(arguments["completions"])
        try:
            return self.call(reward.function, arguments, context)
        except MiscountedScoresError as error:
            raise miscounted(reward.name, error) from error
        # A reward function is the user's code and can raise anything; a run must survive what one completion
        # provokes. KeyboardInterrupt and SystemExit are no Exception and pass through.
        except Exception as error:  # noqa: BLE001
            if size == 1:
                return Scores((math.nan,), {0: error})
            return joined([self.scores(reward, row_of(arguments, row), context) for row in range(size)])

    def call(self, function: Callable[..., Any], arguments: Arguments, context: CallContext) -> Scores:
        """One call over all rows. Raises whatever the function raises, and `MiscountedScoresError`."""
        logged: list[tuple[str, float]] = []

        def log_metric(name: str, value: float) -> None:
            logged.append((str(name), _finite(value)))

        # Fresh lists: a function that edits its arguments must not change what the next one sees.
        keywords: dict[str, Any] = {name: list(column) for name, column in arguments.items()}
        keywords |= {
            "trainer_state": context.trainer_state,
            "log_extra": _ignored_column,
            "log_metric": log_metric,
        }
        if context.is_eval:
            keywords["is_eval"] = True
        returned = function(**keywords)
        if isinstance(returned, Awaitable):
            self._runner = self._runner or asyncio.Runner()
            returned = self._runner.run(_awaited(returned))
        if not isinstance(returned, Iterable):
            raise TypeError(f"returned a {type(returned).__name__}, expected a list of scores")
        scores = list(returned)
        if len(scores) != len(arguments["completions"]):
            raise MiscountedScoresError(len(scores), len(arguments["completions"]))
        return _checked(scores, tuple(logged))


def row_of(arguments: Arguments, row: int) -> Arguments:
    """The arguments of a call over one row alone."""
    return {name: column[row : row + 1] for name, column in arguments.items()}


def joined(parts: Iterable[Scores]) -> Scores:
    """The scores of consecutive rows as one."""
    values: list[float] = []
    errors: dict[int, Exception] = {}
    logged: list[tuple[str, float]] = []
    for part in parts:
        errors |= {len(values) + row: error for row, error in part.errors.items()}
        values += part.values
        logged += part.logged
    return Scores(tuple(values), errors, tuple(logged))


def miscounted(name: str, error: MiscountedScoresError) -> RunError:
    """A wrong number of scores is a bug of the function, whatever the completions: it ends the run."""
    return RunError(
        f"reward function '{name}' {error}: it must return exactly one per completion, None where it does not apply"
    )


def _ignored_column(column: str, values: list[Any]) -> None:
    """TRL's ``log_extra``: accepted, because functions call it unasked; the sample table has fixed columns."""


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _checked(returned: list[Any], logged: tuple[tuple[str, float], ...]) -> Scores:
    values: list[float] = []
    errors: dict[int, Exception] = {}
    for row, score in enumerate(returned):
        try:
            values.append(math.nan if score is None else _finite(score))
        # RuntimeError: what torch raises for a tensor of more than one element.
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            values.append(math.nan)
            errors[row] = error
    return Scores(tuple(values), errors, logged)


def _finite(score: object) -> float:
    if not isinstance(score, SupportsFloat):
        raise TypeError(f"a score is a {type(score).__name__}, expected a number or None")
    value = float(score)
    if not abs(value) <= _LARGEST:  # also false for NaN
        raise ValueError(f"a score is {value}, expected a finite number or None")
    return value
