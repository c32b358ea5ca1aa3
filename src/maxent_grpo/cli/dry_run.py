"""The text of ``dry_run=true``: a YAML document that ends with what would happen, where the eye ends up."""

import os
import re
from typing import Any

import yaml

from maxent_grpo.config.environment import launched_processes
from maxent_grpo.config.loading import RunConfig, resolved
from maxent_grpo.config.plan import batch_plan
from maxent_grpo.config.rules import plain
from maxent_grpo.observe import names
from maxent_grpo.observe.names import without_secrets

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


def dry_run_text(config: RunConfig) -> str:
    """The resolved settings, the route and why, the plan of a step, and what would be written. No secrets."""
    tree = {
        "settings": without_secrets(resolved(config)),
        "command": config.command,
        "recipe": str(config.recipe_path) if config.recipe_path else None,
        "route": config.route,
        "route_reason": route_reason(config),
        "plan": plan_of(config),
        "writes": _writes(config),
        **({"notice": config.notice} if config.notice else {}),
    }
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)
    return (
        "# Dry run: no model or data was loaded, nothing was written.\n"
        + _CREDENTIALS.sub("***@", text).rstrip()
    )


def route_reason(config: RunConfig) -> str:
    """The reason why this package's loop (``native``) or TRL's trainer (``trl``) trains."""
    training = config.training
    if config.route == "trl":
        return f"{training.objective} is a GRPO objective; force_custom_loop=true would train it natively"
    reasons = {
        "train-infoseed always uses this package's loop": config.command == "train-infoseed",
        f"{training.objective} is a MaxEnt objective": not training.train_grpo_objective,
        "force_custom_loop is true": training.force_custom_loop,
        "controller_meta_enabled is true": training.controller_meta_enabled,
        f"driver is {training.driver}": training.driver != "inline",
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)


def plan_of(config: RunConfig) -> dict[str, Any]:
    """The numbers of a step over all processes that are launched."""
    training = config.training
    group, launched, on_ray = (
        training.num_generations,
        launched_processes(os.environ),
        training.driver != "inline",
    )
    processes = training.learner_workers if on_ray else launched
    plan: dict[str, Any] = {"processes": processes}
    if on_ray:
        kinds = ("learner", "rollout", "reference")
        plan["driver"] = training.driver
        plan["workers"] = {kind: getattr(training, f"{kind}_workers") for kind in kinds}
        plan["max_staleness"] = training.max_staleness
    plan["completions_per_prompt"] = group
    if training.info_seed_enabled:
        plan["seeded_completions_per_prompt"] = training.info_seed_num_seeds
    if config.route == "trl":
        rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
        plan["completions_per_step"] = rows * launched
    else:
        batch = batch_plan(training, processes)
        plan["prompts_per_step"] = batch.prompts_per_step
        plan["completions_per_step"] = batch.prompts_per_step * group
        plan["prompts_per_rollout"] = batch.prompts_per_rollout
        if batch.micro_tokens is None:
            plan["groups_per_micro_batch"] = batch.micro_groups
        else:
            plan["tokens_per_micro_batch"] = batch.micro_tokens
        plan["updates_per_rollout"] = batch.updates_per_rollout * batch.num_iterations
        plan["on_policy"] = batch.on_policy and training.max_staleness == 0
    epochs = f"{training.num_train_epochs:g} epoch(s) of the data set, counted once it is loaded"
    plan["evaluation"] = _evaluation(config)
    plan["total_steps"] = int(training.max_steps) if training.max_steps > 0 else epochs
    return plan


def _evaluation(config: RunConfig) -> str:
    """When the run evaluates; eval_strategy=no leaves what eval_on_start of the same source asks for."""
    training = config.training
    every = "" if training.eval_strategy == "no" else f"every {training.eval_steps:g} steps"
    if plain(training.eval_strategy) == "epoch":
        every = "after every epoch"
    start = "before the first step" if training.eval_on_start else ""
    last = "after the last step" if config.route == "native" and (start or every) else ""
    return ", ".join(part for part in (start, every, last) if part) or "none"


def _writes(config: RunConfig) -> list[str]:
    directory = config.training.output_dir
    own = (names.CONFIG_FILE, names.METRICS_FILE, names.TIMINGS_FILE, names.COMPLETIONS_FILE)
    files = [f"{directory}/{name}" for name in own] if config.route == "native" else []
    if config.training.save_strategy != "no":
        files.append(f"{directory}/checkpoint-<step>/ every {config.training.save_steps:g} steps")
    files.append(f"{directory}/ the trained model and its tokenizer, at the end")
    report_to = config.training.report_to or []
    trackers = [report_to] if isinstance(report_to, str) else report_to
    return files + [f"metrics to {tracker}" for tracker in trackers if tracker != "none"]
