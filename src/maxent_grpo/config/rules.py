"""From given settings to what a run uses: unset ones are filled in, and what cannot work together is refused.

A problem is one line, ``key: what is wrong and what to do``. Ranges and choices stand in the records.
"""

import copy
import importlib.util
import json
import math
from collections.abc import Iterable, Mapping
from enum import Enum
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
from maxent_grpo.config.trl_settings import TRL_DEFAULTS
from maxent_grpo.errors import UsageError
from maxent_grpo.objectives.catalog import ObjectiveSpec, find_objective
from maxent_grpo.objectives.components import ADVANTAGES, MAXENT, NUMBERS, OWN_SCALE
from maxent_grpo.settings import Setting

Route = Literal["native", "trl"]

ENTROPY_TARGETS = tuple(f"maxent_target_weight_entropy{suffix}" for suffix in ("", "_start", "_final"))

CHECKPOINTING_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""The names that everybody uses → those of Transformers 5, which warns about the former."""

IGNORED_BY_ENGINES = {
    "vllm_sync_weights": "rollout workers always get the learner's weights; leave it out",
    "vllm_sync_interval_steps": "set weight_update_frequency",
    "vllm_sync_backend": "weights go through Ray's object store; leave it out",
    "vllm_sync_urls": "no server gets weights; leave it out",
    "vllm_sync_dir": "weights go through Ray's object store; leave it out",
}
"""Settings of other ways to vLLM that engines in rollout workers would ignore → what to do instead."""

OWN_VALUE = "the objective's own"
"""What ``null`` means for a setting that a named objective fills in."""

STALE_TIS_CAP = 2.0
"""Cap of the importance weights where groups may be stale: the C of Yao et al. (2025)."""


def settle(training: Any, environ: Mapping[str, str]) -> None:
    """Check ``training`` and fill what is unset, by the objective and the launcher; numbers of TRL come later.

    Raises `UsageError` with every problem that was found.
    """
    parse_given(training, RECORDS["training"].values())
    training.stop_sequences = _stop_sequences(training.stop_sequences)
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
        training_problems(training, processes)
        + batch_problems(training, processes)
        # The Ray drivers start the learner's ranks themselves.
        + (launch_problems(training.distributed, environ) if training.driver == "inline" else [])
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
    if model.model_name_or_path is None:
        raise UsageError(
            "model_name_or_path: no model is named; give a hub id, a directory, or bundled:tiny-policy"
        )


def settle_light(training: TrainingSettings, environ: Mapping[str, str]) -> TrainingSettings:
    """`settle`, then what construction by TRL and Transformers derives, except what depends on the device."""
    settle(training, environ)
    if training.output_dir is None:
        training.output_dir = "trainer_output"
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


def refuse(problems: list[str]) -> None:
    if problems:
        raise UsageError("; ".join(problems))


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
    is_grpo = not entry.has_weights
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
        if getattr(training, record.name) is None and not callable(value) and not follows:
            setattr(training, record.name, value)
    if not is_grpo and training.maxent_length_normalize_policy is None:
        training.maxent_length_normalize_policy = training.maxent_length_normalize_ref


def script_problems(script: Any) -> list[str]:
    """What is wrong with data and rewards, one line each."""
    problems = []
    if script.dataset_name is None and script.dataset_mixture is None:
        problems.append("dataset_name: Either `dataset_name` or `dataset_mixture` must be provided")
    if script.dataset_name is not None and script.dataset_mixture is not None:
        problems.append("dataset_mixture: dataset_name is set too; keep one of the two")
    if script.dataset_mixture is not None and not script.dataset_mixture.get("datasets"):
        problems.append("dataset_mixture: names no datasets; add `datasets: [{id: …}]`")
    if not script.reward_funcs:
        problems.append("reward_funcs: is empty; name at least one reward function")
    weights, functions = script.eval_reward_weights, script.eval_reward_funcs or script.reward_funcs
    if weights and len(weights) != len(functions):
        problems.append(
            f"eval_reward_weights: {len(weights)} weights for {len(functions)} reward functions; give one each"
        )
    return problems


def training_problems(training: Any, processes: int) -> list[str]:
    """What is wrong with the training settings, one line each; empty where nothing is."""
    problems = []
    if 0 < training.maxent_tau_max < training.maxent_tau_min:
        problems.append(
            f"maxent_tau_max: {training.maxent_tau_max} is below maxent_tau_min={training.maxent_tau_min}; "
            "raise it, or use 0 for no bound"
        )
    if training.max_completion_length is None:
        problems.append("max_completion_length: is unset; give the longest completion in tokens")
    if training.max_steps == 0 or training.max_steps < -1:
        problems.append(
            f"max_steps: {training.max_steps} must be at least 1, or -1 to go by num_train_epochs"
        )
    if training.fp16:
        problems.append(
            "fp16: is not supported, as float16 loses small probability ratios; use bf16 or float32"
        )
    if training.benchmarks:
        problems.append(
            "benchmarks: training runs no benchmarks; leave it empty and run math-eval on a checkpoint"
        )
    if training.delta is not None and training.delta <= 1 + training.epsilon:
        problems.append(
            f"delta: {training.delta} must be above 1 + epsilon = {1 + training.epsilon:g}, or be unset"
        )
    if training.reference_model_revision is not None and training.reference_model_name_or_path is None:
        problems.append(
            "reference_model_revision: names no model; set reference_model_name_or_path, or remove it"
        )
    if training.dynamic_sampling and processes > 1:
        problems.append(f"dynamic_sampling: works in one process, and {processes} were launched; turn it off")
    if training.advantage == "pass_at_k" and training.pass_k > training.num_generations:
        problems.append(
            f"pass_k: {training.pass_k} is above num_generations={training.num_generations}; lower it"
        )
    if find_objective(training.objective).has("reference") and training.beta > 0:
        problems.append(
            "beta: FlowRL has the reference in its target and no KL to weigh; set it to 0, or flow_reward_scale"
        )
    if training.environment is not None and training.info_seed_enabled:
        problems.append("environment: InfoSeed's seeded prompts have one turn; turn one of the two off")
    problems += _target_problems(training)
    if not training.train_grpo_objective:
        problems += _maxent_problems(training)
    if training.info_seed_enabled:
        problems += _info_seed_problems(training)
    return problems


def batch_problems(training: Any, processes: int) -> list[str]:
    """What keeps a batch from holding whole groups, with the nearest size that works. TRL's rules."""
    group: int | None = training.num_generations
    rows = training.per_device_train_batch_size
    if group is None or group < 2:
        return [f"num_generations: {group} completions are no group; use at least 2"]
    if training.generation_batch_size is not None and training.steps_per_generation is not None:
        return ["generation_batch_size: steps_per_generation is set too; keep one of the two"]
    step_rows = rows * processes
    sampled = training.generation_batch_size
    if sampled is None:
        sampled = step_rows * (training.steps_per_generation or training.gradient_accumulation_steps)
    elif sampled % step_rows:
        nearest = math.ceil(sampled / step_rows) * step_rows
        unit = f"per_device_train_batch_size={rows} × {processes} process(es)"
        return [f"generation_batch_size: {sampled} is not a multiple of {unit}; use {nearest}"]
    problems = []
    if sampled % group:
        nearest = math.ceil(rows / group) * group
        problems.append(
            f"per_device_train_batch_size: the {sampled} completions of a rollout are not whole groups of "
            f"num_generations={group}; use per_device_train_batch_size={nearest}"
        )
    problems += _eval_batch_problems(training, processes)
    return problems


