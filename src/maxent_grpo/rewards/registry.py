"""From the names in a recipe to reward functions."""

import difflib
import functools
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from maxent_grpo.errors import UsageError

BUILTIN_REWARDS = {
    "pure_accuracy_math": "maxent_grpo.rewards.math:pure_accuracy_math",
    "task_reward": "maxent_grpo.tasks.registry:task_reward",
}
"""Short name → ``module:function``. Imported when asked for."""


@dataclass(frozen=True)
class RewardFunction:
    """A reward function, the name under which its scores are reported, and its weight in the utility.

    The function is called the way TRL calls one: ``function(prompts=…, completions=…, completion_ids=…,
    **columns)``, all lists of N aligned entries, with every dataset column passed by its name; it must
    therefore accept ``**kwargs``. ``prompts`` and ``completions`` are plain texts, the prompt with its chat
    template applied. It returns N scores: finite numbers, or ``None`` where it does not apply. It may be
    ``async``.
    """

    name: str
    function: Callable[..., Any]
    weight: float = 1.0


def load_rewards(
    specs: Sequence[str | Callable[..., Any]], weights: Sequence[float] | None = None
) -> list[RewardFunction]:
    """The reward functions of a run, in the order given.

    Args:
        specs: each a name of `BUILTIN_REWARDS`, an importable ``module:function``, or a callable.
        weights: one finite weight per function; ``None`` weighs each function 1.

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
    rewards = [_resolve(spec, float(weight)) for spec, weight in zip(specs, weights, strict=True)]
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


def _resolve(spec: str | Callable[..., Any], weight: float) -> RewardFunction:
    if not isinstance(spec, str):
        if not callable(spec):
            raise UsageError(f"reward_funcs: {spec!r} is neither a name nor a callable")
        return RewardFunction(_callable_name(spec), spec, weight)
    path = BUILTIN_REWARDS.get(spec, spec)
    module, colon, attribute = path.partition(":")
    if not (colon and module and attribute):
        known = ", ".join(sorted(BUILTIN_REWARDS))
        close = difflib.get_close_matches(spec, BUILTIN_REWARDS, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UsageError(
            f"unknown reward function '{spec}': {hint}known are {known}; your own is 'module:function'"
        )
    function = _import(spec, module, attribute)
    return RewardFunction(spec if spec in BUILTIN_REWARDS else attribute, function, weight)


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
