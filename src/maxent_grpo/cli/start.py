"""Start what a composed tree asks for. Heavy imports happen here, once it is known which are needed."""

import os
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxent_grpo.cli.arguments import TRAIN
from maxent_grpo.cli.boundary import ErrorContext, configure_logging, log_level, show
from maxent_grpo.cli.compose import Composed
from maxent_grpo.cli.request import EVALUATIONS, GROUPS, SECTIONS, Request, read_request
from maxent_grpo.config.shipped import shipped
from maxent_grpo.config.torchrl_names import Claim, translated
from maxent_grpo.errors import UsageError

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


def start(composed: Composed, default_command: str | None, context: ErrorContext) -> None:
    """Run one job to its end; ``context`` learns the command and the recipe for a later error line.

    Raises:
        UsageError: if the request is wrong.
        RunError: if the run fails.
    """
    request = read_request(composed, default_command)
    context.command = request.command
    if request.command == "report":
        from maxent_grpo.observe.report import report_run

        paths = report_run(Path(request.run))
        show("\n".join(str(path) for path in (*paths.figures, paths.html)))
    elif request.command == "demo":
        from maxent_grpo.cli.demo import run_demo

        run_demo(request.demo)
    elif request.command in EVALUATIONS:
        _evaluate(request.inference, os.environ)
    elif request.command == "generate":
        start_generation(request.generate, os.environ)
    elif request.command == "study":
        from maxent_grpo.study.command import run_study

        context.recipe = str(request.study.get("plan", ""))
        run_study(request.study, show)
    else:
        context.recipe = request.recipe or os.environ.get("GRPO_RECIPE", "")
        start_training(resolve_job(request, composed, os.environ), dry_run=request.dry_run)


def start_generation(args: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """Carry out ``generate.args``. Raises `UsageError` and `RunError`."""
    from maxent_grpo.generate.settings import read_settings

    settings = read_settings(args)
    configure_logging(log_level(environ) or "warning")

    from maxent_grpo.generate.run import generate

    show(generate(settings).summary())


def _evaluate(section: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """Carry out the ``inference`` section: evaluate, show the table and write it beside the artifacts."""
    from maxent_grpo.evaluate.settings import read_request as read_evaluation

    request = read_evaluation(section)
    configure_logging(log_level(environ) or "warning")

    from maxent_grpo.evaluate.math_eval import run_evaluation
    from maxent_grpo.evaluate.result_files import results_table, write_results

    results = run_evaluation(request)
    show(results_table(results))
    if request.artifacts.enabled:
        for result in results:
            written = write_results(result)
            show(f"{result.label}, temperature {result.temperature:g}: {', '.join(map(str, written))}")


def start_training(config: "RunConfig", *, dry_run: bool) -> None:
    """Train, or print the plan of it."""
    if dry_run:
        from maxent_grpo.cli.dry_run import dry_run_text

        show(dry_run_text(config))
        return
    import torch

    from maxent_grpo.config.run_settings import run_settings
    from maxent_grpo.train.run import train

    config = config.built()
    configure_logging(config.training.log_level)
    result = train(run_settings(config))
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
    request = with_own_names(request, composed)
    if request.command == TRAIN and recipe is None:
        request = with_output_dir(request, composed, environ)
        return resolve(request.command, recipe, request.overrides, environ)
    config = resolve(request.command, recipe, request.overrides, environ)
    if not composed.is_sweep or any(key.rpartition(".")[2] == "output_dir" for key in composed.swept):
        return config
    directory = str(Path(str(config.training.output_dir)) / composed.name)
    # A setting given by name alone wins over its other spellings.
    flat = {**request.overrides["flat"], "output_dir": directory}
    return resolve(request.command, recipe, {**request.overrides, "flat": flat}, environ)


def with_own_names(request: Request, composed: Composed) -> Request:
    """The request with the names of TorchRL's scripts translated, as settings given by name alone."""
    from maxent_grpo.config.records import ALIASES

    if not request.dialect:
        return request
    own: dict[str, Claim] = {}
    section = SECTIONS.get(request.command)
    for group in (*GROUPS, "flat"):  # the last one wins
        for key, value in request.overrides[group].items():
            written = key if group == "flat" else f"{group}.{key}"
            typed = not composed.given.isdisjoint({written, f"{section}.{written}"})
            if value is not None:
                own[ALIASES.get(key, key)] = Claim(written, value, typed, value)
    settled = translated(request.dialect, own, composed.given)
    kept = {
        group: {key: value for key, value in settings.items() if ALIASES.get(key, key) not in settled}
        for group, settings in request.overrides.items()
    }
    return replace(request, overrides={**kept, "flat": kept["flat"] | settled}, dialect={})


def with_output_dir(request: Request, composed: Composed, environ: Mapping[str, str]) -> Request:
    """The request with the directory of its own that a run has where none is named.

    ``outputs/<date>/<time>``; in a sweep ``<the sweep's directory>/<what varies>``, or where one directory is named
    for all jobs, ``<that>/<what varies>``.
    """
    flat = request.overrides["flat"]
    named = {**request.overrides["training"], **flat}.get("output_dir")
    varies = any(key.rpartition(".")[2] == "output_dir" for key in composed.swept)
    if composed.is_sweep and not varies:
        directory = Path(str(named or composed.sweep_dir)) / composed.name
    elif named is not None:
        return request
    elif int(environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("output_dir: each process would name one after its own clock; set output_dir")
    else:
        directory = Path(datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S"))
    overrides = {**request.overrides, "flat": {**flat, "output_dir": str(directory)}}
    return replace(request, overrides=overrides)


def template_of(request: Request) -> str | None:
    """The recipe that a command starts from when nothing names a recipe or a model: the 1.5B mathematics recipe.

    None where a model is named (then the overrides are the whole configuration).
    """
    named = {key for settings in request.overrides.values() for key in settings}
    if request.command == TRAIN or "model_name_or_path" in named or "model.name" in request.dialect:
        return None
    template = shipped(TEMPLATES[request.command]).absolute()
    print(f"no recipe and no model is named: starting from {template}", file=sys.stderr, flush=True)
    return str(template)
