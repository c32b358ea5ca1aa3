"""Scoring in worker processes: what is asked in one call, what is asked again, and what is remembered."""

import hashlib
import inspect
import math
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from maxent_grpo.rewards.calling import (
    Arguments,
    CallContext,
    MiscountedScoresError,
    Scores,
    joined,
    miscounted,
    row_of,
)
from maxent_grpo.rewards.pool import Limits, Pool, RewardRaisedError, RewardTimeoutError, WorkerDiedError
from maxent_grpo.rewards.registry import RewardFunction
from maxent_grpo.rewards.worker import Call

LOST = (RewardTimeoutError, WorkerDiedError)
"""Why a completion may lose its score without a word from the function."""

CACHE_SIZE = 1 << 16
"""Verdicts kept, the least recently used given up first: about 20 MB."""


@dataclass(frozen=True)
class IsolationSettings:
    """How reward functions run that may not end."""

    timeout: float = 10.0  # seconds of wall clock for a completion
    memory_mb: int = 2048  # of a worker; 0: no limit
    workers: int = 2  # processes; scores do not depend on it


class Isolation:
    """Scores completions in a pool of workers, so that a hang or a crash costs a completion its score and no more.

    A function whose scores do not depend on other completions (``rowwise``) is asked about one completion at a time,
    and its verdicts are kept: the same text and columns are never graded twice, a text that hangs hangs once. Any
    other function is asked about one group at a time, since it may compare. Where that fails in any way, each of the
    group's completions is asked about alone. Neither depends on the number of workers.
    """

    def __init__(self, settings: IsolationSettings) -> None:
        self._pool = Pool(settings.workers, Limits(settings.timeout, settings.memory_mb))
        self._verdicts: OrderedDict[bytes, Future[Scores]] = OrderedDict()
        self._begun: set[bytes] = set()  # verdicts that nobody has waited for yet
        self.cache_hits = 0  # completions whose verdict was known, over the whole run

    def submit(
        self, reward: RewardFunction, arguments: Arguments, groups: Sequence[slice], context: CallContext
    ) -> "Pending":
        """Start scoring all rows; ``groups`` are the rows of each prompt, in order. Does not wait."""
        size = len(arguments["completions"])
        arguments = {name: arguments[name] for name in _read_by(reward, arguments)}
        parts = [slice(row, row + 1) for row in range(size)] if reward.rowwise else groups
        return Pending(
            self,
            reward,
            arguments,
            context,
            [(part, self._ask(reward, _rows(arguments, part), context)) for part in parts],
        )

    def begin(self, reward: RewardFunction, arguments: Arguments, context: CallContext) -> None:
        """Start on completions that will be submitted later, of a function that judges each by itself."""
        arguments = {name: arguments[name] for name in _read_by(reward, arguments)}
        for row in range(len(arguments["completions"])):
            call = self._call(reward, row_of(arguments, row), context)
            if (key := _verdict_key(call)) not in self._verdicts:
                self._remember(key, call)
                self._begun.add(key)

    def ask_again(
        self, reward: RewardFunction, arguments: Arguments, context: CallContext
    ) -> "Future[Scores]":
        """Score one row of a group that failed as a whole."""
        return self._pool.submit(self._call(reward, arguments, context))

    def close(self) -> None:
        """Kill the workers."""
        self._pool.close()

    def _ask(self, reward: RewardFunction, arguments: Arguments, context: CallContext) -> "Future[Scores]":
        call = self._call(reward, arguments, context)
        if not reward.rowwise:
            return self._pool.submit(call)
        key = _verdict_key(call)
        verdict = self._verdicts.get(key)
        if verdict is None:
            return self._remember(key, call)
        if key in self._begun:
            self._begun.remove(key)
        else:
            self.cache_hits += 1
        self._verdicts.move_to_end(key)
        return verdict

    def _remember(self, key: bytes, call: Call) -> "Future[Scores]":
        verdict = self._verdicts[key] = self._pool.submit(call)
        if len(self._verdicts) > CACHE_SIZE:
            given_up, _ = self._verdicts.popitem(last=False)
            self._begun.discard(given_up)
        return verdict

    @staticmethod
    def _call(reward: RewardFunction, arguments: Arguments, context: CallContext) -> Call:
        assert reward.location is not None, "a function without a location cannot be found by a worker"
        return Call(reward.location, arguments, context)


def _verdict_key(call: Call) -> bytes:
    told = (call.location, call.arguments, call.context.is_eval)
    return hashlib.blake2b(pickle.dumps(told), digest_size=16).digest()


class Pending:
    """Scores under way."""

    def __init__(
        self,
        isolation: Isolation,
        reward: RewardFunction,
        arguments: Arguments,
        context: CallContext,
        parts: "Sequence[tuple[slice, Future[Scores]]]",
    ) -> None:
        self._isolation = isolation
        self._reward = reward
        self._arguments = arguments
        self._context = context
        self._parts = parts

    def scores(self) -> Scores:
        """Wait for all rows.

        Raises:
            RunError: the function returned a wrong number of scores, or no worker could be started.
        """
        # All failed groups are asked about again at once, so that their hangs pass side by side.
        again = {
            part.start: [
                self._isolation.ask_again(self._reward, row_of(self._arguments, row), self._context)
                for row in range(part.start, part.stop)
            ]
            for part, future in self._parts
            if part.stop - part.start > 1 and self._failed(future)
        }
        return joined(
            scores
            for part, future in self._parts
            for scores in (
                [self._alone(f) for f in again[part.start]] if part.start in again else [self._alone(future)]
            )
        )

    def _failed(self, future: "Future[Scores]") -> bool:
        error = future.exception()
        if isinstance(error, MiscountedScoresError):
            raise miscounted(self._reward.name, error)
        return error is not None

    def _alone(self, future: "Future[Scores]") -> Scores:
        try:
            return future.result()
        except MiscountedScoresError as error:
            raise miscounted(self._reward.name, error) from error
        except (*LOST, RewardRaisedError) as error:
            return Scores(
                (math.nan,), {0: error.with_traceback(None)}
            )  # this process's part of it says nothing


def _rows(arguments: Arguments, part: slice) -> Arguments:
    return {name: column[part] for name, column in arguments.items()}


def _read_by(reward: RewardFunction, arguments: Arguments) -> Sequence[str]:
    """The arguments that a call needs, and a verdict depends on: of a built-in function those it names, else all."""
    if not reward.rowwise:
        return list(arguments)
    named = inspect.signature(reward.function).parameters
    return [name for name in arguments if name in named or name == "completions"]
