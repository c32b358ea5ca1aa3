"""The console scripts. Each sorts its arguments, lets Hydra compose them, and starts what was asked for."""

import os
import sys
from collections.abc import Sequence

from maxent_grpo.cli.arguments import TRAIN, sort_arguments, training_arguments
from maxent_grpo.cli.boundary import INTERRUPTED, PROGRAM, Place, exit_code_of, show
from maxent_grpo.errors import RunError, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """``maxent-grpo``: needs ``command=…``; ``argv`` or the process's arguments. Returns the exit code."""
    return _console(argv, None)


def baseline(argv: Sequence[str] | None = None) -> int:
    """``maxent-grpo-baseline``: `main` with ``command=train-baseline`` unless a command is given."""
    return _console(argv, "train-baseline")


def maxent(argv: Sequence[str] | None = None) -> int:
    """``maxent-grpo-maxent``: `main` with ``command=train-maxent`` unless a command is given."""
    return _console(argv, "train-maxent")


def infoseed(argv: Sequence[str] | None = None) -> int:
    """``maxent-grpo-infoseed``: `main` with ``command=train-infoseed`` unless a command is given."""
    return _console(argv, "train-infoseed")


def math_eval(argv: Sequence[str] | None = None) -> int:
    """``maxent-grpo-math-eval``, ``maxent-grpo-inference``: `main` with ``command=math-eval`` unless one is given."""
    return _console(argv, "math-eval")


def sync(argv: Sequence[str] | None = None) -> int:
    """``maxent-grpo-sync``: `main` with ``command=train mode=sync``."""
    return _console(argv, TRAIN, "sync")


def asynchronous(argv: Sequence[str] | None = None) -> int:
    """``maxent-grpo-async``: `main` with ``command=train mode=async``."""
    return _console(argv, TRAIN, "async")


def study(argv: Sequence[str] | None = None) -> int:
    """``maxent-grpo-study``: `main` with ``command=study`` unless a command is given."""
    return _console(argv, "study")


def generate(argv: Sequence[str] | None = None) -> int:
    """``maxent-grpo-generate``: `main` with ``command=generate``; dashed flags (``--hf-dataset``) are taken as well."""
    from maxent_grpo.cli.generation import is_flags, run_generation_flags

    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_generation_flags(arguments) if is_flags(arguments) else _console(arguments, "generate")


def _console(argv: Sequence[str] | None, default_command: str | None, mode: str | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        from maxent_grpo.cli.helptext import help_text

        show(help_text())
        return 0
    if arguments == ["--version"]:
        from maxent_grpo import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    place = Place(default_command or "")
    try:
        return exit_code_of(lambda: _compose_and_start(arguments, default_command, mode, place), place)
    except KeyboardInterrupt:
        print(place.line("interrupted"), file=sys.stderr)
        return INTERRUPTED


def _compose_and_start(
    arguments: list[str], default_command: str | None, mode: str | None, place: Place
) -> None:
    from maxent_grpo.cli.compose import Composed, compose
    from maxent_grpo.cli.start import start

    failed: dict[str, int] = {}

    def start_job(job: Composed) -> None:
        if not job.is_sweep:
            start(job, default_command, place)
            return
        print(f"{PROGRAM}: job {job.name}", flush=True)
        job_place = Place(default_command or "")
        code = exit_code_of(lambda: start(job, default_command, job_place), job_place)
        if code:
            failed[job.name] = code
            raise RunError(f"job {job.name} failed")  # so that a launcher on another machine sees it too

    try:
        completed = training_arguments(arguments, default_command, mode, os.environ)
        compose(sort_arguments(completed), start_job)
    except RunError:
        if not failed:
            raise
        kind = UsageError if set(failed.values()) == {UsageError.exit_code} else RunError
        raise kind(f"{len(failed)} job(s) of the sweep failed: {'; '.join(failed)}") from None


if __name__ == "__main__":
    sys.exit(main())
