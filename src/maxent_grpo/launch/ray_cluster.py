"""``launch ray``: a Ray cluster over the nodes of a job, up for as long as one driver command runs.

The first node is the head and runs the driver. It is up when ``ray health-check`` says so, and the others are when a
probe, itself a Ray driver, counts them; each wait has a deadline and says what it waited for.
"""

import logging
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.launch.allocation import Allocation, imagined, on_nodes, read_allocation
from maxent_grpo.launch.flags import Flag, Values, read_flags
from maxent_grpo.launch.plan_text import gpu_names, shown_words, table
from maxent_grpo.launch.supervision import LOGS, Running, Step, Supervisor, carry_out, say
from maxent_grpo.train.ray import GCS_SECONDS, NODE_TOO_SLOW, START_ATTEMPTS

COMPONENTS = ("train_model", "ref_model", "inference_model")
"""The parts that ask for devices, by ``COMPONENT.num_devices=N`` among the driver's words, in the table's order."""

FLAGS = (
    Flag("port", "6379", ("RAY_PORT",)),
    Flag("health-timeout", "300", ("RAY_HEALTH_TIMEOUT",)),
    Flag("temp-dir", None, ("RAY_TEMP_DIR",)),
    Flag("cpus-per-node", None, ("SLURM_CPUS_ON_NODE",)),
    Flag("on-restart", "resume_from_checkpoint=true", ("RAY_ON_RESTART",)),
    Flag("dry-run", None, ("MAXENT_DRY_RUN",), switch=True),
    Flag("nodes", None),
    Flag("gpus-per-node", None),
)

STOPPED = os.EX_TEMPFAIL
"""Exit code of a driver that saved and ended when it was asked to: that of `train.stopping.Stopped`."""


@dataclass(frozen=True)
class RayPlan:
    """The processes of a cluster, and the driver that they are up for."""

    program: tuple[str, ...]  # Ray's command line
    allocation: Allocation
    addresses: tuple[str, ...]  # of the nodes, in their order
    port: int
    deadline: int  # seconds, of every wait
    head: Step
    workers: tuple[Step, ...]
    probe: tuple[str, ...]  # succeeds when all nodes are alive
    driver: Step
    devices: tuple[tuple[str, int], ...]  # component → devices that it asks for

    @property
    def address(self) -> str:
        """Of the cluster."""
        return f"{self.addresses[0]}:{self.port}"


def plan_ray(
    values: Values,
    driver: Sequence[str],
    allocation: Allocation,
    python: str,
    resolve: Callable[[str], str] = socket.gethostbyname,
) -> RayPlan:
    """The plan. ``resolve`` gives a node's address. Raises `UsageError` where the devices asked for are not there."""
    if not driver:
        raise UsageError("no driver command: ray_cluster.sh [options] -- COMMAND …")
    devices = asked_devices(driver)
    per_node = len(allocation.gpus)
    total = len(allocation.nodes) * per_node
    wanted = sum(count for _, count in devices)
    if per_node and wanted > total:
        sums = " + ".join(f"{name} {count}" for name, count in devices)
        raise UsageError(
            f"{sums} = {wanted} devices, and {len(allocation.nodes)} node(s) × {per_node} GPU(s) = {total}: "
            "ask for fewer devices or more nodes"
        )
    addresses = tuple(_address(node, resolve) for node in allocation.nodes)
    if len(addresses) > 1 and len(set(addresses)) < len(addresses):
        raise UsageError(
            f"nodes {', '.join(allocation.nodes)} have the addresses {', '.join(addresses)}: each needs its own"
        )
    job = allocation.job or "local"
    port = values.number("port")
    ray = [python, "-m", "ray.scripts.scripts"]
    cpus = ["--num-cpus", str(values.number("cpus-per-node"))] if values["cpus-per-node"] else []
    sizes = ["--num-gpus", str(per_node), *cpus, "--min-worker-port", "0", "--max-worker-port", "0"]
    # Ray puts sockets there, whose paths may have 107 characters: not under var/.
    folder = values["temp-dir"] or f"/tmp/ray_{job}"

    def node_step(index: int, role: Sequence[str]) -> Step:
        command = [*ray, "start", *role, "--node-ip-address", addresses[index], *sizes, "--block"]
        name = "Ray's head" if index == 0 else f"Ray's worker on {allocation.nodes[index]}"
        if allocation.job is not None:
            command = on_nodes(command, [allocation.nodes[index]], allocation)
        return Step(name, tuple(command), LOGS / f"ray-{job}-{index}.out")

    head = ["--head", "--port", str(port), "--temp-dir", folder]
    head += ["--include-dashboard", "false", "--disable-usage-stats"]
    address = f"{addresses[0]}:{port}"
    workers = range(1, len(addresses))
    again = shlex.split(values["on-restart"] or "") if allocation.restarts else []
    return RayPlan(
        program=tuple(ray),
        allocation=allocation,
        addresses=addresses,
        port=port,
        deadline=values.number("health-timeout"),
        head=node_step(0, head),
        workers=tuple(node_step(index, ["--address", address]) for index in workers),
        probe=(python, "-m", "maxent_grpo.launch.ray_cluster", address, addresses[0], str(len(addresses))),
        driver=Step(
            "the driver", (*driver, *again), LOGS / f"train_{job}.log",
            {"RAY_ADDRESS": address, "MAXENT_RAY_NODE_ADDRESS": addresses[0]},
        ),
        devices=devices,
    )  # fmt: skip


