"""``launch math-eval`` and ``launch lighteval``: what ``infer_math.slurm`` and ``evaluate.slurm`` run."""

import base64
import binascii
import json
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.launch.allocation import devices, read_allocation
from maxent_grpo.launch.flags import Flag, Values, read_flags, words_of
from maxent_grpo.launch.lighteval import file_name, lighteval_command, results_folder
from maxent_grpo.launch.plan_text import gpu_names, shown_words, table
from maxent_grpo.launch.supervision import LOGS, POLL_SECONDS, Running, Step, Supervisor, carry_out, say

BENCHMARKS = "math_500,aime24,aime25,amc,minerva"

FLAGS = (
    Flag("model", None, ("MODEL",)),
    Flag("revision", None, ("REVISION",)),
    Flag("datasets", BENCHMARKS),
    Flag("seeds", "0,1,2,3,4"),
    Flag("num-generations", "8"),
    Flag("temperature", "0.6"),
    Flag("batch-size", "1"),
    Flag("label", None),
    Flag("style", "grpo"),
    Flag("max-new-tokens", "768"),
    Flag("top-p", "0.9"),
    Flag("system-prompt-file", "configs/prompts/math_system_prompt.txt"),
    Flag("artifact-root", "var/artifacts/inference"),
    Flag("collect-generations", None, switch=True),
    Flag("extra-opts", ""),
    Flag("gpus-per-process", "1"),
    Flag("dry-run", None, ("MAXENT_DRY_RUN",), switch=True),
)


def math_eval_command(values: Values, dataset: str, python: str) -> list[str]:
    """The evaluation of one benchmark, as Hydra takes it."""
    model: dict[str, str | int | float | None] = {
        "model_name_or_path": values.text("model"),
        "revision": values["revision"],
        "label": values["label"],
        "style": values.text("style"),
        "system_prompt_file": values["system-prompt-file"] or None,
        "batch_size": values.number("batch-size"),
        "max_new_tokens": values.number("max-new-tokens"),
        "top_p": float(values.text("top-p")),
    }
    spec = ",".join(f"{key}:{json.dumps(value)}" for key, value in model.items() if value is not None)
    return [
        python, "-m", "maxent_grpo.cli.main", "command=math-eval",
        f"inference.models=[{{{spec}}}]",
        f"inference.dataset={dataset}",
        f"inference.seeds=[{values.text('seeds')}]",
        f"inference.num_generations={values.number('num-generations')}",
        f"inference.temperature={values.text('temperature')}",
        f"inference.collect_generations={str(values.on('collect-generations')).lower()}",
        f"inference.artifacts.root_dir={values.text('artifact-root')}",
        *words_of(values.text("extra-opts")),
    ]  # fmt: skip


def slots(gpus: Sequence[str], per_process: int) -> list[tuple[str, ...]]:
    """The GPUs of each process that may run at once: ``per_process`` each; one process without any on a CPU."""
    if not gpus:
        return [()]
    if per_process > len(gpus):
        raise UsageError(f"--gpus-per-process {per_process}: this node has {len(gpus)} GPU(s)")
    return [tuple(gpus[i : i + per_process]) for i in range(0, len(gpus) - per_process + 1, per_process)]


def run_queue(
    steps: Sequence[Step], slots: Sequence[tuple[str, ...]], job: str | None, environment: Mapping[str, str]
) -> int:
    """Run every step, as many at once as there are slots; 0, or `RunError` where a step failed (the others still run).

    After SIGUSR1 the running ones are ended and the job is requeued: what they have done is in their artifacts.
    """
    waiting, free = list(steps), list(slots)
    running: list[tuple[Running, tuple[str, ...]]] = []
    failed: list[str] = []
    later = ": the same line again goes on after the completed prompts"
    with Supervisor(environment, later).watching() as supervisor:
        while waiting or running:
            while waiting and free:
                gpus, step = free.pop(0), waiting.pop(0)
                say(f"{step.name} starts on {gpu_names(gpus)}, log: {step.log}")
                running.append((supervisor.start(replace(step, environment=devices(gpus))), gpus))
            for process, gpus in [pair for pair in running if pair[0].exit_code is not None]:
                running.remove((process, gpus))
                free.append(gpus)
                name = process.step.name
                if process.exit_code:
                    failed.append(name)
                    say(f"{name} failed with exit code {process.exit_code}\n{process.tail()}")
                else:
                    say(f"{name} is done")
            supervisor.raise_if_ended()
            if supervisor.stop_asked and job is not None:
                say(f"SIGUSR1: requeueing job {job}; completed prompts are kept")
                supervisor.end_all()
                supervisor.requeue(job)
                return 0
            time.sleep(POLL_SECONDS)
        if failed:
            raise RunError(f"{len(failed)} of {len(steps)} evaluations failed: {', '.join(failed)}")
    return supervisor.exit_code


