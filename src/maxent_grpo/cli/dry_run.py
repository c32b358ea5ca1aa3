"""What ``dry_run=true`` prints: a YAML document that ends with what would happen, where the eye ends up."""

import os
import re
from typing import Any

import yaml

from maxent_grpo.config.environment import launched_processes
from maxent_grpo.config.loading import RunConfig, resolved
from maxent_grpo.config.plan import batch_plan
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
    }
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)
    return (
        "# Dry run: no model or data was loaded, nothing was written.\n"
        + _CREDENTIALS.sub("***@", text).rstrip()
    )


def route_reason(config: RunConfig) -> str:
    """Why this package's loop (``native``) or TRL's trainer (``trl``) trains."""
    if config.route == "trl":
        return (
            f"{config.training.objective} is a GRPO objective; force_custom_loop=true would train it natively"
        )
    reasons = {
        "train-infoseed always uses this package's loop": config.command == "train-infoseed",
        f"{config.training.objective} is a MaxEnt objective": not config.training.train_grpo_objective,
        "force_custom_loop is true": config.training.force_custom_loop,
        "controller_meta_enabled is true": config.training.controller_meta_enabled,
        f"driver is {config.training.driver}": config.training.driver != "inline",
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)


def plan_of(config: RunConfig) -> dict[str, Any]:
    """The numbers of a step over all processes that are launched."""
    training = config.training
    group = training.num_generations
    launched = launched_processes(os.environ)
    processes = launched if training.driver == "inline" else training.learner_workers
    if config.route == "trl":
        rows = training.per_device_train_batch_size * training.gradient_accumulation_steps * launched
        shape: dict[str, Any] = {"completions_per_step": rows}
    else:
        plan = batch_plan(training, processes)
        shape = {
            "prompts_per_step": plan.prompts_per_step,
            "completions_per_step": plan.prompts_per_step * group,
            "prompts_per_rollout": plan.prompts_per_rollout,
            **(
                {"groups_per_micro_batch": plan.micro_groups}
                if plan.micro_tokens is None
                else {"tokens_per_micro_batch": plan.micro_tokens}
            ),
            "updates_per_rollout": plan.updates_per_rollout * plan.num_iterations,
            "on_policy": plan.on_policy and training.max_staleness == 0,
        }
    return {
        "processes": processes,
        **workers_of(config),
        "completions_per_prompt": group,
        **(
            {"seeded_completions_per_prompt": training.info_seed_num_seeds}
            if training.info_seed_enabled
            else {}
        ),
        **shape,
        "total_steps": _total_steps(config),
    }


def workers_of(config: RunConfig) -> dict[str, Any]:
    """What the Ray drivers start; nothing with driver=inline."""
    training = config.training
    if training.driver == "inline":
        return {}
    return {
        "driver": training.driver,
        "workers": {
            "learner": training.learner_workers,
            "rollout": training.rollout_workers,
            "reference": training.reference_workers,
        },
        "max_staleness": training.max_staleness,
    }


def _total_steps(config: RunConfig) -> int | str:
    if config.training.max_steps > 0:
        return int(config.training.max_steps)
    return f"{config.training.num_train_epochs:g} epoch(s) of the data set, counted once it is loaded"


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
