"""``launch train`` and ``launch sweep``: one training job, or a grid of them as a Slurm array.

Flags and variables of ``ops/slurm/train.slurm`` become a plan that is run.
"""

import itertools
import secrets
import shlex
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from maxent_grpo.errors import UsageError
from maxent_grpo.launch.allocation import (
    NODE_RANK,
    Allocation,
    Split,
    devices,
    imagined,
    on_nodes,
    read_allocation,
    split,
)
from maxent_grpo.launch.flags import Flag, Values, flag_value, read_flags, words_of
from maxent_grpo.launch.plan_text import gpu_names, shown_words, table, without_values
from maxent_grpo.launch.recipe import TASKS, RecipeFacts, chosen_recipe, read_facts
from maxent_grpo.launch.supervision import LOGS, Running, Step, Supervisor, answers, carry_out, say
from maxent_grpo.models.location import model_location
from maxent_grpo.observe.names import STOP_FILE
from maxent_grpo.rollout.vllm.api_key import VARIABLE as KEY

FLAGS = (
    Flag("model", "Qwen2.5-1.5B-Instruct", ("MODEL",)),
    Flag("task", "grpo", ("TASK",)),
    Flag("config", "math", ("CONFIG",)),
    Flag("recipe", None, ("GRPO_RECIPE",)),
    Flag("accelerator", "zero3", ("ACCELERATOR",)),
    Flag("dp", "1", ("DP",)),
    Flag("tp", "1", ("TP",)),
    Flag("vllm-port", "29525", ("VLLM_PORT",)),
    Flag("vllm-host", None, ("VLLM_HOST",)),
    Flag("vllm-group-port", "29535", ("VLLM_GROUP_PORT",)),
    Flag("vllm-mode", None, ("VLLM_MODE",)),
    Flag("vllm-model", None, ("VLLM_MODEL",)),
    Flag("vllm-max-model-len", "8000", ("VLLM_MAX_MODEL_LEN", "VLLM_MAX_LEN")),
    Flag("vllm-mem-util", "0.9", ("VLLM_MEM_UTIL",)),
    Flag("vllm-server-impl", "native", ("VLLM_SERVER_IMPL",)),
    Flag("vllm-server-args", "", ("VLLM_SERVER_ARGS",)),
    Flag("vllm-python", None, ("VLLM_PYTHON",)),
    Flag("vllm-health-timeout", None, ("VLLM_HEALTH_TIMEOUT",)),
    Flag("local-procs", None, ("TRAIN_LOCAL_PROCS",)),
    Flag("seed", None, ("TRAIN_SEED",)),
    Flag("master-port", "6000", ("MASTER_PORT",)),
    Flag("tee", "3", ("ACC_TEE",)),
    Flag("args", "", ("TRAIN_ARGS",)),
    Flag("resume", None, ("MAXENT_RESUME",), switch=True),
    Flag("dry-run", None, ("MAXENT_DRY_RUN",), switch=True),
    Flag("nodes", None),
    Flag("gpus-per-node", None),
)
"""``--nodes`` and ``--gpus-per-node`` are for ``--dry-run`` before there is a job."""
SWEEP_FLAGS = (*FLAGS, Flag("grid", None, ("SWEEP_GRID",)))

ECHO_TAGS = "maxent_grpo.rollout.vllm.client_tag.EchoMiddleware"
"""Makes vLLM's own server copy a rank's client tag into its answers."""
ASK_FOR_KEY = "maxent_grpo.rollout.vllm.api_key.KeyMiddleware"
"""Makes it ask for the job's key at every endpoint, those included that change weights."""
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
INLINE_SECONDS, NODE_SECONDS = 720, 360
"""Time for a server to be healthy: beside the trainer, and on a node of its own."""
TERMINATED = 128 + signal.SIGTERM
SERVER_OWN = ("VLLM_PORT",)
"""vLLM takes its inner ports from VLLM_PORT, where ours is the port that it serves: it must not see it."""

