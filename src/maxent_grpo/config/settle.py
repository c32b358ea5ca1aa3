"""From given settings to what a run uses: values are converted, unset ones filled in, and what cannot work refused."""

import copy
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from maxent_grpo.config.environment import (
    launch_problems,
    launched_processes,
    launched_strategy,
    log_level,
)
from maxent_grpo.config.records import (
    OWN,
    RECORDS,
    ModelSettings,
    TrainingSettings,
    admits_null,
    convert,
    parse,
)
from maxent_grpo.config.rules import (
    batch_problems,
    plain,
    publishing_lag,
    script_problems,
    steps_per_rollout,
    training_problems,
    worker_problems,
)
from maxent_grpo.config.trl_settings import TRL_DEFAULTS
from maxent_grpo.errors import UsageError, did_you_mean
from maxent_grpo.named import is_path
from maxent_grpo.objectives.catalog import ObjectiveSpec, find_objective
from maxent_grpo.objectives.components import ADVANTAGES, MAXENT, NUMBERS, OWN_SCALE
from maxent_grpo.rollout.settings import SAMPLERS, TRANSPORTS
from maxent_grpo.settings import Setting

Route = Literal["native", "trl"]


CHECKPOINTING_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""The names that everybody uses → those of Transformers 5, which warns about the former."""

ATTENTION = r"(paged\|)?(eager|sdpa|flex_attention|flash_attention_[234]|[\w.-]+/[\w.@:/-]+)"
"""What Transformers takes as attn_implementation."""

OWN_VALUE = "the objective's own"
"""What ``null`` means for a setting that a named objective fills in."""

STALE_TIS_CAP = 2.0
"""Cap of the importance weights where groups may be stale: the C of Yao et al. (2025)."""

NATIVE_REASON = "TRL's trainer does not read it; set force_custom_loop=true"
"""What a setting of the native loop says on TRL's route."""


def settle(training: Any, environ: Mapping[str, str]) -> None:
    """Check ``training`` and fill what is unset, by the objective and the launcher; numbers of TRL come later.

    Raises `UsageError` with every problem that was found.
    """
    parse_given(training, RECORDS["training"].values())
    _settle_sampler(training)
    training.stop_sequences = _stop_sequences(training.stop_sequences)
    training.top_k, training.eval_top_k = max(0, training.top_k), max(0, training.eval_top_k)
    training.log_level = log_level(environ) or training.log_level
    training.distributed = training.distributed or launched_strategy(environ)
    if isinstance(training.resume_from_checkpoint, bool):
        training.resume_from_checkpoint = "true" if training.resume_from_checkpoint else None
    for old, new in CHECKPOINTING_NAMES.items():
        if getattr(training, old) is not None and getattr(training, new) is None:
            setattr(training, new, getattr(training, old))
            setattr(training, old, None)
    training.beta = 0.0 if training.beta is None else training.beta
    _fill_from_objective(training)
    processes = launched_processes(environ)
    refuse(
        [
            *training_problems(training, processes),
            *batch_problems(training, processes),
            # The Ray drivers start the learner's ranks themselves.
            *(launch_problems(training.distributed, environ) if training.driver == "inline" else []),
        ]
    )


def settle_script(script: Any) -> None:
    """Check data and rewards. Raises `UsageError` with every problem that was found."""
    parse_given(script, RECORDS["script"].values())
    refuse(script_problems(script))


def settle_model(model: ModelSettings) -> None:
    """TRL's rules for the model section. Raises `UsageError`."""
    if model.load_in_8bit and model.load_in_4bit:
        raise UsageError("model: You can't use 8 bit and 4 bit precision at the same time")
    if model.lora_target_modules is not None and len(model.lora_target_modules) == 1:
        model.lora_target_modules = model.lora_target_modules[0]
    attention = model.attn_implementation
    if attention is not None and not re.fullmatch(ATTENTION, attention):
        raise UsageError(
            f"attn_implementation: {attention!r} is none of eager, sdpa, flex_attention, flash_attention_2, "
            "flash_attention_3, and no kernel of the hub (OWNER/NAME)"
        )
    if not (model.model_name_or_path or "").strip():
        raise UsageError(
            "model_name_or_path: no model is named; give a hub id, a directory, or bundled:tiny-policy"
        )


