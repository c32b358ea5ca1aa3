"""``python -m maxent_grpo.launch JOB …``, as the scripts in ``ops/`` start it."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from maxent_grpo.errors import RunError, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job; returns its exit code."""
    job, *words = list(sys.argv[1:] if arguments is None else arguments) or [""]
    try:
        return _job(job)(words, os.environ, Path.cwd())
    except (UsageError, RunError) as error:
        print(f"launch {job}: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def _job(name: str) -> Callable[[Sequence[str], Mapping[str, str], Path], int]:
    if name == "train":
        from maxent_grpo.launch.train import train

        return train
    if name == "math-eval":
        from maxent_grpo.launch.evaluation import math_eval

        return math_eval
    if name == "lighteval":
        from maxent_grpo.launch.evaluation import lighteval

        return lighteval
    if name == "sweep":
        from maxent_grpo.launch.sweep import sweep

        return sweep
    if name == "ray":
        from maxent_grpo.launch.ray_cluster import ray_cluster

        return ray_cluster
    raise UsageError(f"{name or 'no job'}: one of train, math-eval, lighteval, sweep, ray")


if __name__ == "__main__":
    sys.exit(main())
