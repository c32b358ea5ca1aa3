"""Start what a composed tree asks for. Heavy imports happen here, once it is known which are needed."""

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

from maxent_grpo.cli.boundary import Place, show
from maxent_grpo.cli.compose import Composed
from maxent_grpo.cli.logs import configure_logging
from maxent_grpo.cli.request import SECTIONS, Request, read_request
from maxent_grpo.errors import UsageError

if TYPE_CHECKING:
    from maxent_grpo.config.loading import RunConfig


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
    else:
        place.recipe = request.recipe or os.environ.get("GRPO_RECIPE", "")
        start_training(resolve_job(request, composed, os.environ), dry_run=request.dry_run)


def start_training(config: "RunConfig", *, dry_run: bool) -> None:
    """Train, or print the plan of it."""
    if dry_run:
        from maxent_grpo.cli.dry_run import dry_run_text

        show(dry_run_text(config))
        return
    from maxent_grpo.train.run import train

    configure_logging(config.training.log_level)
    train(config)


def resolve_job(request: Request, composed: Composed, environ: MutableMapping[str, str]) -> "RunConfig":
    """The typed configuration of one job. In a sweep each gets its own ``output_dir``, unless that varies."""
    from maxent_grpo.config.loading import resolve

    try:
        config = resolve(request.command, request.recipe, request.overrides, environ)
    except UsageError as error:
        if request.recipe or environ.get("GRPO_RECIPE"):
            raise
        section = SECTIONS[request.command]
        raise UsageError(
            f"{error} (no recipe was read: {section}.recipe=FILE or GRPO_RECIPE names one)"
        ) from error
    if not composed.is_sweep or any(key.rpartition(".")[2] == "output_dir" for key in composed.swept):
        return config
    directory = str(Path(str(config.training.output_dir)) / composed.name)
    # A setting given by name alone wins over its other spellings.
    flat = {**request.overrides["flat"], "output_dir": directory}
    return resolve(request.command, request.recipe, {**request.overrides, "flat": flat}, environ)


def _report(request: Request) -> None:
    from maxent_grpo.observe.report import report_run

    paths = report_run(Path(request.run))
    show("\n".join(str(path) for path in (*paths.figures, paths.html)))