def settle_light(training: TrainingSettings, environ: Mapping[str, str]) -> TrainingSettings:
    """`settle`, then what construction by TRL and Transformers derives, except what depends on the device."""
    settle(training, environ)
    training.output_dir = os.path.expanduser(training.output_dir or "trainer_output")
    for old, new in CHECKPOINTING_NAMES.items():
        setattr(training, old, getattr(training, new))
    if training.activation_checkpointing is None:
        training.activation_checkpointing = training.gradient_checkpointing = False
    if isinstance(training.report_to, str) or training.report_to is None:
        training.report_to = [] if training.report_to == "none" else [training.report_to]
    elif training.report_to == ["none"]:
        training.report_to = []
    if training.eval_strategy != "no":
        training.do_eval = True
    if training.eval_strategy == "steps" and not training.eval_steps:
        training.eval_steps = training.logging_steps
    for name, cadence in (
        ("logging", "steps"),
        ("eval", training.eval_strategy),
        ("save", training.save_strategy),
    ):
        steps = getattr(training, f"{name}_steps")
        if cadence == "steps" and steps > 1 and steps != int(steps):
            raise UsageError(f"--{name}_steps must be an integer if bigger than 1: {steps}")
        if cadence == "steps" and steps > 1:
            setattr(training, f"{name}_steps", int(steps))
    rows = training.per_device_train_batch_size * launched_processes(environ)
    if training.steps_per_generation is None:
        sampled = training.generation_batch_size
        training.steps_per_generation = (
            training.gradient_accumulation_steps if sampled is None else sampled // rows
        )
    training.generation_batch_size = rows * training.steps_per_generation
    settle_staleness(training)
    return training


def settle_staleness(training: Any) -> None:
    """Fill what the drivers leave open, and refuse what they cannot do; `steps_per_generation` is known."""
    steps = steps_per_rollout(training)
    if training.max_staleness is None:
        ahead = {"inline": 0, "sync": steps * training.overlap_sampling, "async": steps}
        lag = publishing_lag(training) if training.driver == "async" else 0
        training.max_staleness = ahead[training.driver] + lag
    tokens = find_objective(training.objective).takes_tokens(training.maxent_loss)
    if training.max_staleness > 0 and training.tis_cap is None and tokens:
        training.tis_cap = STALE_TIS_CAP
    refuse(worker_problems(training))


def parse_given(group: Any, records: Iterable[Setting]) -> None:
    """Convert this package's settings in place, and check the ranges of TRL's; a null that is no value unsets.

    Raises `UsageError` with every value of the wrong type or out of range.
    """
    problems = []
    for record in records:
        value = getattr(group, record.name)
        if value is None and not admits_null(record):
            setattr(group, record.name, copy.copy(record.default))
        elif record.name in OWN or record.range:
            try:
                value = parse(record, value)
            except ValueError as error:
                problems.append(str(error))
            if record.name in OWN:
                setattr(group, record.name, value)
    refuse(problems)


def refuse(problems: Iterable[str]) -> None:
    text = "; ".join(problems)
    if text:
        raise UsageError(text)


def _settle_sampler(training: Any) -> None:
    """``sampler`` chooses vLLM as ``use_vllm`` and ``vllm_mode`` do. Raises `UsageError` where they contradict it."""
    name, backend = training.sampler, training.vllm_sync_backend
    for key, given, known in (
        ("sampler", name, [*SAMPLERS]),
        ("vllm_sync_backend", backend, ["auto", *TRANSPORTS]),
    ):
        if given is not None and given not in known and not is_path(given):
            hint = f"known: {', '.join(known)}; your own: module:NAME"
            raise UsageError(f"{key}: there is no {given!r}{did_you_mean(given, known)}; {hint}")
    mode = {"vllm_server": "server", "vllm_engine": "colocate"}.get(name)
    if mode is not None and training.vllm_mode not in (mode, RECORDS["training"]["vllm_mode"].default):
        raise UsageError(
            f"sampler: {name} is vllm_mode={mode}, which is {training.vllm_mode}; drop one of them"
        )
    if mode is not None:
        training.use_vllm, training.vllm_mode = True, mode
    elif name is not None and training.use_vllm:
        raise UsageError(f"sampler: {name} does without vLLM, and use_vllm is true; drop one of them")


