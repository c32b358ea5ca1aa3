"""What makes settings impossible. Every check gives one ``key: what is wrong and what to do`` per problem."""

import math
from typing import TYPE_CHECKING

from maxent_grpo.objectives.catalog import ObjectiveSpec, find_objective

if TYPE_CHECKING:
    from maxent_grpo.config.schema import GRPOConfig, GRPOScriptArguments

POSITIVE = (
    "maxent_q_temperature",
    "maxent_q_epsilon",
    "info_seed_temperature",
    "logging_steps",
    "save_steps",
    "temperature",
    "max_completion_length",
    "max_prompt_length",
    "sampling_batch_size",
    "max_turns",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_iterations",
    "num_generations_eval",
    "controller_meta_update_interval",
    "controller_meta_analytic_steps",
    "controller_meta_truncation_steps",
    "max_nonfinite_steps",
    "micro_batch_tokens",
    "eval_steps",
    "reward_timeout",
    "reward_workers",
    "dynamic_sampling_max_rounds",
    "flow_reward_scale",
    "pass_k",
    "sapo_temperature_pos",
    "sapo_temperature_neg",
    "off_policy_mask_threshold",
    "entropy_kl_threshold",
)
NOT_NEGATIVE = (
    "beta",
    "tis_cap",
    "vllm_sync_interval_steps",
    "epsilon",
    "epsilon_high",
    "learning_rate",
    "max_grad_norm",
    "entropy_coef",
    "behaviour_kl_coef",
    "maxent_tau",
    "maxent_target_weight_entropy",
    "maxent_target_weight_entropy_start",
    "maxent_target_weight_entropy_final",
    "maxent_target_weight_entropy_horizon",
    "maxent_tau_lr",
    "maxent_tau_min",
    "maxent_tau_max",
    "kl_target",
    "kl_horizon",
    "kl_ctl_step_size",
    "controller_meta_lr",
    "controller_meta_tau_lr",
    "controller_meta_beta_lr",
    "controller_meta_beta_grad_clip",
    "info_seed_num_seeds",
    "info_seed_lambda",
    "info_seed_alpha_entropy",
    "warmup_steps",
    "reward_memory_mb",
    "eval_temperature",
    "seed_grpo_alpha",
    "unlikeliness_coef",
    "entropy_bonus_coef",
    "overlong_buffer",
    "overlong_penalty",
    "kl_cov_coef",
    "entropy_kl_gain",
)
ENTROPY_TARGETS = tuple(f"maxent_target_weight_entropy{suffix}" for suffix in ("", "_start", "_final"))
AT_LEAST_ONE = ("cosine_max_len", "repetition_n_grams")
PENALTIES = ("repetition_max_penalty", "missing_boxed_answer_penalty")
LOSS_TYPES = ("grpo", "bnpo", "dapo", "dr_grpo", "luspo", "cispo", "sapo", "vespo")
CHOICES = {
    "loss_type": LOSS_TYPES,
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence", "sequence_token"),
    "advantage": ("centered", "rloo", "maxrl", "pass_at_k", "risk_sensitive"),
    "surrogate": ("clip", "unclipped", "cispo", "sapo", "vespo"),
}


def family(spec: ObjectiveSpec) -> str:
    """``"grpo"`` for a clipped surrogate of advantages, ``"maxent"`` for a loss on weights over the group."""
    return "maxent" if spec.has_weights else "grpo"


def script_problems(script: "GRPOScriptArguments") -> list[str]:
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
    problems += [
        f"{name}: {getattr(script, name)} must be ≥ 1" for name in AT_LEAST_ONE if getattr(script, name) < 1
    ]
    problems += [
        f"{name}: {getattr(script, name)} must be ≤ 0" for name in PENALTIES if getattr(script, name) > 0
    ]
    return problems


def objective_problems(name: str, train_grpo_objective: bool | None, entry: ObjectiveSpec) -> list[str]:
    """Whether the objective agrees with ``train_grpo_objective`` where that is set."""
    if train_grpo_objective is None or train_grpo_objective == (family(entry) == "grpo"):
        return []
    kind = "a MaxEnt" if family(entry) == "maxent" else "a GRPO"
    wanted = str(not train_grpo_objective).lower()
    return [f"train_grpo_objective: {name} is {kind} objective; set it to {wanted}, or leave it out"]


def training_problems(training: "GRPOConfig", processes: int) -> list[str]:
    """What is wrong with the training settings, one line each; empty where nothing is."""
    problems = _range_problems(training)
    if problems:
        return problems  # the rules below compute with these numbers
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


def batch_problems(training: "GRPOConfig", processes: int) -> list[str]:
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


def _eval_batch_problems(training: "GRPOConfig", processes: int) -> list[str]:
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


def _range_problems(training: "GRPOConfig") -> list[str]:
    problems = []
    for name in (*POSITIVE, *NOT_NEGATIVE):
        value = getattr(training, name)
        if value is None or isinstance(value, str):
            continue
        if not math.isfinite(value) or value < 0 or (value == 0 and name in POSITIVE):
            problems.append(f"{name}: {value} must be {'> 0' if name in POSITIVE else '≥ 0'}")
    for name, choices in CHOICES.items():
        may_be_unset = name in ("advantage", "surrogate")  # where a function or loss_type says it
        if getattr(training, name) not in choices and not (may_be_unset and getattr(training, name) is None):
            problems.append(f"{name}: {getattr(training, name)!r} is not one of {', '.join(choices)}")
    if training.maxent_tau_warmup_steps < -1:
        problems.append(f"maxent_tau_warmup_steps: {training.maxent_tau_warmup_steps} must be ≥ -1")
    if 0 < training.maxent_tau_max < training.maxent_tau_min:
        problems.append(
            f"maxent_tau_max: {training.maxent_tau_max} is below maxent_tau_min={training.maxent_tau_min}; "
            "raise it, or use 0 for no bound"
        )
    for prefix in ("", "eval_"):
        top_p, min_p, top_k = (getattr(training, f"{prefix}{name}") for name in ("top_p", "min_p", "top_k"))
        if not 0 < top_p <= 1:
            problems.append(f"{prefix}top_p: {top_p} must be in (0, 1]")
        if min_p is not None and not 0 <= min_p <= 1:
            problems.append(f"{prefix}min_p: {min_p} must be in [0, 1]")
        if top_k < 0:
            problems.append(f"{prefix}top_k: {top_k} must be ≥ 0; 0 keeps every token")
    return problems


def _target_problems(training: "GRPOConfig") -> list[str]:
    most = math.log(training.num_generations) if training.num_generations else math.inf
    return [
        f"{name}: {getattr(training, name)} nats is above ln num_generations = {most:.3f}, "
        "the entropy of equal weights; lower it"
        for name in ENTROPY_TARGETS
        if getattr(training, name) is not None and getattr(training, name) > most
    ]


def _maxent_problems(training: "GRPOConfig") -> list[str]:
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


def _info_seed_problems(training: "GRPOConfig") -> list[str]:
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
