"""The names of TorchRL's GRPO scripts, and what each is called here: one table, and how the two are reconciled.

Their configuration counts *dialog turns* (answers of the policy) where this package counts completions per device; in a
task of one turn the two are the same. `ALIASES` holds every name with its conversion, `ENVIRONMENTS` what
``env.dataset`` stands for. Standard library only: the command line sorts its arguments with this module.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from operator import not_
from typing import Any

from maxent_grpo.errors import UsageError, did_you_mean

THINK_AND_ANSWER = "Think inside <think></think>, then answer inside <answer></answer>."
BOXED = "Reason step by step, and put the final answer within \\boxed{}."
DATASET = "env.dataset"

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "gsm8k": {
        "dataset_name": "openai/gsm8k",
        "dataset_config": "main",
        "dataset_prompt_column": "question",
        "dataset_solution_column": "answer",
        "reward_funcs": ["gsm8k"],
        "system_prompt": THINK_AND_ANSWER,
    },
    "ifeval": {
        "dataset_name": "google/IFEval",
        "dataset_prompt_column": "prompt",
        "reward_funcs": ["ifeval"],
        "system_prompt": THINK_AND_ANSWER,
    },
    "math": {
        "dataset_name": "DigitalLearningGmbH/MATH-lighteval",
        "dataset_prompt_column": "problem",
        "dataset_solution_column": "solution",
        "reward_funcs": ["boxed_accuracy_math"],
        "system_prompt": BOXED,
    },
    "countdown": {
        "dataset_name": "task:countdown",
        "dataset_config": "numbers=4",
        "dataset_prompt_column": "problem",
        "dataset_solution_column": "answer",
        "reward_funcs": ["task_reward"],
    },
}
ENVIRONMENTS["countdown_feedback"] = ENVIRONMENTS["countdown"] | {"environment": "countdown_feedback"}
"""``env.dataset`` → data, columns and reward. Each is a default: a setting given by its own name replaces it."""


def _any(name: str, value: Any) -> Any:
    return value


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name}: {value!r} is not a whole number of at least 1")
    return value


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name}: {value!r} is not true or false")
    return value


def _mode(name: str, value: Any) -> str:
    if value not in ("sync", "async"):
        raise UsageError(f"mode: {value!r} is not one of sync, async")
    return str(value)


@dataclass(frozen=True)
class Alias:
    """One of their names."""

    setting: str
    """What it is called here."""
    meaning: str
    """One line of the guide's table."""
    checked: Callable[[str, Any], Any] = _any
    convert: Callable[..., Any] = lambda value: value
    """Of the checked value, and of the settings that it needs."""
    needs: tuple[str, ...] = ()


def completions_per_device(optim_batch_size: int, accumulation: int, learners: int) -> int:
    """Rows of one forward and backward pass of one learner, of which ``accumulation`` × ``learners`` make a step.

    Raises `UsageError` where the step's completions are not so many equal parts.
    """
    parts = accumulation * learners
    if optim_batch_size % parts:
        nearest = math.ceil(optim_batch_size / parts) * parts
        raise UsageError(
            f"train.optim_batch_size: {optim_batch_size} completions are not gradient_accumulation_steps × "
            f"learner_workers = {accumulation} × {learners} equal parts; use {nearest}"
        )
    return optim_batch_size // parts


def micro_batches_per_rollout(turns_per_batch: int, per_device: int, accumulation: int, learners: int) -> int:
    """How many passes of each learner use up a rollout of ``turns_per_batch`` completions (`steps_per_generation`).

    Raises `UsageError` where a rollout is not whole optimiser steps.
    """
    step = per_device * accumulation * learners
    if turns_per_batch % step:
        nearest = math.ceil(turns_per_batch / step) * step
        raise UsageError(
            f"train.dialog_turns_per_batch: {turns_per_batch} completions are not whole optimiser steps of {step}; "
            f"use {nearest}"
        )
    return turns_per_batch // (per_device * learners)