def _stop_sequences(value: list[str] | str | None) -> list[str] | None:
    """A list, a JSON list or ``"a||b"`` as a list of non-empty texts; None where there is none."""
    texts: list[str] = []
    if isinstance(value, list):
        texts = value
    elif value is not None and value.startswith("["):
        try:
            texts = convert(json.loads(value), list[str])
        except ValueError:
            raise UsageError(f"stop_sequences: {value!r} is not a JSON list of texts") from None
    elif value is not None:
        texts = value.split("||")
    if not all(texts):
        raise UsageError("stop_sequences: an empty text would end every completion at once; remove it")
    return texts or None


def _fill_from_objective(training: Any) -> None:
    """Unset settings take the catalog entry's value; with no objective named, GRPO takes TRL's."""
    name = training.objective or ("maxent" if training.train_grpo_objective is False else "grpo")
    entry = find_objective(name)
    is_grpo = not entry.is_maxent
    if training.train_grpo_objective not in (None, is_grpo):
        kind, wanted = ("a GRPO", "true") if is_grpo else ("a MaxEnt", "false")
        raise UsageError(
            f"train_grpo_objective: {name} is {kind} objective; set it to {wanted}, or leave it out"
        )
    if training.objective is None and name == "grpo":
        entry = ObjectiveSpec(**{key: TRL_DEFAULTS[key] for key in ("loss_type", "scale_rewards")})
    training.objective = name
    training.train_grpo_objective = is_grpo
    if isinstance(training.scale_rewards, bool):
        training.scale_rewards = "group" if training.scale_rewards else "none"
    own_scale = training.advantage in ADVANTAGES and ADVANTAGES[training.advantage].traits & OWN_SCALE
    if training.scale_rewards is None and own_scale:
        training.scale_rewards = "none"
    for number in NUMBERS.values():
        record = number.setting
        if record is None or record.unset != OWN_VALUE or (record.topic == MAXENT and is_grpo):
            continue
        value = entry[number.name]
        follows = record.name == "maxent_length_normalize_policy"
        unspoken = callable(value) or (record.choices and value not in record.choices)
        if getattr(training, record.name) is None and not unspoken and not follows:
            setattr(training, record.name, value)
    if not is_grpo and training.maxent_length_normalize_policy is None:
        training.maxent_length_normalize_policy = training.maxent_length_normalize_ref


def refuse_unsupported(training: Any, route: Route) -> list[str]:
    """Raise `UsageError` where a setting differs from its default and the trainer of ``route`` ignores it.

    With ``unknown_keys: ignore`` they are put back to their defaults instead, and returned by name.
    """
    pristine = type(training)(output_dir=training.output_dir, use_cpu=training.use_cpu)
    if isinstance(pristine, TrainingSettings):
        settle_light(pristine, {})
    strangers = [
        record
        for record in RECORDS["training"].values()
        if record.route not in ("both", route)
        and plain(getattr(training, record.name)) != plain(getattr(pristine, record.name))
    ]
    ignored = strangers if training.unknown_keys == "ignore" else []
    for record in ignored:
        setattr(training, record.name, getattr(pristine, record.name))
    problems = [
        f"{record.name}: "
        + (f"{record.instead}; remove it" if route == "native" else record.instead or NATIVE_REASON)
        for record in strangers
        if record not in ignored
    ]
    if route == "trl":
        if training.importance_sampling_level == "sequence_token":
            problems.append(f"importance_sampling_level: {NATIVE_REASON}")
        if ":" in training.objective or training.objective == "flowrl":
            problems.append(
                f"objective: TRL's trainer has no {training.objective}; set force_custom_loop=true"
            )
    for name in ("eval_strategy", "save_strategy") if route == "native" else ():
        value = plain(getattr(training, name))
        if value not in ("no", "steps"):
            problems.append(f"{name}: the native loop counts steps; {value!r} is not one of no, steps")
    refuse(problems)
    return [record.name for record in ignored]
