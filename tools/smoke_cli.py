"""The whole way, offline, with the real components on the bundled tiny policy, in a few minutes on a CPU:

generation (a local OpenAI-compatible server) → GRPO on the generated rows → MaxEnt-GRPO from GRPO's policy →
evaluation of both → checks of their records. Ends with exit code 1 at the first stage that fails.

    python tools/smoke_cli.py [--output-dir var/smoke]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "configs" / "recipes" / "tiny"
PROMPTS = 16
STEPS = 3
STARTUP_SECONDS = 120


class Failed(Exception):
    """A stage failed; the message says which, and where its log is."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output-dir", type=Path, default=ROOT / "var" / "smoke", help="emptied first (var/smoke)"
    )
    output = parser.parse_args(arguments).output_dir.resolve()
    if output.exists() and any(output.iterdir()) and not (output / "rows.jsonl").exists():
        print(f"smoke: {output} holds something else; choose another --output-dir", file=sys.stderr)
        return 2
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    started = time.monotonic()
    try:
        run_stages(output)
    except Failed as failure:
        print(f"smoke: {failure}", file=sys.stderr)
        return 1
    print(f"smoke: all stages passed in {time.monotonic() - started:.0f} s; everything is in {output}")
    return 0


def run_stages(output: Path) -> None:
    """All stages, in order. Raises `Failed`."""
    rows = write_rows(output / "rows.jsonl")
    with server(output / "server.log") as address:
        stage(
            "generation",
            output,
            ["-m", "maxent_grpo.generate", "--hf-dataset", str(rows), "--prompt-column", "problem",
             "--model", "bundled:tiny-policy", "--vllm-server-url", address, "--max-new-tokens", "16",
             "--num-generations", "2", "--temperature", "1.0", "--output-dir", str(output / "generated")],
        )  # fmt: skip
    generated = output / "generated" / "rows.jsonl"
    made = [json.loads(line) for line in generated.read_text().splitlines()]
    if len(made) != PROMPTS or not all(len(row["generation"]) == 2 for row in made):
        raise Failed(f"generation: {generated} does not hold two completions of each of {PROMPTS} rows")
    train("grpo", "maxent_grpo.grpo", "grpo", "bundled:tiny-policy", generated, output)
    train("maxent", "maxent_grpo.maxent_grpo", "maxent-grpo", str(output / "grpo"), generated, output)
    specs = ",".join(f'{{model_name_or_path:"{output / name}",label:{name}}}' for name in ("grpo", "maxent"))
    stage(
        "evaluation",
        output,
        ["-m", "maxent_grpo.cli.main", "command=math-eval", f"inference.models=[{specs}]",
         "inference.dataset=graph_coloring", "inference.seeds=[0]", "inference.num_generations=4",
         "inference.temperature=1.0", "inference.limit=8", f"inference.artifacts.root_dir={output / 'artifacts'}"],
    )  # fmt: skip
    lines = [path.read_text().splitlines() for path in sorted((output / "artifacts").rglob("seed_0.jsonl"))]
    if [len(found) for found in lines] != [8, 8]:
        raise Failed(f"evaluation: {output / 'artifacts'} does not hold 8 prompts of each of 2 policies")
    checks = ["--pattern", str(output / "grpo"), "--pattern", str(output / "maxent"), "--require-logs"]
    stage("records", output, [str(ROOT / "tools" / "validate_training_logs.py"), *checks])


def write_rows(path: Path) -> Path:
    """Prompts of the graph colouring task, with the facts that its reward reads."""
    from maxent_grpo.tasks.registry import load_rows

    rows = load_rows("graph_coloring", "train", f"train_size={PROMPTS},eval_size={PROMPTS}")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(name: str, module: str, folder: str, model: str, rows: Path, output: Path) -> None:
    """A few steps of the tiny recipe on ``rows``. Raises `Failed` where no policy, or not every step, is there."""
    stage(
        name,
        output,
        ["-m", module, "--config", str(RECIPES / folder / "config_graph_coloring.yaml"),
         "--model_name_or_path", model, "--dataset_name", str(rows), "--max_steps", str(STEPS),
         "--per_device_train_batch_size", "64", "--eval_strategy", "no", "--eval_on_start", "false",
         "--output_dir", str(output / name)],
    )  # fmt: skip
    records = [json.loads(line) for line in (output / name / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "train/loss" in record]
    if steps != list(range(1, STEPS + 1)) or not (output / name / "model.safetensors").is_file():
        raise Failed(f"{name}: steps {steps} were recorded, or no policy was saved, in {output / name}")


def stage(name: str, output: Path, words: Sequence[str]) -> None:
    """Run Python with ``words``, its output in ``<name>.log``. Raises `Failed`."""
    log, started = output / f"{name}.log", time.monotonic()
    with log.open("wb") as file:
        code = subprocess.run(
            [sys.executable, *words], stdout=file, stderr=file, env=environment()
        ).returncode
    if code:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise Failed(f"{name} ended with exit code {code}; the end of {log}:\n{tail}")
    print(f"smoke: {name} passed in {time.monotonic() - started:.0f} s", flush=True)


@contextmanager
def server(log: Path) -> Iterator[str]:
    """The tiny policy behind an OpenAI-compatible endpoint on a free port; its address."""
    command = [sys.executable, str(ROOT / "tools" / "tiny_openai_server.py"), "--port", "0"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, env=environment(), text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()  # once the model is loaded; empty where the server ended
        if not address.startswith("http"):
            raise Failed(f"the server did not start: {log}")
        yield address
    finally:
        process.terminate()
        process.wait(STARTUP_SECONDS)


def environment() -> dict[str, str]:
    """Offline, with caches under ``var/`` and as many threads as there are cores."""
    cores = str(os.cpu_count() or 1)
    caches = {"HF_HOME": str(ROOT / "var" / "cache" / "huggingface")}
    return (
        os.environ
        | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", cores)}
        | caches
    )


if __name__ == "__main__":
    sys.exit(main())