LAUNCHER_KEYS = ("model", "task", "config", "recipe", "accelerator", "dp", "tp")
"""Keys of a grid that are flags of the launcher; every other one is a setting of the trainer."""
PORTS = {"master-port": 1, "vllm-port": 20, "vllm-group-port": 20}
"""Port flags that nobody set, and how far apart the points of a grid have them: points may share a node."""

Point = Mapping[str, str]
"""A point of a grid: key → value."""


@dataclass(frozen=True)
class Server:
    """The vLLM server of a job."""

    step: Step
    health: str  # URL
    deadline: int  # seconds
    asks_for_key: bool
    """It takes no order without the key of VLLM_API_KEY, which the job makes; TRL's client would send none."""


@dataclass(frozen=True)
class TrainPlan:
    """All that a job will do, before it does anything."""

    allocation: Allocation
    split: Split
    facts: RecipeFacts
    values: Values
    server: Server | None
    health: str | None  # URL of a server that somebody else runs
    trainer: Step
    resumes: str | None  # the reason why it goes on from the newest checkpoint; None: a fresh start


def plan_training(values: Values, allocation: Allocation, root: Path, python: str) -> TrainPlan:
    """The plan for ``allocation``. Pure but for reading the recipe.

    Args:
        root: the checkout; recipes and Accelerate's configurations are found under it.
        python: interpreter of the environment.

    Raises:
        UsageError: for whatever can be known to fail.
    """
    given = words_of(values.text("args"))
    path = chosen_recipe(values, root)
    facts = read_facts(path, given, values["vllm-mode"])
    sampling = "in-process" if facts.sampling == "server" and facts.server else facts.sampling
    local = values.number("local-procs") if values["local-procs"] else None
    division = split(
        allocation, sampling, dp=values.number("dp"), tp=values.number("tp"), local_processes=local
    )
    job = allocation.job or "local"
    server = _server(values, facts, division, allocation, python, job) if division.serving else None
    resumes = values.sources["resume"] if values.on("resume") else None
    if allocation.restarts:
        resumes = f"restart {allocation.restarts} of the job"
    extra = _wiring(values, given, server, division)
    if resumes and flag_value(given, "resume_from_checkpoint") is None:
        extra += ["--resume_from_checkpoint", "true"]
    words = ["-m", TASKS[values.text("task")][1], "--config", str(path), *given, *extra]
    command = [python, "-m", *_starter(values, division, root), "--tee", values.text("tee"), *words]
    environment = devices(division.training[0].gpus)
    if len(allocation.nodes) > 1:
        command = on_nodes(command, [share.node for share in division.training], allocation)
        # Slurm shows every node's step all of its GPUs, and the trainers take all of theirs.
        environment = {}
    trainer = Step("the trainer", tuple(command), LOGS / f"train_{job}.log", environment)
    health = _health(facts.server) if facts.server else None
    return TrainPlan(allocation, division, facts, values, server, health, trainer, resumes)


def _starter(values: Values, division: Split, root: Path) -> list[str]:
    """torchrun, or accelerate launch with a file of ``configs/accelerate``, as every training node starts it."""
    name, port, address = values.text("accelerator"), values.number("master-port"), division.training[0].node
    nodes, local = len(division.training), division.training[0].processes
    if name == "torchrun":
        several = f"--node-rank {NODE_RANK} --master-addr {address}" if nodes > 1 else ""
        sizes = f"--nnodes {nodes} --nproc-per-node {local}"
        return ["torch.distributed.run", *f"{sizes} {several} --master-port {port}".split()]
    folder = root / "configs" / "accelerate"
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise UsageError(
            f"--accelerator {name}: {path} is not there; use torchrun, a YAML file, or one of {there}"
        )
    several = (
        f"--machine_rank {NODE_RANK} --main_process_ip {address} --deepspeed_multinode_launcher standard"
    )
    sizes = f"--num_machines {nodes} --num_processes {nodes * local} {several if nodes > 1 else ''}"
    words = f"{sizes} --main_process_port {port}".split()
    return ["accelerate.commands.launch", "--config_file", str(path), *words]


