"""Reward functions by name, and calling them so that a bug costs only the completions that trip it.

Worker processes import this module: it must not import torch.
"""

import asyncio
import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, SupportsFloat

from maxent_grpo.errors import RunError, UsageError, did_you_mean
from maxent_grpo.named import find_named, load_named


@dataclass(frozen=True)
class Builtin:
    """A reward function that a recipe names by one word."""

    path: str  # module:function, imported when asked for
    isolated: bool = False  # runs in a worker, since a completion could make it hang or crash
    rowwise: bool = (
        True  # a score depends on its completion and the columns that it names, and on nothing else
    )
    options: tuple[str, ...] = ()  # settings that it takes as keyword arguments
    preload: tuple[str, ...] = ()  # what it imports when called: a worker does so before the first deadline
    golds: bool = False  # reads gold answers from the column ``answer``
    reads_tags: bool = (
        False  # is given the ``<think>`` that the prompt ends with as the completion's first word
    )
    check: str | None = None  # module:function that raises `UsageError` where something is not installed
    correctness: bool = False  # judges the answer: from a score of 1 on it is right
    made: bool = False  # ``path`` makes the function, from its options; of ``KIND:NAME``, from NAME too
    scaled: bool = False  # see `RewardFunction`


@dataclass(frozen=True)
class Location:
    """Where a worker process finds a function."""

    path: str
    options: tuple[tuple[str, Any], ...] = ()
    preload: tuple[str, ...] = ()


_RULES = "maxent_grpo.rewards.rules"
_MATH = "maxent_grpo.rewards.math"
_CODE = "maxent_grpo.rewards.code"
_COSINE = tuple(
    f"cosine_{name}"
    for name in ("min_value_wrong", "max_value_wrong", "min_value_correct", "max_value_correct", "max_len")
)
GRADER_MODULES = ("math_answers", "mpmath")

_GRADED: Any = {
    "isolated": True,
    "preload": GRADER_MODULES,
    "golds": True,
    "reads_tags": True,
    "check": f"{_MATH}:check_policy",
}
_POLICY = ("grader_policy",)
RIGHT = 1.0
"""A completion is right from this score of the correctness reward on."""

BUILTIN_REWARDS = {
    "pure_accuracy_math": Builtin(
        f"{_MATH}:pure_accuracy_math", golds=True, reads_tags=True, correctness=True
    ),
    "task_reward": Builtin("maxent_grpo.tasks.registry:task_reward", correctness=True),
    "countdown": Builtin(f"{_RULES}:countdown", correctness=True),
    "gsm8k": Builtin(f"{_RULES}:gsm8k", golds=True, reads_tags=True, correctness=True),
    "format": Builtin(f"{_RULES}:format_reward", reads_tags=True),
    "tag_count": Builtin(f"{_RULES}:tag_count", reads_tags=True),
    "reasoning_steps": Builtin(f"{_RULES}:reasoning_steps"),
    "repetition_penalty": Builtin(
        f"{_RULES}:repetition_penalty", options=("repetition_n_grams", "repetition_max_penalty")
    ),
    "missing_boxed_answer_penalty_math": Builtin(
        f"{_RULES}:missing_boxed_answer_penalty_math", options=("missing_boxed_answer_penalty",)
    ),
    "code_format": Builtin(f"{_RULES}:code_format", reads_tags=True),
    "accuracy": Builtin(f"{_MATH}:accuracy", options=_POLICY, **_GRADED, correctness=True),
    "boxed_accuracy_math": Builtin(
        f"{_MATH}:boxed_accuracy_math", options=_POLICY, **_GRADED, correctness=True
    ),
    "cosine": Builtin(f"{_MATH}:cosine", options=(*_COSINE, *_POLICY), **_GRADED),
    "length": Builtin(f"{_MATH}:length", rowwise=False, options=_POLICY, **_GRADED),
    "ifeval": Builtin(
        "maxent_grpo.rewards.ifeval:ifeval",
        isolated=True,
        reads_tags=True,
        preload=("maxent_grpo.rewards.ifeval_checkers",),
        check="maxent_grpo.rewards.ifeval:ensure_ifeval",
    ),
} | {
    name: Builtin(
        f"{_CODE}:{function}",
        isolated=True,
        options=("code_confinement",),
        check=f"{_CODE}:check_confinement",
        correctness=True,
    )
    for name, function in (
        ("code", "python_unit_tests"),
        ("python_unit_tests", "python_unit_tests"),
        ("binary_code", "binary_code"),
    )
}
"""Short name → the function behind it. docs/guides/rewards.md lists their values."""
MODEL, JUDGE, ENVIRONMENT = "model", "judge", "environment"
MADE_REWARDS = {
    MODEL: Builtin(
        "maxent_grpo.models.reward_model:load_reward_model",
        options=tuple(
            f"reward_model_{name}" for name in ("batch_size", "device", "dtype", "trust_remote_code")
        ),
        made=True,
        scaled=True,
    ),
    JUDGE: Builtin(
        "maxent_grpo.generate.judge:make_judge",
        options=tuple(
            f"judge_{name}"
            for name in (
                "url",
                "model",
                "api_key_env",
                "template",
                "max_tokens",
                "timeout",
                "retries",
                "concurrency",
            )
        ),
        made=True,
    ),
    ENVIRONMENT: Builtin(
        "maxent_grpo.rollout.environment:environment_reward", options=("environment",), made=True
    ),
}
"""``model:PATH``, ``judge``, ``environment``: functions made from settings, which run in the trainer's process."""
TRAINING_OPTIONS = frozenset(name for entry in MADE_REWARDS.values() for name in entry.options)
"""Options of theirs, which are settings of training."""
CORRECTNESS_NAMES = frozenset(name for name, entry in BUILTIN_REWARDS.items() if entry.correctness) | {
    "accuracy_reward"
}
"""Names of functions that are known to judge answers, TRL's and Open-R1's among them."""


