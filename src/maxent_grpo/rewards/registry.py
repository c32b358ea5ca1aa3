"""From the names in a recipe to reward functions.

Worker processes import this module: it must not import torch.
"""

import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maxent_grpo.errors import UsageError, did_you_mean


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
    check: str | None = None  # module:function that raises `UsageError` where something is not installed


@dataclass(frozen=True)
class Location:
    """Where a worker process finds a function."""

    path: str
    options: tuple[tuple[str, Any], ...] = ()
    preload: tuple[str, ...] = ()


_RULES = "maxent_grpo.rewards.rules"
_MATH = "maxent_grpo.rewards.math_accuracy"
_CODE = "maxent_grpo.rewards.code"
_COSINE = tuple(
    f"cosine_{name}"
    for name in ("min_value_wrong", "max_value_wrong", "min_value_correct", "max_value_correct", "max_len")
)
GRADER_MODULES = ("math_answers", "math_verify")

BUILTIN_REWARDS = {
    "pure_accuracy_math": Builtin("maxent_grpo.rewards.math:pure_accuracy_math"),
    "task_reward": Builtin("maxent_grpo.tasks.registry:task_reward"),
    "countdown": Builtin(f"{_RULES}:countdown"),
    "gsm8k": Builtin(f"{_RULES}:gsm8k"),
    "format": Builtin(f"{_RULES}:format_reward"),
    "tag_count": Builtin(f"{_RULES}:tag_count"),
    "reasoning_steps": Builtin(f"{_RULES}:reasoning_steps"),
    "repetition_penalty": Builtin(
        f"{_RULES}:repetition_penalty", options=("repetition_n_grams", "repetition_max_penalty")
    ),
    "missing_boxed_answer_penalty_math": Builtin(
        f"{_RULES}:missing_boxed_answer_penalty_math", options=("missing_boxed_answer_penalty",)
    ),
    "code_format": Builtin(f"{_RULES}:code_format"),
    "accuracy": Builtin(f"{_MATH}:accuracy", isolated=True, preload=GRADER_MODULES),
    "boxed_accuracy_math": Builtin(f"{_MATH}:boxed_accuracy_math", isolated=True, preload=GRADER_MODULES),
    "cosine": Builtin(f"{_MATH}:cosine", isolated=True, options=_COSINE, preload=GRADER_MODULES),
    "length": Builtin(f"{_MATH}:length", isolated=True, rowwise=False, preload=GRADER_MODULES),
    "ifeval": Builtin(
        "maxent_grpo.rewards.ifeval:ifeval",
        isolated=True,
        preload=("maxent_grpo.rewards.ifeval_checkers",),
        check="maxent_grpo.rewards.ifeval_data:ensure_ifeval",
    ),
    "code": Builtin(f"{_CODE}:python_unit_tests", isolated=True),
    "python_unit_tests": Builtin(f"{_CODE}:python_unit_tests", isolated=True),
    "binary_code": Builtin(f"{_CODE}:binary_code", isolated=True),
}
"""Short name → the function behind it. docs/guides/rewards.md lists their values."""


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

    @property
    def isolated(self) -> bool:
        """Whether it runs in worker processes."""
        return self.location is not None


@dataclass(frozen=True)
class RewardOptions:
    """What a configuration says about reward functions besides their names."""

    values: Mapping[str, Any] = field(default_factory=dict)  # setting → value, for functions that take it
    isolation: bool = True  # False: everything runs in this process, without deadline


def load_rewards(
    specs: Sequence[str | Callable[..., Any]],
    weights: Sequence[float] | None = None,
    options: RewardOptions | None = None,
) -> list[RewardFunction]:
    """The reward functions of a run, in the order given.

    Functions given by ``module:function`` run in worker processes, as do built-in ones that a completion could make
    hang. A callable runs in this process: it may hold a model, a client, or a counter that the caller reads.

    Args:
        specs: each a name of `BUILTIN_REWARDS`, an importable ``module:function``, or a callable.
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
    return rewards


def one_line(error: Exception, limit: int = 300) -> str:
    """An exception for use inside a message: its type and text on one line, cut at ``limit`` characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _resolve(spec: str | Callable[..., Any], weight: float, options: RewardOptions) -> RewardFunction:
    if not isinstance(spec, str):
        if not callable(spec):
            raise UsageError(f"reward_funcs: {spec!r} is neither a name nor a callable")
        return RewardFunction(_callable_name(spec), spec, weight)
    builtin = BUILTIN_REWARDS.get(spec)
    path = builtin.path if builtin else spec
    module, colon, attribute = path.partition(":")
    if not (colon and module and attribute):
        known = ", ".join(sorted(BUILTIN_REWARDS))
        hint = did_you_mean(spec, BUILTIN_REWARDS)
        raise UsageError(
            f"unknown reward function '{spec}'{hint}: known are {known}; your own is 'module:function'"
        )
    function = _import(spec, module, attribute)
    if builtin is None:
        return RewardFunction(attribute, function, weight, Location(path) if options.isolation else None)
    if builtin.check is not None:
        checking, _, name = builtin.check.partition(":")
        getattr(importlib.import_module(checking), name)()
    bound = tuple((name, options.values[name]) for name in builtin.options if name in options.values)
    isolated = builtin.isolated and options.isolation
    return RewardFunction(
        spec,
        functools.partial(function, **dict(bound)) if bound else function,
        weight,
        Location(path, bound, builtin.preload) if isolated else None,
        builtin.rowwise,
    )


def _import(spec: str, module: str, attribute: str) -> Callable[..., Any]:
    try:
        loaded = importlib.import_module(module)
    # Importing runs somebody's module, which can raise anything: whatever it is, this name cannot be used.
    except Exception as error:
        raise UsageError(
            f"reward function '{spec}': module '{module}' cannot be imported "
            f"({one_line(error)}); is its directory on PYTHONPATH?"
        ) from error
    if not hasattr(loaded, attribute):
        raise UsageError(f"reward function '{spec}': module '{module}' has no '{attribute}'")
    function: object = getattr(loaded, attribute)
    if not callable(function):
        raise UsageError(f"reward function '{spec}' is a {type(function).__name__}, not a callable")
    return function


def _callable_name(function: Callable[..., Any]) -> str:
    """As TRL names it: by ``__name__``, that of a partial's function, or a callable object's class."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)