def optimiser_steps(
    total_turns: int,
    per_device: int,
    accumulation: int,
    learners: int,
    micro_batches: int,
    epochs: int,
) -> int:
    """Optimiser steps until ``total_turns`` completions have been sampled: the last rollout is sampled whole."""
    rollouts = math.ceil(total_turns / (per_device * learners * micro_batches))
    return rollouts * (micro_batches // accumulation) * epochs


def groups_in_buffer(buffer_size: int, repeats: int) -> int:
    """Whole groups in a buffer of ``buffer_size`` completions. Raises `UsageError` where there is a broken one."""
    if buffer_size % repeats or buffer_size < 1:
        nearest = max(1, math.ceil(buffer_size / repeats)) * repeats
        raise UsageError(
            f"train.buffer_size: {buffer_size} completions are not whole groups of {repeats}; use {nearest}"
        )
    return buffer_size // repeats


BATCH = ("gradient_accumulation_steps", "learner_workers")
STEP = ("per_device_train_batch_size", *BATCH)

# fmt: off
ALIASES: dict[str, Alias] = {
    "mode": Alias("driver", "sync or async: the Ray driver", _mode),
    "model.name": Alias("model_name_or_path", "hub id or directory"),
    "train_model.num_devices": Alias("learner_workers", "learners, a device each", _count),
    "ref_model.num_devices": Alias("reference_workers", "workers that score the reference; 0: the learners do"),
    "inference_model.num_devices": Alias("rollout_workers", "samplers, a device each", _count),
    "inference_model.gpu_memory_utilization": Alias("vllm_gpu_memory_utilization", "share of a GPU that vLLM takes"),
    "env.num_envs": Alias("sampling_batch_size", "completions sampled at once; memory, not results", _count),
    "env.repeats": Alias("num_generations", "completions per prompt: the group", _count),
    "optimizer.lr": Alias("learning_rate", "the same"),
    "optimizer.weight_decay": Alias("weight_decay", "the same; vectors are not decayed here"),
    "policy.kl_coef": Alias("beta", "coefficient of the KL to the reference"),
    "train.kl_to_ref_coeff": Alias("beta", "the same"),
    "train.kl_to_inference_coeff": Alias("behaviour_kl_coef", "KL to the policy that sampled"),
    "train.kl_coef_in_loss": Alias(
        "kl_in_reward", "false: the KL to the reference is taken from the reward", _bool, not_),
    "train.mixed_precision": Alias("bf16", "bfloat16 autocast, which needs no gradient scaler"),
    "train.checkpoint_frequency": Alias("save_steps", "in optimiser steps", _count),
    "train.sync_iter": Alias(
        "overlap_sampling", "false: the next rollout is sampled meanwhile, one version old", _bool, not_),
    "train.weight_update_frequency": Alias(
        "weight_update_frequency", "optimiser steps between two pushes of weights", _count),
    "train.gradient_accumulation_steps": Alias("gradient_accumulation_steps", "the same", _count),
    "train.epochs": Alias("num_iterations", "passes over each rollout", _count),
    "train.optim_batch_size": Alias(
        "per_device_train_batch_size", "÷ (gradient_accumulation_steps × learner_workers)",
        _count, completions_per_device, BATCH),
    "train.dialog_turns_per_batch": Alias(
        "steps_per_generation", "÷ (per_device_train_batch_size × learner_workers)",
        _count, micro_batches_per_rollout, STEP),
    "train.total_dialog_turns": Alias(
        "max_steps", "rollouts needed, rounded up, × optimiser steps of a rollout × num_iterations",
        _count, optimiser_steps, (*STEP, "steps_per_generation", "num_iterations")),
    "train.buffer_size": Alias("buffer_groups", "÷ num_generations", _count, groups_in_buffer, ("num_generations",)),
}
# fmt: on
"""Their name → ours, in an order in which what a conversion needs is settled before it."""

NAMES = (*ALIASES, DATASET)
PREFIXES = frozenset(name.partition(".")[0] for name in NAMES) - {"mode", "model"}
"""Sections that are theirs alone; ``model`` is a section of both, and its only name of theirs is ``model.name``."""


def split(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A composed tree without their names, and those with their values, dotted.

    Raises `UsageError` for a name of their sections that the table does not hold.
    """
    rest = dict(tree)
    found: dict[str, Any] = {}
    for section in sorted(PREFIXES & rest.keys()):
        values = rest.pop(section)
        if values is not None and not isinstance(values, Mapping):
            raise UsageError(f"{section}={values}: settings are needed ({section}.KEY=VALUE)")
        found |= {f"{section}.{key}": value for key, value in (values or {}).items()}
    if "mode" in rest:
        found["mode"] = rest.pop("mode")
    model = rest.get("model")
    if isinstance(model, Mapping) and "name" in model:
        found["model.name"] = model["name"]
        rest["model"] = {key: value for key, value in model.items() if key != "name"}
    for name in found:
        if name not in NAMES:
            raise UsageError(f"unknown key {name}{did_you_mean(name, NAMES)}")
    return rest, found


@dataclass(frozen=True)
class Claim:
    """A value that something gives a setting."""

    name: str  # as it was written
    value: Any
    typed: bool  # on the command line, as opposed to read from a preset
    shown: Any  # the value as it was written
    yields: bool = False  # to any other of its rank: a default of an environment

    def __str__(self) -> str:
        return f"{self.name}={self.shown}"


def translated(
    dialect: Mapping[str, Any], own: Mapping[str, Claim], typed: Collection[str]
) -> dict[str, Any]:
    """The settings that ``dialect`` gives a value to, reconciled with what is given by our own names.

    What is typed goes before what a preset says, whichever language either is in; a typed null unsets.

    Args:
        dialect: their names with values, as `split` leaves them.
        own: settings given by our names.
        typed: their names that were typed, as opposed to read from a preset.

    Raises:
        UsageError: both languages, or two of their names, give a setting different values at the same place; a value
            that cannot be converted; a conversion without the numbers that it needs.
    """
    claims: dict[str, list[Claim]] = {setting: [claim] for setting, claim in own.items()}
    if dialect.get(DATASET) is not None:
        for setting, value in _environment(dialect[DATASET]).items():
            claim = Claim(DATASET, value, DATASET in typed, dialect[DATASET], yields=True)
            claims.setdefault(setting, []).append(claim)
    touched = {setting for setting, given in claims.items() if any(claim.yields for claim in given)}
    for name, alias in ALIASES.items():
        if name not in dialect or (dialect[name] is None and name not in typed):
            continue  # what a preset leaves open
        known = {setting: _settled(setting, claims[setting]) for setting in alias.needs if setting in claims}
        missing = [setting for setting in alias.needs if known.get(setting) is None]
        if missing and dialect[name] is not None:
            raise UsageError(f"{name}: is converted with {' and '.join(missing)}; give that too")
        value = None
        if dialect[name] is not None:
            given = alias.checked(name, dialect[name])
            value = alias.convert(given, *(known[setting] for setting in alias.needs))
        claims.setdefault(alias.setting, []).append(Claim(name, value, name in typed, dialect[name]))
        touched.add(alias.setting)
    return {setting: _settled(setting, claims[setting]) for setting in touched}


def _settled(setting: str, claims: list[Claim]) -> Any:
    ranked = [claim for claim in claims if claim.typed] or claims
    firm = [claim for claim in ranked if not claim.yields] or ranked
    for claim in firm[1:]:
        if claim.value != firm[0].value:
            raise UsageError(
                f"{firm[0]} and {claim} set the same thing ({setting}={firm[0].value} and {claim.value}): keep one"
            )
    return firm[0].value


def _environment(name: Any) -> Mapping[str, Any]:
    if name not in ENVIRONMENTS:
        raise UsageError(
            f"{DATASET}: {name!r} is not one of {', '.join(ENVIRONMENTS)}{did_you_mean(str(name), ENVIRONMENTS)}; name "
            "other data by dataset_name, with reward_funcs"
        )
    return ENVIRONMENTS[name]


def table() -> str:
    """Every name with what it is here, in Markdown."""
    lines = ["| there | here | |", "|---|---|---|"]
    lines += [f"| `{name}` | `{alias.setting}` | {alias.meaning} |" for name, alias in ALIASES.items()]
    known = ", ".join(f"`{name}`" for name in ENVIRONMENTS)
    lines.append(f"| `{DATASET}` | data, columns, reward, system prompt | {known} |")
    return "\n".join(lines)
