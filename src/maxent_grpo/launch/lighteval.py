"""LightEval's benchmarks and the jobs that run them, here or by Slurm.

LightEval pins packages that this one needs newer, so it lives in an environment of its own (`INSTALL`) and is started
as a program: the variable ``LIGHTEVAL`` names it. `tools/lighteval_jobs.py` is the command; result files land in the
tables of `tools/math_eval_table.py`.
"""

import base64
import json
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.models.location import model_location

Where = Literal["slurm", "local"]
Engine = Literal["vllm", "accelerate"]

TASKS = {
    "math_500": ("lighteval", "math_500"),
    "aime24": ("lighteval", "aime24"),
    "aime25": ("lighteval", "aime25"),
    "gpqa": ("lighteval", "gpqa:diamond"),
    "lcb": ("extended", "lcb:codegeneration"),
    "lcb_v4": ("extended", "lcb:codegeneration_v4"),
}
"""Benchmark → LightEval's suite and task."""

LARGE = 30e9  # parameters from which a model is spread over the GPUs
SMALL_MODEL_GPUS = 2
MOST_GPUS = 8
WIDTH = 64
"""vLLM cuts a model's heads, and the vocabulary in blocks of this many, into equal parts."""

LENGTH = 32768
"""Tokens of prompt and answer together, for models that reason at length."""

INSTALL = "'lighteval==0.13.0' 'huggingface_hub<2' 'xxhash<4'"
"""Arguments of pip. LightEval 0.13.0 bounds neither of the other two and does not run with their newest releases."""

ANSWERS = "~/.cache/huggingface/lighteval"
"""LightEval's cache of the answers of models, by name and settings."""

SCRIPT = Path("ops/slurm/evaluate.slurm")
RESULTS = Path("var/artifacts/lighteval")
_SIZE = re.compile(r"(?<![\w.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class BenchmarkJob:
    """One benchmark of one model."""

    benchmark: str
    command: tuple[str, ...]

    @property
    def shown(self) -> str:
        """The command as a shell takes it."""
        return shlex.join(self.command)


def benchmark_spec(name: str) -> str:
    """``math_500`` → ``lighteval|math_500|0|0``: suite, task, no examples, no shortening of them."""
    if name not in TASKS:
        raise UsageError(f"benchmark {name!r}: unknown; there are all, {', '.join(TASKS)}")
    suite, task = TASKS[name]
    return f"{suite}|{task}|0|0"


def task_argument(spec: str) -> str:
    """A spec as LightEval 0.13 takes it: ``lighteval|math_500|0|0`` → ``math_500|0``. What has fewer parts stays."""
    return ",".join(
        "|".join(part.split("|")[1:3]) if part.count("|") == 3 else part for part in spec.split(",")
    )


def expand(names: Sequence[str]) -> list[str]:
    """``["all"]`` as every benchmark; others checked. Raises `UsageError`."""
    chosen = list(TASKS) if list(names) == ["all"] else list(dict.fromkeys(names))
    for name in chosen:
        benchmark_spec(name)
    if not chosen:
        raise UsageError(f"no benchmark is named: all, or some of {', '.join(TASKS)}")
    return chosen


def parameter_count(model: str) -> float | None:
    """Parameters of a model: counted in a local folder's safetensors, else read from a name such as ``Qwen2.5-1.5B``.

    None where neither says.
    """
    folder = Path(model_location(model))
    if folder.is_dir():
        counted = sum(map(_parameters_in, folder.glob("*.safetensors")))
        return float(counted) or None
    sizes = [
        float(experts or 1) * float(size) * (1e9 if unit.lower() == "b" else 1e6)
        for experts, size, unit in _SIZE.findall(model.replace("_", "-"))
    ]
    return max(sizes, default=None)


def _parameters_in(path: Path) -> int:
    """From the header alone: its length in 8 bytes, then JSON with every tensor's shape."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def gpus_that_fit(wanted: int, heads: int) -> int:
    """The largest number of GPUs up to ``wanted`` that divides ``heads`` and 64, over which vLLM can cut a model."""
    return next(gpus for gpus in range(max(1, wanted), 0, -1) if heads % gpus == 0 and WIDTH % gpus == 0)


def attention_heads(model: str, revision: str, *, trust_remote_code: bool) -> int:
    """Of a local folder or a hub model. Raises `UsageError` where its configuration cannot be read."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            model_location(model), revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{model}: its number of heads decides over how many GPUs it goes, and its configuration cannot be read "
            f"({reason}); check the name, or give num_gpus"
        ) from error
    return int(config.get_text_config().num_attention_heads)


def gpu_flags(gpus: int, style: str) -> list[str]:
    """The flags by which a site's Slurm is asked for GPUs (``SLURM_GPU_FLAG_STYLE``). Raises `UsageError`."""
    flags = {"none": [], "gpus": [f"--gpus={gpus}"], "gres": [f"--gres=gpu:{gpus}"]}
    if style not in flags:
        raise UsageError(f"SLURM_GPU_FLAG_STYLE={style}: one of {', '.join(flags)}")
    return flags[style]


