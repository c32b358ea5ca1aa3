"""A Ray of this machine, for the tests that share it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def ray_of_this_machine(num_cpus: int, **variables: str) -> Iterator[None]:
    """A Ray with so many logical processors; ``variables`` are added to the environment of its workers."""
    ray = pytest.importorskip("ray")
    from maxent_grpo.train.ray.cluster import start_here

    variables |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    session = tempfile.mkdtemp(prefix="ray-")  # short: the paths of Unix sockets below it are limited
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        start_here(session, num_cpus=num_cpus)
        yield
        ray.shutdown()
    shutil.rmtree(session, ignore_errors=True)