RAY_SETTINGS = {
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_server_port_wait_time_s": GCS_SECONDS,
}
"""Ray's workers are the job's work and yield to nobody (Ray: 15); nothing is reported to Ray's makers; its head may
take five minutes (Ray: 30 s)."""


def asked_devices(words: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """``COMPONENT.num_devices=N`` among a driver's words. Raises `UsageError` for what is no number."""
    found = []
    for component in COMPONENTS:
        values = [w.partition("=")[2] for w in words if w.startswith(f"{component}.num_devices=")]
        if values:
            if not values[-1].isdecimal():
                raise UsageError(f"{component}.num_devices={values[-1]}: a whole number is needed")
            found.append((component, int(values[-1])))
    return tuple(found)


def packed(
    devices: Sequence[tuple[str, int]], nodes: Sequence[str], gpus: Sequence[str]
) -> list[tuple[str, str, str]]:
    """(component, node, device), components after each other over the devices of the nodes in their order."""
    places = [(node, f"GPU {gpu}") for node in nodes for gpu in gpus] or [(node, "CPU") for node in nodes]
    names = [name for name, count in devices for _ in range(count)]
    return [(name, *places[i % len(places)]) for i, name in enumerate(names)]


def ray_table(plan: RayPlan, environ: Mapping[str, str]) -> str:
    """The plan for people."""
    allocation = plan.allocation
    nodes = [
        (node, address, gpu_names(allocation.gpus), "head and driver" if index == 0 else "worker")
        for index, (node, address) in enumerate(zip(allocation.nodes, plan.addresses, strict=True))
    ]
    steps = [plan.head, *plan.workers, plan.driver]
    parts = [
        table(
            f"Ray at {plan.address}, job {allocation.job}" if allocation.job else "Ray on this machine", nodes
        )
    ]
    if plan.devices:
        title = "Devices, packed in this order (Ray may place them otherwise; the driver logs where it did)"
        parts.append(table(title, packed(plan.devices, allocation.nodes, allocation.gpus)))
    parts += [f"{step.name} → {step.log}\n  {shown_words(step.command, environ)}" for step in steps]
    return "\n\n".join(parts)


def run_ray(plan: RayPlan, environment: Mapping[str, str]) -> int:
    """Bring the cluster up, run the driver, take the cluster down; the driver's exit code.

    After SIGUSR1 the driver saves and ends, and the job is requeued.
    """
    job = plan.allocation.job
    with Supervisor(environment, leftovers=True).watching() as supervisor:
        start_cluster(plan, supervisor)
        say(f"Ray has {len(plan.addresses)} living node(s); the driver starts, log: {plan.driver.log}")
        driver = supervisor.follow(plan.driver, _ask_to_stop)
        code = driver.exit_code or 0
        if code and supervisor.stop_asked and job is not None:
            saved = "at a checkpoint" if code == STOPPED else f"without a new checkpoint (exit code {code})"
            say(f"the driver ended {saved} after SIGUSR1; requeueing job {job}")
            supervisor.requeue(job)
            return 0
        say(f"the driver ended with exit code {code}\n{driver.tail()}" if code else "the driver is done")
        supervisor.exit_code = code
    return supervisor.exit_code


def start_cluster(plan: RayPlan, supervisor: Supervisor) -> None:
    """Start all nodes and wait until all live; again where one was too slow for Ray's own limit."""
    environment = supervisor.environment
    health_check = (*plan.program, "health-check", "--address", plan.address)
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            supervisor.start(plan.head)
            healthy = f"Ray's head at {plan.address} was healthy"
            supervisor.wait_until(lambda: _succeeds(health_check, environment), healthy, plan.deadline)
            say(f"Ray's head is healthy: {plan.address}")
            for step in plan.workers:
                supervisor.start(step)
            alive = f"{len(plan.addresses)} Ray node(s) were alive"
            supervisor.wait_until(lambda: _succeeds(plan.probe, environment), alive, plan.deadline)
            return
        except RunError as error:
            if NODE_TOO_SLOW not in str(error) or attempt == START_ATTEMPTS:
                raise
            say(f"a node was too slow for Ray; the cluster starts again ({attempt + 1} of {START_ATTEMPTS})")
            supervisor.end_all()


def _ask_to_stop(driver: Running) -> None:
    """It makes its run's stop file: where that lies, only the driver's own words and presets say."""
    say("SIGUSR1: asking the driver to save and end")
    driver.send(signal.SIGUSR1)


def _succeeds(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    return subprocess.run(command, env=dict(environment), capture_output=True, check=False).returncode == 0


def _address(node: str, resolve: Callable[[str], str]) -> str:
    try:
        address = resolve(node)
    except OSError as error:
        raise UsageError(f"node {node} has no address ({error}); check the cluster's name service") from error
    return "127.0.0.2" if address == "127.0.0.1" else address  # Ray takes .1 for "an address that others see"


def ray_cluster(words: Sequence[str], environ: Mapping[str, str], root: Path) -> int:
    """Carry out ``launch ray [options] -- COMMAND …``. Raises `UsageError` and `RunError`."""
    end = list(words).index("--") if "--" in words else len(words)
    own, driver = words[:end], words[end + 1 :]
    values = read_flags(FLAGS, own, environ)
    allocation = imagined(values)
    plan = (
        plan_ray(values, driver, read_allocation(environ), sys.executable)
        if allocation is None
        else plan_ray(values, driver, allocation, sys.executable, resolve=lambda node: f"({node})")
    )

    def run(environment: Mapping[str, str]) -> int:
        return run_ray(plan, with_token(RAY_SETTINGS | dict(environment)))

    return carry_out(ray_table(plan, environ), environ, run, dry_run=values.on("dry-run"))


def with_token(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` with the secret that the job's Ray processes show each other, unless one is configured.

    Ray would make one under the head's home directory, which other nodes and clients need not see.
    """
    result = {"RAY_AUTH_MODE": "token"} | dict(environment)
    if result["RAY_AUTH_MODE"] == "token" and not result.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        result["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return result


def probe(address: str, own: str, nodes: str) -> int:
    """Connect as a driver would and count: 0 once so many nodes live."""
    import ray

    ray.init(address=address, _node_ip_address=own, log_to_driver=False, logging_level=logging.ERROR)
    alive = sum(bool(node["Alive"]) for node in ray.nodes())
    ray.shutdown()
    return int(alive < int(nodes))


if __name__ == "__main__":
    sys.exit(probe(*sys.argv[1:]))