@dataclass(frozen=True)
class RewardFunction:
    """A reward function, the name under which its scores are reported, and its weight in the utility.

    The function is called the way TRL calls one: ``function(prompts=…, completions=…, completion_ids=…,
    **columns, trainer_state=…, log_extra=…, log_metric=…)``. The first ones are lists of N aligned entries, with
    every dataset column passed by its name; it must therefore accept ``**kwargs``. ``prompts`` and ``completions``
    are plain texts, the prompt with its chat template applied, or chats where the dataset's prompts are chats. It
    returns N scores: finite numbers, or ``None`` where it does not apply. It may be ``async``.
    """

    name: str
    function: Callable[..., Any]
    weight: float = 1.0
    location: Location | None = None  # where a worker process finds it; None: it runs in this process
    rowwise: bool = False  # see `Builtin`
    golds: bool = False  # see `Builtin`
    reads_tags: bool = False  # see `Builtin`
    correctness: bool = False  # it is the run's correctness reward: it tells which completions are right
    scaled: bool = (
        False  # its scores have a scale of their own: it tells what is right only where it is asked to
    )

    @property
    def isolated(self) -> bool:
        """Whether it runs in worker processes."""
        return self.location is not None


@dataclass(frozen=True)
class RewardOptions:
    """What a configuration says about reward functions besides their names."""

    values: Mapping[str, Any] = field(default_factory=dict)  # setting → value, for functions that take it
    isolation: bool = True  # False: everything runs in this process, without deadline
    correctness: str | None = None  # name of the correctness reward; None: see `correctness_of`


def load_rewards(
    specs: Sequence[str | Callable[..., Any]],
    weights: Sequence[float] | None = None,
    options: RewardOptions | None = None,
) -> list[RewardFunction]:
    """The reward functions of a run, in the order given.

    Functions given by ``module:function`` run in worker processes, as do built-in ones that a completion could make
    hang. A callable runs in this process: it may hold a model, a client, or a counter that the caller reads.

    Args:
        specs: each a name of `BUILTIN_REWARDS`, ``model:PATH``, a hub id with its ``/``, ``judge``, an importable
            ``module:function``, or a callable.
        weights: one finite weight per function; ``None`` weighs each function 1.
        options: parameters of built-in functions; ``None`` leaves them at the functions' own defaults.

    Raises:
        UsageError: nothing given, an unknown name, something that cannot be imported or called, two
            functions of the same name, or weights that do not fit.
    """
    if not specs:
        raise UsageError("reward_funcs is empty: name at least one reward function")
    if weights is None:
        weights = [1.0] * len(specs)
    if len(weights) != len(specs):
        raise UsageError(
            f"reward_weights has {len(weights)} entries for {len(specs)} reward functions: "
            "give one weight per function, or leave reward_weights out to weigh all by 1"
        )
    options = options or RewardOptions()
    rewards = [_resolve(spec, float(weight), options) for spec, weight in zip(specs, weights, strict=True)]
    rewards = _told_apart(specs, rewards)
    names = [reward.name for reward in rewards]
    for reward in rewards:
        if not math.isfinite(reward.weight):
            raise UsageError(
                f"reward_weights: the weight of '{reward.name}' is {reward.weight}, not a finite number"
            )
        if names.count(reward.name) > 1:
            raise UsageError(
                f"reward_funcs: two functions are called '{reward.name}', and their scores would be reported "
                "under one name: rename one, or drop it"
            )
    judge = correctness_of(names, options.correctness)
    if options.correctness is None and len(rewards) == 1 and rewards[0].scaled:
        judge = None
    return [replace(reward, correctness=reward.name == judge) for reward in rewards]


