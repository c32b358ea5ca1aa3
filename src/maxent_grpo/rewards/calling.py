"""Calling a reward function over many completions, so that a bug costs only those that trip it."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, SupportsFloat

import torch

from maxent_grpo.errors import RunError
from maxent_grpo.rewards.registry import RewardFunction

Arguments = Mapping[str, list[Any]]
"""The keyword arguments of a call: lists of N aligned entries."""

# Utilities become single-precision tensors, where anything larger would be infinite.
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Scores:
    """What one function said about N completions."""

    values: tuple[float, ...]  # finite, or NaN where it gave no score
    errors: Mapping[int, Exception]  # row → why its score is missing; a row that was not applicable has none


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

    def scores(self, reward: RewardFunction, arguments: Arguments) -> Scores:
        """Score all rows in one call; if that raises, row by row: only the offending ones lose theirs.

        A score that is NaN, infinite or no number counts as an error of its row; ``None`` says "not
        applicable".

        Raises:
            RunError: the function returned something else than one score per completion.
        """
        size = len(arguments["completions"])
        try:
            returned = self._call(reward.function, arguments)
        # A reward function is the user's code and can raise anything; a run must survive what one completion
        # provokes. KeyboardInterrupt and SystemExit are no Exception and pass through.
        except Exception as error:  # noqa: BLE001
            if size == 1:
                return Scores((math.nan,), {0: error})
            return self._row_by_row(reward, arguments, size)
        if len(returned) != size:
            raise RunError(
                f"reward function '{reward.name}' returned {len(returned)} scores for {size} completions: "
                "it must return exactly one per completion, None where it does not apply"
            )
        return _checked(returned)

    def _row_by_row(self, reward: RewardFunction, arguments: Arguments, size: int) -> Scores:
        values: list[float] = []
        errors: dict[int, Exception] = {}
        for row in range(size):
            alone = self.scores(reward, {name: column[row : row + 1] for name, column in arguments.items()})
            values += alone.values
            if alone.errors:
                errors[row] = alone.errors[0]
        return Scores(tuple(values), errors)

    def _call(self, function: Callable[..., Any], arguments: Arguments) -> list[Any]:
        # Fresh lists: a function that edits its arguments must not change what the next one sees.
        returned = function(**{name: list(column) for name, column in arguments.items()})
        if isinstance(returned, Awaitable):
            self._runner = self._runner or asyncio.Runner()
            returned = self._runner.run(_awaited(returned))
        if not isinstance(returned, Iterable):
            raise TypeError(f"returned a {type(returned).__name__}, expected a list of scores")
        return list(returned)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _checked(returned: list[Any]) -> Scores:
    values: list[float] = []
    errors: dict[int, Exception] = {}
    for row, score in enumerate(returned):
        try:
            values.append(math.nan if score is None else _finite(score))
        # RuntimeError: what torch raises for a tensor of more than one element.
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            values.append(math.nan)
            errors[row] = error
    return Scores(tuple(values), errors)


def _finite(score: object) -> float:
    if not isinstance(score, SupportsFloat):
        raise TypeError(f"a score is a {type(score).__name__}, expected a number or None")
    value = float(score)
    if not abs(value) <= _LARGEST:  # also false for NaN
        raise ValueError(f"a score is {value}, expected a finite number or None")
    return value
