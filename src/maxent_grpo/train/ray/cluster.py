"""The Ray cluster of a run: joined or started, and the places that its workers get in it."""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from maxent_grpo.config.parts import WorkerSettings
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.train.ray import GCS_SECONDS, NODE_TOO_SLOW, START_ATTEMPTS

LOOPBACK = "127.0.0.2" if sys.platform == "linux" else None
"""The node address of a cluster of one machine: nothing outside it is reached. Ray takes 127.0.0.1 for "find the
address that others see", hence the 2; other systems have no such address."""
LOGS = "ray_logs"
"""Folder of the run directory for the workers' own output, of a cluster that the run started."""
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}

logger = logging.getLogger(__name__)


@contextmanager
def cluster(address: str | None, output_dir: Path) -> Iterator[None]:
    """A connection to the cluster at ``address``, or a cluster of this machine that ends with the context.

    Without an address that of the variable RAY_ADDRESS counts, as for Ray's own tools. A process that is connected
    already stays as it is. Raises `UsageError` where nothing answers at ``address``, and `RunError` where Ray does not
    start here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would let any other process go first
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        host = address.partition(":")[0]
        try:
            ray.init(address, _node_ip_address=host if host.startswith("127.") else None, **QUIET)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"ray_address: no Ray cluster answers at {address} ({' '.join(str(error).split())}); start one with "
                "`ray start --head`, or leave ray_address out"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
        return
    session = tempfile.mkdtemp(prefix="maxent-ray-")  # short: the paths of Unix sockets below it are limited
    try:
        start_here(session)
        yield
    finally:
        ray.shutdown()
        logs = Path(session) / "session_latest" / "logs"
        if logs.is_dir():
            shutil.copytree(logs.resolve(), output_dir / LOGS, dirs_exist_ok=True)
        shutil.rmtree(session, ignore_errors=True)


def start_here(session: str, **options: Any) -> None:
    """Start a cluster of this machine, with its files in ``session``, and connect to it.

    A node that is not up within Ray's limit is given up and another is started, with a note: a busy machine is slow,
    and not at fault. Raises `RunError` where the last of `START_ATTEMPTS` is too slow as well.
    """
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", GCS_SECONDS)
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(
                _temp_dir=session, _node_ip_address=LOOPBACK, include_dashboard=False, **QUIET, **options
            )
            return
        except Exception as error:  # Ray has no class for it
            ray.shutdown()
            if NODE_TOO_SLOW not in str(error):
                raise
            if attempt == START_ATTEMPTS:
                raise RunError(
                    f"Ray did not start on this machine in {attempt} attempts of 30 s; its logs are in {LOGS} of the "
                    "output directory; try again when the machine is less busy, or join a cluster with ray_address"
                ) from error
            logger.warning(
                "Ray's node was not up after 30 s; starting another (%d of %d)", attempt + 1, START_ATTEMPTS
            )


class Places:
    """A place in the cluster for each worker: one GPU each where there are any, else one CPU."""

    def __init__(self, workers: WorkerSettings, *, use_cpu: bool) -> None:
        """Raises `UsageError` where the cluster is too small, and `RunError` where its resources stay taken."""
        self.roles = (
            ["learner"] * workers.learner + ["reference"] * workers.reference + ["rollout"] * workers.rollout
        )
        total = ray.cluster_resources()
        self.gpus = not use_cpu and total.get("GPU", 0) > 0
        problem = shortage(self.roles, total, gpus=self.gpus)
        if problem:
            raise UsageError(problem)
        bundle = {"CPU": 1, "GPU": 1} if self.gpus else {"CPU": 1}
        self._group: PlacementGroup = placement_group([dict(bundle) for _ in self.roles], strategy="PACK")
        if not self._group.wait(workers.timeout):
            remove_placement_group(self._group)
            now = ray.available_resources()
            free = ", ".join(f"{now.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
            raise RunError(
                f"waited {workers.timeout:g} s for {len(self.roles)} × {bundle} in the Ray cluster; "
                f"free now: {free}; other jobs hold the rest, or no node has a bundle left"
            )

    def start(self, worker: type, place: int, *arguments: Any) -> Any:
        """A Ray actor of class ``worker`` at ``place``."""
        options = {
            "num_cpus": 1,
            "num_gpus": 1 if self.gpus else 0,
            "max_restarts": 0,  # supervisors replace workers: they know what these were doing
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, place),
        }
        return ray.remote(worker).options(**options).remote(*arguments)

    def of(self, role: str) -> list[int]:
        """The places of the workers of ``role``."""
        return [place for place, other in enumerate(self.roles) if other == role]

    def release(self) -> None:
        remove_placement_group(self._group)


def shortage(roles: list[str], total: dict[str, float], *, gpus: bool) -> str | None:
    """The reason why workers of ``roles`` do not fit into a cluster with these resources; None: they do."""
    counts = " + ".join(f"{roles.count(role)} {role}" for role in dict.fromkeys(roles))
    for kind in ("GPU", "CPU") if gpus else ("CPU",):
        have = int(total.get(kind, 0))
        if len(roles) > have:
            return (
                f"learner_workers, reference_workers, rollout_workers: {counts} = {len(roles)} workers need a {kind} "
                f"each, and the Ray cluster has {have}; lower them, or join a larger cluster with ray_address"
            )
    return None