def correctness_of(names: Sequence[str], asked: str | None) -> str | None:
    """Which of the reward functions called ``names`` tells what is right, by a score of at least `RIGHT`.

    The one that is ``asked`` for; else the first of `CORRECTNESS_NAMES`; else the only one; else none.

    Raises `UsageError` where the one asked for is not among them.
    """
    if asked is not None:
        name = asked.rpartition(":")[2]
        if name not in names:
            raise UsageError(
                f"correctness_reward: {asked!r} is none of the reward functions{did_you_mean(name, names)}: "
                f"name one of {', '.join(names)}, or leave it out"
            )
        return name
    known = [name for name in names if name in CORRECTNESS_NAMES]
    return known[0] if known else names[0] if len(names) == 1 else None


def said_of_correctness(rewards: Sequence[RewardFunction]) -> str | None:
    """A line that names the correctness reward; None where there is none."""
    return next(
        (f"right: reward '{r.name}' gives at least {RIGHT:g}" for r in rewards if r.correctness), None
    )


def reads_golds(spec: str | Callable[..., Any], solution_column: str) -> bool:
    """Whether a reward function needs the gold: a built-in one says so, a callable names it as an argument.

    A ``module:function``, which is not imported for this, may.
    """
    if isinstance(spec, str):
        if spec not in BUILTIN_REWARDS and _made(spec) is not None:
            return False
        return spec not in BUILTIN_REWARDS or BUILTIN_REWARDS[spec].golds
    try:
        return not {"answer", solution_column}.isdisjoint(inspect.signature(spec).parameters)
    except (TypeError, ValueError):  # a callable written in C
        return True


def _told_apart(
    specs: Sequence[str | Callable[..., Any]], rewards: Sequence[RewardFunction]
) -> list[RewardFunction]:
    """The second lambda, partial or object of one name is called ``name_2``: it has no name that could be changed."""
    seen: dict[str, list[Any]] = {}
    found = []
    for spec, reward in zip(specs, rewards, strict=True):
        others = seen.setdefault(reward.name, [])
        own_name = getattr(spec, "__name__", "<lambda>") != "<lambda>"
        is_new = not any(spec is other for other in others)
        others.append(spec)
        numbered = others[1:] and not own_name and is_new
        found.append(replace(reward, name=f"{reward.name}_{len(others)}") if numbered else reward)
    return found


def _resolve(spec: str | Callable[..., Any], weight: float, options: RewardOptions) -> RewardFunction:
    if not isinstance(spec, str):
        if not callable(spec):
            raise UsageError(f"reward_funcs: {spec!r} is neither a name nor a callable")
        return RewardFunction(_callable_name(spec), spec, weight, scaled=getattr(spec, "scaled", False))
    made = _made(spec)
    if made is not None:
        kind, argument = made
        entry = MADE_REWARDS[kind]
        chosen = {name: options.values[name] for name in entry.options if name in options.values}
        function = load_named("reward_funcs", entry.path)(*([argument] if argument else []), **chosen)
        return RewardFunction(_callable_name(function), function, weight, scaled=entry.scaled)
    builtin = BUILTIN_REWARDS.get(spec)
    known = {name: entry.path for name, entry in BUILTIN_REWARDS.items()}
    function = find_named("reward_funcs", spec, known, "a function", callable)
    if builtin is None:
        location = Location(spec) if options.isolation else None
        return RewardFunction(spec.partition(":")[2], function, weight, location)
    bound = tuple(
        (name, _hashable(options.values[name])) for name in builtin.options if name in options.values
    )
    if builtin.check is not None:
        load_named("reward_funcs", builtin.check)(**dict(bound))
    isolated = builtin.isolated and options.isolation
    return RewardFunction(
        spec,
        functools.partial(function, **dict(bound)) if bound else function,
        weight,
        Location(builtin.path, bound, builtin.preload) if isolated else None,
        builtin.rowwise,
        builtin.golds,
        builtin.reads_tags,
    )


def _made(spec: str) -> tuple[str, str] | None:
    """The kind of `MADE_REWARDS` that ``spec`` names, and what follows its colon; a hub id is a model, as in TRL."""
    kind, _, argument = spec.partition(":")
    if kind == MODEL:
        if not argument:
            raise UsageError(
                "reward_funcs: 'model:' names no model; write model:PATH, or a hub id such as org/name"
            )
        return MODEL, argument
    if spec in (JUDGE, ENVIRONMENT):
        return spec, ""
    if kind == "bundled" or (":" not in spec and "/" in spec):
        return MODEL, spec
    return None


def _hashable(value: Any) -> Any:
    """A setting as part of a `Location`: a mapping as its pairs, a list as a tuple."""
    if isinstance(value, Mapping):
        return tuple((name, _hashable(entry)) for name, entry in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _callable_name(function: Callable[..., Any]) -> str:
    """As TRL names it: by ``__name__``, that of a partial's function, or a callable object's class."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


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