def _eval_batch_problems(training: Any, processes: int) -> list[str]:
    group = training.num_generations_eval or training.num_generations
    rows = training.per_device_eval_batch_size * processes
    if str(getattr(training.eval_strategy, "value", training.eval_strategy)) == "no" or rows % group == 0:
        return []
    nearest = math.ceil(training.per_device_eval_batch_size / group) * group
    return [
        f"per_device_eval_batch_size: {rows} completions are not whole groups of "
        f"num_generations_eval={group}; use "
        f"per_device_eval_batch_size={nearest} or another num_generations_eval"
    ]


def _target_problems(training: Any) -> list[str]:
    most = math.log(training.num_generations) if training.num_generations else math.inf
    return [
        f"{name}: {getattr(training, name)} nats is above ln num_generations = {most:.3f}, "
        "the entropy of equal weights; lower it"
        for name in ENTROPY_TARGETS
        if getattr(training, name) is not None and getattr(training, name) > most
    ]


def _maxent_problems(training: Any) -> list[str]:
    tau, beta = training.maxent_tau, training.beta
    problems = []
    if training.maxent_q_epsilon * training.num_generations >= 1:
        problems.append(
            f"maxent_q_epsilon: {training.maxent_q_epsilon} must be below 1 / num_generations "
            f"= {1 / training.num_generations:g}"
        )
    if training.maxent_loss == "tilted":
        return problems  # τ = 0 is the argmax set, and no reference is needed
    if tau + beta == 0:
        problems.append(
            "maxent_tau: the weights divide by maxent_tau + beta, and both are 0; set beta > 0, with a small maxent_tau"
        )
    elif training.maxent_loss == "listwise" and beta == 0 and not training.maxent_allow_no_reference:
        problems.append(
            "beta: the listwise loss without a reference drives the policy towards uniform noise; "
            "set beta > 0, or maxent_allow_no_reference=true to do it on purpose"
        )
    elif training.maxent_weight_denominator == "tau" and tau == 0:
        problems.append(
            "maxent_tau: weights divided by tau need maxent_tau > 0 (or maxent_weight_denominator)"
        )
    return problems


