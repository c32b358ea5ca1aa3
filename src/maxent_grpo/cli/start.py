"""Start what a composed tree asks for. Heavy imports happen here, once it is known which are needed."""

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

from maxent_grpo.cli.boundary import Place, show
from maxent_grpo.cli.compose import Composed
from maxent_grpo.cli.logs import configure_logging
from maxent_grpo.cli.request import EVALUATIONS, Request, read_request
from maxent_grpo.config.shipped import shipped

if TYPE_CHECKING:
    from maxent_grpo.config.loading import RunConfig

TEMPLATES = {
    command: f"configs/recipes/Qwen2.5-1.5B-Instruct/{folder}/config_math.yaml"
    for command, folder in (
        ("train-baseline", "grpo"),
        ("train-maxent", "maxent-grpo"),
        ("train-infoseed", "infoseed"),
    )
}
"""Command → the recipe that it starts from when neither a recipe nor a model is named."""


def start(composed: Composed, default_command: str | None, place: Place) -> None:
    """Run one job to its end; ``place`` learns the command and the recipe for a later error line.

    Raises:
        UsageError: if the request is wrong.
        RunError: if the run fails.
    """
    request = read_request(composed, default_command)
    place.command = request.command
    if request.command == "report":
        _report(request)
    elif request.command == "demo":
        from maxent_grpo.cli.demo import run_demo

        run_demo(request.demo)
    elif request.command in EVALUATIONS:
        from maxent_grpo.cli.evaluation import evaluate

        evaluate(request.inference, os.environ)
    elif request.command == "generate":
        from maxent_grpo.cli.generation import generate_rows

        generate_rows(request.generate, os.environ)
    elif request.command == "study":
        from maxent_grpo.study.study import run_study

        place.recipe = str(request.study.get("plan", ""))
        run_study(request.study, show)
    else:
        place.recipe = request.recipe or os.environ.get("GRPO_RECIPE", "")
        start_training(resolve_job(request, composed, os.environ), dry_run=request.dry_run)


def start_training(config: "RunConfig", *, dry_run: bool) -> None:
    """Train, or print the plan of it."""
    if dry_run:
        from maxent_grpo.cli.dry_run import dry_run_text

        show(dry_run_text(config))
        return
    import torch

    from maxent_grpo.train.run import train

    configure_logging(config.training.log_level)
    result = train(config)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if config.training.process_index > 0:
        return
    show(
        f"done after step {result.global_step}: policy and records are in {result.output_dir}; "
        f"maxent-grpo command=report run={result.output_dir} draws them"
    )


def resolve_job(request: Request, composed: Composed, environ: MutableMapping[str, str]) -> "RunConfig":
    """The typed configuration of one job. In a sweep each gets its own ``output_dir``, unless that varies."""
    from maxent_grpo.config.loading import resolve

    recipe = request.recipe or environ.get("GRPO_RECIPE") or template_of(request)
    config = resolve(request.command, recipe, request.overrides, environ)
    if not composed.is_sweep or any(key.rpartition(".")[2] == "output_dir" for key in composed.swept):
        return config
    directory = str(Path(str(config.training.output_dir)) / composed.name)
    # A setting given by name alone wins over its other spellings.
    flat = {**request.overrides["flat"], "output_dir": directory}
    return resolve(request.command, recipe, {**request.overrides, "flat": flat}, environ)


def template_of(request: Request) -> str | None:
    """The recipe that a command starts from when nothing names a recipe or a model: the 1.5B mathematics recipe.

    None where a model is named (then the overrides are the whole configuration).
    """
    named = {key for settings in request.overrides.values() for key in settings}
    if "model_name_or_path" in named:
        return None
    template = shipped(TEMPLATES[request.command]).absolute()
    print(f"no recipe and no model is named: starting from {template}", file=sys.stderr, flush=True)
    return str(template)


def _report(request: Request) -> None:
    from maxent_grpo.observe.report import report_run

    paths = report_run(Path(request.run))
    show("\n".join(str(path) for path in (*paths.figures, paths.html)))
