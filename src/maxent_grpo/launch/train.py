"""``launch train``: one training job. Flags and variables of ``ops/slurm/train.slurm`` become a plan that is run."""

import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maxent_grpo.errors import UsageError
from maxent_grpo.launch import commands
from maxent_grpo.launch.allocation import Allocation, imagined, read_allocation
from maxent_grpo.launch.arguments import Flag, Values, flag_value, read_flags, words_of
from maxent_grpo.launch.environment import job_environment, make_folders, shown_words, without_values
from maxent_grpo.launch.recipe import TASKS, RecipeFacts, read_facts, recipe_path
from maxent_grpo.launch.split import Split, split
from maxent_grpo.launch.supervision import (
    Ended,
    Running,
    Signals,
    Step,
    answers,
    follow,
    requeue,
    say,
    wait_until,
)
from maxent_grpo.launch.table import gpu_names, table
from maxent_grpo.observe.names import STOP_FILE

LOGS = Path("var/artifacts/logs")

FLAGS = (
    Flag("model", "Qwen2.5-1.5B-Instruct", ("MODEL",)),
    Flag("task", "grpo", ("TASK",)),
    Flag("config", "math", ("CONFIG",)),
    Flag("recipe", None, ("GRPO_RECIPE",)),
    Flag("accelerator", "zero3", ("ACCELERATOR",)),
    Flag("dp", "1", ("DP",)),
    Flag("tp", "1", ("TP",)),
    Flag("vllm-port", "29525", ("VLLM_PORT",)),
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

INLINE_SECONDS, NODE_SECONDS = 720, 360
"""How long a server may take to be healthy: beside the trainer, and on a node of its own."""

TERMINATED = 128 + signal.SIGTERM

SERVER_OWN = ("VLLM_PORT",)
"""vLLM takes its inner ports from VLLM_PORT, where ours is the port that it serves: it must not see it."""


@dataclass(frozen=True)
class Server:
    """The vLLM server of a job."""

    step: Step
    health: str  # URL
    deadline: int  # seconds


@dataclass(frozen=True)
class TrainPlan:
    """All that a job will do, before it does anything."""

    allocation: Allocation
    split: Split
    facts: RecipeFacts
    values: Values
    server: Server | None
    health: str | None  # of a server that somebody else runs
    trainer: Step
    resumes: str | None  # why it goes on from the newest checkpoint; None: a fresh start


def plan_training(
    values: Values, allocation: Allocation, root: Path, python: str, words: Sequence[str] | None = None
) -> TrainPlan:
    """The plan for ``allocation``. Pure but for reading the recipe.

    Args:
        root: the checkout; recipes and Accelerate's configurations are found under it.
        python: interpreter of the environment.
        words: the trainer's own flags, instead of those of ``--args``.

    Raises:
        UsageError: for whatever can be known to fail.
    """
    given = tuple(words_of(values.text("args"))) if words is None else tuple(words)
    path = chosen_recipe(values, root)
    facts = read_facts(path, given, values["vllm-mode"])
    sampling = "in-process" if facts.sampling == "server" and facts.server else facts.sampling
    local = values.number("local-procs") if values["local-procs"] else None
    division = split(
        allocation, sampling, dp=values.number("dp"), tp=values.number("tp"), local_processes=local
    )
    job = allocation.job or "local"
    server = _server(values, facts, division, allocation, python, job) if division.serving else None
    resumes = _resumes(values, allocation)
    extra = _wiring(values, given, server, division) + (
        ("--resume_from_checkpoint", "true")
        if resumes and flag_value(given, "resume_from_checkpoint") is None
        else ()
    )
    command = commands.trainer_command(
        python,
        _accelerator(values.text("accelerator"), root),
        division.training,
        module=TASKS[values.text("task")][1],
        recipe=str(path),
        words=[*given, *extra],
        address=division.training[0].node,
        port=values.number("master-port"),
        tee=values.text("tee"),
    )
    environment = dict(commands.devices(division.training[0].gpus))
    if len(allocation.nodes) > 1:
        command = commands.on_nodes(command, [share.node for share in division.training], allocation)
        # Slurm shows every node's step all of its GPUs, and the trainers take all of theirs.
        environment = {}
    return TrainPlan(
        allocation=allocation,
        split=division,
        facts=facts,
        values=values,
        server=server,
        health=_health(facts.server) if facts.server else None,
        trainer=Step("the trainer", tuple(command), LOGS / f"train_{job}.log", environment),
        resumes=resumes,
    )


def chosen_recipe(values: Values, root: Path) -> Path:
    """The recipe that is named, or the one of ``--model``, ``--task`` and ``--config``."""
    task = values.text("task")
    if task not in TASKS:
        raise UsageError(f"--task {task}: one of {', '.join(TASKS)}")
    typed = [f"--{name}" for name in ("model", "config") if values.sources[name] == f"--{name}"]
    named = values["recipe"]
    if named is not None and values.sources["recipe"] == "--recipe" and typed:
        raise UsageError(f"--recipe and {typed[0]} both name a recipe: keep one")
    if named is None or typed:
        return recipe_path(root, values.text("model"), task, values.text("config"))
    if not Path(named).is_file():
        raise UsageError(f"{values.sources['recipe']}={named}: there is no such recipe")
    return Path(named)


def _accelerator(name: str, root: Path) -> str:
    if name == "torchrun":
        return name
    path = (
        Path(name) if name.endswith((".yaml", ".yml")) else root / "configs" / "accelerate" / f"{name}.yaml"
    )
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in (root / "configs" / "accelerate").glob("*.yaml")))
        raise UsageError(
            f"--accelerator {name}: {path} is not there; use torchrun, a YAML file, or one of {there}"
        )
    return str(path)