def _server(
    values: Values, facts: RecipeFacts, division: Split, allocation: Allocation, python: str, job: str
) -> Server:
    assert division.serving is not None
    implementation = values.text("vllm-server-impl")
    if implementation not in ("trl", "native"):
        raise UsageError(f"VLLM_SERVER_IMPL={implementation}: trl or native")
    memory = values.text("vllm-mem-util")
    if not memory.replace(".", "", 1).isdecimal() or not 0 < float(memory) <= 1:
        raise UsageError(f"VLLM_MEM_UTIL={memory}: a fraction of a GPU's memory, above 0 and at most 1")
    own, port, native = values["vllm-model"], values.number("vllm-port"), implementation == "native"
    model = model_location(own or facts.model)
    front = (
        ["vllm.entrypoints.cli.main", "serve", model]
        if native
        else ["trl.scripts.vllm_serve", "--model", model]
    )
    if facts.revision and not own:
        front += ["--revision", facts.revision]
    sizes = (
        f"--tensor_parallel_size {values.number('tp')} --data_parallel_size {values.number('dp')} "
        f"--max_model_len {values.number('vllm-max-model-len')} --gpu_memory_utilization {float(memory):g}"
    )
    own_loop = facts.native if facts.native is not None else TASKS[values.text("task")][0] != "grpo"
    keyed = native and own_loop
    several = len(allocation.nodes) > 1
    reached = address_of(division.serving.node) if several else LOOPBACK
    listens = values["vllm-host"] or reached
    middleware = ["--middleware", ECHO_TAGS, *(["--middleware", ASK_FOR_KEY] if keyed else [])]
    words = ["--host", listens, *(middleware if native else []), "--port", str(port)]
    words += (sizes.replace("_", "-") if native else sizes).split()
    words += words_of(values.text("vllm-server-args"))
    command = [values["vllm-python"] or python, "-m", *front, *words]
    # What vLLM's own server needs to take new weights over HTTP.
    takes_weights = native and (facts.syncs_weights or not own_loop)
    reports_nothing = {"VLLM_NO_USAGE_STATS": "1"}
    environment = ({"VLLM_SERVER_DEV_MODE": "1"} if takes_weights else {}) | reports_nothing
    environment |= devices(division.serving.gpus)
    host, deadline = reached if listens in (EVERYWHERE, "::") else listens, INLINE_SECONDS
    if several:
        # srun shows the step all GPUs of the node, whatever its own environment says.
        shown = [f"{name}={value}" for name, value in environment.items()]
        command = on_nodes(["env", *shown, *command], [division.serving.node], allocation)
        deadline, environment = NODE_SECONDS, {}
    if values["vllm-health-timeout"]:
        deadline = values.number("vllm-health-timeout")
    step = Step("the vLLM server", tuple(command), LOGS / f"vllm-{job}.out", environment, SERVER_OWN)
    return Server(step, f"http://{host}:{port}/health", deadline, keyed)


def address_of(node: str) -> str:
    """The address of ``node`` as this node sees it: on the node itself its name may stand for loopback."""
    try:
        return socket.gethostbyname(node)
    except OSError:
        return node


