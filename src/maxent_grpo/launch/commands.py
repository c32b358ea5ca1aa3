"""The command lines of a job: the vLLM server, the trainer under accelerate or torchrun, and Slurm's ``srun``."""

import shlex
from collections.abc import Mapping, Sequence

from maxent_grpo.launch.allocation import Allocation, NodeShare

ECHO_TAGS = "maxent_grpo.rollout.vllm.client_tag.EchoMiddleware"
"""Makes vLLM's own server copy a rank's client tag into its answers."""

SERVER_ENVIRONMENT: Mapping[str, Mapping[str, str]] = {"native": {"VLLM_SERVER_DEV_MODE": "1"}, "trl": {}}
"""Variables that a server needs to take new weights over HTTP."""

NODE_RANK = "@node-rank@"
"""Stands for the node's position among the training nodes, which only the started process knows."""


def server_command(
    implementation: str,
    python: str,
    *,
    model: str,
    revision: str | None,
    port: int,
    dp: int,
    tp: int,
    max_length: int,
    memory: float,
    extra: Sequence[str],
) -> list[str]:
    """A vLLM server: ``trl`` is TRL's ``vllm_serve``, ``native`` is vLLM's own OpenAI-compatible one."""
    front = ["trl.scripts.vllm_serve", "--model", model]
    sizes = "--tensor_parallel_size --data_parallel_size --max_model_len --gpu_memory_utilization"
    echo: list[str] = []
    if implementation == "native":
        front, echo = ["vllm.entrypoints.cli.main", "serve", model], ["--middleware", ECHO_TAGS]
        sizes = sizes.replace("_", "-")
    named = ["--revision", revision] if revision else []
    values = zip(sizes.split(), (tp, dp, max_length, memory), strict=True)
    pairs = [word for flag, value in values for word in (flag, f"{value:g}")]
    return [
        python, "-m", *front, *named, "--host", "0.0.0.0", *echo, "--port", str(port), *pairs, *extra
    ]  # fmt: skip


def trainer_command(
    python: str,
    accelerator: str,
    training: Sequence[NodeShare],
    *,
    module: str,
    recipe: str,
    words: Sequence[str],
    address: str,
    port: int,
    tee: str,
) -> list[str]:
    """The command of every training node; `NODE_RANK` is in it where there are several.

    Args:
        accelerator: file of Accelerate's configuration, or ``torchrun``: the recipe's ``distributed`` counts then.
        address: host name of the first training node.
    """
    nodes, local = len(training), training[0].processes
    trainer = ["-m", module, "--config", recipe, *words]
    several: list[str] = []
    if accelerator == "torchrun":
        if nodes > 1:
            several = ["--node-rank", NODE_RANK, "--master-addr", address]
        return [
            python, "-m", "torch.distributed.run", "--nnodes", str(nodes), "--nproc-per-node", str(local), *several,
            "--master-port", str(port), "--tee", tee, *trainer,
        ]  # fmt: skip
    if nodes > 1:
        several = ["--machine_rank", NODE_RANK, "--main_process_ip", address]
        several += ["--deepspeed_multinode_launcher", "standard"]
    return [
        python, "-m", "accelerate.commands.launch", "--config_file", accelerator, "--num_machines", str(nodes),
        "--num_processes", str(nodes * local), *several, "--main_process_port", str(port), "--tee", tee, *trainer,
    ]  # fmt: skip


def on_nodes(command: Sequence[str], nodes: Sequence[str], allocation: Allocation) -> list[str]:
    """``command`` on each of ``nodes`` of a Slurm job, as one step whose end is that of its first failing task."""
    count = len(nodes)
    steps = f"srun --nodes={count} --ntasks={count} --ntasks-per-node=1 --nodelist={','.join(nodes)} --overlap".split()
    # One task holds all of its node's processes: binding it to a core would bind them all to that core.
    steps += ["--kill-on-bad-exit=1", "--cpu-bind=none", "--export=ALL"]
    if allocation.cpus_per_task:
        steps.append(f"--cpus-per-task={allocation.cpus_per_task}")
    return [*steps, *with_rank(command)]


def with_rank(command: Sequence[str]) -> list[str]:
    """``command`` with `NODE_RANK` read from Slurm's task number by a shell on the node."""
    if NODE_RANK not in command:
        return list(command)
    line = " ".join('"$SLURM_PROCID"' if word == NODE_RANK else shlex.quote(word) for word in command)
    return ["bash", "-c", f"exec {line}"]


def devices(gpus: Sequence[str]) -> dict[str, str]:
    """The variable that shows a process its GPUs; nothing where it runs on the CPU."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
