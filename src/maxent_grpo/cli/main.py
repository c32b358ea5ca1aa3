"""The console scripts. Each sorts its arguments, lets Hydra compose them, and starts what was asked for."""

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from maxent_grpo.cli.arguments import TRAIN, sort_arguments, training_arguments
from maxent_grpo.cli.boundary import PROGRAM, ErrorContext, show
from maxent_grpo.errors import RunError, UsageError

if TYPE_CHECKING:
    from maxent_grpo.cli.compose import Composed


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

        show(help_text())
        return 0
    if arguments == ["--version"]:
        from maxent_grpo import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    with ErrorContext(default_command or "") as context:
        job = _compose(arguments, default_command, mode)
        if job is not None:
            from maxent_grpo.cli.start import start

            start(job, default_command, context)
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
    from maxent_grpo.cli.flags import is_generation, run_generation

    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_generation(arguments) if is_generation(arguments) else main(arguments, "generate")


def _compose(arguments: list[str], default_command: str | None, mode: str | None) -> "Composed | None":
    """The one job of the arguments; None where they are a sweep, whose jobs have then run, all of them.

    Raises `UsageError` or `RunError` that names the jobs that failed.
    """
    from maxent_grpo.cli.compose import compose

    failed: dict[str, int] = {}

    def run_job(job: "Composed") -> None:
        from maxent_grpo.cli.start import start

        print(f"{PROGRAM}: job {job.name}", flush=True)
        with ErrorContext(default_command or "", ends_interrupts=False) as context:
            start(job, default_command, context)
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


if __name__ == "__main__":
    sys.exit(main())
