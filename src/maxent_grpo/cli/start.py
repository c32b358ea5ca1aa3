"""Start what a composed tree asks for. Heavy imports happen here, once it is known which are needed."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxent_grpo.cli.boundary import ErrorContext, configure_logging, log_level, show
from maxent_grpo.cli.compose import Composed
from maxent_grpo.cli.request import EVALUATIONS, read_request, resolve_job

if TYPE_CHECKING:
    from maxent_grpo.config.loading import RunConfig


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

        paths = report_run(Path(request.section["run"]))
        show("\n".join(str(path) for path in (*paths.figures, paths.html)))
    elif request.command == "demo":
        from maxent_grpo.cli.demo import run_demo

        run_demo(request.section)
    elif request.command in EVALUATIONS:
        _evaluate(request.section, os.environ)
    elif request.command == "generate":
        start_generation(request.section, os.environ)
    elif request.command == "study":
        from maxent_grpo.study.command import run_study

        context.recipe = str(request.section.get("plan", ""))
        run_study(request.section, show)
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