def _resumes(values: Values, allocation: Allocation) -> str | None:
    if allocation.restarts:
        return f"restart {allocation.restarts} of the job"
    return f"{values.sources['resume']}" if values.on("resume") else None


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
    own = values["vllm-model"]
    port = values.number("vllm-port")
    command = commands.server_command(
        implementation,
        values["vllm-python"] or python,
        model=own or facts.model,
        revision=None if own else facts.revision,
        port=port,
        dp=values.number("dp"),
        tp=values.number("tp"),
        max_length=values.number("vllm-max-model-len"),
        memory=float(memory),
        extra=words_of(values.text("vllm-server-args")),
    )
    environment = {**commands.SERVER_ENVIRONMENT[implementation], **commands.devices(division.serving.gpus)}
    apart = len(allocation.nodes) > 1
    if apart:
        # srun shows the step all GPUs of the node, whatever its own environment says.
        shown = [f"{name}={value}" for name, value in environment.items()]
        command = commands.on_nodes(["env", *shown, *command], [division.serving.node], allocation)
        environment = {}
    host = division.serving.node if apart else "127.0.0.1"
    asked = values["vllm-health-timeout"]
    deadline = values.number("vllm-health-timeout") if asked else NODE_SECONDS if apart else INLINE_SECONDS
    step = Step("the vLLM server", tuple(command), LOGS / f"vllm-{job}.out", environment, SERVER_OWN)
    return Server(step, f"http://{host}:{port}/health", deadline)


def _wiring(values: Values, given: Sequence[str], server: Server | None, division: Split) -> tuple[str, ...]:
    """The flags that the launcher adds for the trainer, unless they are there."""
    flags: dict[str, str | None] = {"seed": values["seed"], "vllm_mode": values["vllm-mode"]}
    if server is not None and division.serving is not None:
        apart = division.serving.node not in {share.node for share in division.training}
        flags["vllm_server_host"] = division.serving.node if apart else "127.0.0.1"
        flags["vllm_server_port"] = values.text("vllm-port")
        flags["vllm_group_port"] = values.text("vllm-group-port")
    return tuple(
        word
        for name, value in flags.items()
        if value is not None and flag_value(given, name) is None
        for word in (f"--{name}", value)
    )


def _health(address: str) -> str:
    front, _, rest = address.partition("://")
    host = (rest or front).partition("/")[0]
    return f"{front if rest else 'http'}://{host}/health"