def _info_seed_problems(training: Any) -> list[str]:
    problems = []
    if training.info_seed_num_seeds < 2:
        problems.append(
            f"info_seed_num_seeds: {training.info_seed_num_seeds} seeds tell nothing apart; use at least 2"
        )
    template = training.info_seed_prompt_template
    if "{seed}" not in template:
        problems.append(f"info_seed_prompt_template: {template!r} does not contain {{seed}}")
    try:
        template.format(seed=0, prompt="")
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        problems.append(
            f"info_seed_prompt_template: {template!r} cannot be filled in ({error!r}); it may hold {{seed}} and "
            "{prompt}, and other braces doubled"
        )
    if not training.train_grpo_objective:
        problems.append(
            "info_seed_enabled: InfoSeed adds to a GRPO objective, whose advantages take the seeded completions as "
            "they come; set train_grpo_objective to true, or info_seed_enabled to false"
        )
    return problems


def steps_per_rollout(training: Any) -> int:
    """Optimiser steps that the learner makes of one rollout."""
    updates = training.steps_per_generation // training.gradient_accumulation_steps
    return max(1, updates) * training.num_iterations  # the batch plan refuses 0 updates


def groups_per_rollout(training: Any) -> int:
    """Groups that the learner takes at once, over all its ranks."""
    rows = training.per_device_train_batch_size * training.steps_per_generation
    return rows * training.learner_workers // training.num_generations


def publishing_lag(training: Any) -> int:
    """Most optimiser steps between the learner and the published weights when the learner begins a rollout."""
    steps = steps_per_rollout(training)
    return (math.ceil(training.weight_update_frequency / steps) - 1) * steps


def worker_problems(training: Any) -> list[str]:
    """What keeps the settings of the drivers from working together, one line each."""
    if training.driver == "inline":
        return _colocated_problems(training) + [
            f"{record.name}: belongs to the Ray drivers; set driver=sync or driver=async, or leave it out"
            for record in RECORDS["training"].values()
            if record.topic == "Training on Ray" and record.name != "driver"
            if getattr(training, record.name) != (0 if record.name == "max_staleness" else record.default)
        ]
    problems = []
    if importlib.util.find_spec("ray") is None:
        problems.append(
            f"driver: {training.driver} needs the package ray: pip install 'maxent-grpo[ray]', or use inline"
        )
    if training.use_vllm:
        problems += _engine_problems(training)
    if training.dynamic_sampling:
        problems.append(
            f"dynamic_sampling: driver={training.driver} trains on every group; use driver=inline"
        )
    if training.distributed in ("zero2", "zero3"):
        problems.append(
            f"distributed: {training.distributed} is not supported with driver={training.driver}; use fsdp2 or ddp"
        )
    return problems or _staleness_problems(training)


