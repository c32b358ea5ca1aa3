"""``python -m maxent_grpo.launch JOB …``, as the scripts in ``ops/`` start it."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from maxent_grpo.errors import RunError, UsageError

JOBS = {
    "train": ("train", "train"),
    "math-eval": ("evaluation_jobs", "math_eval"),
    "lighteval": ("evaluation_jobs", "lighteval"),
    "sweep": ("train", "sweep"),
    "ray": ("ray_cluster", "ray_cluster"),
}
"""Job → its module here, and the function that carries it out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job; returns its exit code."""
    job, *words = list(sys.argv[1:] if arguments is None else arguments) or [""]
    try:
        if job not in JOBS:
            raise UsageError(f"{job or 'no job'}: one of train, math-eval, lighteval, sweep, ray")
        module, function = JOBS[job]
        carry_out = getattr(import_module(f"maxent_grpo.launch.{module}"), function)
        return int(carry_out(words, os.environ, Path.cwd()))
    except (UsageError, RunError) as error:
        print(f"launch {job}: {error}", file=sys.stderr, flush=True)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
