"""A real Slurm with two nodes on this machine, for the length of the session. ``make slurm-test`` runs these tests."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_jobs import CLUSTER, LOGS, TOKEN, Slurm


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only on request: they install packages, start daemons and take minutes."""
    if os.environ.get("MAXENT_SLURM_TEST") != "1":
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason="make slurm-test runs it"))


@pytest.fixture(scope="session")
def slurm(request: pytest.FixtureRequest) -> Iterator[Slurm]:
    """The cluster; at the end nothing of it is left but, if a test failed, the logs of its jobs."""
    directory = Path("/tmp") / f"maxent-slurm-{os.getpid()}"  # daemons of other users must reach it
    LOGS.mkdir(parents=True, exist_ok=True)
    before = set(LOGS.iterdir())
    subprocess.run([str(CLUSTER), "up", str(directory)], check=True)
    environment = os.environ | {
        "SLURM_CONF": str(directory / "slurm.conf"),
        "OMP_NUM_THREADS": "1",
        "TRAIN_LOCAL_PROCS": "1",
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "1",
        "ENV_MODE": "venv",
    }
    try:
        yield Slurm(environment)
    finally:
        subprocess.run([str(CLUSTER), "down", str(directory)], check=True)
        shutil.rmtree(directory)
        if not request.session.testsfailed:
            for path in set(LOGS.iterdir()) - before:
                path.unlink()