def training_table(plan: TrainPlan, environ: Mapping[str, str]) -> str:
    """The plan for people: who runs what and where, settings with their sources, commands. No secrets."""
    values, facts, division = plan.values, plan.facts, plan.split
    job = plan.allocation.job
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
        ("HF_TOKEN", "forwarded, not shown" if environ.get("HF_TOKEN") else "not set"),
    ]
    chosen = [
        (f"--{flag.name}", without_values(str(values[flag.name]), environ), values.sources[flag.name])
        for flag in FLAGS
        if values.sources[flag.name] != "default" and flag.name not in ("args", "dry-run")
    ]
    steps = ([plan.server.step] if plan.server else []) + [plan.trainer]
    runs = [(step.name, str(step.log), _shown(step, environ)) for step in steps]
    parts = [
        table(f"Job {job}" if job else "No Slurm job: everything runs on this machine", where),
        table("Settings", settings),
        *([table("Given", chosen)] if chosen else []),
        *(f"{name} → {log}\n  {line}" for name, log, line in runs),
    ]
    return "\n\n".join(parts)


def _shown(step: Step, environ: Mapping[str, str]) -> str:
    front = "".join(f"{name}={value} " for name, value in step.environment.items())
    return front + shown_words(step.command, environ)


def run_training(plan: TrainPlan, environment: Mapping[str, str]) -> int:
    """Serve, wait for health, train, end the server; the trainer's exit code.

    After SIGUSR1 the trainer saves and ends and the job is requeued. Raises `RunError` as `supervision` does.
    """
    stop = plan.facts.output_dir / STOP_FILE
    stop.unlink(missing_ok=True)
    started: list[Running] = []
    with Signals().listening() as signals:
        try:
            if plan.server is not None:
                say(f"vLLM server starts, log: {plan.server.step.log}")
                server = Running(plan.server.step, environment)
                started.append(server)
                address, deadline = plan.server.health, plan.server.deadline
                wait_until(lambda: answers(address), f"{address} answered", [server], signals, deadline)
                say(f"vLLM server is healthy: {address}")
            elif plan.health is not None:
                address = plan.health
                wait_until(lambda: answers(address), f"{address} answered", [], signals, NODE_SECONDS)
            say(f"trainer starts, log: {plan.trainer.log}")
            trainer = Running(plan.trainer, environment)
            beside = list(started)
            started.append(trainer)
            code = follow(trainer, beside, signals, lambda: _ask_to_stop(stop))
            if code == TERMINATED and len(plan.split.training) > 1:
                code = 1  # srun names the highest code: that of a task that it ended itself because another failed
            if code and signals.stop_asked and plan.allocation.job is not None:
                saved = "at a checkpoint" if not stop.exists() else "without a new checkpoint"
                say(f"trainer ended {saved} after SIGUSR1; requeueing job {plan.allocation.job}")
                requeue(plan.allocation.job, environment)
                return 0
            if code:
                say(f"trainer ended with exit code {code}\n{trainer.tail()}")
            else:
                say(f"done: {plan.facts.output_dir}")
            return code
        except Ended as end:
            say(
                f"{end}: a later start with --resume goes on from the newest checkpoint in {plan.facts.output_dir}"
            )
            return end.exit_code
        finally:
            for process in reversed(started):
                if process.exit_code is None:
                    process.end()


def _ask_to_stop(stop: Path) -> None:
    say(f"SIGUSR1: asking the trainer to save and end ({stop})")
    stop.parent.mkdir(parents=True, exist_ok=True)
    stop.touch()


def train(words: Sequence[str], environ: Mapping[str, str], root: Path) -> int:
    """Carry out ``launch train``. Raises `UsageError` and `RunError`."""
    values = read_flags(FLAGS, words, environ)
    allocation = imagined(values) or read_allocation(environ)
    plan = plan_training(values, allocation, root, sys.executable)
    print(training_table(plan, environ), flush=True)
    if values.on("dry-run"):
        if not LOGS.is_dir():
            print(f"\nBefore sbatch: mkdir -p {LOGS} (Slurm does not make the folder of its own log files)")
        return 0
    environment = job_environment(environ, Path.cwd())
    make_folders(environment)
    return run_training(plan, environment)