def math_eval(words: Sequence[str], environ: Mapping[str, str], root: Path) -> int:
    """Carry out ``launch math-eval``: one process per benchmark. Raises `UsageError` and `RunError`."""
    values = read_flags(FLAGS, words, environ)
    allocation = read_allocation(environ)
    job = allocation.job or "local"
    names = [name.strip() for name in values.text("datasets").split(",") if name.strip()]
    if not names:
        raise UsageError("--datasets is empty: name at least one benchmark")
    values.text("model")
    commands = [tuple(math_eval_command(values, name, sys.executable)) for name in names]
    logs = [LOGS / f"infer_{job}_{file_name(name)}.log" for name in names]
    steps = list(map(Step, names, commands, logs))
    places = slots(allocation.gpus, values.number("gpus-per-process"))
    rows = [(step.name, str(step.log), shown_words(step.command, environ)) for step in steps]
    at_once = [(gpu_names(gpus),) for gpus in places]
    run = partial(run_queue, steps, places, allocation.job)
    text = f"{table('Evaluations', rows)}\n\n{table('At the same time', at_once)}"
    return carry_out(text, environ, run, dry_run=values.on("dry-run"))


def lighteval(words: Sequence[str], environ: Mapping[str, str], root: Path) -> int:
    """Carry out ``launch lighteval BENCHMARK TASKS MODEL REVISION TP TRUST [PROMPT_BASE64]``. Raises `UsageError`."""
    dry = environ.get("MAXENT_DRY_RUN", "0") not in ("", "0") or "--dry-run" in words
    positional = [word for word in words if word != "--dry-run"]
    if not 6 <= len(positional) <= 7:
        raise UsageError(
            f"{len(positional)} arguments: BENCHMARK TASKS MODEL REVISION TENSOR_PARALLEL TRUST_REMOTE_CODE "
            "[SYSTEM_PROMPT_BASE64] are needed"
        )
    benchmark, tasks, model, revision, parallel, trust, *prompt = positional
    for name, value in (("TENSOR_PARALLEL", parallel), ("TRUST_REMOTE_CODE", trust)):
        if value.lower() not in ("true", "false"):
            raise UsageError(f"{name}={value}: true or false")
    try:
        text = base64.b64decode(prompt[0], validate=True).decode() if prompt else ""
    except (binascii.Error, UnicodeDecodeError) as error:
        raise UsageError(f"SYSTEM_PROMPT_BASE64 is not base64 of a text ({error})") from error
    allocation = read_allocation(environ)
    output = results_folder(model, revision, benchmark)
    command = lighteval_command(
        shlex.split(environ.get("LIGHTEVAL", "lighteval")),
        tasks,
        model,
        revision,
        output,
        trust_remote_code=trust.lower() == "true",
        system_prompt=text,
        parallel=parallel.lower() == "true",
        gpus=max(1, len(allocation.gpus)),
    )
    log = LOGS / f"lighteval_{allocation.job or 'local'}_{file_name(benchmark)}.log"
    step = Step(benchmark, tuple(command), log)
    rows = [("benchmark", benchmark), ("GPUs", gpu_names(allocation.gpus)), ("results", str(output))]
    if not dry and shutil.which(command[0]) is None:
        raise UsageError(
            f"LIGHTEVAL={command[0]}: there is no such program; name that of LightEval's environment"
        )
    text = table("LightEval", [*rows, ("command", shown_words(command, environ))])
    run = partial(run_queue, [step], [allocation.gpus], allocation.job)
    return carry_out(text, environ, run, dry_run=dry)
