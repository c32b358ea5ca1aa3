"""The console scripts. Each lets Hydra compose its arguments and starts what was asked for.

Heavy imports happen once it is known which are needed: ``--help`` waits for none of them.
"""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxent_grpo.cli import flags
from maxent_grpo.cli.boundary import PROGRAM, ErrorContext, configure_logging, log_level, show
from maxent_grpo.cli.compose import TRAIN, Composed, compose, sort_arguments, training_arguments
from maxent_grpo.cli.request import EVALUATIONS, read_request, resolve_job
from maxent_grpo.errors import RunError, UsageError

if TYPE_CHECKING:
    from maxent_grpo.config.loading import RunConfig

logger = logging.getLogger(__name__)


def main(
    argv: Sequence[str] | None = None, default_command: str | None = None, mode: str | None = None
) -> int:
    """``maxent-grpo``: runs ``command=…`` of ``argv`` (or the process's arguments). Returns the exit code.

    Args:
        default_command, mode: what one of the other scripts stands for; used where ``argv`` names none.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        from maxent_grpo.cli.helptext import help_text

        show(help_text(command=default_command))
        return 0
    if arguments == ["--version"]:
        from maxent_grpo import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    with ErrorContext(default_command or "") as context:
        job = _compose(arguments, default_command, mode)
        if job is not None:
            _start(job, default_command, context)
    return context.exit_code


baseline = partial(main, default_command="train-baseline")
maxent = partial(main, default_command="train-maxent")
infoseed = partial(main, default_command="train-infoseed")
sync = partial(main, default_command=TRAIN, mode="sync")
asynchronous = partial(main, default_command=TRAIN, mode="async")
math_eval = partial(main, default_command="math-eval")
study = partial(main, default_command="study")


def generate(argv: Sequence[str] | None = None) -> int:
    """``maxent-grpo-generate``: `main` with ``command=generate``; dashed flags (``--hf-dataset``) are taken as well."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not flags.is_generation(arguments):
        return main(arguments, "generate")
    if "--help" in arguments or "-h" in arguments:
        show(flags.generation_help())
        return 0
    with ErrorContext("generate") as context:
        _generate(flags.generation_flags(arguments), os.environ)
    return context.exit_code


def run_flags(command: str, argv: Sequence[str] | None = None) -> int:
    """Run a training command from TRL-style flags (``argv``, or the process's); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        show(flags.training_help(command))
        return 0
    with ErrorContext(command) as context:
        from maxent_grpo.config.loading import resolve

        settings = flags.training_flags(arguments)
        config, dry_run = settings.pop("config", None), settings.pop("dry_run", False)
        context.recipe = config or os.environ.get("GRPO_RECIPE", "")
        _train(resolve(command, config, {"flat": settings}, os.environ), dry_run=dry_run)
    return context.exit_code


def _compose(arguments: list[str], default_command: str | None, mode: str | None) -> Composed | None:
    """The one job of the arguments; None where they are a sweep, whose jobs have then run, all of them.

    Raises `UsageError` or `RunError` that names the jobs that failed.
    """
    failed: dict[str, int] = {}

    def run_job(job: Composed) -> None:
        print(f"{PROGRAM}: job {job.name}", flush=True)
        with ErrorContext(default_command or "", ends_interrupts=False) as context:
            _start(job, default_command, context)
        if context.exit_code:
            failed[job.name] = context.exit_code
            raise RunError(f"job {job.name} failed")  # so that a launcher on another machine sees it too

    completed = training_arguments(arguments, default_command, mode, os.environ)
    try:
        return compose(sort_arguments(completed), run_job)
    except RunError:
        if not failed:
            raise
        kind = UsageError if set(failed.values()) == {UsageError.exit_code} else RunError
        raise kind(f"{len(failed)} job(s) of the sweep failed: {'; '.join(failed)}") from None


def _start(composed: Composed, default_command: str | None, context: ErrorContext) -> None:
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
    elif request.command == "fetch-model":
        from maxent_grpo.models.location import fetch_model

        configure_logging(log_level(os.environ) or "warning")
        fetch_model(request.section["model"], show)
    elif request.command == "demo":
        from maxent_grpo.cli.demo import run_demo

        run_demo(request.section)
    elif request.command == "demo-llm":
        from maxent_grpo.cli.demo_llm import run_demo_llm

        configure_logging(log_level(os.environ) or "warning")
        run_demo_llm(request.section)
    elif request.command in EVALUATIONS:
        _evaluate(request.section, os.environ)
    elif request.command == "generate":
        _generate(request.section, os.environ)
    elif request.command == "study":
        from maxent_grpo.study.command import run_study

        context.recipe = str(request.section.get("plan", ""))
        run_study(request.section, show)
    else:
        context.recipe = request.recipe or os.environ.get("GRPO_RECIPE", "")
        _train(resolve_job(request, composed, os.environ), dry_run=request.dry_run)


def _generate(args: Mapping[str, Any], environ: Mapping[str, str]) -> None:
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


def _train(config: "RunConfig", *, dry_run: bool) -> None:
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
    if config.notice and config.training.process_index == 0:
        logger.warning("%s", config.notice)
    result = train(run_settings(config))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if config.training.process_index > 0:
        return
    show(
        f"done after step {result.global_step}: policy and records are in {result.output_dir}; "
        f"maxent-grpo command=report run={result.output_dir} draws them"
    )


if __name__ == "__main__":
    sys.exit(main())