def _colocated_problems(training: Any) -> list[str]:
    """Settings of servers that an engine in the training process would ignore."""
    if not (training.use_vllm and training.vllm_mode == "colocate"):
        return []
    return [
        f"{name}: vllm_mode=colocate hands its engine the weights in memory; leave it out, or use vllm_mode=server"
        for name in ("vllm_sync_backend", "vllm_sync_urls", "vllm_sync_dir")
        if _differs(training, name)
    ]


def _engine_problems(training: Any) -> list[str]:
    """What engines in the rollout workers cannot do, and settings that they would ignore."""
    if training.vllm_mode == "server":
        return [
            "vllm_mode: server holds one version of the weights, and each rollout worker samples with a version of its "
            "own; use vllm_mode=colocate, which gives each rollout worker an engine, or driver=inline"
        ]
    problems = []
    if training.vllm_tensor_parallel_size != 1:
        problems.append(
            f"vllm_tensor_parallel_size: {training.vllm_tensor_parallel_size}: a rollout worker's engine has one "
            "device; use 1, and more rollout_workers"
        )
    problems += [
        f"{name}: driver={training.driver} does not read it; {instead}"
        for name, instead in IGNORED_BY_ENGINES.items()
        if _differs(training, name)
    ]
    return problems


def _staleness_problems(training: Any) -> list[str]:
    problems = []
    steps, rollout, lag = steps_per_rollout(training), groups_per_rollout(training), publishing_lag(training)
    if training.driver == "sync" and training.max_staleness != steps * training.overlap_sampling:
        problems.append(
            f"max_staleness: {training.max_staleness}: driver=sync samples with weights of "
            f"{'the rollout before' if training.overlap_sampling else 'the learner'}, which is "
            f"{steps * training.overlap_sampling}; use driver=async, or leave it out"
        )
    if training.driver == "async" and training.overlap_sampling:
        problems.append("overlap_sampling: driver=async always does; remove it, or use driver=sync")
    if lag > training.max_staleness:
        problems.append(
            f"weight_update_frequency: {training.weight_update_frequency} leaves the rollout workers up to {lag} steps "
            f"behind, and max_staleness={training.max_staleness}; lower it, or raise max_staleness to {lag}"
        )
    if training.buffer_groups is not None and training.buffer_groups < rollout:
        problems.append(
            f"buffer_groups: {training.buffer_groups} cannot hold the {rollout} groups of a rollout; use {rollout}"
        )
    return problems


def _differs(training: Any, name: str) -> bool:
    return bool(getattr(training, name) != RECORDS["training"][name].default)


NATIVE_REASON = "TRL's trainer does not read it; set force_custom_loop=true"


def refuse_unsupported(training: Any, route: Route) -> None:
    """Raise `UsageError` where a setting differs from its default and the trainer of ``route`` ignores it."""
    pristine = type(training)(output_dir=training.output_dir, use_cpu=training.use_cpu)
    if isinstance(pristine, TrainingSettings):
        settle_light(pristine, {})
    problems = [
        f"{record.name}: "
        + (f"{record.instead}; remove it" if route == "native" else record.instead or NATIVE_REASON)
        for record in RECORDS["training"].values()
        if record.route not in ("both", route)
        and _plain(getattr(training, record.name)) != _plain(getattr(pristine, record.name))
    ]
    if route == "trl":
        if training.importance_sampling_level == "sequence_token":
            problems.append(f"importance_sampling_level: {NATIVE_REASON}")
        if ":" in training.objective or training.objective == "flowrl":
            problems.append(
                f"objective: TRL's trainer has no {training.objective}; set force_custom_loop=true"
            )
    for name in ("eval_strategy", "save_strategy") if route == "native" else ():
        value = _plain(getattr(training, name))
        if value not in ("no", "steps"):
            problems.append(f"{name}: the native loop counts steps; {value!r} is not one of no, steps")
    refuse(problems)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