def with_key(plan: TrainPlan, environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` with a key that this job's server and trainer share; nobody else ever sees it.

    Processes find it in their environment: it is in no command line, file or log.
    """
    if plan.server is None or not plan.server.asks_for_key or environment.get(KEY):
        return dict(environment)
    return {**environment, KEY: secrets.token_urlsafe(32)}


def _wiring(values: Values, given: Sequence[str], server: Server | None, division: Split) -> list[str]:
    """The flags that the launcher adds for the trainer, unless they are there."""
    flags: dict[str, str | None] = {"seed": values["seed"], "vllm_mode": values["vllm-mode"]}
    if server is not None and division.serving is not None:
        flags["vllm_server_host"] = urlsplit(server.health).hostname
        flags["vllm_server_port"] = values.text("vllm-port")
        flags["vllm_group_port"] = values.text("vllm-group-port")
    added = {n: value for n, value in flags.items() if value is not None and flag_value(given, n) is None}
    return [word for name, value in added.items() for word in (f"--{name}", value)]


def _health(address: str) -> str:
    front, _, rest = address.partition("://")
    host = (rest or front).partition("/")[0]
    return f"{front if rest else 'http'}://{host}/health"


def training_table(plan: TrainPlan, environ: Mapping[str, str]) -> str:
    """The plan for people: who runs what and where, settings with their sources, commands. No secrets."""
    values, facts, division, job = plan.values, plan.facts, plan.split, plan.allocation.job
    where = [
        (share.node, gpu_names(share.gpus), f"trains, {share.processes} process(es)")
        for share in division.training
    ]
    if division.serving is not None:
        where.append((division.serving.node, gpu_names(division.serving.gpus), "serves vLLM"))
    where += [(node, gpu_names(gpus), "idle: raise --dp or --tp to use it") for node, gpus in division.idle]
    sampling = f"{facts.sampling}, served by {facts.server}" if facts.server else facts.sampling
    settings = [
        ("recipe", str(facts.path)),
        ("trainer", f"{TASKS[values.text('task')][1]} under {values.text('accelerator')}"),
        ("processes", f"{division.world_size} over {len(division.training)} node(s)"),
        ("model", facts.model + (f" at {facts.revision}" if facts.revision else "")),
        ("sampling", sampling),
        ("accumulation", str(facts.accumulation)),
        ("output", str(facts.output_dir)),
        ("starts", f"from the newest checkpoint ({plan.resumes})" if plan.resumes else "afresh"),
        *([("API key", _key_words(plan.server, environ))] if plan.server else []),
        ("HF_TOKEN", "forwarded, not shown" if environ.get("HF_TOKEN") else "not set"),
    ]
    chosen = [
        (f"--{flag.name}", without_values(str(values[flag.name]), environ), values.sources[flag.name])
        for flag in FLAGS
        if values.sources[flag.name] != "default" and flag.name not in ("args", "dry-run")
    ]
    steps = ([plan.server.step] if plan.server else []) + [plan.trainer]
    parts = [
        table(f"Job {job}" if job else "No Slurm job: everything runs on this machine", where),
        table("Settings", settings),
        *([table("Given", chosen)] if chosen else []),
        *(f"{step.name} → {step.log}\n  {_shown(step, environ)}" for step in steps),
    ]
    return "\n\n".join(parts)


def _key_words(server: Server, environ: Mapping[str, str]) -> str:
    if not server.asks_for_key:
        return "none: TRL's client sends none, and whoever reaches the port can steer the server"
    return f"that of {KEY}, not shown" if environ.get(KEY) else "made for this job, not shown"


def _shown(step: Step, environ: Mapping[str, str]) -> str:
    front = "".join(f"{name}={value} " for name, value in step.environment.items())
    return front + shown_words(step.command, environ)


def run_training(plan: TrainPlan, environment: Mapping[str, str]) -> int:
    """Serve, wait for health, train, end the server; the trainer's exit code.

    After SIGUSR1 the trainer saves and ends and the job is requeued. Raises `RunError` as `supervision` does.
    """
    output, job = plan.facts.output_dir, plan.allocation.job
    stop = output / STOP_FILE
    stop.unlink(missing_ok=True)

    def ask_to_stop(trainer: Running) -> None:
        say(f"SIGUSR1: asking the trainer to save and end ({stop})")
        stop.parent.mkdir(parents=True, exist_ok=True)
        stop.touch()

    later = f": a later start with --resume goes on from the newest checkpoint in {output}"
    with Supervisor(with_key(plan, environment), later).watching() as supervisor:
        address, deadline = plan.health, NODE_SECONDS
        if plan.server is not None:
            say(f"vLLM server starts, log: {plan.server.step.log}")
            supervisor.start(plan.server.step)
            address, deadline = plan.server.health, plan.server.deadline
        if address is not None:
            url = address
            supervisor.wait_until(lambda: answers(url), f"{url} answered", deadline)
        if plan.server is not None:
            say(f"vLLM server is healthy: {address}")
        say(f"trainer starts, log: {plan.trainer.log}")
        trainer = supervisor.follow(plan.trainer, ask_to_stop)
        code = trainer.exit_code or 0
        if code == TERMINATED and len(plan.split.training) > 1:
            code = (
                1  # srun names the highest code: that of a task that it ended itself because another failed
            )
        if code and supervisor.stop_asked and job is not None:
            saved = "at a checkpoint" if not stop.exists() else "without a new checkpoint"
            say(f"trainer ended {saved} after SIGUSR1; requeueing job {job}")
            supervisor.requeue(job)
            return 0
        say(f"trainer ended with exit code {code}\n{trainer.tail()}" if code else f"done: {output}")
        supervisor.exit_code = code
    return supervisor.exit_code


def train(words: Sequence[str], environ: Mapping[str, str], root: Path) -> int:
    """Carry out ``launch train``. Raises `UsageError` and `RunError`."""
    values = read_flags(FLAGS, words, environ)
    allocation = imagined(values) or read_allocation(environ)
    plan = plan_training(values, allocation, root, sys.executable)
    text = training_table(plan, environ)
    if values.on("dry-run") and not LOGS.is_dir():
        text += f"\n\nBefore sbatch: mkdir -p {LOGS} (Slurm does not make the folder of its own log files)"
    return carry_out(text, environ, partial(run_training, plan), dry_run=values.on("dry-run"))


def grid_points(grid: str) -> list[Point]:
    """The points of ``"seed=0,1 learning_rate=1e-6,5e-7"``, the last key varying fastest. Raises `UsageError`."""
    axes: dict[str, list[str]] = {}
    for word in words_of(grid):
        key, equals, values = word.partition("=")
        if not equals or not key or not values or key in axes:
            raise UsageError(f"--grid {grid!r}: {word!r} must be KEY=VALUE,VALUE,… with each key once")
        axes[key] = values.split(",")
    if not axes:
        raise UsageError("--grid is empty: give KEY=VALUE,VALUE,…")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def point_name(point: Point) -> str:
    """``seed=0,task=maxent``, which is also the folder of the run."""
    return ",".join(f"{key}={value.replace('/', '-')}" for key, value in sorted(point.items()))


def point_words(
    point: Point, index: int, words: Sequence[str], environ: Mapping[str, str], root: Path
) -> list[str]:
    """The flags of ``launch train`` for one point: those of the sweep, with the point's values and its own folder."""
    flags = [f"--{key}={value}" for key, value in point.items() if key in LAUNCHER_KEYS]
    values = read_flags(SWEEP_FLAGS, [*words, *flags], environ)
    given = list(words_of(values.text("args")))
    given += [word for key, v in point.items() if key not in LAUNCHER_KEYS for word in (f"--{key}", v)]
    if "output_dir" not in point:
        facts = read_facts(chosen_recipe(values, root), given, values["vllm-mode"])
        given += ["--output_dir", str(facts.output_dir / point_name(point))]
    ports = [
        word
        for name, distance in PORTS.items()
        if values.sources[name] == "default"
        for word in (f"--{name}", str(values.number(name) + distance * index))
    ]
    return [*values.typed(without=("grid", "args")), *ports, "--args", shlex.join(given)]


def sweep(words: Sequence[str], environ: Mapping[str, str], root: Path) -> int:
    """Carry out ``launch sweep``. Raises `UsageError` and `RunError`."""
    values = read_flags(SWEEP_FLAGS, words, environ)
    points = grid_points(values.text("grid"))
    last = len(points) - 1
    index = environ.get("SLURM_ARRAY_TASK_ID")
    if index is None:
        if not values.on("dry-run"):
            raise UsageError(f"a sweep is a Slurm array: sbatch --array=0-{last} ops/slurm/sweep.slurm …")
        rows = [(str(i), point_name(point)) for i, point in enumerate(points)]
        print(table(f"{len(points)} runs: sbatch --array=0-{last}", rows), flush=True)
        index = "0"
    if int(index) > last:
        raise UsageError(f"array task {index}: the grid has {len(points)} points; use --array=0-{last}")
    point = points[int(index)]
    print(f"\nPoint {index}: {point_name(point)}", flush=True)
    return train(point_words(point, int(index), words, environ, root), environ, root)