def plan_benchmark_jobs(
    benchmarks: Sequence[str],
    model: str,
    *,
    revision: str = "main",
    trust_remote_code: bool = False,
    system_prompt: str | None = None,
    num_gpus: int | None = None,
    where: Where = "slurm",
    backend: Engine = "vllm",
    extra: Sequence[str] = (),
    environ: Mapping[str, str],
) -> list[BenchmarkJob]:
    """LightEval's benchmarks of a model as jobs for Slurm, or for this machine. None is started.

    Args:
        benchmarks: names of `TASKS`, or ``["all"]``.
        system_prompt: what the model is told first; None: nothing.
        num_gpus: None: 2, or for models of 30 billion parameters and more as many as fit its heads, up to 8.
        extra: further arguments of ``evaluate.slurm``, or of LightEval here.
        environ: read for ``LIGHTEVAL`` and ``SLURM_GPU_FLAG_STYLE``.

    Raises:
        UsageError: an unknown benchmark, or settings that cannot work.
    """
    parallel = (parameter_count(model) or 0) >= LARGE
    gpus = num_gpus or SMALL_MODEL_GPUS
    if num_gpus is None and parallel:
        gpus = gpus_that_fit(MOST_GPUS, attention_heads(model, revision, trust_remote_code=trust_remote_code))
    if where == "slurm":
        flags = gpu_flags(gpus, environ.get("SLURM_GPU_FLAG_STYLE") or "gpus")
        switches = [str(parallel).lower(), str(trust_remote_code).lower()]
        # A text that survives every shell on the way.
        prompt = [base64.b64encode(system_prompt.encode()).decode()] if system_prompt else []

    def command(name: str) -> list[str]:
        spec = benchmark_spec(name)
        if where == "slurm":
            submit = ["sbatch", *flags, f"--job-name=lighteval-{name}", str(SCRIPT)]
            return [*submit, name, spec, model, revision, *switches, *prompt]
        return lighteval_command(
            shlex.split(environ.get("LIGHTEVAL") or "lighteval"),
            spec,
            model,
            revision,
            results_folder(model, revision, name),
            backend=backend,
            trust_remote_code=trust_remote_code,
            system_prompt=system_prompt,
            parallel=parallel,
            gpus=gpus,
        )

    return [BenchmarkJob(name, (*command(name), *extra)) for name in expand(benchmarks)]


def run_benchmark_jobs(
    benchmarks: Sequence[str],
    model: str,
    *,
    environ: Mapping[str, str],
    where: Where = "slurm",
    dry_run: bool = False,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> list[BenchmarkJob]:
    """Submit the jobs of `plan_benchmark_jobs`, which takes the same, or run them here one after the other.

    Args:
        dry_run: say the commands and start nothing.

    Raises:
        UsageError: an unknown benchmark, or a program that is not there.
        RunError: jobs that failed; the others were run.
    """
    jobs = plan_benchmark_jobs(benchmarks, model, environ=environ, where=where, **settings)
    if not dry_run:
        _refuse_missing_program(jobs[0], where)
    failed = []
    for job in jobs:
        say(f"{job.benchmark}: {job.shown}")
        if not dry_run and subprocess.run(job.command, env=dict(environ), check=False).returncode:
            failed.append(job.benchmark)
    if failed:
        raise RunError(f"{len(failed)} of {len(jobs)} LightEval jobs failed: {', '.join(failed)}")
    return jobs


def lighteval_command(
    program: Sequence[str],
    spec: str,
    model: str,
    revision: str,
    output: Path,
    *,
    backend: Engine = "vllm",
    trust_remote_code: bool = False,
    system_prompt: str | None = None,
    parallel: bool = False,
    gpus: int = 1,
) -> list[str]:
    """The command line of LightEval 0.13 for the tasks of ``spec``.

    With vLLM the model is spread over ``gpus`` GPUs where ``parallel``, else each holds a copy. Raises `UsageError` for
    a system prompt that a command line cannot carry.
    """
    if system_prompt and "," in system_prompt:  # it is among LightEval's key=value,…
        raise UsageError(
            "system_prompt: LightEval takes it on the command line, where a comma ends it; use a text without one"
        )
    location = model_location(model)
    settings = {"model_name": location, "revision": revision} | _answers_of(location)
    if trust_remote_code:
        settings["trust_remote_code"] = "true"
    if backend == "vllm":
        settings |= {
            "dtype": "bfloat16",
            "tensor_parallel_size" if parallel else "data_parallel_size": str(gpus),
            "max_model_length": str(LENGTH),
            "max_num_batched_tokens": str(LENGTH),
            "gpu_memory_utilization": "0.8",
            "generation_parameters": f"{{max_new_tokens:{LENGTH},temperature:0.6,top_p:0.95}}",
        }
    if system_prompt:
        settings["system_prompt"] = system_prompt
    described = ",".join(f"{key}={value}" for key, value in settings.items())
    saved = ["--output-dir", str(output), "--save-details"]
    return [*program, backend, described, task_argument(spec), *saved]


def _answers_of(model: str) -> dict[str, str]:
    """The setting that keeps LightEval from giving a local folder's old answers to new weights.

    Its cache knows a model by name and settings alone; the time of the newest weights makes them other settings.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return {}
    weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    return {"cache_dir": f"{ANSWERS}/{max((path.stat().st_mtime_ns for path in weights), default=0)}"}


def _refuse_missing_program(job: BenchmarkJob, where: Where) -> None:
    program = job.command[0]
    if shutil.which(program) is None:
        remedy = (
            "submit where Slurm is, or run with --local"
            if where == "slurm"
            else "make it an environment of its own (python -m venv var/venv-lighteval; "
            f"var/venv-lighteval/bin/pip install {INSTALL}) and set LIGHTEVAL=var/venv-lighteval/bin/lighteval"
        )
        raise UsageError(f"{program}: there is no such program here; {remedy}")
    if where == "slurm" and not SCRIPT.is_file():
        raise UsageError(f"{SCRIPT}: not here; submit from the root of the repository")


def results_folder(model: str, revision: str, benchmark: str) -> Path:
    """The folder in which a job leaves its results."""
    return RESULTS.joinpath(*(file_name(part) for part in (model, revision, benchmark)))


def file_name(text: str) -> str:
    """``text`` as the name of a file: what could not be one is an underscore."""
    return re.sub(r"[^\w.-]+", "_", text)
